"""What pictures show, in words: their regions are found, and a network writes behind them (UNIMO)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from torch import nn

from ...multimodal.captions import PictureWriter, describe
from ...seq2seq.generation.options import GenerationOptions
from ...shared.errors import BadSample, UserError
from ...shared.regions import DEFAULT_REGIONS
from ...shared.sample import Sample
from ...shared.tokenizer import Tokenizer
from .detectors import Grid, GridWork


@dataclass(frozen=True)
class Captioned:
    """A picture with its caption, or with the reason why it has none."""

    image: str
    caption: str = ""
    reason: str = ""


def caption(
    model: nn.Module,
    pictures: Sequence[str | Path | bytes],
    *,
    tokenizer: Tokenizer,
    tower: nn.Module,
    regions: int = DEFAULT_REGIONS,
    batch_size: int = 16,
    **options: Unpack[GenerationOptions],
) -> list[str]:
    """Write what pictures show.

    Args:
        model: from `polymodal.load`: a network that writes behind the regions of a picture (UNIMO, pretrained or tuned for captions).
        pictures: paths, or the bytes of JPEG, PNG, WebP, GIF, TIFF or BMP files.
        tokenizer: the model's.
        tower: the network over whose patches `polymodal regions --detector grid` found the regions that the model was trained on.
        regions: of a picture, as there.
        batch_size: pictures that run together.
        options: of `polymodal.generate`, such as `num_beams=5, length_penalty=0.6`; by default the most probable word each time.

    Raises:
        UserError: a picture cannot be read, or the networks do not belong together.
    """
    named = [(f"picture {n}" if isinstance(one, bytes) else str(one), one if isinstance(one, bytes) else Path(one))
             for n, one in enumerate(pictures)]
    found = list(captioned(model, named, tokenizer, tower, regions=regions, batch_size=batch_size, **options))
    for one in found:
        if one.reason:
            raise UserError(f"{one.image}: {one.reason}")
    return [one.caption for one in found]


def captioned(model: nn.Module, pictures: Sequence[tuple[str, bytes | Path]], tokenizer: Tokenizer, tower: nn.Module, *, regions: int,
              batch_size: int, advance: Callable[[float], None] = lambda count: None, **options: Unpack[GenerationOptions]
              ) -> Iterator[Captioned]:
    """`caption` for named pictures, one after the other; one that cannot be read has a reason instead."""
    if not isinstance(model, PictureWriter):
        raise UserError(f"the model is a {type(model).__name__}, which writes no captions: give a UNIMO, pretrained or tuned for captions")
    grid = Grid(tower, GridWork("", regions, "", batch_size), None)
    if grid.width != model.config.visual_feat_dim:
        raise UserError(f"the model reads regions with features of width {model.config.visual_feat_dim}, and the tower's have width "
                        f"{grid.width}: give the tower whose regions it was trained on")
    fitting = tokenizer.fitting_model(model)
    for begin in range(0, len(pictures), batch_size):
        reasons: dict[str, str] = {}
        items = {}
        for name, source in pictures[begin:begin + batch_size]:
            try:
                items[name] = grid.prepare(_sample(name, source))
            except BadSample as error:
                reasons[name] = str(error).partition(": ")[2] or str(error)  # without the sample's name: the path says more
        told = iter(describe(model, grid.find(list(items.values())), fitting, **options) if items else ())  # type: ignore[arg-type]
        for name, _ in pictures[begin:begin + batch_size]:
            yield Captioned(name, reason=reasons[name]) if name in reasons else Captioned(name, next(told))
            advance(1)


def _sample(name: str, source: bytes | Path) -> Sample:
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise BadSample(f"{name}: cannot be read ({error.strerror})") from None
    return Sample(Path(name).name, {"png": data}, source=str(Path(name).parent))  # the decoder looks at the bytes, not at the ending
