"""`polymodal pretrain`, `polymodal finetune` and `polymodal export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

ORDER = 40


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("pretrain")(pretrain)
    app.command("finetune")(finetune)
    app.command("export")(export)


RecipeName = Annotated[str, typer.Argument(help="A recipe's name (gpt2-tiny, bert-base, clip-tiny ...) or a YAML file.")]
Data = Annotated[list[str], typer.Option(help="Data set (directory or URL); several make a mixture: DIR=WEIGHT each.")]
Out = Annotated[Path, typer.Option(help="The run's directory: new, empty, or a run to continue.")]
EvalData = Annotated[str | None, typer.Option(help="Held-out data set.")]
TokenizerPath = Annotated[str | None, typer.Option(help="Tokenizer. Default: the model's, or the one in the data set.")]
MaxUpdates = Annotated[int | None, typer.Option(help="Length of the run; the schedule follows.")]
MaxSeconds = Annotated[float | None, typer.Option(help="End cleanly after this time; the schedule does not follow.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, order and every draw.")]
Devices = Annotated[int | None, typer.Option(help="Processes on this machine; more than one trains with DDP.")]
Resume = Annotated[str, typer.Option(metavar="auto|never|CHECKPOINT", help="Where to continue.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a value of the recipe; repeatable.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would happen, write nothing.")]
Profile = Annotated[bool, typer.Option("--profile", help="Write a trace of three updates, after five others, into the run.")]
Json = Annotated[bool, typer.Option("--json", help="Last line on stdout is one JSON object.")]


def pretrain(
    recipe: RecipeName, data: Data, out: Out,
    model: Annotated[str | None, typer.Option(help="Go on from these weights: model directory, run, checkpoint or hub id.")] = None,
    eval_data: EvalData = None, tokenizer: TokenizerPath = None, max_updates: MaxUpdates = None, max_seconds: MaxSeconds = None,
    seed: Seed = None, devices: Devices = None, resume: Resume = "auto", set_: Set = None, dry_run: DryRun = False,
    profile: Profile = False, json: Json = False,
) -> None:
    """Pretrain a system. A run that was stopped or killed continues when the same command is given again."""
    train(recipe, data, out, model=model, eval_data=eval_data, tokenizer=tokenizer, max_seconds=max_seconds, resume=resume,
          dry_run=dry_run, profile=profile, json=json, overrides=list(set_ or []),
          keys={"seed": seed, "devices": devices, "max_updates": max_updates})


def finetune(
    recipe: RecipeName, data: Data, out: Out,
    model: Annotated[str, typer.Option(help="The weights to start from: model directory, run, checkpoint or hub id.")],
    eval_data: EvalData = None, tokenizer: TokenizerPath = None, max_updates: MaxUpdates = None, max_seconds: MaxSeconds = None,
    seed: Seed = None, devices: Devices = None, resume: Resume = "auto", set_: Set = None, dry_run: DryRun = False,
    profile: Profile = False, json: Json = False,
) -> None:
    """Fine-tune a trained network (bert-classify, t5-text2text ...). The same command again continues a run that was stopped."""
    train(recipe, data, out, model=model, eval_data=eval_data, tokenizer=tokenizer, max_seconds=max_seconds, resume=resume,
          dry_run=dry_run, profile=profile, json=json, overrides=list(set_ or []),
          keys={"seed": seed, "devices": devices, "max_updates": max_updates})


def train(recipe: str, data: list[str], out: Path, *, overrides: list[str], keys: dict[str, int | None], json: bool,
          **options: Any) -> None:
    """Resolve the recipe and run it; `keys` are shorthands for the recipe's own and win over `overrides`."""
    from ..base.console import Console
    from ..run.recipe import recipe as resolve
    from ..train.loop import pretrain as run

    console = Console(json=json)
    overrides = overrides + [f"{key}={value}" for key, value in keys.items() if value is not None]
    result = run(resolve(recipe, overrides), _mixture(data), out, console=console, **options)
    if result["rank"] == 0:
        console.finish(result)


def _mixture(data: list[str]) -> str | list[tuple[str, float]]:
    """One data set, or a mixture of DIR=WEIGHT (weight 1 where none is given)."""
    from ...shared.errors import UserError

    parts: list[tuple[str, float]] = []
    for text in data:
        name, equals, weight = text.rpartition("=")
        if not equals or Path(text).exists() or ("://" in text and not _number(weight)):  # a query string has equal signs, too
            name, weight = text, "1"
        try:
            parts.append((name, float(weight)))
        except ValueError:
            raise UserError(f"--data {text}: expected DIR or DIR=WEIGHT with a number") from None
    return parts[0][0] if len(parts) == 1 else parts


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def export(
    source: Annotated[Path, typer.Argument(help="A run, or one of its checkpoints (RUN/checkpoints/update-...).")],
    out: Annotated[Path, typer.Option(help="New directory.")],
    format: Annotated[str | None, typer.Option(metavar="transformers|open_clip|timm", help="Layout. Default: the family's own.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Last line on stdout is one JSON object.")] = False,
) -> None:
    """Write a run's network as a directory that the reference library loads."""
    from ..base.console import Console
    from ..model.export import export as run

    console = Console(json=json)
    written = run(source, out, format)
    console.finish({"out": str(written), "files": sorted(p.name for p in written.iterdir())}, text=f"wrote {written}")
