"""`polymodal regions`: a data set whose samples have regions, from one of pictures.

A worker reads a shard, finds regions and writes the shard again with their fields (`shared.regions`). Finished shards stay in
`OUT/.regions` until the end, so a killed run continues; then they are renamed into place, `index.json` last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch

from ..._version import __version__
from ...shared.errors import BadSample, UserError
from ...shared.regions import DEFAULT_REGIONS, FEATURES_FIELD, Regions
from ...shared.sample import IMAGE_FIELDS, SECOND, Sample
from ..base.console import Console
from ..base.files import temporary_path, write_atomic
from ..crew.crew import claim, crew, do_all, keep_same
from ..crew.pieces import Lost, Piece, Workers
from ..data.dataset import DataSet
from ..data.index import INDEX, Index, Shard, idx_name
from ..model.open import choose_device
from ..pack.writer import ShardWriter
from . import codebook
from .detectors import Detector, FilesWork, Grid, GridWork, TorchvisionWork

WORK = ".regions"
TORCHVISION = "torchvision:"
_FINISHING = "finishing"
"""Lies in `WORK` while shards are renamed into place."""
_LISTED = 1000
_FITTED = 2000
"""Pictures whose regions a codebook is made of."""


class Work(Protocol):
    """How regions are found: a frozen dataclass of plain values, which travels to the workers."""

    @property
    def model(self) -> str:
        """For messages."""
        ...

    def open(self, device: str) -> Detector:
        """Load what finds them."""
        ...


@dataclass(frozen=True)
class RegionSettings:
    """How regions are found."""

    detector: str
    """``grid``, ``torchvision:NAME``, or a folder of ``KEY.npz``."""
    tower: str | None = None
    """The model whose patches a grid reads."""
    regions: int = DEFAULT_REGIONS
    """Regions of a picture, at most; of a grid exactly."""
    classes: int = 64
    """Classes of a grid's regions: means of the codebook; 0 for none."""
    codebook: str | None = None
    """A codebook that another data set's regions were given classes by."""
    batch_size: int = 32
    """Pictures that run together."""
    on_bad: str = "raise"
    """``raise`` stops at a sample that cannot be used, ``skip`` counts and lists such samples."""

    def __post_init__(self) -> None:
        """Check what belongs together."""
        if self.on_bad not in ("raise", "skip"):
            raise UserError(f"on_bad is {self.on_bad!r}, expected raise or skip")
        if self.regions < 1:
            raise UserError(f"--regions is {self.regions}: a picture has at least 1")
        if self.classes < 0:
            raise UserError(f"--classes is {self.classes}, expected the number of classes, or 0 for none")
        if self.grid and self.tower is None:
            raise UserError("--detector grid reads the patches of an image tower: name one with --tower (a CLIP, a ViT or an MAE)")
        if not self.grid and (self.tower is not None or self.codebook is not None):
            raise UserError(f"--tower and --codebook belong to --detector grid, and the detector is {self.detector}: leave them out")

    @property
    def grid(self) -> bool:
        """Whether a tower's patches are the regions."""
        return self.detector == "grid"

    def work(self, book: str) -> Work:
        """What workers are told."""
        if self.grid:
            return GridWork(_whole(self.tower or ""), self.regions, book, self.batch_size)
        if self.detector.startswith(TORCHVISION):
            return TorchvisionWork(self.detector.removeprefix(TORCHVISION), self.regions, min(self.batch_size, 4))
        return FilesWork(_whole(self.detector), self.regions, self.batch_size)


@dataclass(frozen=True)
class Order:
    """What a worker is told about a run: plain values, the same for each shard."""

    source: str
    content: str
    work: Work
    model: str
    device: str
    on_bad: str
    folder: Path
    shape: tuple[int, int]
    """Widths that all regions have: those of the first good sample."""


def open_detector(detector: str, tower: str | None, regions: int, device: str | None) -> Detector:
    """What finds regions, without classes, for pictures that are no data set."""
    return RegionSettings(detector, tower, regions, 0).work("").open(choose_device(device))


def add_regions(source: str, out: str | Path, settings: RegionSettings, *, device: str | None = None, workers: Workers | None = None,
                console: Console | None = None) -> Index:
    """Write a data set of the samples of another one, with regions.

    Args:
        source: the folder or address of the data set.
        out: the folder of the new one; must not hold anything but what an interrupted run left.
        settings: how regions are found.
        device: of every worker; by default a GPU of this machine if there is one.
        workers: how many; by default this process alone.
        console: where progress goes; silent by default.

    Returns:
        The index; its schema says under ``regions`` what the regions are.
    """
    console, workers, out = console or Console(quiet=True), workers or Workers(1), Path(out)
    data = DataSet.open(source)
    if FEATURES_FIELD in data.index.fields:
        raise UserError(f"{data.directory} has regions already: give the data set that it was made from")
    needs_picture = not isinstance(settings.work(""), FilesWork)
    if needs_picture and not set(IMAGE_FIELDS) & set(data.index.fields):
        raise UserError(f"{data.directory} has no pictures (its fields are {', '.join(data.index.fields)}), and regions are parts of them")
    folder = out / WORK
    _refuse_others(out)
    chosen = choose_device(device)
    _opened.cache_clear()
    _data.cache_clear()
    first = settings.work("").open(chosen)  # what cannot be opened is told before a folder is made
    book = None if settings.codebook is None else codebook.Codebook.load(Path(settings.codebook))
    lock = claim(folder, f"another process is writing regions into {str(out)!r}: wait for it, or choose another folder")
    try:
        keep_same(folder, {"polymodal": __version__, "torch": torch.__version__, "data": data.fingerprint, "detector": first.fingerprint,
                           "device": chosen.partition(":")[0], "codebook": book and book.fingerprint,
                           "settings": {k: v for k, v in asdict(settings).items() if k not in ("tower", "codebook", "detector")},
                           "kind": settings.detector.partition(":")[0]})
        _refuse_others(out)
        place = folder / codebook.FILE
        if isinstance(first, Grid) and (settings.classes or book is not None):
            if not place.is_file():
                (book or _fit(first, data, settings.classes, console)).save(place)
            work = settings.work(str(place.absolute()))
        else:
            work = settings.work("")
        detector = _opened(work, chosen)
        order = Order(_whole(source), data.fingerprint, work, detector.fingerprint, chosen, settings.on_bad, folder.absolute(),
                      _first_shape(detector, data, settings.on_bad))
        _write_all(order, data, workers, console)
        return _finish(out, folder, data, settings, order.shape, console)
    except Lost:
        raise
    except UserError:  # bad input: nothing is kept
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            out.rmdir()
        raise
    finally:
        lock.close()


def _refuse_others(out: Path) -> None:
    """Refuse a folder with anything but an interrupted run of this command in it."""
    finishing = (out / WORK / _FINISHING).is_file()
    if out.is_file() or (out.is_dir() and not finishing and any(path.name != WORK for path in out.iterdir())):
        raise UserError(f"{str(out)!r} is not an empty folder: choose another --out, or delete it first")


def _whole(name: str) -> str:
    """A path that is the same from any folder; any other name as it is."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def _fit(grid: Grid, data: DataSet, classes: int, console: Console) -> codebook.Codebook:
    """A codebook of pictures from all over the data set."""
    count = min(len(data), _FITTED)
    chosen = [i * len(data) // count for i in range(count)]
    found: list[torch.Tensor] = []
    with console.progress("codebook", count) as bar:
        for begin in range(0, count, grid.together):
            items: list[Any] = []
            for sample in data.read_many(chosen[begin:begin + grid.together]):
                with suppress(BadSample):  # told when its own turn comes
                    if isinstance(sample, Sample):
                        items.append(grid.prepare(sample))
            if items:
                found.append(grid.features(items).flatten(0, 1))
            bar.advance(min(grid.together, count - begin))
    return codebook.fit(torch.cat(found) if found else torch.zeros(0, grid.width), classes)


def _first_shape(detector: Detector, data: DataSet, on_bad: str) -> tuple[int, int]:
    """The widths of the first sample's regions that can be used."""
    problem: BadSample | None = None
    for begin in range(0, len(data), detector.together):
        for sample, found in _found(detector, data.read_many(range(begin, min(begin + detector.together, len(data))))):
            try:
                if not isinstance(found, BadSample):
                    return _checked(sample, found, found.shape)
                raise found
            except BadSample as error:
                if on_bad == "raise":
                    raise _told(error) from None
                problem = problem or error
    raise UserError(f"none of {len(data)} samples could be used; the first reason: {problem}")


def _told(error: BadSample) -> UserError:
    return UserError(f"{error} (--on-bad skip leaves such samples out and counts them)")


def _write_all(order: Order, data: DataSet, workers: Workers, console: Console) -> None:
    """Let workers write the shards that are not there."""
    missing = [n for n in range(len(data.shard_sizes)) if not (order.folder / f"{n:06d}.json").is_file()]
    pieces = [Piece(partial(_write, order, n), data.shard_sizes[n], f"shard {n}") for n in missing]
    with console.progress("regions", len(data)) as bar:
        bar.advance(len(data) - sum(piece.size for piece in pieces))
        if pieces:
            with crew(workers, most=len(pieces), folder=order.folder, gpus=order.device == "cuda", preload=(__name__,),
                      warn=console.warn) as hands:
                do_all(hands, pieces, bar.advance)


# ---- in a worker


def _write(order: Order, number: int) -> None:
    """Write one shard, its side file, and what is to be known of it."""
    data, detector = _data(order.source), _opened(order.work, order.device)
    if data.fingerprint != order.content or detector.fingerprint != order.model:
        raise UserError(f"the data set or {order.work.model} changed while regions were written: run the command again")
    begin = sum(data.shard_sizes[:number])
    path = order.folder / f"{number:06d}.tar"
    temporary = temporary_path(path)
    bad: list[str] = []
    bad_count = 0
    try:
        with temporary.open("wb") as file:
            writer = ShardWriter(file, path.name)
            kept = 0
            for at in range(begin, begin + data.shard_sizes[number], detector.together):
                some = range(at, min(at + detector.together, begin + data.shard_sizes[number]))
                samples = data.read_many(some)
                second = _seconds(detector, samples)
                for (sample, found), other in zip(_found(detector, samples), second, strict=True):
                    try:
                        fields: dict[str, bytes] = {}
                        for before, whose, regions in ((SECOND, *other), ("", sample, found)) if other else (("", sample, found),):
                            if isinstance(regions, BadSample):
                                raise regions
                            _checked(whose, regions, order.shape)
                            fields |= {before + name: part for name, part in regions.fields().items()}
                        writer.add(sample.key, {**sample.fields, **fields})
                        kept += 1
                    except BadSample as error:
                        if order.on_bad == "raise":
                            raise _told(error) from None
                        bad_count += 1
                        bad += [str(error)] if len(bad) < _LISTED else []
            written = None
            if kept:
                shard, where = writer.finish()
                written = asdict(shard)
                write_atomic(order.folder / idx_name(path.name), where.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        if kept:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    write_atomic(path.with_suffix(".json"), json.dumps({"shard": written, "bad": bad, "bad_count": bad_count}).encode())


def _found(detector: Detector, samples: Sequence[Sample | BadSample]) -> list[tuple[Any, Regions | BadSample]]:
    """Each sample with its regions, or with the reason why it has none."""
    prepared: list[tuple[Any, Any]] = []
    for sample in samples:
        try:
            prepared.append((sample, sample if isinstance(sample, BadSample) else detector.prepare(sample)))
        except BadSample as error:
            prepared.append((sample, error))
    found = iter(detector.find(good) if (good := [item for _, item in prepared if not isinstance(item, BadSample)]) else [])
    return [(sample, item if isinstance(item, BadSample) else next(found)) for sample, item in prepared]


def _seconds(detector: Detector, samples: Sequence[Sample | BadSample]) -> list[tuple[Any, Regions | BadSample] | None]:
    """The second picture of each sample with its regions; None where there is none."""
    others = [sample.second() if isinstance(sample, Sample) and any(name.startswith(SECOND) for name in sample.fields) else None
              for sample in samples]
    found = iter(_found(detector, [other for other in others if other is not None]))
    return [None if other is None else next(found) for other in others]


def _checked(sample: Sample, found: Regions, shape: tuple[int, int]) -> tuple[int, int]:
    """The widths of regions that can be stored and have those that all samples share; raises `BadSample`."""
    if problem := found.problem() or found.stored().problem():
        raise sample.bad(problem)
    if found.shape != shape:
        raise sample.bad(f"its features have width {found.shape[0]} and {found.shape[1]} classes, those of the first sample {shape[0]} and "
                         f"{shape[1]}")
    return found.shape


@lru_cache(maxsize=1)
def _opened(work: Work, device: str) -> Detector:
    return work.open(device)


@lru_cache(maxsize=1)
def _data(source: str) -> DataSet:
    return DataSet.open(source)


# ---- all together


def _finish(out: Path, folder: Path, data: DataSet, settings: RegionSettings, shape: tuple[int, int], console: Console) -> Index:
    """Put the shards into place, the index last."""
    entries = [json.loads((folder / f"{n:06d}.json").read_text()) for n in range(len(data.shard_sizes))]
    shards = tuple(Shard.from_dict(e["shard"]) for e in entries if e["shard"] is not None)
    bad = [reason for e in entries for reason in e["bad"]]
    bad_count = sum(e["bad_count"] for e in entries)
    for reason in bad[:10]:
        console.warn(f"skipped: {reason}")
    book = folder / codebook.FILE
    described = {"detector": settings.detector if settings.grid or settings.detector.startswith(TORCHVISION) else "files",
                 "features": shape[0], "classes": shape[1],
                 **({"codebook": codebook.Codebook.load(book).fingerprint} if book.is_file() else {})}
    index = Index(shards, data.index.kind, {**data.index.schema, "regions": described, **({"skipped": bad_count} if bad_count else {})},
                  (*data.index.source, f"regions: {settings.detector}"))
    write_atomic(folder / _FINISHING, b"")
    for name in [name for shard in shards for name in (idx_name(shard.name), shard.name)] + ([codebook.FILE] if book.is_file() else []):
        if (folder / name).exists():
            (folder / name).replace(out / name)
    write_atomic(out / INDEX, index.to_json().encode("utf-8"))
    shutil.rmtree(folder, ignore_errors=True)
    return index
