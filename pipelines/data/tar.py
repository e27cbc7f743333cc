"""A strict reader of tar headers: what is cut, damaged, hidden or dangerous is an error, never a silent end.

`tarfile` takes a damaged header for the end of the archive (a shard cut at a member's border loses its
rest without a word), so indexing reads headers itself and accepts plain files only.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from ...shared.errors import UserError

BLOCK = 512
EXECUTABLE = ("pkl", "pickle", "pyd", "pth", "pt", "ckpt", "joblib", "dill")
"""Extensions whose usual decoders run code that the data brings along."""
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file in a tar."""

    name: str
    offset: int
    """Where its bytes begin in the tar."""
    size: int


def members(data: memoryview, where: str) -> Iterator[Member]:
    """The plain files of an uncompressed tar, in order.

    Args:
        data: the whole archive (a memory map, for instance).
        where: the archive's name for error messages.
    """
    if not len(data):
        raise UserError(f"{where} is empty, expected a tar archive")
    for magic, name in ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz")):
        if bytes(data[: len(magic)]) == magic:
            raise UserError(f"{where} is compressed ({name}): samples cannot be found in it without reading all of it; decompress it first")
    offset, override = 0, {}
    while True:
        header = bytes(data[offset : offset + BLOCK])
        if len(header) < BLOCK:
            raise UserError(f"{where} is truncated at byte {len(data)}: no end-of-archive mark; write or copy it again")
        if not any(header):
            break
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            kind = "is not a tar archive" if offset == 0 else "is damaged"
            raise UserError(f"{where} {kind}: no valid header at byte {offset} ({error}); write or copy it again") from None
        begin, size = offset + BLOCK, info.size
        if size < 0:  # headers can say so, and the next one would be this one again
            raise UserError(f"{where} is damaged: the member at byte {offset} has the size {size}; write or copy it again")
        if info.type in _LONG:
            if begin + size > len(data):
                raise UserError(f"{where} is truncated in an extended header at byte {begin}; write or copy it again")
            override |= _extended(info.type, bytes(data[begin : begin + size]), where)
        else:
            name = override.get("path", info.name)
            stated = override.get("size", str(size))
            if not (stated.isascii() and stated.isdigit() and len(stated) < 20):
                raise UserError(f"{where}: an extended header says the size {stated[:40]!r}; write the shard again")
            size = int(stated)
            override = {}
            if begin + size > len(data):
                raise UserError(f"{where} is truncated: member {name!r} ends at byte {begin + size}, the file at {len(data)}; "
                                "write or copy it again")
            if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
                yield Member(name, begin, size)
            elif info.type != tarfile.DIRTYPE:
                kind = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link"}.get(info.type, f"of type {info.type!r}")
                raise UserError(f"{where}: member {name!r} is {kind}; only plain files are read, write the shard without it")
        offset = begin + -(-size // BLOCK) * BLOCK
    if any(bytes(data[offset:])):
        raise UserError(f"{where}: data follows the end-of-archive mark at byte {offset} (archives glued together?); write it as one tar")


def _extended(kind: bytes, body: bytes, where: str) -> dict[str, str]:
    """The name and size that an extended header sets for the member after it."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": body.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    while body.strip(b"\0"):
        length, _, _ = body.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(body):
            raise UserError(f"{where}: an extended header cannot be read; write the shard again")
        name, _, value = body[len(length) + 1 : int(length) - 1].partition(b"=")
        if name in (b"path", b"size"):
            found[name.decode()] = value.decode("utf-8", "surrogateescape")
        body = body[int(length) :]
    return found


def split_name(name: str, where: str) -> tuple[str, str] | None:
    """(key, field) of a member's name; None for what WebDataset leaves out, too: `README`, `.DS_Store`, `._000123.jpg`, `__meta__`.

    The key ends at the first dot of the base name, as in WebDataset (folders may have dots); the field is lower case.
    """
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or (len(name) > 1 and name[1] == ":"):
        raise UserError(f"{where}: member {name!r} has an absolute path or '..'; a shard that reaches outside itself is refused")
    while parts and parts[0] in (".", ""):
        parts.pop(0)
    base = parts[-1] if parts else ""
    if base.startswith("__") and base.endswith("__"):
        return None
    stem, dot, extension = base.partition(".")
    if not stem or not dot:
        return None
    if not extension:
        raise UserError(f"{where}: member {name!r} needs a name of the form KEY.EXTENSION, such as 000123.jpg")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: the name of member {name!r} is not UTF-8") from None
    field = extension.lower()
    if field.split(".")[-1] in EXECUTABLE or any(part in EXECUTABLE for part in field.split(".")):
        raise UserError(f"{where}: member {name!r} can run code when it is read (a pickle); it is refused, store json, npy or text instead")
    return "/".join([*parts[:-1], stem]), field
