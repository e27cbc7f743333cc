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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from ...shared.errors import BadSample, UserError
from ..base.console import Bar, Console
from ..base.files import temporary_path, write_atomic
from ..crew.crew import LOCK, claim, crew, do_all
from ..crew.pieces import Crew, Lost, Piece, Workers
from ..data.index import INDEX, TOKENIZER, Index, Shard, idx_name
from ..data.order import permutation
from .rows import fit, in_sequence
from .sources import LABEL, Plan, Reading, Record, Ref, Unit, plan, records, sorted_classes
from .spool import Spool, gather, held_out, save_json, table
from .writer import ShardWriter

if TYPE_CHECKING:
    from ...shared.tokenizer import Tokenizer

WORK = ".pack"
_LISTED = 1000
_SMALL = 8 << 20
"""Below this many bytes starting processes takes longer than it saves."""
T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What a packing run does, apart from its input; part of its identity."""

    reading: Reading
    seed: int | None
    shard_bytes: int
    block: int
    """Tokens of a row; 0 where texts are not tokenised."""
    tokenizer: str
    """Fingerprint of the tokenizer, or empty."""
    wide: bool
    """Whether token ids need 32 bits."""
    in_order: bool
    """Whether rows of tokens go on from one another, as the text does."""
    holdout: float
    on_bad: str


def pack(sources: Sequence[str | Path] | str | Path, out: str | Path, *, kind: str | None = None, shard_bytes: int = 256 << 20,
         tokenizer: Tokenizer | str | Path | None = None, block: int = 1024, split: str = "blank", text_field: str = "text",
         image_field: str = "image", caption_field: str = "caption", label_field: str | None = None, pair_field: str | None = None,
         target_field: str | None = None, classes: Sequence[str] | None = None, in_order: bool = False,
         shuffle: int | None = 0, holdout: float = 0.0, holdout_out: str | Path | None = None, on_bad: str = "raise",
         workers: int | None = None, on: str = "local", ray_address: str | None = None, console: Console | None = None) -> Index:
    """Write WebDataset shards and their index from files of a common kind.

    Args:
        sources: files and folders.
        out: the folder of the data set; must not hold one yet.
        kind: ``text``, ``pairs``, ``images`` or ``tar``; guessed where it is None.
        shard_bytes: about the largest size of a shard.
        tokenizer: tokenise texts and pack them into rows of `block` tokens.
        block: tokens of a row.
        split: where plain texts are cut into documents: ``blank`` lines, every ``line``, not at all (``file``), or at
            lines equal to this string.
        text_field: column with the text of a table.
        image_field: column with the path of a picture, relative to the table.
        caption_field: column with the caption.
        label_field: column with a text's class, a name or a whole number; the sample's field `cls` is its number.
        pair_field: column with the second text of a pair; the sample's field `pair.txt`.
        target_field: column with the text to be written for a text; the sample's field `target.txt`.
        classes: names of all classes in the order of their numbers; by default those that occur, sorted. Data sets that
            are packed one by one need the same list.
        in_order: fill rows of tokens in the order of the input: documents are laid end to end and cut every `block` tokens,
            and nothing is shuffled. For systems that read a text from row to row with a memory.
        shuffle: seed of the order of the samples; None keeps the order of the input.
        holdout: samples held out for evaluation: a fraction below 1, or their number; drawn by hash of the content, so
            equal samples stay together.
        holdout_out: the folder of the held-out data set.
        on_bad: ``raise`` stops at the first record that cannot be used, ``skip`` counts and lists them.
        workers: processes; by default one for each core, or this one alone where there is little to do.
        on: ``local`` processes, or a ``ray`` cluster whose machines see the sources and `out` under the same paths.
        ray_address: HOST:PORT of the cluster; by default the one that this machine belongs to.
        console: where progress goes; silent by default.

    Returns:
        The index of the data set (without what was held out).
    """
    console = console or Console(quiet=True)
    given = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if on_bad not in ("raise", "skip"):
        raise UserError(f"on_bad is {on_bad!r}, expected raise or skip")
    if in_order and tokenizer is None:
        raise UserError("--in-order fills rows of tokens one after the other: give a tokenizer with --tokenize, or --keep-order to keep "
                        "the order of texts")
    if in_order and shuffle:
        raise UserError(f"--in-order keeps the order of the input and --shuffle {shuffle} changes it: leave one of them out")
    shuffle = None if in_order else shuffle
    if shard_bytes < 4096:
        raise UserError(f"shards of {shard_bytes} bytes are too small, expected at least 4096")
    if (holdout > 0) != (holdout_out is not None):
        raise UserError("--holdout (how much) and --holdout-out (where to) belong together: give both or neither")
    if holdout < 0 or (holdout > 1 and holdout != int(holdout)):
        raise UserError(f"holdout is {holdout}, expected a fraction between 0 and 1 or a whole number of samples")
    reading = Reading(kind, split, text_field, image_field, caption_field, label_field, pair_field, target_field,
                      None if classes is None else tuple(classes))
    if tokenizer is not None and reading.columns:
        raise UserError(f"--tokenize joins texts to rows of tokens, which have no {', '.join(reading.columns.values())}: fine-tuning "
                        f"reads raw text, so leave --tokenize out, or {', '.join(reading.columns)}")
    crew_of = Workers(on, workers, ray_address)
    found = plan(given, reading)
    tok = _load_tokenizer(tokenizer, found.kind, block) if tokenizer is not None else None
    options = Options(reading, shuffle, shard_bytes, block if tok else 0, tok.fingerprint if tok else "",
                      tok is not None and tok.vocab_size > 2**16, in_order, float(holdout), on_bad)
    sides = [Path(out)] + ([Path(holdout_out)] if holdout_out is not None else [])
    done, _locks = _claim(sides, found, options)
    if done is not None:
        return done
    try:
        indexes = _pack(sides, found, options, tok, crew_of, console)
    except Lost:
        raise
    except UserError:  # bad input: nothing is kept; after a kill or a full disk the next run continues
        for side in sides:
            shutil.rmtree(side / WORK, ignore_errors=True)
            with suppress(OSError):
                side.rmdir()
        raise
    for side in reversed(sides):
        shutil.rmtree(side / WORK, ignore_errors=True)
    for side, index in zip(sides, indexes, strict=True):
        fill = f", rows {index.schema['fill']:.4f} full" if "fill" in index.schema else ""
        skipped = f", {index.schema['skipped']} skipped" if "skipped" in index.schema else ""
        console.say(f"{side}: {index.samples} samples in {len(index.shards)} shards{fill}{skipped}")
    return indexes[0]


def _pack(sides: list[Path], found: Plan, options: Options, tok: Tokenizer | None, workers: Workers, console: Console) -> list[Index]:
    """Read, write, finish."""
    work = sides[0] / WORK
    if tok is not None:
        tok.save(work / TOKENIZER)
    size = sum(f[1] for f in found.files)
    if workers.on == "local" and workers.count is None and size < _SMALL:
        workers = replace(workers, count=1)
    most = max(len(found.units), size // options.shard_bytes + len(sides))
    with crew(workers, most=most, folder=work, reads=[(path, n) for path, n, _ in found.files], preload=(__name__,),
              warn=console.warn) as hands:
        with console.progress("reading", sum(u.size for u in found.units)) as bar:
            tasks = [(Piece(partial(_read, unit, i, options, work), unit.size, f"reading {unit.path or unit.files[0][0]}"),
                      work / "units" / f"{i:06d}.json") for i, unit in enumerate(found.units)]
            units = _do(tasks, hands, bar)
        bad = [row for unit in units for row in unit["bad"]]
        for row in bad[:10]:
            console.warn(f"skipped: {row}")
        names = [name for unit in units for name in unit["classes"]]
        if names and not found.classes:
            found = replace(found, classes=sorted_classes(names))
        jobs, below = _cut([run for unit in units for run in unit["runs"]], work, options, sides, bad)
        with console.progress("writing", sum(job.records for job in jobs)) as bar:
            tasks = [(Piece(partial(_write, job, options, work, below, found.classes), job.records, f"writing shard {job.number}"),
                      job.entry) for job in jobs]
            entries = _do(tasks, hands, bar)
    bad_count = sum(unit["bad_count"] for unit in units)
    return [_finish(side, held, found, options, [e for e, job in zip(entries, jobs, strict=True) if job.held == held], bad_count,
                    work / TOKENIZER) for held, side in enumerate(sides)]


def _load_tokenizer(source: Tokenizer | str | Path, kind: str, block: int) -> Tokenizer:
    from ...shared.tokenizer import Tokenizer

    if kind != "text":
        raise UserError(f"--tokenize makes rows of tokens from text; these sources are {kind}")
    if block < 8:
        raise UserError(f"--block {block} is too short, expected at least 8 tokens")
    return source if isinstance(source, Tokenizer) else Tokenizer.load(source)


def _claim(sides: list[Path], found: Plan, options: Options) -> tuple[Index | None, list[IO[str]]]:
    """Make the working folders, keeping what an interrupted run of the same plan left.

    Returns:
        The index where that run had finished but for tidying up, and locks that hold as long as they are open.
    """
    units = [(u.kind, u.path, u.begin, u.end, u.files) for u in found.units]
    identity = json.loads(json.dumps({"options": asdict(options), "units": units, "files": found.files,
                                      "sides": [str(s.resolve()) for s in sides]}))
    saved = sides[0] / WORK / "plan.json"
    same = saved.is_file() and json.loads(saved.read_text()) == identity
    for side in sides:
        if side.exists() and not side.is_dir():
            raise UserError(f"{str(side)!r} is a file: give a folder that does not exist yet")
        if (side / INDEX).exists() and not same:
            raise UserError(f"{str(side)!r} holds a data set already: choose another folder, or delete it first")
        others = [p.name for p in side.iterdir() if p.name != WORK] if side.is_dir() else []
        if others and not same:
            raise UserError(f"{str(side)!r} is not empty (it holds {others[0]!r}): choose another folder")
    if same and all((side / INDEX).exists() for side in sides):  # killed between the last rename and the tidying
        for side in reversed(sides):
            shutil.rmtree(side / WORK, ignore_errors=True)
        return Index.from_json((sides[0] / INDEX).read_bytes(), str(sides[0] / INDEX)), []
    locks = [claim(side / WORK, f"another process is packing into {str(side)!r}: wait for it, or choose another folder") for side in sides]
    for side in sides:
        for left in () if same else [p for p in (side / WORK).iterdir() if p.name != LOCK]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        (side / WORK / "shards").mkdir(exist_ok=True)
    (sides[0] / WORK / "units").mkdir(exist_ok=True)
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


def _read(unit: Unit, number: int, options: Options, work: Path) -> None:
    """Spool the records of one unit, tokenised where asked for."""
    spool = Spool(work / "units", number, options.seed)
    bad: list[str] = []
    count = 0
    names: set[str] = set()

    def good() -> Iterator[Record]:
        nonlocal count
        for record in records(unit, options.reading):
            if isinstance(record, BadSample):
                if options.on_bad == "raise":
                    raise UserError(f"{record} (--on-bad skip leaves such records out and counts them)")
                count += 1
                if len(bad) < _LISTED:
                    bad.append(str(record))
            else:
                yield record

    if options.block:
        tokenizer = _tokenizer(str(work / TOKENIZER))
        for chunk in _chunks(good(), 1000):
            for record, pieces in zip(chunk, _tokenise(tokenizer, chunk, None if options.in_order else options.block), strict=True):
                for ids in pieces:
                    data = ids.astype("<u4" if options.wide else "<u2").tobytes()
                    spool.add(Record("", {"tokens": data}, record.identity), len(ids))
    else:
        for record in good():
            label = record.fields.get(LABEL)
            if isinstance(label, bytes):
                names.add(label.decode("utf-8"))
            spool.add(record, sum(512 + -(-(v.size if isinstance(v, Ref) else len(v)) // 512) * 512 for v in record.fields.values()))
    spool.flush()
    save_json(work / "units" / f"{number:06d}.json", {"runs": spool.runs, "bad": bad, "bad_count": count,
                                                       "classes": sorted(names)})


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


def _tokenise(tokenizer: Tokenizer, chunk: list[Record], block: int | None) -> Iterator[list[np.ndarray]]:
    """Each document's pieces: [CLS] piece [SEP] where the tokenizer has those, else the text and at its end [EOS].

    A piece has at most `block` tokens; without a block a document is one piece.
    """
    texts = [r.fields["txt"].decode("utf-8") for r in chunk if isinstance(r.fields["txt"], bytes)]
    first = [tokenizer.cls_id] if tokenizer.cls_id is not None and tokenizer.sep_id is not None else []
    last = [tokenizer.sep_id] if first else []
    end = [] if first or tokenizer.eos_id is None else [tokenizer.eos_id]
    for ids in tokenizer.encode_batch(texts, add_special_tokens=False):
        whole = [*ids, *end] if ids else []
        room = len(whole) or 1 if block is None else block - len(first) - len(last)
        yield [np.array([*first, *whole[i : i + room], *last], dtype=np.int64) for i in range(0, len(whole), room)]


# ---- 2. write


@dataclass(frozen=True)
class Job:
    """One shard to be written."""

    held: int
    number: int
    ranges: tuple[tuple[str, int, int], ...]
    records: int
    folder: Path

    @property
    def entry(self) -> Path:
        """The record of the finished shard."""
        return self.folder / f"{self.number:06d}.json"


def _cut(runs: list[str], work: Path, options: Options, sides: list[Path], bad: list[str]) -> tuple[list[Job], int]:
    """Cut the order of everything into shards, for each side."""
    if not runs:
        raise UserError("nothing was packed: the sources hold no usable samples" + (f"; the first reason: {bad[0]}" if bad else ""))
    tables = [table(work / "units", name) for name in runs]
    identities = np.concatenate([t["identity"] for t in tables])
    below = _threshold(identities, options.holdout)
    jobs: list[Job] = []
    run_of = np.repeat(np.arange(len(runs), dtype=np.int32), [len(t) for t in tables])
    row_of = np.concatenate([np.arange(len(t), dtype=np.int64) for t in tables])
    sizes = np.concatenate([t["size"] for t in tables])
    is_held = held_out(identities, below)
    everything = np.argsort(np.concatenate([t["number"] for t in tables]), kind="stable")
    limit = options.shard_bytes - 2 * 10240
    if options.block:
        row = 1536 + -(-options.block * (4 if options.wide else 2) // 512) * 512
        limit = max(options.block, int(0.97 * limit / row * options.block))
    limit = max(limit, 1)
    for held, side in enumerate(sides):
        chosen = everything[is_held[everything] == bool(held)]
        if not len(chosen):
            raise UserError(f"no samples left for {str(side)!r}: {len(sizes)} samples, holdout {options.holdout:g}")
        ends = np.cumsum(sizes[chosen].astype(np.int64))
        first = 0
        while first < len(chosen):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + limit, side="right")))
            part = chosen[first:last]
            ranges = []
            for run in np.unique(run_of[part]).tolist():
                rows = row_of[part[run_of[part] == run]]
                ranges.append((runs[run], int(rows.min()), int(rows.max()) + 1))
            jobs.append(Job(held, sum(j.held == held for j in jobs), tuple(ranges), len(part), side / WORK / "shards"))
            first = last
    return jobs, below


def _threshold(identities: np.ndarray, holdout: float) -> int:
    """Records with an identity below this are held out."""
    if holdout <= 0:
        return 0
    if holdout < 1:
        return int(holdout * 2**64)
    count = int(holdout)
    different = np.unique(identities)
    if count >= len(different):
        raise UserError(f"--holdout {count} leaves nothing to train on: there are {len(different)} different samples")
    return int(different[count])


def _write(job: Job, options: Options, work: Path, below: int, classes: tuple[str, ...]) -> None:
    """Write one shard, its side file and its record."""
    path = job.folder / f"{job.number:06d}.tar"
    temporary = temporary_path(path)
    stats = {"tokens": 0, "documents": 0, "cut": 0}
    numbers = {name: i for i, name in enumerate(classes)}
    found = gather(work / "units", job.ranges, bool(job.held), below)
    try:
        with temporary.open("wb") as file:
            writer = ShardWriter(file, path.name)
            for i, (name, fields) in enumerate(_token_rows(found, job, options, stats) if options.block else found):
                if (named := fields.pop(LABEL, None)) is not None:
                    assert isinstance(named, bytes)
                    fields["cls"] = str(numbers[named.decode("utf-8")]).encode()
                label = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:40]
                key = f"{job.number:06d}-{i:06d}" + (f"-{label}" if label else "")
                writer.add(key, {k: v.read() if isinstance(v, Ref) else v for k, v in fields.items()})
            shard, where = writer.finish()
            file.flush()
            os.fsync(file.fileno())
        write_atomic(job.folder / idx_name(path.name), where.to_bytes())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    save_json(job.entry, {"shard": asdict(shard), "stats": stats})


def _token_rows(found: Iterable[tuple[str, dict[str, bytes | Ref]]], job: Job, options: Options,
                stats: dict[str, int]) -> Iterator[tuple[str, dict[str, bytes | Ref]]]:
    """Rows of at most `block` tokens, in random order or in that of the text."""
    documents = [fields["tokens"] for _, fields in found]
    width = 4 if options.wide else 2
    name = "tokens.u32" if options.wide else "tokens.u16"
    lengths = np.array([len(d) // width for d in documents if isinstance(d, bytes)], dtype=np.int64)
    rows, cut = (in_sequence if options.in_order else fit)(lengths, options.block)
    stats.update(tokens=int(lengths.sum()), documents=len(lengths), cut=cut)
    order = range(len(rows)) if options.seed is None else permutation(len(rows), "rows", options.seed, job.held, job.number).tolist()
    for r in order:
        parts = [documents[p.document][p.begin * width : p.end * width] for p in rows[r]]  # type: ignore[index]
        yield "", {name: b"".join(parts), "lengths.u32": np.array([p.length for p in rows[r]], dtype="<u4").tobytes()}


# ---- 3. finish


def _finish(side: Path, held: int, found: Plan, options: Options, entries: list[dict[str, Any]], bad: int, tokenizer: Path) -> Index:
    """Put the finished shards into place, the index last."""
    shards = tuple(Shard.from_dict(e["shard"]) for e in entries)
    schema: dict[str, Any] = {"skipped": bad} if bad else {}
    if found.classes:
        schema["classes"] = list(found.classes)
    if options.block:
        tokens, documents, cut = (sum(e["stats"][k] for e in entries) for k in ("tokens", "documents", "cut"))
        rows = sum(s.samples for s in shards)
        schema |= {"tokenizer": options.tokenizer, "block": options.block, "tokens": tokens, "documents": documents, "documents_cut": cut,
                   "fill": tokens / (rows * options.block), **({"in_order": True} if options.in_order else {})}
    names = [path.rpartition(os.sep)[2] for path, _, _ in found.files]
    listing = "\n".join(f"{name} {size}" for name, (_, size, _) in zip(names, found.files, strict=True))
    source = (f"{len(names)} files: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}",
              f"names and sizes {hashlib.sha256(listing.encode()).hexdigest()[:16]}", *(["held out"] if held else []))
    index = Index(shards, "tokens" if options.block else found.kind, schema, source)
    work = side / WORK / "shards"
    for shard in shards:
        for name in (idx_name(shard.name), shard.name):
            if (work / name).exists():
                (work / name).replace(side / name)
    if options.block:
        shutil.copytree(tokenizer, side / TOKENIZER, dirs_exist_ok=True)
    write_atomic(side / INDEX, index.to_json().encode("utf-8"))
    return index
