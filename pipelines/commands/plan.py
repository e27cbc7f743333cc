"""`polymodal plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ORDER = 41


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(plan)


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (gpt2-tiny, bert-base, clip-tiny ...) or a YAML file.")],
    data: Annotated[list[str] | None, typer.Option(help="Data set (directory or URL); several make a mixture: DIR=WEIGHT each. "
                                                       "Without data the batch is made up, of samples of full length.")] = None,
    model: Annotated[str | None, typer.Option(help="The weights the run would start from.")] = None,
    eval_data: Annotated[str | None, typer.Option(help="Held-out data set.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer. Default: the model's, or the one in the data set.")] = None,
    out: Annotated[Path, typer.Option(help="Where the run would be written: its disk must hold a checkpoint.")] = Path(),
    nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(help="Ranks on each machine: one for each GPU.")] = 1,
    memory: Annotated[str | None, typer.Option(metavar="BYTES", help="Memory of a GPU, such as 80G: a run that takes more is refused, "
                                                                    "with the micro-batch that fits.")] = None,
    rate: Annotated[float | None, typer.Option(help="Samples a second of all ranks: gives the expected time.")] = None,
    tflops: Annotated[float | None, typer.Option(help="TFLOP/s that one rank reaches: gives the expected time.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a value of the recipe; repeatable.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Last line on stdout is one JSON object.")] = False,
) -> None:
    """Say what a run would read, compute and keep in memory, before any device works."""
    from ..base.console import Console
    from ..plan.plan import Cluster
    from ..plan.plan import plan as run
    from ..run.recipe import recipe as resolve
    from .train import _mixture  # pyright: ignore[reportPrivateUsage]

    console = Console(json=json)
    cluster = Cluster(nodes, gpus, None if memory is None else _bytes(memory), rate, tflops)
    result = run(resolve(recipe, list(set_ or [])), _mixture(data) if data else None, cluster, model=model, eval_data=eval_data,
                 tokenizer=tokenizer, out=out, console=console)
    console.finish(result)


def _bytes(text: str) -> int:
    """A size such as 80G: binary units, the letter may be left out."""
    from ...shared.errors import UserError

    letter = text[-1:].upper()
    try:
        return int(float(text[:-1] if letter in "KMGT" else text) * (1024 ** ("KMGT".index(letter) + 1) if letter in "KMGT" else 1))
    except (ValueError, OverflowError):
        raise UserError(f"--memory {text!r} is no size: expected bytes, or a number such as 80G") from None
