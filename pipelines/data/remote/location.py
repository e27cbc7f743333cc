"""Where a data set lies: a local folder, or behind http(s), s3 or gs with a cache of whole shards.

The reader sees one small interface, `Location`. Remote files are kept under their sha256 (`cache.py`) once they are whole and checked
(`fetch.py`). Until a shard is there, single samples of it may be read by themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from pathlib import Path

from ....shared.errors import UserError
from ...base.redact import redact
from .cache import Cache
from .fetch import Fetcher, ReadCosts, RetryPolicy, Stopped
from .transport import Http, NotFoundError, ObjectStore, PastEndError, PermanentError, Transport

CACHE, CACHE_BYTES, READ_TIMEOUT, READ_TRIES = "POLYMODAL_CACHE", "POLYMODAL_CACHE_BYTES", "POLYMODAL_READ_TIMEOUT", "POLYMODAL_READ_TRIES"
_REQUEST = 4 << 20
"""What a request costs, in bytes that could have come meanwhile."""
_HUNG = 180.0
"""Seconds without progress after which another process that fetches the same file is taken for hung."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
                    "merges.txt", "spiece.model")


class Location(ABC):
    """A place with named files."""

    root: str
    """Its path or address as people may read it."""

    @abstractmethod
    def read(self, name: str, missing: str) -> bytes:
        """A small file's bytes; where it does not exist, an error that ends with `missing`."""

    @abstractmethod
    def read_side_file(self, name: str, sha256: str, missing: str) -> bytes:
        """The same for a small file that never changes."""

    @abstractmethod
    def open_shard(self, name: str, size: int, sha256: str) -> int:
        """A shard, open for reading."""

    @abstractmethod
    def check_shard(self, name: str, size: int) -> None:
        """Raise where a shard is known to be absent or of another size, without reading it."""

    @abstractmethod
    def local_folder(self, name: str) -> Path:
        """A local path of a folder of small files."""

    def read_range(self, name: str, size: int, sha256: str, start: int, count: int) -> bytes | None:
        """`count` bytes of a shard from `start` on; None where it is better to open the shard."""
        return None

    def prefetch(self, name: str, size: int | None, sha256: str, stop: threading.Event) -> None:
        """Have a shard (or, without a size, a side file) here before it is read, where that can be done within the cache's limit."""
        return

    def discard_damaged(self, sha256: str) -> bool:
        """Forget a shard that turned out to be damaged here; whether opening it again may help."""
        return False

    def read_costs(self) -> dict[str, float]:
        """What reading cost since the last call, by name (`Batch.reads`); empty for local files."""
        return {}

    @property
    def remote(self) -> bool:
        """Whether reading ahead makes sense."""
        return False

    @property
    def cache_limit(self) -> float:
        """Bytes that shards may take here."""
        return float("inf")

    def address(self, name: str) -> str:
        """A file's full name for messages."""
        return f"{self.root.rstrip('/')}/{name}"


class LocalFolder(Location):
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

    def read_side_file(self, name: str, sha256: str, missing: str) -> bytes:
        """See `Location`; the reader checks the hash."""
        return self.read(name, missing)

    def open_shard(self, name: str, size: int, sha256: str) -> int:
        """See `Location`; the size is checked by the reader, the content by each sample's crc32."""
        return os.open(self._path(name), os.O_RDONLY)

    def _path(self, name: str) -> Path:
        path = self._folder / name
        if not path.exists():
            raise UserError(f"shard {path} is missing: restore it, or run `polymodal index DIR --force` for the shards that are there")
        return path

    def check_shard(self, name: str, size: int) -> None:
        """See `Location`."""
        path = self._path(name)
        if path.stat().st_size != size:
            raise UserError(f"shard {path} changed after it was indexed: it has {path.stat().st_size} bytes, the index says {size}; "
                            "restore it, or run `polymodal index DIR --force` and start a new run")

    def local_folder(self, name: str) -> Path:
        """See `Location`."""
        return self._folder / name


class RemoteFolder(Location):
    """A folder behind a network."""

    def __init__(self, transport: Transport, cache: Cache, retries: RetryPolicy) -> None:
        self.root = transport.root
        self._cache = cache
        self._costs = ReadCosts()
        self._fetcher = Fetcher(transport, retries, self._costs)
        self._spent: dict[str, int] = {}  # bytes' worth of what was read of a shard by single samples
        self._renewed: set[str] = set()

    @property
    def remote(self) -> bool:
        """See `Location`."""
        return True

    @property
    def cache_limit(self) -> float:
        """See `Location`."""
        return float("inf") if self._cache.limit is None else self._cache.limit

    def read(self, name: str, missing: str) -> bytes:
        """See `Location`."""
        with self._errors_for_users(name, missing):
            return self._fetcher.read_small(name)

    def read_side_file(self, name: str, sha256: str, missing: str) -> bytes:
        """See `Location`."""
        with self._errors_for_users(name, missing):
            opened = self._open(name, None, _content(sha256, ".idx", self.address(name)))
        with os.fdopen(opened, "rb") as file:
            file.seek(0)
            return file.read()

    def open_shard(self, name: str, size: int, sha256: str) -> int:
        """See `Location`: from the cache, or fetched whole and checked."""
        with self._errors_for_users(name, "the index names it: restore it, or index the data set again and start a new run"):
            return self._open(name, size, _content(sha256, ".tar", self.address(name)))

    def _open(self, name: str, size: int | None, content: str) -> int:
        found = self._cache.open(content)
        if found is not None:
            self._costs.add("cache_hits")
            return found
        self._costs.add("cache_misses")
        since = time.perf_counter()
        while (opened := self._fetch(name, size, content, None) or self._cache.open(content)) is None:
            pass  # another process fetched it, and a third one removed it before it could be opened
        self._costs.add("fetch_wait_s", time.perf_counter() - since)
        return opened

    def _fetch(self, name: str, size: int | None, content: str, stop: threading.Event | None) -> int | None:
        """Bring a file into the cache and open it; None where another process did."""
        with self._cache.writing(content, size, _HUNG, stop) as writing:
            if writing is None:
                return None
            if size is not None:
                fits, removed = self._cache.make_room(content, size)
                self._costs.add("cache_evictions", removed)
                if not fits and stop is not None:
                    raise Stopped  # reading ahead can wait; a reader cannot, and goes over the limit
            self._fetcher.download(writing.part, name, size, content.partition(".")[0], stop)
            return writing.publish()

    def read_range(self, name: str, size: int, sha256: str, start: int, count: int) -> bytes | None:
        """See `Location`: single samples until they cost as much as the whole shard."""
        content = _content(sha256, ".tar", self.address(name))
        spent = self._spent.get(content, 0) + count + _REQUEST
        if spent > size or self._cache.touch(content):
            return None
        since = time.perf_counter()
        try:
            found = self._fetcher.read_range(name, start, count)
        except (PermanentError, PastEndError):
            found = None  # opening the whole shard tells what is wrong
        self._costs.add("fetch_wait_s", time.perf_counter() - since)
        self._spent[content] = size if found is None else spent
        return found

    def prefetch(self, name: str, size: int | None, sha256: str, stop: threading.Event) -> None:
        """See `Location`. Errors are left to the reader, who meets them again."""
        with contextlib.suppress(UserError, PermanentError, PastEndError, Stopped, OSError):
            content = _content(sha256, ".idx" if size is None else ".tar", self.address(name))
            if not self._cache.touch(content):
                opened = self._fetch(name, size, content, stop)
                if opened is not None:
                    os.close(opened)

    def discard_damaged(self, sha256: str) -> bool:
        """See `Location`: once for each shard."""
        content = _content(sha256, ".tar", self.root)
        if content in self._renewed:
            return False
        self._renewed.add(content)
        self._spent[content] = 1 << 62  # no single samples any more: only the whole is proved by a hash
        self._cache.drop(content)
        return True

    def check_shard(self, name: str, size: int) -> None:
        """Nothing is known before the download."""

    def local_folder(self, name: str) -> Path:
        """See `Location`; the tokenizer's files are the ones a saved tokenizer has."""
        target = self._cache.folder / hashlib.sha256(self.root.encode()).hexdigest() / name
        target.mkdir(parents=True, exist_ok=True)
        found = 0
        for file in _TOKENIZER_FILES:
            with self._errors_for_users(f"{name}/{file}"):
                try:
                    data = self._fetcher.read_small(f"{name}/{file}")
                except NotFoundError:
                    (target / file).unlink(missing_ok=True)
                    continue
            temporary = target / f".{file}.{os.getpid()}.tmp"
            temporary.write_bytes(data)
            temporary.replace(target / file)
            found += 1
        if not found:
            raise UserError(f"{self.address(name)} holds no tokenizer, and the index says that the data was tokenised: restore it")
        return target

    def read_costs(self) -> dict[str, float]:
        """See `Location`."""
        return self._costs.take()

    @contextlib.contextmanager
    def _errors_for_users(self, name: str, missing: str = "") -> Generator[None]:
        """The user's errors for a file."""
        try:
            yield
        except (PermanentError, PastEndError) as error:
            raise self._fetcher.user_error(name, error, missing) from None


def _content(sha256: str, suffix: str, name: str) -> str:
    """A file's name in the cache."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise UserError(f"the index gives {name} the sha256 {sha256[:80]!r}, which is none; make the index again with `polymodal index`")
    return f"{sha256}{suffix}"


def location(source: str | Path, cache: str | Path | None = None) -> Location:
    """The place that a folder's path or an address names; the environment says how the cache is kept and how patient reading is."""
    text = str(source)
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if scheme in ("http", "https", "s3", "gs", "gcs"):
        retries = RetryPolicy(_setting(READ_TIMEOUT, RetryPolicy.timeout), int(_setting(READ_TRIES, RetryPolicy.tries)), RetryPolicy.pause)
        transport = (Http if scheme.startswith("http") else ObjectStore)(text, retries.timeout)
        return RemoteFolder(transport, Cache(_cache_folder(cache), _limit()), retries)
    if scheme or text.startswith("pipe:"):
        raise UserError(f"cannot read a data set from {redact(text)!r}: expected a folder, or an address with http, https, s3 or gs")
    folder = Path(text)
    if not folder.exists():
        raise UserError(f"data set {text!r} does not exist: expected a folder made by `polymodal pack` or `polymodal index`")
    if not folder.is_dir():
        raise UserError(f"data set {text!r} is a file: give the folder that holds the shards and index.json")
    return LocalFolder(folder)


def _cache_folder(given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    if os.environ.get(CACHE):
        return Path(os.environ[CACHE]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polymodal" / "shards"


def _setting(name: str, default: float) -> float:
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
        if not 0 < value < 1e9 or (value != value // 1 and name == READ_TRIES):
            raise ValueError
    except ValueError:
        raise UserError(f"{name} is {text!r}, expected a positive number such as {default:g}") from None
    return value


def _limit() -> int | None:
    """Bytes that the cache may take."""
    text = os.environ.get(CACHE_BYTES, "")
    if not text:
        return None
    found = re.fullmatch(r"(\d+)\s*([KMGT]?)(i?B)?", text.strip(), re.IGNORECASE)
    if not found or not int(found[1]):
        raise UserError(f"{CACHE_BYTES} is {text!r}, expected a size such as 200G")
    return int(found[1]) << (10 * " KMGT".index(found[2].upper() or " "))
