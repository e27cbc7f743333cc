"""`polymodal pretrain` and `polymodal export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ORDER = 40


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("pretrain")(pretrain)
    app.command("export")(export)


def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (gpt2-tiny, bert-base, clip-tiny ...) or a YAML file.")],
    data: Annotated[list[str], typer.Option(help="Data set (directory or URL); several make a mixture: DIR=WEIGHT each.")],
    out: Annotated[Path, typer.Option(help="The run's directory: new, empty, or a run to continue.")],
    eval_data: Annotated[str | None, typer.Option(help="Held-out data set.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer. Default: the one in the data set.")] = None,
    max_updates: Annotated[int | None, typer.Option(help="Length of the run; the schedule follows.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="End cleanly after this time; the schedule does not follow.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and every draw.")] = None,
    devices: Annotated[int | None, typer.Option(help="Processes on this machine; more than one trains with DDP.")] = None,
    resume: Annotated[str, typer.Option(metavar="auto|never|CHECKPOINT", help="Where to continue.")] = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a value of the recipe; repeatable.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would happen, write nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Last line on stdout is one JSON object.")] = False,
) -> None:
    """Pretrain a system. A run that was stopped or killed continues when the same command is given again."""
    from ..console import Console
    from ..recipe import recipe as resolve
    from ..train import pretrain as run

    console = Console(json=json)
    overrides = list(set_ or [])
    # options are shorthands for the recipe's keys, and win over --set
    given = {"seed": seed, "devices": devices, "max_updates": max_updates}
    overrides += [f"{key}={value}" for key, value in given.items() if value is not None]
    result = run(resolve(recipe, overrides), _mixture(data), out, eval_data=eval_data, tokenizer=tokenizer, max_seconds=max_seconds,
                 resume=resume, dry_run=dry_run, console=console)
    if result["rank"] == 0:
        console.finish(result)


def _mixture(data: list[str]) -> str | list[tuple[str, float]]:
    """One data set, or a mixture of DIR=WEIGHT (weight 1 where none is given)."""
    from ...shared.errors import UserError

    parts: list[tuple[str, float]] = []
    for text in data:
        name, equals, weight = text.rpartition("=")
        if not equals or Path(text).exists():
            name, weight = text, "1"
        try:
            parts.append((name, float(weight)))
        except ValueError:
            raise UserError(f"--data {text}: expected DIR or DIR=WEIGHT with a number") from None
    return parts[0][0] if len(parts) == 1 else parts


def export(
    source: Annotated[Path, typer.Argument(help="A run, or one of its checkpoints (RUN/checkpoints/update-...).")],
    out: Annotated[Path, typer.Option(help="New directory.")],
    format: Annotated[str | None, typer.Option(metavar="transformers|open_clip|timm", help="Layout. Default: the family's own.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Last line on stdout is one JSON object.")] = False,
) -> None:
    """Write a run's network as a directory that the reference library loads."""
    from ..console import Console
    from ..export import export as run

    console = Console(json=json)
    written = run(source, out, format)
    console.finish({"out": str(written), "files": sorted(p.name for p in written.iterdir())}, text=f"wrote {written}")
