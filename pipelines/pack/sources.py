"""What `pack` reads: text files, tables, picture folders and tars, cut into units of work.

The units of a packing run stand in an order that depends on the input alone; each can be read by any process at any time.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...shared.errors import UserError, raise_problems
from ..base.files import COMPRESSED, ending, kind_of_name, visible_files
from ..base.inputs import PICTURES
from ..base.tables import DATASET_INFO, TABLE_ENDINGS, TABLES, class_names, columns, kind_of, parquet
from ..data.index import INDEX
from .settings import ANNOTATED, CLASSED, Reading

TEXTS = (".txt", ".md", ".text")
TEXT_ENDINGS = (*TEXTS, *(f"{text}{packed}" for text in TEXTS for packed in COMPRESSED), *TABLE_ENDINGS)
_CONLL = (".conll", ".conll2003", ".conllu", ".bio", ".iob", ".iob2", ".bioes", ".txt")
FILE_ENDINGS = {"tag": _CONLL, "words": _CONLL, "span": (".json",)}
"""Endings of the files that `annotated.FILES` read, by kind."""
_UNIT_BYTES = 32 << 20
_UNIT_FILES = 2000


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of the input that one process reads."""

    kind: str
    path: str
    begin: int = 0
    """First byte of a text, first row group of a parquet file."""
    end: int = -1
    files: tuple[tuple[str, int, tuple[str, ...]], ...] = ()
    """(path, class, files beside it) of pictures; class -1 where there are none."""

    @property
    def size(self) -> int:
        """A measure of the work, for the progress bar."""
        return len(self.files) if self.files else self.end - self.begin


@dataclass(frozen=True)
class Sources:
    """Everything that will be read."""

    kind: str
    units: tuple[Unit, ...]
    classes: tuple[str, ...] = ()
    files: tuple[tuple[str, int, int], ...] = field(default=())
    """(path, size, time of change) of every input file: tells whether an interrupted run can be continued."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many files of the folders are not read, by ending; hidden ones are not counted."""
    regions: tuple[int, int] | None = None
    """Width of the features of regions, and number of their classes; known when they have been read."""


def find(paths: Sequence[str | Path], reading: Reading) -> Sources:
    """Look at the sources and cut them into units; every problem is found before anything is written."""
    roots = [Path(p) for p in paths]
    if not roots:
        raise UserError("nothing to pack: name at least one file or folder")
    files: list[tuple[Path, Path]] = []  # (file, the root it was found under)
    problems: list[str] = []
    for root in roots:
        if root.is_dir():
            found = visible_files(root)
            if not found:
                problems.append(f"folder {str(root)!r} is empty")
            files += [(p, root) for p in found]
        elif root.is_file():
            files.append((root, root.parent))
            if ending(root) not in PICTURES and root.stat().st_size == 0:
                problems.append(f"{str(root)!r} is an empty file")
        else:
            problems.append(f"{str(root)!r} does not exist")
    raise_problems(problems, "nothing was packed")
    tables = [p for p, _ in files if ending(p) in TABLE_ENDINGS]
    heads = {} if reading.kind in ("text", "tar", *ANNOTATED) else {p: columns(p) for p in tables}
    kind = reading.kind or _guess([p for p, _ in files], heads, reading)
    wanted = _wanted(kind, [p for p, _ in files], heads, reading)
    used = [(p, root) for p, root in files if ending(p) in wanted]
    expected = " ".join(e for e in wanted if not e.endswith(COMPRESSED))
    problems += [f"{str(root)!r} has the wrong type for --kind {kind}, expected {expected}"
                 for root in roots if root.is_file() and ending(root) not in wanted]
    if not used and not problems:
        problems.append(f"no file of --kind {kind} in {', '.join(map(str, roots))}, expected {expected}")
    problems += [f"{str(p)!r} is an empty file" for p, _ in used if wanted != PICTURES and p.stat().st_size == 0]
    problems += _column_problems(kind, [p for p, _ in used], reading)
    raise_problems(problems, "nothing was packed")
    classes = reading.classes or _named_classes([p for p, _ in used], reading)
    beside: dict[tuple[Path, str], list[str]] = {}
    if wanted == PICTURES:
        beside = _beside([p for p, _ in files], (".txt", ".json", ".cls") if kind == "pairs" else (".cls",))
        units, classes = _picture_units(used, classes, kind, beside)
    elif kind == "tar":
        units = [Unit("tar", str(p), 0, p.stat().st_size) for p, _ in used]
    else:
        units = [u for p, _ in used for u in _text_units(p, kind, reading)]
    infos = {p.with_name(DATASET_INFO) for p, _ in used if kind_of(p) == ".parquet" and reading.label_field is not None}
    read = [*(p for p, _ in used), *(Path(other) for unit in units for _, _, others in unit.files for other in others),
            *(p for p in sorted(infos) if p.is_file())]
    known = {*read, *(root for root in roots if root.is_file())}
    # of tables: the pictures, or the files with regions, that they name
    companions = {"tar": (".idx",), "regions": (".npz",)}.get(kind, PICTURES if kind in ("pairs", "images") else ())
    left_out = Counter(kind_of_name(p.name) for p, _ in files
                       if p not in known and ending(p) not in companions and not (kind == "tar" and p.name == INDEX))
    real: dict[Path, str] = {}  # folders without links, looked at once
    return Sources(kind, tuple(units), classes, tuple(_state(p, real) for p in read), dict(left_out))


def _wanted(kind: str, files: list[Path], heads: Mapping[Path, Mapping[str, Any]], reading: Reading) -> tuple[str, ...]:
    """The endings of what is read for a kind: for pictures, tables that name (or hold) them, or else the picture files themselves."""
    if kind in ("text", "tar"):
        return TEXT_ENDINGS if kind == "text" else (".tar",)
    if kind in (*ANNOTATED, "regions"):
        return (*TABLE_ENDINGS, *FILE_ENDINGS.get(kind, ()))
    pictures = any(ending(p) in PICTURES for p in files)
    if kind == "images":
        by_table = not pictures or reading.label_field is not None  # which has the classes; else the pictures are all there is to read
        return TABLE_ENDINGS if by_table and _having(heads, reading.image_field) else PICTURES
    return PICTURES if pictures and not _having(heads, reading.image_field, reading.caption_field) else TABLE_ENDINGS


def _having(heads: Mapping[Path, Mapping[str, Any]], *names: str) -> list[Path]:
    """The tables that have columns, or fields inside of such, of these names."""
    return [path for path, head in heads.items() if all(name in head or name.partition(".")[0] in head for name in names)]


def _named_classes(used: list[Path], reading: Reading) -> tuple[str, ...]:
    """The classes that tables name themselves, where all of them name the same."""
    if reading.label_field is None or reading.kind in ANNOTATED:
        return ()
    named = {class_names(p, reading.label_field) for p in used}
    return named.pop() or () if len(named) == 1 else ()


def _beside(files: list[Path], endings: tuple[str, ...]) -> dict[tuple[Path, str], list[str]]:
    """Files with these endings by folder and name without ending."""
    found: dict[tuple[Path, str], list[str]] = {}
    for path in files:
        if path.suffix.lower() in endings:
            found.setdefault((path.parent, path.stem), []).append(str(path))
    return found


def _state(path: Path, real: dict[Path, str]) -> tuple[str, int, int]:
    """(path without links, size, time of change) of a file."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        found = path.stat()
        return str(path.resolve()), found.st_size, found.st_mtime_ns
    folder = path.parent
    if folder not in real:
        real[folder] = str(folder.resolve())
    return f"{real[folder].rstrip(os.sep)}{os.sep}{path.name}", found.st_size, found.st_mtime_ns


def _guess(files: list[Path], heads: Mapping[Path, Mapping[str, Any]], reading: Reading) -> str:
    endings = {ending(p) for p in files}
    if endings == {".tar"} or (".tar" in endings and all(p.suffix in (".tar", ".idx") or p.name == INDEX for p in files)):
        return "tar"
    if heads and len(_having(heads, reading.image_field, reading.caption_field)) == len(heads):
        return "pairs"
    pictures = [p for p in files if ending(p) in PICTURES]
    held = len(_having(heads, reading.image_field)) == len(heads) > len(_having(heads, reading.text_field)) == 0
    if held and not endings & set(TEXTS) and (not pictures or reading.label_field is not None):
        return "images"
    captions = _beside(files, (".txt",))
    if pictures and not heads and all((p.parent, p.stem) in captions for p in pictures):
        return "pairs"
    if endings & set(TEXT_ENDINGS):
        if pictures:
            raise UserError("the sources hold pictures and texts: say what is meant with --kind images, text or pairs "
                            f"(pairs: a table with the columns {reading.image_field!r} and {reading.caption_field!r}, or 001.txt beside "
                            "every 001.jpg)")
        return "text"
    if pictures:
        return "images"
    raise UserError(f"cannot tell what to pack from files of type {', '.join(sorted(s or '(none)' for s in endings))}: expected "
                    f"{' '.join((*TEXTS, *TABLES, *PICTURES, '.tar'))}; texts and tables may end in {' '.join(COMPRESSED)} as well")


def _column_problems(kind: str, used: list[Path], reading: Reading) -> Iterator[str]:
    """What is wrong with the columns that were asked for beside the text."""
    if reading.classes is not None and len(set(reading.classes)) < len(reading.classes):
        yield "--classes names a class twice"
    if reading.segment is not None and kind != "text":
        yield f"--segment finds the words of texts, and these sources are packed as {kind}: leave it out"
    bare = next((p for p in used if ending(p) not in TABLE_ENDINGS), None)
    if reading.classes is not None and reading.label_field is None and (kind != "images" or bare is None) and kind not in CLASSED:
        yield "--classes numbers the classes of pictures in folders, or of texts with --label-field: give that, or leave it out"
    others = [option for option in reading.columns if option != "--label-field" or kind == "tar"]
    if kind in ANNOTATED and kind not in CLASSED and reading.classes is not None and reading.label_field is not None:
        yield f"--classes names classes, and these sources are packed as {kind}: leave it out"
    if kind in ANNOTATED and "--target-field" in others:
        yield f"--target-field names texts that are to be written; these sources are packed as {kind}"
    elif others and kind not in ("text", *ANNOTATED):
        yield f"{', '.join(others)} name columns of tables with texts; these sources are packed as {kind}"
    elif reading.columns and bare is not None and ending(bare) not in FILE_ENDINGS.get(kind, ()):
        yield f"{str(bare)!r} is not a table, so it has no {', '.join(reading.columns.values())}: expected {' '.join(TABLES)}"


def _picture_units(files: list[tuple[Path, Path]], given: tuple[str, ...], kind: str, beside: Mapping[tuple[Path, str], list[str]]
                   ) -> tuple[list[Unit], tuple[str, ...]]:
    """Units of picture files with what lies beside them; of `images` the first sub-folder is the class, one of `given` where they are."""
    parts = [(p, p.parts[len(root.parts) :]) for p, root in files]
    labelled = [p for p, relative in parts if len(relative) > 1] if kind == "images" else []
    if labelled and len(labelled) < len(parts):
        bare = next(p for p, relative in parts if len(relative) == 1)
        raise UserError(f"picture {str(bare)!r} lies beside the class folders: put it into one, or pack a folder without sub-folders")
    classes = tuple(sorted({relative[0] for _, relative in parts})) if labelled else ()
    if given and (strange := sorted(set(classes) - set(given)) or ([] if labelled else ["none"])):
        raise UserError(f"the folders' classes are {', '.join(strange[:8])}, which --classes does not name")
    classes = given or classes
    number = {name: i for i, name in enumerate(classes)}
    rows = [(str(p), number.get(relative[0], -1), () if labelled else tuple(beside.get((p.parent, p.stem), ()))) for p, relative in parts]
    return [Unit(kind, "", files=tuple(rows[i : i + _UNIT_FILES])) for i in range(0, len(rows), _UNIT_FILES)], classes


def _text_units(path: Path, kind: str, reading: Reading) -> Iterator[Unit]:
    suffix, size = ending(path), path.stat().st_size
    if suffix == ".parquet":
        groups = parquet(path).num_row_groups
        yield from (Unit(kind, str(path), i, i + 1) for i in range(groups))
        return
    whole = kind_of(path) in (".csv", ".tsv") or suffix.endswith(COMPRESSED) or (
        suffix in TEXTS and reading.split not in ("blank", "line")) or (suffix not in TABLE_ENDINGS and kind in ANNOTATED)
    begin = 0
    with path.open("rb") as file:
        while begin < size:
            end = size
            if not whole and begin + _UNIT_BYTES < size:
                file.seek(begin + _UNIT_BYTES)
                line = file.readline()
                while suffix in TEXTS and reading.split == "blank" and line and (line := file.readline()).strip():
                    pass
                end = file.tell()
            yield Unit(kind, str(path), begin, end)
            begin = end
