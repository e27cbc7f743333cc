"""`polymodal report`, `polymodal compare` and `polymodal demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..base.options import Json

ORDER = 60


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("report")(report)
    app.command("compare")(compare)
    app.command("demo")(demo)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, finished or still going.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    live: Annotated[bool, typer.Option("--live", help="Write it anew while the runs go on; a browser that shows it follows. Ends with the "
                                       "runs.")] = False,
    every: Annotated[float | None, typer.Option(metavar="SECONDS", help="Of --live: time between two pages. Default: 10.")] = None,
    json: Json = False,
) -> None:
    """Write one self-contained page about runs: curves, throughput, samples."""
    from ...shared.errors import UserError
    from ..base.console import Console

    console = Console(json=json)
    if live:
        from ..inspection.live import live as follow

        console.say(f"{out} shows the runs, and follows them until they end")
        result = follow(runs, out, 10.0 if every is None else every, console.say)
    else:
        from ..inspection.report import report as run

        if every is not None:
            raise UserError("--every is for --live: without it the page is written once")
        result = run(runs, out)
    console.finish(result, text=f"wrote {result['out']}")


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, finished or still going, of any systems.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("compare.html"),
    by: Annotated[str, typer.Option(metavar="updates|samples|tokens|seconds", help="What the curves are drawn over.")] = "updates",
    json: Json = False,
) -> None:
    """Compare runs on one self-contained page: results, settings that differ, held-out and training curves, samples side by side."""
    from ..base.console import Console
    from ..inspection.compare import compare as run
    from ..inspection.compare import lines

    result = run(runs, out, by)
    console = Console(json=json)
    for name, reason in result["broken"].items():
        console.warn(f"{name} is left out: {reason}")
    console.finish(result, "\n".join(lines(result)))


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
