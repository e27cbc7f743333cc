"""What `pack` reads: text files, tables, picture folders and tars, cut into units of work.

The units of a packing run stand in an order that depends on the input alone; each can be read by any process at any time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...shared.errors import UserError, raise_problems
from ..base.inputs import PICTURES
from ..data.index import INDEX
from .settings import Reading
from .tables import TABLES, columns, parquet

TEXTS = (".txt", ".md", ".text")
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
    files: tuple[tuple[str, int], ...] = ()
    """(path, class) of pictures; class -1 where there are none."""

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


def find(paths: Sequence[str | Path], reading: Reading) -> Sources:
    """Look at the sources and cut them into units; every problem is found before anything is written."""
    roots = [Path(p) for p in paths]
    if not roots:
        raise UserError("nothing to pack: name at least one file or folder")
    files: list[tuple[Path, Path]] = []  # (file, the root it was found under)
    problems: list[str] = []
    for root in roots:
        if root.is_dir():
            found = _visible(root)
            if not found:
                problems.append(f"folder {str(root)!r} is empty")
            files += [(p, root) for p in found]
        elif root.is_file():
            files.append((root, root.parent))
        else:
            problems.append(f"{str(root)!r} does not exist")
    problems += [f"{str(p)!r} is an empty file" for p, _ in files if p.suffix.lower() not in PICTURES and p.stat().st_size == 0]
    raise_problems(problems, "nothing was packed")
    kind = reading.kind or _guess([p for p, _ in files], reading)
    wanted = {"text": (*TEXTS, *TABLES), "pairs": TABLES, "images": PICTURES, "tar": (".tar",)}[kind]
    used = [(p, root) for p, root in files if p.suffix.lower() in wanted]
    for root in roots:
        if root.is_file() and root.suffix.lower() not in wanted:
            problems.append(f"{str(root)!r} has the wrong type for --kind {kind}, expected {' '.join(wanted)}")
    if not used and not problems:
        problems.append(f"no file of --kind {kind} in {', '.join(map(str, roots))}, expected {' '.join(wanted)}")
    problems += _column_problems(kind, [p for p, _ in used], reading)
    raise_problems(problems, "nothing was packed")
    classes = reading.classes or ()
    if kind == "images":
        units, classes = _image_units(used, classes)
    elif kind == "tar":
        units = [Unit("tar", str(p), 0, p.stat().st_size) for p, _ in used]
    else:
        units = [u for p, _ in used for u in _text_units(p, kind, reading)]
    real: dict[Path, str] = {}  # folders without links, looked at once
    return Sources(kind, tuple(units), classes, tuple(_state(p, real) for p, _ in used))


def _visible(root: Path) -> list[Path]:
    """The files under a folder that are not hidden, in the order of their paths' parts."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.parts)


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


def _guess(files: list[Path], reading: Reading) -> str:
    suffixes = {p.suffix.lower() for p in files}
    if suffixes == {".tar"} or (".tar" in suffixes and all(p.suffix in (".tar", ".idx") or p.name == INDEX for p in files)):
        return "tar"
    tables = [p for p in files if p.suffix.lower() in TABLES]
    if tables and all({reading.image_field, reading.caption_field} <= columns(p) for p in tables):
        return "pairs"
    if suffixes & set(TEXTS) or tables:
        if suffixes & set(PICTURES):
            raise UserError("the sources hold pictures and texts: say what is meant with --kind images, text or pairs "
                            f"(pairs: a table with the columns {reading.image_field!r} and {reading.caption_field!r})")
        return "text"
    if suffixes & set(PICTURES):
        return "images"
    raise UserError(f"cannot tell what to pack from files of type {', '.join(sorted(s or '(none)' for s in suffixes))}: expected "
                    f"{' '.join((*TEXTS, *TABLES, *PICTURES, '.tar'))}")


def _column_problems(kind: str, used: list[Path], reading: Reading) -> Iterator[str]:
    """What is wrong with the columns that were asked for beside the text."""
    if reading.classes is not None and len(set(reading.classes)) < len(reading.classes):
        yield "--classes names a class twice"
    if reading.classes is not None and reading.label_field is None and kind != "images":
        yield "--classes numbers the classes of pictures in folders, or of texts with --label-field: give that, or leave it out"
    if reading.columns and kind != "text":
        yield f"{', '.join(reading.columns)} name columns of tables with texts; these sources are packed as {kind}"
    elif reading.columns:
        bare = next((p for p in used if p.suffix.lower() not in TABLES), None)
        if bare is not None:
            yield f"{str(bare)!r} is no table, so it has no {', '.join(reading.columns.values())}: expected {' '.join(TABLES)}"


def _image_units(files: list[tuple[Path, Path]], given: tuple[str, ...]) -> tuple[list[Unit], tuple[str, ...]]:
    """Units of pictures; the first sub-folder is the class, one of those `given` where they are."""
    parts = [(p, p.parts[len(root.parts) :]) for p, root in files]
    labelled = [p for p, relative in parts if len(relative) > 1]
    if labelled and len(labelled) < len(parts):
        bare = next(p for p, relative in parts if len(relative) == 1)
        raise UserError(f"picture {str(bare)!r} lies beside the class folders: put it into one, or pack a folder without sub-folders")
    classes = tuple(sorted({relative[0] for _, relative in parts})) if labelled else ()
    if given and (strange := sorted(set(classes) - set(given)) or ([] if labelled else ["none"])):
        raise UserError(f"the folders' classes are {', '.join(strange[:8])}, which --classes does not name")
    classes = given or classes
    number = {name: i for i, name in enumerate(classes)}
    rows = [(str(p), number.get(relative[0], -1)) for p, relative in parts]
    return [Unit("images", "", files=tuple(rows[i : i + _UNIT_FILES])) for i in range(0, len(rows), _UNIT_FILES)], classes


def _text_units(path: Path, kind: str, reading: Reading) -> Iterator[Unit]:
    suffix, size = path.suffix.lower(), path.stat().st_size
    if suffix == ".parquet":
        groups = parquet(path).num_row_groups
        yield from (Unit(kind, str(path), i, i + 1) for i in range(groups))
        return
    whole = suffix in (".csv", ".tsv") or (suffix in TEXTS and reading.split not in ("blank", "line"))
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
