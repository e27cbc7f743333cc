"""Samples of tars that have no index, through webdataset's own pipeline: shards dealt to ranks and workers, and a shuffle buffer.

What that cannot promise is said once: no exact order, no state to continue from, and ranks and workers that end at different times.
"""

from __future__ import annotations

import contextlib
import itertools
import lzma
import tarfile
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate
from webdataset.filters import detshuffle
from webdataset.gopen import gopen_pipe
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import SimpleShardList, expand_urls, split_by_node, split_by_worker
from webdataset.tariterators import group_by_keys, tar_file_expander

from ....shared.errors import UserError
from ....shared.sample import Sample
from ..loader import Mistake, prepare_worker
from .decode import Decoder, decoded

PROMISE = ("{source} has no index: shards go through webdataset's pipeline. Its order depends on ranks and workers, ranks may get "
           "different numbers of samples, and there is no state to continue from. stream(DIR) has all that after `polymodal index DIR`")


class WeakSamples(IterableDataset[Any]):
    """Samples of shards that can only be read from beginning to end; see `polymodal.stream` for the arguments."""

    def __init__(self, urls: list[str], decoder: Decoder, *, seed: int, shuffle: bool, window: int, epochs: int | None, on_bad: str,
                 allow_pipe: bool, rank: int | None, world_size: int | None) -> None:
        super().__init__()
        self._urls, self._decoder, self._on_bad = urls, decoder, on_bad
        if (rank is None) != (world_size is None):
            raise UserError("rank and world_size go together: give both, or neither")
        self._ranks = None if rank is None or world_size is None else (rank, world_size)
        self._seed, self._epochs = seed, epochs
        _check(urls, allow_pipe)
        self._epoch = 0
        self._window = window if shuffle else 0
        name = urls[0] if len(urls) == 1 else f"{urls[0]} ... {urls[-1]}"
        warnings.warn(PROMISE.format(source=name), stacklevel=3)

    def __iter__(self) -> Iterator[Any]:
        """The samples of this rank and worker, epoch after epoch."""
        for epoch in itertools.count(self._epoch) if self._epochs is None else range(self._epoch, self._epochs):
            found = False
            for item in self._one_epoch(epoch):
                found = True
                yield item
            if not found:
                raise UserError(f"a rank or worker has no sample, because {len(self._urls)} shards are dealt to all of them: use fewer "
                                "workers, or more shards")

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch, counted from 0: it is shuffled in its own way."""
        if epoch < 0:
            raise UserError(f"epoch is {epoch}, expected 0 or more")
        self._epoch = epoch

    def _of_rank(self, shards: Iterable[Any]) -> Iterable[Any]:
        return split_by_node(shards) if self._ranks is None else itertools.islice(shards, self._ranks[0], None, self._ranks[1])

    def _one_epoch(self, epoch: int) -> Iterator[Any]:
        seed = self._seed + 1000003 * epoch
        stages: list[Any] = [SimpleShardList(self._urls, seed=seed if self._window else None), self._of_rank,
                             split_by_worker, _opened, tar_file_expander, group_by_keys]
        if self._window:
            stages.append(detshuffle(self._window, seed=seed))
        for raw in _told(cast("Iterable[dict[str, Any]]", DataPipeline(*stages))):
            fields = {name: value for name, value in raw.items() if isinstance(value, bytes)}
            sample = Sample(raw["__key__"], fields, source=raw["__url__"])
            yield from decoded([sample], [raw["__url__"]], self._decoder, self._on_bad)

    def loader(self, batch_size: int, *, num_workers: int = 0, steps: int | None = None,
               collate_fn: Callable[[list[Any]], Any] = default_collate, prefetch_factor: int = 2,
               pin_memory: bool = False) -> Iterable[Any]:
        """Batches; the arguments are those of `ExactSamples.loader`."""
        made: DataLoader[Any] = DataLoader(
            _Guarded(self), batch_size, num_workers=num_workers, collate_fn=partial(_collated, collate_fn), pin_memory=pin_memory,
            prefetch_factor=prefetch_factor if num_workers else None, worker_init_fn=prepare_worker, generator=torch.Generator())
        return _Batches(made, steps)

    def state_dict(self) -> dict[str, Any]:
        """There is none."""
        raise UserError("this stream has no state to continue from, because its shards have no index: `polymodal index DIR`, then "
                        "stream(DIR)")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is none."""
        self.state_dict()


class _Guarded(IterableDataset[Any]):
    """The samples; a user's error becomes a value: an exception that crosses processes carries a traceback in its text."""

    def __init__(self, samples: WeakSamples) -> None:
        super().__init__()
        self._samples = samples

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._samples
        except UserError as error:
            yield Mistake(str(error))


def _collated(collate: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    return items[-1] if isinstance(items[-1], Mistake) else collate(items)


class _Batches:
    """The batches of a loader, at each iteration at most `steps`."""

    def __init__(self, loader: DataLoader[Any], steps: int | None) -> None:
        self._loader, self._steps = loader, steps

    def __iter__(self) -> Iterator[Any]:
        for batch in itertools.islice(self._loader, self._steps):
            if isinstance(batch, Mistake):
                raise UserError(batch.message)
            yield batch


def expand(source: str | Iterable[str]) -> list[str]:
    """The addresses that braces and `::` stand for."""
    return [url for text in ([source] if isinstance(source, str) else source) for url in expand_urls(str(text))]


def _check(urls: list[str], allow_pipe: bool) -> None:
    for url in urls:
        scheme = url.partition(":")[0] if "://" in url or url.startswith("pipe:") else ""
        if scheme == "pipe" and not allow_pipe:
            raise UserError(f"{url!r} runs a command: pass allow_pipe=True if you trust where it comes from")
        if scheme not in ("", "pipe", "http", "https", "file"):
            raise UserError(f"{url} cannot be read without an index: stream a folder's address after `polymodal index`, "
                            "or a command that writes the tar to its output (pipe:..., with allow_pipe=True)")
        if not scheme and not Path(url).is_file():
            raise UserError(f"{url}: no such file")


def _told(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The samples; a shard that cannot be read is a user's error."""
    try:
        yield from samples
    except (OSError, tarfile.TarError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
        # webdataset puts the address behind what the error says
        what, *_, url = error.args if len(error.args) > 1 else (error, "a shard")
        raise UserError(f"{url} cannot be read: {what}") from None


def _opened(urls: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each shard's bytes. Addresses are opened here: webdataset would hand them to a shell."""
    for entry in urls:
        url = entry["url"]
        try:
            stream = _open(url)
        except OSError as error:
            raise UserError(f"{url} cannot be read: {error}") from None
        with contextlib.closing(stream):
            whole = _Tail(stream)
            yield {**entry, "stream": whole}
            if not whole.ended:
                raise UserError(f"{url} ends before its end mark: it was cut; fetch it again")


class _Tail:
    """A shard's bytes, and whether they end as a tar does. (tarfile reads one that was cut between members without a word.)"""

    _PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
    """What compressed tars begin with: those complain themselves."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._first = self._last = b""

    def read(self, size: int = -1) -> bytes:
        """As the stream does."""
        data: bytes = self._stream.read(size)
        self._first = self._first or data[:6]
        self._last = (self._last + data[-512:])[-512:]
        return data

    @property
    def ended(self) -> bool:
        """Whether an empty block was the last thing read."""
        return self._first.startswith(self._PACKED) or not any(self._last)


def _open(url: str) -> Any:
    if url.startswith("pipe:"):
        return gopen_pipe(url, "rb")
    if url.startswith(("http://", "https://")):
        return urllib.request.urlopen(url, timeout=60)
    return Path(url.removeprefix("file://")).open("rb")
