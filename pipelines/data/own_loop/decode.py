"""The fields of a sample as webdataset's users know them: `jpg` a picture, `txt` a text, `cls` a number, by their endings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ....shared.errors import BadSample, UserError
from ....shared.sample import IMAGE_FIELDS, Sample

Decode = Literal["pil", "rgb"]


@dataclass(frozen=True)
class Decoder:
    """From a sample to what the loop gets. Picklable if `transform` is.

    Args:
        decode: pictures as RGB `PIL.Image` ("pil") or as uint8 [H, W, 3] ("rgb"); None leaves every field as bytes.
        fields: names of fields, to get a tuple of these in place of a dictionary; "jpg;png" takes the first that is there.
        transform: applied to the dictionary or tuple at last.
    """

    decode: Decode | None = "pil"
    fields: tuple[str, ...] | None = None
    transform: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if self.decode not in ("pil", "rgb", None):
            raise UserError(f"decode is {self.decode!r}, expected 'pil', 'rgb' or None")

    def __call__(self, sample: Sample, url: str) -> Any:
        """The dictionary, or what `fields` and `transform` make of it; raises `BadSample` where a field is damaged or lacking."""
        if self.fields is None:
            made: dict[str, Any] = {name: self._field(sample, name) for name in sample.fields}
            item: Any = {"__key__": sample.key, "__url__": url, "__index__": sample.index, **made}
        else:
            item = tuple(self._field(sample, self._chosen(sample, names)) for names in self.fields)
        return item if self.transform is None else self.transform(item)

    def _chosen(self, sample: Sample, names: str) -> str:
        for name in names.split(";"):
            if name in sample.fields:
                return name
        raise sample.bad(f"no field {names!r}, got {sorted(sample.fields)}")

    def _field(self, sample: Sample, name: str) -> Any:
        if self.decode is None:
            return sample.fields[name]
        kind = name.rpartition(".")[2]  # of left.png: png
        picture = kind in IMAGE_FIELDS
        alone = Sample(sample.key, {kind if picture else name: sample.fields[name]}, sample.index, sample.source)
        if picture:
            return alone.image() if self.decode == "pil" else _own(alone.pixels())
        read = _READERS.get(name) or _READERS.get(kind)
        return sample.fields[name] if read is None else read(alone, name)


def _own(pixels: np.ndarray) -> np.ndarray:
    """Pixels that the loop may write to, as torch wants them."""
    return pixels if pixels.flags.writeable else pixels.copy()


def _text(sample: Sample, name: str) -> str:
    try:
        return sample.fields[name].decode("utf-8")
    except UnicodeDecodeError as error:
        raise sample.bad(f"field {name!r} is not UTF-8 ({error.reason} at byte {error.start})") from None


def _json(sample: Sample, name: str) -> Any:
    return Sample(sample.key, {"json": sample.fields[name]}, source=sample.source).json()


def _label(sample: Sample, name: str) -> int:
    return Sample(sample.key, {"cls": sample.fields[name]}, source=sample.source).label()


def _tokens(sample: Sample, name: str) -> np.ndarray:
    return sample.tokens()[0]


_READERS: Mapping[str, Callable[[Sample, str], Any]] = {
    "txt": _text, "text": _text, "caption": _text, "json": _json, "cls": _label, "npy": Sample.array,
    "tokens.u16": _tokens, "tokens.u32": _tokens,
}
"""By the name of a field, or its ending."""


def decoded(samples: Sequence[Sample | BadSample], urls: Sequence[str], decoder: Decoder, on_bad: str) -> list[Any]:
    """What the good ones are; a bad one ends it, or under `on_bad` "skip" is left out."""
    made: list[Any] = []
    for sample, url in zip(samples, urls, strict=True):
        try:
            if isinstance(sample, BadSample):
                raise sample
            made.append(decoder(sample, url))
        except BadSample as error:
            if on_bad == "raise":
                raise UserError(f"{error} (on_bad='skip' leaves such samples out)") from None
    return made
