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
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from .errors import BadSample
from .picture import ENDINGS, open_picture, plain_pixels, rgb_pixels, to_rgb
from .regions import BOXES_FIELD, CLASSES_FIELD, FEATURES_FIELD, Regions, box_problem
from .unicode import half_character, is_blank

IMAGE_FIELDS = ENDINGS
TEXT_FIELDS = ("txt", "text", "caption")
PAIR_FIELD, TARGET_FIELD = "pair.txt", "target.txt"
SECOND = "second."
"""Before the fields of a sample's second picture: `second.png`, `second.regions.npy`."""
UNITS_FIELD = "units.u8"
WORD, ENTITY = 1, 2
"""Bits of `Sample.units`: here a word begins; here begins an entity, or a word that is in none."""
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,19}\s*", re.ASCII)
MAX_PIXELS = 64 * 1024 * 1024  # a decoded RGB image of 192 MiB; anything larger is taken for an image bomb

T = TypeVar("T")


class Answer(NamedTuple):
    """An answer in a text."""

    text: str
    start: int
    """Its first character."""


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
    _find_next: Callable[[], Sample | None] | None = field(default=None, init=False, repr=False, compare=False)

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

    @property
    def next(self) -> Sample | None:
        """The sample behind this one in its data set, where `Objective.needs_next` asks for it; read each time it is asked for.

        None behind the last one, or where it is damaged, as with `partner`.
        """
        return None if self._find_next is None else self._find_next()

    def followed_by(self, find: Callable[[], Sample | None]) -> None:
        """Say how the next sample is found."""
        self._find_next = find

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

    def regions(self) -> Regions:
        """The regions of the picture: fields `regions.npy`, `boxes.npy` and, where there is one, `classes.npy`; checked."""
        if lacking := [name for name in (FEATURES_FIELD, BOXES_FIELD) if name not in self.fields]:
            raise self.bad(f"no field {' and no '.join(map(repr, lacking))}, got {sorted(self.fields)} (`polymodal regions` adds regions "
                           "to pictures, `polymodal pack --kind regions` packs those made elsewhere)")
        features, boxes = self._numbers(FEATURES_FIELD), self._numbers(BOXES_FIELD)
        found = Regions(features, boxes, self._numbers(CLASSES_FIELD) if CLASSES_FIELD in self.fields else None)
        if problem := found.problem():
            raise self.bad(problem)
        return found

    def second(self) -> Sample:
        """The second picture of a sample that has two, with its regions: what lies in fields such as `second.png`."""
        found = {name.removeprefix(SECOND): data for name, data in self.fields.items() if name.startswith(SECOND)}
        if not found:
            raise self.bad(f"no second picture: expected fields such as '{SECOND}png' or '{SECOND}{FEATURES_FIELD}', got "
                           f"{sorted(self.fields)} (`polymodal pack` writes them where the column of pictures holds lists of two)")
        return Sample(f"{self.key}.{SECOND[:-1]}", found, self.index, self.source)

    def box(self) -> np.ndarray:
        """The `box` of `json`: left, top, right, bottom of what a text means, as shares of the picture's width and height; fp32 [4]."""
        found = self.json().get("box")
        if found is None:
            raise self.bad("no 'box' in field 'json' (`polymodal pack --label-field COLUMN` writes it of a column of lists)")
        if problem := box_problem(found):
            raise self.bad(problem)
        return np.array(found, dtype=np.float32)

    def _numbers(self, name: str) -> np.ndarray:
        """Field `name` as fp32."""
        array = self.array(name)
        if array.dtype.kind != "f":
            raise self.bad(f"field {name!r} holds {array.dtype}, expected floating-point numbers")
        return array.astype(np.float32)

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

    def score(self) -> float:
        """The number `score` of `json`."""
        value = self.json().get("score")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
            raise self.bad(f"no number as 'score' in field 'json', got {'nothing' if value is None else repr(value)[:40]} "
                           "(`polymodal pack --kind score` writes it)")
        return float(value)

    def labels(self) -> list[str | int]:
        """The list `labels` of `json`: the classes of a sample that may have several, or none, by their names or their numbers."""
        found = (self.json() if "json" in self.fields else {}).get("labels")
        if not isinstance(found, list) or not all(isinstance(name, (str, int)) and not isinstance(name, bool) for name in found):
            raise self.bad("no list of names or numbers as 'labels' in field 'json' (`polymodal pack --kind labels` writes it)")
        if twice := [name for name in found if found.count(name) > 1]:
            raise self.bad(f"the label {twice[0]!r} stands twice")
        return found

    def tags(self) -> tuple[list[str], list[str | int]]:
        """The lists `words` and `tags` of `json`: at least one word, and a tag for each, by its name or its number."""
        record = self.json()
        words, tags = record.get("words"), record.get("tags")
        if not isinstance(words, list) or not words or not all(isinstance(w, str) and not is_blank(w) for w in words):
            raise self.bad("no list of words, none of them blank, as 'words' in field 'json' (`polymodal pack --kind tag` writes it)")
        if not isinstance(tags, list) or not all(isinstance(t, (str, int)) and not isinstance(t, bool) for t in tags):
            raise self.bad("no list of names or numbers as 'tags' in field 'json'")
        if len(words) != len(tags):
            raise self.bad(f"{len(words)} words and {len(tags)} tags: each word needs one")
        return words, tags

    def choices(self) -> list[str]:
        """The list `choices` of `json`: at least two texts. The number of the right one, from 0, is the `label`."""
        found = self.json().get("choices")
        if not isinstance(found, list) or len(found) < 2 or not all(isinstance(t, str) and not is_blank(t) for t in found):
            raise self.bad("no list of two or more texts, none of them blank, as 'choices' in field 'json' "
                           "(`polymodal pack --kind choice` writes it)")
        return found

    def answers(self) -> tuple[str, list[Answer]]:
        """The `question` of `json` about the text, and its `answers`: each a mapping of `text` and `answer_start`; none is no answer."""
        record, text = self.json(), self.text()
        question, given = record.get("question"), record.get("answers")
        if not isinstance(question, str) or is_blank(question):
            raise self.bad("no text as 'question' in field 'json' (`polymodal pack --kind span` writes it)")
        if not isinstance(given, list):
            raise self.bad("no list as 'answers' in field 'json', expected mappings of 'text' and 'answer_start', or none of them")
        found: list[Answer] = []
        for entry in given:
            answer, start = (entry.get("text"), entry.get("answer_start")) if isinstance(entry, dict) else (None, None)
            if not isinstance(answer, str) or is_blank(answer) or type(start) is not int:
                raise self.bad(f"the answer {str(entry)[:60]!r}, expected a mapping of 'text' and 'answer_start' (a character, from 0)")
            if start < 0 or text[start:start + len(answer)] != answer:
                there = text[start:start + len(answer)][:40] if 0 <= start < len(text) else ""
                there = f"where {there!r} stands" if there else f"which has {len(text)} characters"
                raise self.bad(f"the answer {answer[:40]!r} is not at character {start} of the text, {there}")
            found.append(Answer(answer, start))
        return question, found

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

    def units(self) -> np.ndarray | None:
        """Where words and entities begin: uint8, the bits `WORD` and `ENTITY` for each character of the text or token of the row.

        No bit `ENTITY` at all: only words are known. None where the data says nothing. Written by `polymodal pack` with `--kind words` or
        `--segment`.
        """
        if UNITS_FIELD not in self.fields:
            return None
        found = np.frombuffer(self.fields[UNITS_FIELD], dtype=np.uint8)
        length, what = (len(self.tokens()[0]), "tokens") if self.tokenized else (len(self.text()), "characters")
        if len(found) != length:
            raise self.bad(f"field {UNITS_FIELD!r} has {len(found)} bytes, expected one for each of the {length} {what}")
        return found

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
