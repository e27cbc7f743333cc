"""Options that several commands have, with one wording."""

from __future__ import annotations

from typing import Annotated

import typer

DataOnBad = Annotated[str, typer.Option(help="With --data: raise stops at a sample that cannot be used; skip leaves it out and counts it.")]
DataWorkers = Annotated[int | None, typer.Option(min=1, help="With --data: processes, or workers of the cluster, each with the model. "
                                                 "Default: one for each core, or GPU.")]
DataOn = Annotated[str, typer.Option(metavar="local|ray", help="With --data: processes here, or a Ray cluster.")]
RayAddress = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The cluster's head. Default: the cluster of this machine.")]
Quantize = Annotated[str | None, typer.Option(metavar="int8", help="Fewer bits for the weights: faster on CPUs, not exact.")]
