"""One sample of a WebDataset shard: raw bytes by field, decoded on demand by named, safe decoders.

Nothing here executes anything that a data set contains: a pickle, a `.pyd`, a `.pth` or an object
array is refused, whatever its name says.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from .errors import BadSample
from .picture import ENDINGS, open_picture, plain_pixels, rgb_pixels, to_rgb
from .unicode import half_character, is_blank

IMAGE_FIELDS = ENDINGS
TEXT_FIELDS = ("txt", "text", "caption")
PAIR_FIELD, TARGET_FIELD = "pair.txt", "target.txt"
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,19}\s*", re.ASCII)
MAX_PIXELS = 64 * 1024 * 1024  # a decoded RGB image of 192 MiB; anything larger is taken for an image bomb

T = TypeVar("T")


@dataclass(slots=True)
class Sample:
    """The members of a tar that share a key.

    `fields` maps the WebDataset extension (all that follows the first dot of the base name, lower case)
    to the member's bytes. `index` is the sample's number in its data set, stable over epochs, ranks and
    workers: with the seed and the epoch it keys every random draw that is made for the sample.
    """

    key: str
    fields: Mapping[str, bytes]
    index: int = 0
    source: str = ""
    """Name of the shard (or file) the sample came from; for messages only."""
    _find_partner: Callable[[], Sample | None] | None = field(default=None, init=False, repr=False, compare=False)
    _partner: Sample | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def partner(self) -> Sample | None:
        """Another sample, drawn at random near this one, where `Objective.needs_partner` asks for it; read when it is first asked for.

        None where there is none, or where it is damaged: then it is counted as bad when its own turn comes, and this sample is still good.
        """
        if self._find_partner is not None:
            self._partner, self._find_partner = self._find_partner(), None
        return self._partner

    def pair_with(self, find: Callable[[], Sample | None]) -> None:
        """Say how the partner is found."""
        self._find_partner, self._partner = find, None

    def _first(self, names: tuple[str, ...]) -> tuple[str, bytes] | None:
        for name in names:
            if name in self.fields:
                return name, self.fields[name]
        return None

    def bad(self, reason: str) -> BadSample:
        """The error to raise where this sample cannot be used, with its place."""
        return BadSample(f"sample {self.key!r} of {self.source or 'the data set'}: {reason}")

    def text(self) -> str:
        """The text: field `txt` (or `text`, `caption`), else the `text` or `caption` string of `json`."""
        text = self._string(TEXT_FIELDS, ("text", "caption"))
        if text is None:
            raise self.bad(f"no text: expected a field {TEXT_FIELDS} or json with 'text', got {sorted(self.fields)}")
        if is_blank(text):
            raise self.bad("the text is empty")
        return text

    def pair(self) -> str | None:
        """The second text of a pair: field `pair.txt`, else `text_pair` of `json`; None where the sample is one text."""
        return self._string((PAIR_FIELD,), ("text_pair",))

    def target(self) -> str:
        """The text to be written for this one: field `target.txt`, else `target` of `json`."""
        text = self._string((TARGET_FIELD,), ("target",))
        if text is None:
            raise self.bad(f"no target text: expected a field {TARGET_FIELD!r} or json with 'target', got {sorted(self.fields)} "
                            "(`polymodal pack --target-field COLUMN` writes it)")
        if is_blank(text):
            raise self.bad("the target text is empty")
        return text

    def _string(self, names: tuple[str, ...], keys: tuple[str, ...]) -> str | None:
        """The first of the text fields `names`, else of the strings in `json` under `keys`."""
        found = self._first(names)
        if found is None:
            record = self.json() if "json" in self.fields else {}
            text = next((record[k] for k in keys if isinstance(record.get(k), str)), None)
            if text is not None and (reason := half_character(text)):
                raise self.bad(f"field 'json' holds {reason}")
            return text
        try:
            return found[1].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.bad(f"field {found[0]!r} is not UTF-8 ({error.reason} at byte {error.start})") from None

    def json(self) -> dict[str, Any]:
        """The `json` field, which must hold an object."""
        if "json" not in self.fields:
            raise self.bad(f"no field 'json', got {sorted(self.fields)}")
        try:
            value = json.loads(self.fields["json"])
        except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits
            raise self.bad(f"field 'json' cannot be parsed ({error})") from None
        if not isinstance(value, dict):
            raise self.bad(f"field 'json' must be an object, got {type(value).__name__}")
        return value

    def image(self, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """The picture of the first field of `IMAGE_FIELDS`, as a viewer shows it: upright, RGB, alpha laid over white.

        The size is read from the header and checked before a pixel is decoded.
        """
        return self._picture(lambda picture, _: to_rgb(picture), max_pixels)

    def pixels(self, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """The pixels of `image`, uint8 [H, W, 3]: faster than by way of the picture."""
        found = self._first(IMAGE_FIELDS)
        plain = plain_pixels(found[1], max_pixels) if found else None
        return self._picture(rgb_pixels, max_pixels) if plain is None else plain

    def _picture(self, decode: Callable[[Image.Image, bytes], T], max_pixels: int) -> T:
        """What `decode` makes of the opened picture and its bytes."""
        found = self._first(IMAGE_FIELDS)
        if found is None:
            raise self.bad(f"no picture: expected one of {IMAGE_FIELDS}, got {sorted(self.fields)}")
        name, data = found
        try:
            picture = open_picture(data)
            if math.prod(picture.size) > max_pixels:
                raise self.bad(f"picture of {picture.size[0]}x{picture.size[1]} pixels, at most {max_pixels} are decoded")
            return decode(picture, data)
        except BadSample:
            raise
        except Exception as error:  # Pillow raises nearly anything on damaged data
            raise self.bad(f"field {name!r} cannot be decoded as a picture ({type(error).__name__}: {error})") from None

    def label(self) -> int:
        """The class number: field `cls`, else the integer `label` (or `cls`) of `json`."""
        value: Any
        if "cls" in self.fields:
            value = self.fields["cls"].decode("utf-8", "replace")
        else:
            record = self.json() if "json" in self.fields else {}
            value = record.get("label", record.get("cls"))
        if (isinstance(value, str) and _INTEGER.fullmatch(value)) or (isinstance(value, float) and value.is_integer()):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
            found = "nothing" if value is None else repr(value)[:40]
            raise self.bad(f"no whole number as class in field 'cls' or json 'label', got {found}")
        return value

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """A pre-tokenised row: ids int64 [T] and document lengths int64 [documents], their sum T.

        Written by `polymodal pack --tokenize` as `tokens.u16` or `tokens.u32`, and `lengths.u32`
        (little-endian, no header). Without `lengths.u32` the row is one document.
        """
        for name, kind in (("tokens.u16", "<u2"), ("tokens.u32", "<u4")):
            if name in self.fields:
                data = self.fields[name]
                if not data or len(data) % int(kind[-1]):
                    raise self.bad(f"field {name!r} has {len(data)} bytes, expected a positive multiple of {kind[-1]}")
                ids = np.frombuffer(data, dtype=kind).astype(np.int64)
                break
        else:
            raise self.bad(f"no pre-tokenised row: expected 'tokens.u16' or 'tokens.u32', got {sorted(self.fields)}")
        raw = self.fields.get("lengths.u32")
        if raw is not None and len(raw) % 4:
            raise self.bad(f"field 'lengths.u32' has {len(raw)} bytes, expected a multiple of 4")
        lengths = np.array([len(ids)]) if raw is None else np.frombuffer(raw, dtype="<u4").astype(np.int64)
        if int(lengths.sum()) != len(ids) or bool((lengths == 0).any()):
            raise self.bad(f"document lengths add up to {int(lengths.sum())}, the row has {len(ids)} tokens")
        return ids, lengths

    @property
    def tokenized(self) -> bool:
        """Whether the sample is a pre-tokenised row."""
        return "tokens.u16" in self.fields or "tokens.u32" in self.fields

    def array(self, name: str) -> np.ndarray:
        """Field `name` (`... .npy`) as an array; object arrays (pickle inside) are refused."""
        if name not in self.fields:
            raise self.bad(f"no field {name!r}, got {sorted(self.fields)}")
        try:
            found = np.load(io.BytesIO(self.fields[name]), allow_pickle=False)
        except Exception as error:  # numpy raises ValueError, EOFError, SyntaxError ... on damaged headers
            raise self.bad(f"field {name!r} cannot be read as npy ({type(error).__name__}: {error})") from None
        if not isinstance(found, np.ndarray):
            raise self.bad(f"field {name!r} is a zip of arrays (npz), expected one array (npy)")
        return found
