"""`pack`: files of any common kind -> WebDataset shards with an index.

1. Read: each unit of the sources is read (and tokenised) by some process and spooled as sorted runs.
2. Write: each shard, a range of the order of everything, is written by some process.
3. Finish: the shards are renamed into place, `index.json` last.

What is finished stays in `OUT/.pack` until the end, so a killed run continues; numbers, order and bytes
depend on the input and the options alone, never on the processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from ...shared.errors import BadSample, UserError
from ...shared.sample import UNITS_FIELD
from ..base.console import Bar, Console
from ..base.files import ending, temporary_path, told, write_atomic
from ..crew.crew import LOCK, claim, crew, do_all
from ..crew.pieces import Crew, Lost, Piece, Workers
from ..data.index import COUNTS, INDEX, TOKENIZER, Index, Shard, idx_name
from ..data.order import permutation
from .cells import LABEL, Record, Ref, data_start
from .cut import Contents, ShardPlan, cut
from .records import records, sorted_classes
from .rows import fit, in_sequence
from .settings import PackSettings, Resolved
from .sources import TEXTS, Sources, Unit, find
from .spool import Spool, gather, save_json
from .writer import ShardWriter

if TYPE_CHECKING:
    from ...shared.tokenizer import Tokenizer

WORK = ".pack"
_LISTED = 1000
_FORMAT = 5
"""Of what lies in `WORK`."""
_WHOLE = "whole"
"""Name of a record of tokens that is a document, no piece of one."""
_SMALL = 8 << 20
"""Below this many bytes starting processes takes longer than it saves."""
_LONG = 256 << 10
"""Bytes of a document that is hardly one."""
T = TypeVar("T")


def pack(sources: Sequence[str | Path] | str | Path, out: str | Path, settings: PackSettings | None = None, *,
         workers: Workers | None = None, console: Console | None = None) -> Index:
    """Write WebDataset shards and their index from files of a common kind.

    Args:
        sources: files and folders.
        out: the folder of the data set; must not hold one yet.
        settings: how sources are read and what is made of them; by default all that `PackSettings` says.
        workers: who reads and writes; by default a process for each core, or this one alone where there is little to do. On a ``ray``
            cluster all machines must see the sources and `out` under the same paths.
        console: where progress goes; silent by default.

    Returns:
        The index of the data set (without what was held out).
    """
    settings, workers, console = settings or PackSettings(), workers or Workers(), console or Console(quiet=True)
    found = find([sources] if isinstance(sources, (str, Path)) else sources, settings.reading)
    if found.left_out:
        console.warn(f"{sum(found.left_out.values())} files are not read: {told(found.left_out)}")
    tokenizer = None if settings.tokenizer is None else _load_tokenizer(settings.tokenizer, found.kind, settings.block)
    plain = settings.resolved(tokenizer)
    folders = [Path(out)] + ([Path(settings.holdout_out)] if settings.holdout_out is not None else [])
    done, _locks = _claim(folders, found, plain)
    if done is not None:
        return done
    try:
        indexes = _pack(folders, found, plain, tokenizer, workers, console)
    except Lost:
        raise
    except UserError:  # bad input: nothing is kept; after a kill or a full disk the next run continues
        for folder in folders:
            shutil.rmtree(folder / WORK, ignore_errors=True)
            with suppress(OSError):
                folder.rmdir()
        raise
    for folder in reversed(folders):
        shutil.rmtree(folder / WORK, ignore_errors=True)
    for folder, index in zip(folders, indexes, strict=True):
        fill = f", rows {index.schema['fill']:.2%} full" if "fill" in index.schema else ""
        skipped = f", {index.schema['skipped']} skipped" if "skipped" in index.schema else ""
        repeats = f", {index.schema['repeats']} repeat another" if "repeats" in index.schema else ""
        console.say(f"{folder}: {index.samples} samples in {len(index.shards)} shards{fill}{skipped}{repeats}")
    _tell_borders(found, settings, sum(index.schema.get("documents", index.samples) for index in indexes), console)
    return indexes[0]


def _tell_borders(found: Sources, settings: PackSettings, documents: int, console: Console) -> None:
    """Warn of texts that seem to have no borders between documents where they were looked for."""
    size = sum(size for _, size, _ in found.files)
    if (found.kind == "text" and settings.reading.split == "blank" and all(ending(Path(path)) in TEXTS for path, _, _ in found.files)
            and size > _LONG * documents):
        console.warn(f"{documents} document{'s' * (documents != 1)} of {size / documents / 2**10:,.0f} KiB on average: texts are cut at "
                     "blank lines, and there are hardly any; --split line makes each line a document, --split MARK cuts at lines that "
                     "equal MARK")


def _pack(folders: list[Path], found: Sources, settings: Resolved, tokenizer: Tokenizer | None, workers: Workers,
          console: Console) -> list[Index]:
    """Read, write, finish."""
    work = folders[0] / WORK
    if tokenizer is not None:
        tokenizer.save(work / TOKENIZER)
    size = sum(f[1] for f in found.files)
    if workers.on == "local" and workers.count is None and size < _SMALL:
        workers = replace(workers, count=1)
    most = max(len(found.units), size // settings.shard_bytes + len(folders))
    with crew(workers, most=most, folder=work, reads=[(path, n) for path, n, _ in found.files], preload=(__name__,),
              warn=console.warn) as hands:
        with console.progress("reading", sum(u.size for u in found.units)) as bar:
            reading = [(Piece(partial(_read, unit, i, settings, work), unit.size, f"reading {unit.path or unit.files[0][0]}"),
                        work / "units" / f"{i:06d}.json") for i, unit in enumerate(found.units)]
            units = _do(reading, hands, bar)
        bad = [row for unit in units for row in unit["bad"]]
        for row in bad[:10]:
            console.warn(f"skipped: {row}")
        if members := sum((Counter[str](unit["left_out"]) for unit in units), Counter[str]()):
            console.warn(f"{members.total()} members of tars belong to no sample and are left out: {told(members)}")
        if unread := sum((Counter[str](unit["unread"]) for unit in units), Counter[str]()):
            told_columns = ", ".join(f"{name} ({count} records)" for name, count in unread.most_common(8))
            console.warn(f"columns that are not read: {told_columns}{' ...' if len(unread) > 8 else ''}")
        found = replace(found, left_out=Counter(found.left_out) + members)
        names = [name for unit in units for name in unit["classes"]]
        found = replace(found, regions=_one_width([row for unit in units for row in unit["regions"]]))
        if names and not found.classes:
            found = replace(found, classes=sorted_classes(names))
        plan = cut([run for unit in units for run in unit["runs"]], work / "units", settings,
                   [folder / WORK / "shards" for folder in folders], bad[0] if bad else None)
        if settings.holdout:
            _tell_split(plan.sides, settings, console)
        with console.progress("writing", sum(shard.records for shard in plan.shards)) as bar:
            writing = [(Piece(partial(_write, shard, settings, work, plan.below, found.classes), shard.records,
                              f"writing shard {shard.number}"), shard.entry) for shard in plan.shards]
            entries = _do(writing, hands, bar)
    bad_count = sum(unit["bad_count"] for unit in units)
    return [_finish(folder, bool(held), found, settings,
                    [(shard, entry) for entry, shard in zip(entries, plan.shards, strict=True) if shard.held == bool(held)], bad_count,
                    plan.sides, work / TOKENIZER) for held, folder in enumerate(folders)]


def _one_width(rows: Sequence[tuple[int, int, str]]) -> tuple[int, int] | None:
    """The width of all regions' features, and the number of their classes; None without regions."""
    if not rows:
        return None
    (width, classes, _), other = rows[0], next((row for row in rows if row[:2] != rows[0][:2]), None)
    if other is not None:
        raise UserError(f"the regions of {rows[0][2]!r} have features of width {width} and {classes} classes, those of {other[2]!r} width "
                        f"{other[0]} and {other[1]} classes: all must be of one detector")
    return width, classes


def _tell_split(sides: Sequence[Contents], settings: Resolved, console: Console) -> None:
    """Say what is really held out: it is drawn by content, so few or unequal documents and repeats make it more or less than was asked."""
    held, total = sides[1], sum(side.documents for side in sides)
    noun = "documents" if settings.block else "samples"
    tokens = f", {held.tokens} of {sum(side.tokens for side in sides)} tokens" if settings.block else ""
    repeats = total - sum(side.different for side in sides)
    console.say(f"held out: {held.documents} of {total} {noun} ({held.documents / total:.1%}{tokens}); {repeats} repeat another and are on "
                "its side")
    share = held.tokens / sum(side.tokens for side in sides) if settings.block else held.documents / total
    asked = settings.holdout if settings.holdout < 1 else settings.holdout / total
    if not asked / 2 <= share <= asked * 2:
        console.warn(f"--holdout {settings.holdout:g} was to hold out {asked:.1%} and holds out {share:.1%}: there are few {noun}, or they "
                     "are of unequal size or often repeated")
    if held.different == 1:
        console.warn(f"only one of the {noun} is held out: what is measured on it says little about others")


def _load_tokenizer(source: Tokenizer | str | Path, kind: str, block: int) -> Tokenizer:
    from ...shared.tokenizer import Tokenizer

    if kind not in ("text", "words"):
        raise UserError(f"--tokenize makes rows of tokens from text or words; these sources are {kind}")
    if block < 8:
        raise UserError(f"--block {block} is too short, expected at least 8 tokens")
    return source if isinstance(source, Tokenizer) else Tokenizer.load(source)


def _claim(folders: list[Path], found: Sources, settings: Resolved) -> tuple[Index | None, list[IO[str]]]:
    """Make the working folders, keeping what an interrupted run of the same plan left.

    Returns:
        The index where that run had finished but for tidying up, and locks that hold as long as they are open.
    """
    units = [(u.kind, u.path, u.begin, u.end, u.files) for u in found.units]
    identity = json.loads(json.dumps({"format": _FORMAT, "options": asdict(settings), "units": units, "files": found.files,
                                      "sides": [str(f.resolve()) for f in folders]}))
    saved = folders[0] / WORK / "plan.json"
    same = saved.is_file() and json.loads(saved.read_text()) == identity
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{str(folder)!r} is a file: give a folder that does not exist yet")
        if (folder / INDEX).exists() and not same:
            raise UserError(f"{str(folder)!r} holds a data set already: choose another folder, or delete it first")
        others = [p.name for p in folder.iterdir() if p.name != WORK] if folder.is_dir() else []
        if others and not same:
            raise UserError(f"{str(folder)!r} is not empty (it holds {others[0]!r}): choose another folder")
    if same and all((folder / INDEX).exists() for folder in folders):  # killed between the last rename and the tidying
        for folder in reversed(folders):
            shutil.rmtree(folder / WORK, ignore_errors=True)
        return Index.from_json((folders[0] / INDEX).read_bytes(), str(folders[0] / INDEX)), []
    locks = [claim(folder / WORK, f"another process is packing into {str(folder)!r}: wait for it, or choose another folder")
             for folder in folders]
    for folder in folders:
        for left in () if same else [p for p in (folder / WORK).iterdir() if p.name != LOCK]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        (folder / WORK / "shards").mkdir(exist_ok=True)
    (folders[0] / WORK / "units").mkdir(exist_ok=True)
    write_atomic(saved, json.dumps(identity).encode())
    return None, locks


def _do(tasks: Sequence[tuple[Piece, Path]], hands: Crew, bar: Bar) -> list[Any]:
    """Do pieces whose result is a JSON file, and read those; one whose file is there is done already."""
    # a listing, as a network's file system may go on denying a name that was asked for too early
    there = {path for folder in {path.parent for _, path in tasks} for path in folder.iterdir()}
    done = [path in there for _, path in tasks]
    bar.advance(sum(piece.size for (piece, _), is_done in zip(tasks, done, strict=True) if is_done))
    do_all(hands, [piece for (piece, _), is_done in zip(tasks, done, strict=True) if not is_done], bar.advance)
    return [json.loads(path.read_text()) for _, path in tasks]


# ---- 1. read


def _read(unit: Unit, number: int, settings: Resolved, work: Path) -> None:
    """Spool the records of one unit, tokenised where asked for."""
    spool = Spool(work / "units", number, settings.seed)
    bad: list[str] = []
    count = 0
    names: set[str] = set()
    regions: dict[tuple[int, int], str] = {}
    left_out, unread = Counter[str](), Counter[str]()

    def refuse(reason: str) -> None:
        nonlocal count
        if settings.on_bad == "raise":
            raise UserError(f"{reason} (--on-bad skip leaves such records out and counts them)")
        count += 1
        if len(bad) < _LISTED:
            bad.append(reason)

    def good() -> Iterator[Record]:
        for record in records(unit, settings.reading, left_out, unread):
            if isinstance(record, BadSample):
                refuse(str(record))
            else:
                yield record

    if settings.block:
        tokenizer = _tokenizer(str(work / TOKENIZER))
        for chunk in _chunks(good(), 1000):
            for record, pieces in zip(chunk, _tokenise(tokenizer, chunk, None if settings.in_order else settings.block), strict=True):
                if not pieces:
                    text = record.fields["txt"]
                    assert isinstance(text, bytes)
                    refuse(f"{unit.path}: a text has no tokens, it begins {data_start(text)!r}")
                for place, piece in enumerate(pieces):
                    fields: dict[str, bytes | Ref] = {"tokens": piece.ids.astype("<u4" if settings.wide else "<u2").tobytes()}
                    if piece.units is not None:
                        fields[UNITS_FIELD] = piece.units.tobytes()
                    name = _WHOLE if len(pieces) == 1 else ""
                    spool.add(Record(name, fields, record.identity), len(piece.ids), 0 if place else len(pieces))
    else:
        for record in good():
            names.update(record.classes)
            if record.regions is not None:
                regions.setdefault(record.regions, record.name)
            label = record.fields.get(LABEL)
            if isinstance(label, bytes):
                names.add(label.decode("utf-8"))
            spool.add(record, sum(512 + -(-(v.size if isinstance(v, Ref) else len(v)) // 512) * 512 for v in record.fields.values()))
    spool.flush()
    save_json(work / "units" / f"{number:06d}.json", {"runs": spool.runs, "bad": bad, "bad_count": count,
                                                       "classes": sorted(names), "left_out": left_out, "unread": unread,
                                                       "regions": [(*shape, name) for shape, name in regions.items()]})


@lru_cache(maxsize=1)
def _tokenizer(directory: str) -> Tokenizer:
    from ...shared.tokenizer import Tokenizer

    return Tokenizer.load(directory)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class _Piece(NamedTuple):
    """A document, or what of it a row has room for."""

    ids: np.ndarray
    """int64 [T]"""
    units: np.ndarray | None
    """uint8 [T], where words and entities begin, where the data says so; 0 at special tokens."""


def _tokenise(tokenizer: Tokenizer, chunk: list[Record], block: int | None) -> Iterator[list[_Piece]]:
    """Each document's pieces: [CLS] piece [SEP] where the tokenizer has those, else the text and at its end [EOS].

    A piece has at most `block` tokens; without a block a document is one piece.
    """
    texts = [r.fields["txt"].decode("utf-8") for r in chunk if isinstance(r.fields["txt"], bytes)]
    first = [tokenizer.cls_id] if tokenizer.cls_id is not None and tokenizer.sep_id is not None else []
    last = [tokenizer.sep_id] if first else []
    end = [] if first or tokenizer.eos_id is None else [tokenizer.eos_id]
    for ids, units in _encode(tokenizer, texts, [r.fields.get(UNITS_FIELD) for r in chunk]):
        whole = [*ids, *end] if ids else []
        known = None if units is None else [*units, *[0] * len(end)]
        room = len(whole) or 1 if block is None else block - len(first) - len(last)
        yield [_Piece(np.array([*first, *whole[i : i + room], *last], dtype=np.int64),
                      None if known is None else np.array([*[0] * len(first), *known[i : i + room], *[0] * len(last)], dtype=np.uint8))
               for i in range(0, len(whole), room)]


def _encode(tokenizer: Tokenizer, texts: list[str], units: list[bytes | Ref | None]) -> Iterator[tuple[list[int], list[int] | None]]:
    """The token ids of texts, and where words and entities begin among them, where the texts say so: all of a chunk do, or none."""
    from ...shared.documents import token_units

    if units[0] is None:
        yield from ((ids, None) for ids in tokenizer.encode_batch(texts, add_special_tokens=False))
        return
    for text, known in zip(texts, units, strict=True):
        assert isinstance(known, bytes)
        ids, starts = token_units(tokenizer, text, np.frombuffer(known, dtype=np.uint8))
        yield ids.tolist(), starts.tolist()


# ---- 2. write


def _write(shard: ShardPlan, settings: Resolved, work: Path, below: int, classes: tuple[str, ...]) -> None:
    """Write one shard, its side file and its record."""
    path = shard.folder / f"{shard.number:06d}.tar"
    temporary = temporary_path(path)
    stats = {"tokens": 0, "cut": 0}
    counts = np.zeros(settings.vocab_size, dtype=np.int64)
    numbers = {name: i for i, name in enumerate(classes)}
    found = gather(work / "units", shard.ranges, shard.held, below)
    try:
        with temporary.open("wb") as file:
            writer = ShardWriter(file, path.name)
            for i, (name, fields) in enumerate(_token_rows(found, shard, settings, stats, counts) if settings.block else found):
                if (named := fields.pop(LABEL, None)) is not None:
                    assert isinstance(named, bytes)
                    fields["cls"] = str(numbers[named.decode("utf-8")]).encode()
                label = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:40]
                key = f"{shard.number:06d}-{i:06d}" + (f"-{label}" if label else "")
                writer.add(key, {k: v.read() if isinstance(v, Ref) else v for k, v in fields.items()})
            written, where = writer.finish()
            file.flush()
            os.fsync(file.fileno())
        write_atomic(shard.folder / idx_name(path.name), where.to_bytes())
        if settings.block:
            write_atomic(shard.counts, counts.astype("<u8").tobytes())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    save_json(shard.entry, {"shard": asdict(written), "stats": stats})


def _token_rows(found: Iterable[tuple[str, dict[str, bytes | Ref]]], shard: ShardPlan, settings: Resolved,
                stats: dict[str, int], counts: np.ndarray) -> Iterator[tuple[str, dict[str, bytes | Ref]]]:
    """Rows of at most `block` tokens, in random order or in that of the text; what they hold is added to `stats` and `counts`."""
    named = list(found)
    documents, units = ([fields.get(key) for _, fields in named] for key in ("tokens", UNITS_FIELD))
    width = 4 if settings.wide else 2
    name = "tokens.u32" if settings.wide else "tokens.u16"
    lengths = np.array([len(d) // width for d in documents if isinstance(d, bytes)], dtype=np.int64)
    for document in documents:
        assert isinstance(document, bytes)
        np.add.at(counts, np.frombuffer(document, dtype=f"<u{width}"), 1)
    rows = (in_sequence if settings.in_order else fit)(lengths, settings.block)
    cut = {span.document for row in rows for span in row if span.length < lengths[span.document]}
    stats.update(tokens=int(lengths.sum()), cut=sum(named[document][0] == _WHOLE for document in cut))
    order = range(len(rows))
    if settings.seed is not None:
        order = permutation(len(rows), "rows", settings.seed, int(shard.held), shard.number).tolist()
    for r in order:
        parts = [documents[p.document][p.begin * width : p.end * width] for p in rows[r]]  # type: ignore[index]
        known = [part[p.begin : p.end] for p in rows[r] if isinstance(part := units[p.document], bytes)]
        yield "", {name: b"".join(parts), "lengths.u32": np.array([p.length for p in rows[r]], dtype="<u4").tobytes(),
                   **({UNITS_FIELD: b"".join(known)} if known else {})}


# ---- 3. finish


def _finish(folder: Path, held: bool, found: Sources, settings: Resolved, written: list[tuple[ShardPlan, dict[str, Any]]], bad: int,
            sides: Sequence[Contents], tokenizer: Path) -> Index:
    """Put the finished shards into place, the index last."""
    shards = tuple(Shard.from_dict(entry["shard"]) for _, entry in written)
    schema: dict[str, Any] = {"skipped": bad} if bad else {}
    side = sides[held]
    if side.documents > side.different:
        schema["repeats"] = side.documents - side.different
    if found.left_out:
        schema["left_out"] = dict(found.left_out)
    if settings.holdout and not held:
        schema["held_out"] = {"documents": sides[1].documents, "different": sides[1].different, "repeats": sides[1].documents -
                              sides[1].different, **({"tokens": sides[1].tokens} if settings.block else {})}
    if found.classes:
        schema["classes"] = list(found.classes)
    if found.regions is not None:
        schema["regions"] = {"detector": "files", "features": found.regions[0], "classes": found.regions[1]}
    if settings.reading.segment is not None:
        schema["segmenter"] = f"{settings.reading.segment} {version(settings.reading.segment)}"
    if settings.block:
        tokens, cut = (sum(entry["stats"][k] for _, entry in written) for k in ("tokens", "cut"))
        counts = np.zeros(settings.vocab_size, dtype="<u8")
        for plan, _ in written:
            counts += np.fromfile(plan.counts, dtype="<u8")
        write_atomic(folder / COUNTS, counts.tobytes())
        rows = sum(s.samples for s in shards)
        schema |= {"tokenizer": settings.tokenizer, "block": settings.block, "tokens": tokens, "documents": side.documents,
                   "counts": hashlib.sha256(counts.tobytes()).hexdigest(),
                   "documents_cut": side.split + cut,
                   "fill": tokens / (rows * settings.block), **({"in_order": True} if settings.in_order else {})}
    # names of files may be any bytes
    names = [path.rpartition(os.sep)[2].encode("utf-8", "backslashreplace").decode() for path, _, _ in found.files]
    listing = "\n".join(f"{name} {size}" for name, (_, size, _) in zip(names, found.files, strict=True))
    source = (f"{len(names)} files: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}",
              f"names and sizes {hashlib.sha256(listing.encode()).hexdigest()[:16]}", *(["held out"] if held else []))
    index = Index(shards, "tokens" if settings.block else found.kind, schema, source)
    work = folder / WORK / "shards"
    for shard in shards:
        for name in (idx_name(shard.name), shard.name):
            if (work / name).exists():
                (work / name).replace(folder / name)
    if settings.block:
        shutil.copytree(tokenizer, folder / TOKENIZER, dirs_exist_ok=True)
    write_atomic(folder / INDEX, index.to_json().encode("utf-8"))
    return index
