"""`polymodal bench`: measured side by side with the peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..base.options import Json

ORDER = 70


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def bench(
        names: Annotated[list[str] | None, typer.Argument(
            metavar="[train|generate|serve|attention|stream|tokenize|startup|gpu]...", help="What to measure; by default all but gpu.",
            show_default=False)] = None,
        against: Annotated[str | None, typer.Option(
            metavar="PEER",
            help="The peer: transformers, plain-torch, open_clip, timm (each with -compiled, too), webdataset, tokenizers.")] = None,
        quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: only shows that everything runs and agrees.")] = False,
        device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where the models run.")] = "cpu",
        repetitions: Annotated[int, typer.Option(min=1, help="Timed repetitions of each side.")] = 5,
        seconds: Annotated[float | None, typer.Option(help="Start no further case after X seconds.")] = None,
        only: Annotated[str, typer.Option(metavar="NAME", help="Run the cases whose name contains this.")] = "",
        out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results there as JSON.")] = None,
        json: Json = False,
    ) -> int:
        """Measure speed and memory beside the peers, after checking that both compute the same thing."""
        from functools import partial

        from ..base.console import Console
        from ..bench.bench import run, save, stoppable
        from ..bench.case import Options

        console = Console(json)
        if names and "gpu" in names:
            device = "cuda"
        options = Options(device=device, quick=quick, against=against, repetitions=repetitions, seconds=seconds, only=only)
        with stoppable():
            record = run(names or [], options, console, None if out is None else partial(save, path=out))
        console.finish(record)
        return 0 if record["agreed"] else 1
