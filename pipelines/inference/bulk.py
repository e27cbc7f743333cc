"""A model over a whole data set: vectors or classes of every sample, in parts that workers make side by side.

1. The samples are cut into parts of one shard each, by the data set alone; a worker reads a part, runs the model and writes the results.
2. The parts are put one behind the other, in the order of the samples.

Finished parts stay in `.NAME.parts` beside the result until the end, so a killed run continues. On a CPU every worker computes with one
thread, so the bytes depend on the input, the options and the kind of processor, not on the number of workers or on where they run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save

from ..._version import __version__
from ...shared.errors import BadSample, UserError
from ...shared.sample import Sample
from ..base.console import Console
from ..base.files import temporary_path, write_atomic
from ..crew.crew import claim, crew, do_all, keep_same
from ..crew.pieces import Piece, Workers
from ..data.dataset import DataSet
from ..model.open import choose_device
from .embedded import keys_file, sha256_of, write_maker

_LISTED = 1000
_FORMAT = 1


class Runner(Protocol):
    """A loaded model that makes results of samples."""

    fingerprint: str
    """Hash of all that determines results apart from options: weights, tokenizer, class names."""
    together: int
    """Samples that are read and run together."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What lies beside an array of its results, of what made it (`embedded.Maker`)."""
        ...

    def prepare(self, sample: Sample) -> Any:
        """What the model takes of a sample; raises `BadSample`."""
        ...

    def run(self, items: list[Any]) -> dict[str, np.ndarray]:
        """Named results, each [N, ...] for N items."""
        ...

    def record(self, results: Mapping[str, np.ndarray], row: int) -> dict[str, Any]:
        """One sample's results as a line of jsonl."""
        ...


class Work(Protocol):
    """What is made of samples: a frozen dataclass of plain values, which travels to the workers."""

    @property
    def model(self) -> str:
        """Where the model is."""
        ...

    def open(self, device: str) -> Runner:
        """Load the model."""
        ...


@dataclass(frozen=True)
class Part:
    """A range of samples, all of one shard."""

    number: int
    begin: int
    end: int

    def file(self, folder: Path) -> Path:
        """Where its results are."""
        return folder / f"{self.number:06d}.safetensors"


@dataclass(frozen=True)
class Order:
    """What a worker is told about a run: plain values, the same for each part."""

    source: str
    """The folder or address that workers open the data set by."""
    content: str
    """The data set's fingerprint."""
    work: Work
    model: str
    """The runner's fingerprint."""
    device: str
    on_bad: str
    folder: Path
    """Where parts are written."""


@dataclass
class Done:
    """What a run over a data set made."""

    count: int
    """Samples with results."""
    bad: list[str]
    """Samples that could not be used, with reasons; at most a thousand of them."""
    bad_count: int
    shapes: dict[str, tuple[int, ...]]
    """The results' shapes for one sample."""


def run_over(data: DataSet, source: str, work: Work, out: Path, *, array: str | None, device: str | None = None, on_bad: str = "raise",
             workers: Workers | None = None, console: Console | None = None) -> Done:
    """Run a model over a data set and write one file.

    Args:
        data: the data set.
        source: the folder or address that workers open it by.
        work: what is made of its samples.
        out: the file; replaced in one step when all is done. Beside one in `.npy` lies what `embedded` says.
        array: the result that a `.npy` file [N, ...] holds; else every sample is a line of jsonl.
        device: of every worker; each takes a GPU of its own where it is ``cuda``. By default a GPU of this machine if there is one; on a
            cluster the CPU.
        on_bad: ``raise`` stops at a sample that cannot be used, ``skip`` counts and lists such samples.
        workers: how many, and where they run.
        console: where progress goes; silent by default.
    """
    console = console or Console(quiet=True)
    if on_bad not in ("raise", "skip"):
        raise UserError(f"on_bad is {on_bad!r}, expected raise or skip")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first")
    if data.index.kind == "tokens":
        raise UserError(f"{data.directory} holds rows of tokens, which are pieces of several texts: pack the texts without --tokenize")
    workers = workers or Workers()
    device = choose_device(device) if workers.on == "local" else device or "cpu"  # a cluster's devices are not looked at from here
    workers = _fitting(workers, device)
    _opened.cache_clear()  # of an earlier run in this process; files may have changed
    _data.cache_clear()
    runner = _opened(work, device if workers.count == 1 and workers.on == "local" else "cpu")
    parts = cut(data.shard_sizes)
    folder = out.with_name(f".{out.name}.parts").absolute()
    order = Order(full(source), data.fingerprint, work, runner.fingerprint, device, on_bad, folder)
    lock = claim(folder, f"another process is writing {str(out)!r}: wait for it, or choose another file")
    try:
        keep_same(folder, {"format": _FORMAT, "polymodal": __version__, "torch": torch.__version__, "data": data.fingerprint,
                           "model": runner.fingerprint, "device": device.partition(":")[0], "parts": len(parts),
                           "work": {k: v for k, v in asdict(work).items() if k != "model"}})  # type: ignore[call-overload]
        _make(order, data, parts, workers, console)
        done = _join(order, data, runner, parts, out, array, console)
        shutil.rmtree(folder, ignore_errors=True)
        return done
    except UserError:
        if not any(folder.glob("*.safetensors")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        lock.close()


def opened(source: str, inputs: Sequence[str], out: Path | None, endings: Sequence[str]) -> tuple[DataSet, Path]:
    """The data set of `--data`, and the file of `--out`."""
    if inputs:
        raise UserError(f"--data names the samples, and so does {inputs[0]!r}: leave one of them out")
    if out is None or out.suffix not in endings:
        raise UserError(f"--data needs --out FILE that ends in {' or '.join(endings)}{'' if out is None else f', got {out}'}")
    return DataSet.open(source), out


def full(name: str) -> str:
    """A path that is the same from any folder; any other name (an address, a hub id) as it is."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def said(done: Done, console: Console) -> dict[str, Any]:
    """What a command tells about a run, after warnings of what was left out."""
    for reason in done.bad[:10]:
        console.warn(f"skipped: {reason}")
    return {"count": done.count, "skipped": done.bad_count, "bad": done.bad}


def cut(sizes: Sequence[int]) -> list[Part]:
    """Parts of 256 to 4096 samples (less at a shard's end), about 256 of them where that allows it."""
    size = min(4096, max(256, -(-sum(sizes) // 256)))
    parts: list[Part] = []
    first = 0
    for samples in sizes:
        for begin in range(first, first + samples, size):
            parts.append(Part(len(parts), begin, min(begin + size, first + samples)))
        first += samples
    return parts


def _fitting(workers: Workers, device: str) -> Workers:
    """A device with a number is one worker's."""
    kind, _, number = device.partition(":")
    if not number:
        return workers
    if (workers.count or 1) > 1 or workers.on != "local":
        raise UserError(f"--device {device} is one device: give --device {kind}, and every worker takes one of its own")
    return replace(workers, count=1)


def _make(order: Order, data: DataSet, parts: Sequence[Part], workers: Workers, console: Console) -> None:
    """Let workers make the parts that are not there."""
    there = set(order.folder.iterdir())
    missing = [part for part in parts if part.file(order.folder) not in there]
    reads = [] if data.remote else [(str(Path(data.directory).absolute() / s.name), s.size) for s in data.index.shards]
    pieces = [Piece(partial(_do, order, part), part.end - part.begin, f"samples {part.begin} to {part.end - 1}") for part in missing]
    with console.progress("samples", len(data)) as bar:
        bar.advance(len(data) - sum(piece.size for piece in pieces))
        if pieces:
            with crew(workers, most=len(pieces), folder=order.folder, reads=reads, gpus=order.device == "cuda", preload=(__name__,),
                      warn=console.warn) as hands:
                do_all(hands, pieces, bar.advance)


# ---- in a worker


def _do(order: Order, part: Part) -> None:
    """Make the results of one part."""
    data, runner = _data(order.source), _opened(order.work, order.device)
    if data.fingerprint != order.content:
        raise UserError(f"{data.directory} is not the same data set on all machines")
    if runner.fingerprint != order.model:
        raise UserError(f"{order.work.model} is not the same model on all machines, or changed while it was used")
    kept: list[int] = []
    bad: list[tuple[int, str]] = []
    found: list[dict[str, np.ndarray]] = []
    with _one_thread(order.device):
        for begin in range(part.begin, part.end, runner.together):
            items: list[Any] = []
            chosen = range(begin, min(begin + runner.together, part.end))
            for number, sample in zip(chosen, data.read_many(chosen), strict=True):
                try:
                    if isinstance(sample, BadSample):
                        raise sample
                    items.append(runner.prepare(sample))
                    kept.append(number)
                except BadSample as error:
                    if order.on_bad == "raise":
                        raise UserError(f"{error} (--on-bad skip leaves such samples out and counts them)") from None
                    bad.append((number, str(error)))
            if items:
                found.append(runner.run(items))
    results = {name: np.ascontiguousarray(np.concatenate([f[name] for f in found])) for name in (found[0] if found else ())}
    # contiguous arrays and plain text: nothing in the file can be executed
    write_atomic(part.file(order.folder), save({**results, "sample": np.array(kept, dtype=np.int64)}, {"bad": json.dumps(bad)}))


@lru_cache(maxsize=1)
def _opened(work: Work, device: str) -> Runner:
    return work.open(device)


@lru_cache(maxsize=1)
def _data(source: str) -> DataSet:
    return DataSet.open(source)


@contextmanager
def _one_thread(device: str) -> Generator[None]:
    """One thread on a CPU: sums are then added in the same order everywhere, and the workers share the cores."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- all together


def _join(order: Order, data: DataSet, runner: Runner, parts: Sequence[Part], out: Path, array: str | None, console: Console) -> Done:
    """Put the parts one behind the other, into place in one step."""
    folder = order.folder
    done = Done(0, [], 0, {})
    for part in parts:
        with safe_open(part.file(folder), "numpy") as file:
            names = [name for name in file.keys() if name != "sample"]  # noqa: SIM118  (no mapping)
            done.count += file.get_slice("sample").get_shape()[0]
            done.shapes |= {name: tuple(file.get_slice(name).get_shape()[1:]) for name in names}
            bad = json.loads((file.metadata() or {})["bad"])
        done.bad_count += len(bad)
        done.bad += [reason for _, reason in bad][: _LISTED - len(done.bad)]
    if done.bad and order.on_bad == "raise":
        raise UserError(f"{done.bad[0]} (--on-bad skip leaves such samples out and counts them)")
    if not done.count:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"none of {len(data)} samples could be used; the first reason: {done.bad[0]}")
    with console.progress("writing", done.count) as bar:
        if array is None:
            _lines(out, _rows(data, runner, parts, folder, bar.advance))
        else:
            _array(out, array, done, data, parts, folder, runner.facts, bar.advance)
    return done


def _read(part: Part, folder: Path) -> dict[str, np.ndarray]:
    with safe_open(part.file(folder), "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)


def _rows(data: DataSet, runner: Runner, parts: Sequence[Part], folder: Path, advance: Callable[[float], None]) -> Iterator[dict[str, Any]]:
    for part in parts:
        results = _read(part, folder)
        for row, sample in enumerate(results["sample"].tolist()):
            yield {"sample": sample, "key": data.key_and_shard(sample)[0], **runner.record(results, row)}
        advance(len(results["sample"]))


def _lines(out: Path, rows: Iterator[Mapping[str, Any]]) -> None:
    """Write jsonl: complete, or not there."""
    temporary = temporary_path(out)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _array(out: Path, name: str, done: Done, data: DataSet, parts: Sequence[Part], folder: Path, facts: Mapping[str, Any],
           advance: Callable[[float], None]) -> None:
    """Write `.npy` through a map of the file, so that it may be larger than the memory, and the keys of its rows beside it."""
    temporary = temporary_path(out)
    try:
        mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.dtype("<f4"), shape=(done.count, *done.shapes[name]))
        first = 0
        for part in parts:
            results = _read(part, folder)
            if len(results["sample"]):
                mapped[first:first + len(results["sample"])] = results[name]
            first += len(results["sample"])
            advance(len(results["sample"]))
        mapped.flush()
        del mapped
        _lines(keys_file(out), ({"row": row, "sample": s, "key": data.key_and_shard(s)[0]} for row, s in enumerate(
            s for part in parts for s in _read_samples(part, folder))))
        write_maker(out, facts, sha256_of(temporary))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _read_samples(part: Part, folder: Path) -> list[int]:
    with safe_open(part.file(folder), "numpy") as file:
        return file.get_tensor("sample").tolist()
