"""`polymodal plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..base.options import EvalData, Json, RecipeName, RunTokenizer, Set

ORDER = 41


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(plan)


def plan(
    recipe: RecipeName,
    data: Annotated[list[str] | None, typer.Option(
        metavar="DATA", help="Data set (directory or URL); several make a mixture: DIR=WEIGHT each. "
                                                       "Without data the batch is made up, of samples of full length.")] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="The weights the run would start from.")] = None,
    eval_data: EvalData = None,
    tokenizer: RunTokenizer = None,
    out: Annotated[Path, typer.Option(help="Where the run would be written: its disk must hold a checkpoint.")] = Path(),
    nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(help="Ranks on each machine: one for each GPU.")] = 1,
    memory: Annotated[str | None, typer.Option(metavar="BYTES", help="Memory of a GPU, such as 80G: a run that takes more is refused, "
                                                                    "with the micro-batch that fits.")] = None,
    rate: Annotated[float | None, typer.Option(help="Samples a second of all ranks: gives the expected time.")] = None,
    tflops: Annotated[float | None, typer.Option(help="TFLOP/s that one rank reaches: gives the expected time.")] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Say what a run would read, compute and keep in memory, before any device works."""
    from ..base.console import Console
    from ..base.values import parse_mixture, parse_size
    from ..plan.plan import Cluster
    from ..plan.plan import plan as run
    from ..run.recipe import recipe as resolve

    console = Console(json=json)
    cluster = Cluster(nodes, gpus, None if memory is None else parse_size(memory, "--memory"), rate, tflops)
    result = run(resolve(recipe, list(set_ or [])), parse_mixture(data) if data else None, cluster, model=model, eval_data=eval_data,
                 tokenizer=tokenizer, out=out, console=console)
    console.finish(result)
