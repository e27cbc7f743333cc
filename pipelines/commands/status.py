"""`polymodal status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..base.options import Json

ORDER = 43


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Runs, or folders with runs in them.")],
    textfile: Annotated[Path | None, typer.Option(
        metavar="FILE.prom", help="Also write metrics for Prometheus to a file for node_exporter's textfile collector.")] = None,
    serve: Annotated[str | None, typer.Option(
        metavar="[HOST:]PORT", help="Answer Prometheus under /metrics until interrupted. Default host: 127.0.0.1.")] = None,
    json: Json = False,
) -> None:
    """Show how runs are: state, update, loss, speed, time left, newest checkpoint, and what went wrong."""
    from ...shared.errors import UserError
    from ..base.console import Console
    from ..inspection import prometheus
    from ..inspection.status import find_runs, lines
    from ..inspection.status import status as read

    console = Console(json=json)
    found = [read(path) for path in find_runs(directories)]
    if textfile is not None:
        prometheus.write_textfile(directories, textfile)
    if serve is not None:
        host, _, port = serve.rpartition(":")
        if not (port.isdecimal() and int(port) < 65536):
            raise UserError(f"--serve is {serve!r}, expected a port such as 9400, or HOST:PORT")
        prometheus.serve(directories, host or "127.0.0.1", int(port),
                         lambda address: console.say(f"metrics of {len(found)} runs at {address}"))
    console.finish({"runs": [one.to_dict() for one in found]}, "\n".join(lines(found)))
