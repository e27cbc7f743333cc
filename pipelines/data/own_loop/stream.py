"""`polymodal.stream`: the exact stream without the rest of the library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ....shared.errors import UserError, raise_problems
from ..dataset import DataSet
from .decode import Decode, Decoder
from .exact import ExactSamples, OnBad
from .weak import WeakSamples, expand


def stream(
    source: str | Path | Sequence[str],
    *,
    seed: int = 0,
    shuffle: bool = True,
    lanes: int = 240,
    window: int = 4096,
    epochs: int | None = None,
    drop_last: bool = False,
    decode: Decode | None = "pil",
    fields: Sequence[str] | None = None,
    transform: Callable[[Any], Any] | None = None,
    on_bad: OnBad = "raise",
    rank: int | None = None,
    world_size: int | None = None,
    cache: str | Path | None = None,
    allow_pipe: bool = False,
) -> ExactSamples | WeakSamples:
    """The samples of a data set for a training loop of your own: a torch `IterableDataset` of WebDataset's dictionaries.

    Of indexed data (`polymodal pack` and `polymodal index` write the index) the order is exact: a function of the data, `seed`, `lanes` and
    `window`, the same on any number of ranks and workers, with each sample once in an epoch. `state_dict()` is one integer, from which
    `load_state_dict()` goes on, also on other ranks and workers. With workers, take `stream(...).loader(batch_size, num_workers=...)`.

    Tars without an index (names with braces, `pipe:` commands) go through webdataset's own pipeline, and a warning says what that lacks.

    Args:
        source: an indexed folder or its address (http, https, s3, gs); or tars: a path or address, with braces or `::` for several, a list
            of them, or `pipe:COMMAND`.
        seed: of the order.
        shuffle: False reads the samples as they lie.
        lanes: pieces of the data that are read side by side; best a multiple of every number of ranks.
        window: samples of a lane that are shuffled together; without an index, of the shuffle buffer.
        epochs: where the stream ends; None: never. An epoch's last samples may be one fewer on some ranks, see `drop_last`.
        drop_last: every rank gets equally many samples, up to `world_size` - 1 at the end of the last epoch are left out.
        decode: pictures as RGB `PIL.Image` ("pil") or uint8 [H, W, 3] ("rgb"), texts, JSON, numbers and arrays as such; None: bytes.
        fields: to get tuples of these fields ("jpg;png" takes the first that is there) in place of dictionaries.
        transform: applied to each dictionary or tuple, in the workers.
        on_bad: "raise" ends at a sample that cannot be read, "skip" leaves it out: of a batch of `loader`, whose ranks still hand out
            equally many batches, or of the samples one by one, which then are fewer on that rank.
        rank: number of this process; by default that of torch.distributed, or of the environment (RANK).
        world_size: number of processes; by default likewise (WORLD_SIZE).
        cache: where remote shards are kept; by default POLYMODAL_CACHE, or the user's cache folder.
        allow_pipe: whether `pipe:` commands may run.

    Raises:
        UserError: the source cannot be read, or an argument is wrong.
    """
    wrong = [f"{name} is {value}, expected at least 1" for name, value in (("lanes", lanes), ("window", window), ("epochs", epochs))
             if value is not None and value < 1]
    if on_bad not in ("raise", "skip"):
        wrong.append(f"on_bad is {on_bad!r}, expected 'raise' or 'skip'")
    raise_problems(wrong, "the stream cannot be set up")
    decoder = Decoder(decode, None if fields is None else tuple([fields] if isinstance(fields, str) else fields), transform)
    if _is_tars(source):
        if drop_last or cache is not None:
            raise UserError("drop_last and cache are for indexed data, and these tars have no index: leave them out")
        return WeakSamples(expand([str(source)] if isinstance(source, (str, Path)) else source), decoder, seed=seed, shuffle=shuffle,
                           window=window, epochs=epochs, on_bad=on_bad, allow_pipe=allow_pipe, rank=rank, world_size=world_size)
    assert isinstance(source, (str, Path))
    return ExactSamples(DataSet.open(source, cache=cache), decoder, seed=seed, shuffle=shuffle, lanes=lanes, window=window, epochs=epochs,
                        drop_last=drop_last, on_bad=on_bad, rank=rank, world_size=world_size)


def _is_tars(source: str | Path | Sequence[str]) -> bool:
    """Whether a source names tars, and not the folder of an index."""
    if not isinstance(source, (str, Path)):
        return True
    text = str(source)
    return text.startswith("pipe:") or any(mark in text for mark in ("{", "::")) or text.endswith((".tar", ".tar.gz", ".tgz"))
