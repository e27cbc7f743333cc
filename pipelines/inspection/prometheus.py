"""What Prometheus reads about runs: a file for node_exporter's textfile collector, or an HTTP endpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...shared.errors import UserError
from ..base.install import install_line
from .status import STATES, Status, find_runs, status

PREFIX = "polymodal_run_"
_GAUGES: Mapping[str, tuple[str, Callable[[Status], Any]]] = {
    "update": ("Updates made.", lambda s: s.update),
    "max_updates": ("Updates that the recipe asks for.", lambda s: s.max_updates),
    "update_seconds": ("Seconds of an update, lately.", lambda s: s.step_s),
    "remaining_seconds": ("Seconds until the last update at this speed; only while it runs.", lambda s: s.eta_s),
    "checkpoint_update": ("Updates in the newest checkpoint.", lambda s: s.checkpoint),
    "checkpoint_age_seconds": ("Since the newest checkpoint was written.", lambda s: s.checkpoint_age_s),
    "log_age_seconds": ("Since the last line of metrics.jsonl.", lambda s: s.log_age_s),
    "starts": ("How often it was started.", lambda s: s.starts),
    "skipped_samples": ("Samples that were left out.", lambda s: s.skipped),
}


class Collector:
    """Reads the runs anew whenever it is asked: runs may come and go."""

    def __init__(self, directories: Sequence[Path]) -> None:
        """Of runs, or folders that hold runs."""
        self._directories = directories

    def collect(self) -> Iterable[Any]:
        """Every metric family, as prometheus_client wants them."""
        from prometheus_client.core import GaugeMetricFamily

        found = [status(path) for path in find_runs(self._directories)]
        info = GaugeMetricFamily(f"{PREFIX}info", "What the run is; always 1.", labels=["run", "recipe", "system"])
        states = GaugeMetricFamily(f"{PREFIX}state", f"1 for the state that it is in: {', '.join(STATES)}.", labels=["run", "state"])
        for one in found:
            info.add_metric([one.run, one.recipe, one.system], 1)
            for state in STATES:
                states.add_metric([one.run, state], state == one.state)
        yield info
        yield states
        readable = [one for one in found if one.state != "broken"]
        for name, (about, value) in _GAUGES.items():
            family = GaugeMetricFamily(PREFIX + name, about, labels=["run"])
            for one in readable:
                if (number := value(one)) is not None:
                    family.add_metric([one.run], number)
            yield family
        measured = GaugeMetricFamily(f"{PREFIX}metric", "The last line of metrics.jsonl, by split and name.",
                                     labels=["run", "split", "name"])
        for one in readable:
            for split, row in (("train", one.train), ("eval", one.eval)):
                for name, number in (row or {}).items():
                    if isinstance(number, (int, float)):
                        measured.add_metric([one.run, split, name], number)
        yield measured


def _registry(directories: Sequence[Path]) -> Any:
    try:
        from prometheus_client import CollectorRegistry
    except ImportError:
        raise UserError(f"metrics for Prometheus need prometheus_client: {install_line('prometheus')}") from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(directories))  # type: ignore[arg-type]
    return registry


def write_textfile(directories: Sequence[Path], out: Path) -> None:
    """Write the metrics of runs to a file, whole or not at all; its name must end in .prom, as node_exporter reads no others."""
    if out.suffix != ".prom":
        raise UserError(f"--textfile is {out}: node_exporter reads files whose name ends in .prom")
    registry = _registry(directories)
    from prometheus_client import write_to_textfile

    write_to_textfile(str(out), registry)


def serve(directories: Sequence[Path], host: str, port: int, ready: Callable[[str], None]) -> None:
    """Answer Prometheus at http://HOST:PORT/metrics until the process is interrupted; `ready` is told the address."""
    registry = _registry(directories)
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise UserError(f"--serve {host}:{port} cannot be opened ({error.strerror or error}): use another port") from None
    ready(f"http://{host}:{server.server_port}/metrics")
    try:
        while thread.is_alive():
            time.sleep(0.5)
    finally:
        server.shutdown()
