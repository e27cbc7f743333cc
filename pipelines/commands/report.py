"""`polymodal report` and `polymodal demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..base.options import Json

ORDER = 60


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("report")(report)
    app.command("demo")(demo)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, finished or still going.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    json: Json = False,
) -> None:
    """Write one self-contained page about runs: curves, throughput, samples."""
    from ..base.console import Console
    from ..inspection.report import report as run

    result = run(runs, out)
    Console(json=json).finish(result, text=f"wrote {result['out']}")


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="New directory for data, runs and report.html.")] = Path("demo-out"),
    quick: Annotated[bool, typer.Option("--quick", help="A few updates of everything, to see that it works.")] = False,
    json: Json = False,
) -> None:
    """The main job on real input in under 5 minutes: pack, pretrain CLIP, GPT-2 and BERT, classify, kill, resume, report."""
    from ..base.console import Console
    from ..demo.demo import demo as run

    console = Console(json=json)
    root = context.find_root().command
    result = run(out, console, lambda words: root(list(words), prog_name="polymodal", standalone_mode=False), quick=quick)
    console.finish(result, text=f"the report is {result['report']}")
