"""What each start of a run leaves in environment.json, so that any of its updates can be looked at and made again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.dataset import DataSet
from ..data.stream import Stream
from ..run.recipe import Recipe
from .devices import choose_precision

if TYPE_CHECKING:
    from .fabric import Fabric


def started(recipe: Recipe, stream: Stream, held_out: DataSet | None, fabric: Fabric) -> dict[str, Any]:
    """The data and where it lies, the size of a micro-batch, the devices, and the recipe: all but the update that it began with.

    Addresses stand there without user names, passwords and signatures.
    """
    device = fabric.device.type
    return {"micro_batch": stream.layout.size, "device": device, "precision": choose_precision(recipe.precision, device),
            "data": [{**_source(data), "weight": weight} for data, weight in zip(stream.sets, stream.order.weights, strict=True)],
            "eval_data": None if held_out is None else _source(held_out), "recipe": recipe.to_dict()}


def _source(data: DataSet) -> Mapping[str, Any]:
    # a remote data set's name is its address without its secrets; a folder's is made whole, as a run may be looked at from elsewhere
    place = data.directory if data.remote else str(Path(data.directory).absolute())
    return {"source": place, "samples": len(data), "fingerprint": data.fingerprint}
