"""Where a data set lies: a local folder, or an http(s) address whose shards are fetched whole into a cache.

The reader sees one small interface, `Location`. Remote files are kept under their sha256 and renamed
into place when whole and checked, so a cut download never poisons the cache.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from ..shared.errors import UserError

_CHUNK = 1 << 20
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
                    "spiece.model")


class Location(ABC):
    """A place with named files."""

    root: str

    @abstractmethod
    def read(self, name: str, missing: str) -> bytes:
        """A small file's bytes; where it does not exist, an error that ends with `missing`."""

    @abstractmethod
    def file(self, name: str, size: int, sha256: str) -> Path:
        """A local path of a shard."""

    @abstractmethod
    def check(self, name: str, size: int) -> None:
        """Raise where a shard is known to be absent or of another size, without reading it."""

    @abstractmethod
    def folder(self, name: str) -> Path:
        """A local path of a folder of small files."""

    def name(self, name: str) -> str:
        """A file's full name for messages."""
        return f"{self.root.rstrip('/')}/{name}"


class Local(Location):
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.root = str(folder)
        self._folder = folder

    def read(self, name: str, missing: str) -> bytes:
        """See `Location`."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            raise UserError(f"{self._folder / name} does not exist: {missing}") from None

    def file(self, name: str, size: int, sha256: str) -> Path:
        """See `Location`; the size is checked by the reader, the content by each sample's crc32."""
        path = self._folder / name
        if not path.exists():
            raise UserError(f"shard {path} is missing: restore it, or run `polymodal index DIR --force` for the shards that are there")
        return path

    def check(self, name: str, size: int) -> None:
        """See `Location`."""
        path = self.file(name, size, "")
        if path.stat().st_size != size:
            raise UserError(f"shard {path} changed after it was indexed: it has {path.stat().st_size} bytes, the index says {size}; "
                            "restore it, or run `polymodal index DIR --force` and start a new run")

    def folder(self, name: str) -> Path:
        """See `Location`."""
        return self._folder / name


class Http(Location):
    """A data set behind http(s), read through fsspec."""

    def __init__(self, url: str, cache: Path) -> None:
        self.root = url.rstrip("/")
        self._cache = cache

    def _open(self, name: str) -> Any:
        import fsspec

        # one plain GET from start to end; ranges are not needed for whole files
        file: Any = fsspec.open(self.name(name), "rb", block_size=0)
        return file.open()

    def read(self, name: str, missing: str) -> bytes:
        """See `Location`."""
        try:
            with self._open(name) as file:
                return file.read()
        except FileNotFoundError:
            raise UserError(f"{self.name(name)} does not exist: {missing}") from None
        except Exception as error:  # aiohttp's own classes, time-outs, broken connections
            raise UserError(f"{self.name(name)} cannot be read ({type(error).__name__}: {error})") from None

    def file(self, name: str, size: int, sha256: str) -> Path:
        """See `Location`: from the cache, or downloaded whole and checked."""
        path = self._cache / f"{sha256}.tar"
        if path.exists():
            return path
        self._cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{sha256}.{os.getpid()}.part")
        digest, got = hashlib.sha256(), 0
        try:
            with self._open(name) as source, temporary.open("wb") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                    digest.update(chunk)
                    got += len(chunk)
                target.flush()
                os.fsync(target.fileno())
            if got != size or digest.hexdigest() != sha256:
                raise UserError(f"{self.name(name)} is not what its index says: got {got} bytes with sha256 {digest.hexdigest()[:12]}..., "
                                f"expected {size} with {sha256[:12]}...")
            temporary.replace(path)
        except (UserError, OSError):
            raise
        except Exception as error:
            raise UserError(f"{self.name(name)} cannot be read ({type(error).__name__}: {error})") from None
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def check(self, name: str, size: int) -> None:
        """Nothing is known before the download."""

    def folder(self, name: str) -> Path:
        """See `Location`; the tokenizer's files are the ones a saved tokenizer has."""
        target = self._cache / hashlib.sha256(self.root.encode()).hexdigest() / name
        target.mkdir(parents=True, exist_ok=True)
        for file in _TOKENIZER_FILES:
            try:
                with self._open(f"{name}/{file}") as source:
                    (target / file).write_bytes(source.read())
            except FileNotFoundError:
                continue
        return target


def location(source: str | Path, cache: str | Path | None = None) -> Location:
    """The place that a folder's path or an http(s) address names."""
    text = str(source)
    if text.startswith(("http://", "https://")):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polymodal" / "shards"
        return Http(text, Path(cache) if cache is not None else home)
    if "://" in text or text.startswith("pipe:"):
        raise UserError(f"cannot read a data set from {text!r}: expected a folder or an http(s) address")
    folder = Path(text)
    if not folder.exists():
        raise UserError(f"data set {text!r} does not exist: expected a folder made by `polymodal pack` or `polymodal index`")
    if not folder.is_dir():
        raise UserError(f"data set {text!r} is a file: give the folder that holds the shards and index.json")
    return Local(folder)
