"""Vectors of texts, as sentence-transformers makes them, and of pictures."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

from ...shared.errors import BadSample, UserError
from ...shared.sample import Sample
from ...shared.tokenizer import NoTokenizer, Tokenizer
from ...vision.transforms import Normalize
from ..model.frontdoor import longest_input
from ..model.frontdoor import tokenizer as find_tokenizer


@runtime_checkable
class TextFeatures(Protocol):
    """A network with a text vector of its own (CLIP)."""

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[B, D] of ids [B, S]."""
        ...


@runtime_checkable
class PictureFeatures(Protocol):
    """A network with a picture vector of its own (CLIP, ViT, MAE)."""

    preprocessing: Any

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """[B, D] of normalised pixels."""
        ...


def embed(
    model: nn.Module,
    inputs: Sequence[str] | Sequence[Path] | Sequence[Image.Image],
    tokenizer: Tokenizer | None = None,
    *,
    max_length: int | None = None,
    batch_size: int = 32,
    normalize: bool = True,
) -> Tensor:
    """Vectors of texts, or of pictures: those that `polymodal embed` writes.

    A network with text or picture features of its own (CLIP, ViT ...) gives those. Any other gives of a text the mean of its last hidden
    states over the tokens that are not padding, [CLS] and [SEP] counted: the convention of sentence-transformers.

    Args:
        model: from `polymodal.load`.
        inputs: texts (`str`), or pictures: the `Path` of each, or the images themselves.
        tokenizer: the model's; by default the one that lies with it. Pictures need none.
        max_length: at most this many tokens of a text, the rest is cut off; by default what the model takes, or what sentence-transformers
            limited it to.
        batch_size: texts or pictures that run together.
        normalize: scale each vector to length 1.

    Returns:
        fp32 [N, D] on the CPU, in the order of `inputs`.

    Raises:
        UserError: the model has no such vectors, a picture cannot be read, or the inputs are of several kinds.
    """
    if is_pictures(inputs):
        return embed_pictures(model, cast("Sequence[Path]", inputs), batch_size=batch_size, normalize=normalize)
    limit = max_length or length_of(model)
    return embed_texts(model, cast("Sequence[str]", inputs), tokenizer or tokenizer_beside(model), max_length=limit, batch_size=batch_size,
                       normalize=normalize)


def is_pictures(inputs: Sequence[Any]) -> bool:
    """Whether the inputs are pictures or their paths, and not texts.

    Raises:
        UserError: they are both, or something else.
    """
    if isinstance(inputs, (str, bytes)):
        raise UserError(f"expected a list of texts or of pictures, got one {type(inputs).__name__}: put it in a list")
    texts, pictures = (sum(isinstance(one, kinds) for one in inputs) for kinds in (str, (Path, Image.Image)))
    if max(texts, pictures) < len(inputs):
        kinds = ", ".join(sorted({type(one).__name__ for one in inputs}))
        raise UserError(f"expected texts (str) or pictures (Path or PIL.Image), all of one kind, got {kinds}")
    return pictures > 0


def tokenizer_beside(model: nn.Module) -> Tokenizer:
    """The tokenizer that lies with a network from `polymodal.load`."""
    directory = directory_of(model)
    if directory is None:
        raise NoTokenizer(f"no tokenizer lies with this {type(model).__name__}: pass tokenizer=")
    return find_tokenizer(directory)


def directory_of(model: nn.Module) -> Path | None:
    """Where a network from `polymodal.load` lies."""
    return getattr(getattr(model, "origin", None), "directory", None)


def length_of(net: nn.Module) -> int | None:
    """The longest text of a model that sentence-transformers wrote."""
    directory = directory_of(net)
    return None if directory is None else sentence_length(directory)


@torch.inference_mode()
def embed_texts(
    model: nn.Module,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    max_length: int | None = None,
    batch_size: int = 32,
    normalize: bool = True,
    advance: Callable[[float], None] = lambda count: None,
) -> Tensor:
    """Vectors of texts; `advance` is called with the number of texts that are done. The other arguments are those of `embed`."""
    read = _reader(model)
    tokenizer.fitting_model(model)
    limit = max_length if max_length is not None else _positions(model, tokenizer)
    device = next(model.parameters()).device
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # texts of similar length share a batch
    vectors: list[Tensor | None] = [None] * len(texts)
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start:start + batch_size]
            batch = {k: v.to(device) for k, v in tokenizer([texts[i] for i in chosen], max_length=limit).items()}
            rows = read(batch).float()
            rows = nn.functional.normalize(rows, dim=-1) if normalize else rows
            for place, row in zip(chosen, rows.cpu()):
                vectors[place] = row
            advance(len(chosen))
    finally:
        model.train(training)
    done = [v for v in vectors if v is not None]
    assert len(done) == len(texts)
    return torch.stack(done) if done else torch.zeros(0, 0)


@torch.inference_mode()
def embed_pictures(
    model: nn.Module,
    pictures: Sequence[Path] | Sequence[Image.Image],
    *,
    batch_size: int = 32,
    normalize: bool = True,
    advance: Callable[[float], None] = lambda count: None,
) -> Tensor:
    """Vectors of pictures, or of their files, by a network that has them (CLIP, ViT, MAE), fp32 [N, D]; arguments as in `embed_texts`."""
    if not isinstance(model, PictureFeatures):
        raise UserError(f"{type(model).__name__} has no picture vectors: load a CLIP, a ViT or an MAE")
    device = next(model.parameters()).device
    normalise = Normalize(model.preprocessing).to(device)
    training = model.training
    model.eval()
    parts: list[Tensor] = []
    try:
        for start in range(0, len(pictures), batch_size):
            chosen = pictures[start:start + batch_size]
            pixels = torch.stack([model.preprocessing.pixels(picture(p)) for p in chosen]).to(device)
            rows = model.get_image_features(normalise(pixels)).float()
            parts.append((nn.functional.normalize(rows, dim=-1) if normalize else rows).cpu())
            advance(len(chosen))
    finally:
        model.train(training)
    return torch.cat(parts) if parts else torch.zeros(0, 0)


def picture(path: Path | Image.Image) -> Image.Image:
    """A picture, or its file, read by the same careful decoder as the stream's."""
    if isinstance(path, Image.Image):
        return path
    try:
        return Sample(path.name, {path.suffix.lower().lstrip("."): path.read_bytes()}, source=str(path.parent)).image()
    except BadSample as error:
        raise UserError(str(error)) from None


def sentence_length(directory: Path) -> int | None:
    """`max_seq_length` of sentence-transformers' `sentence_bert_config.json` in a model directory, where there is one."""
    path = directory / "sentence_bert_config.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("max_seq_length")
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError):
        raise UserError(f"{path} is not a JSON object") from None
    return found if isinstance(found, int) else None


def _reader(model: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
    """What makes vectors [B, D] of a tokenised batch."""
    if isinstance(model, TextFeatures):
        features = model.get_text_features
        return lambda batch: features(batch["input_ids"], batch["attention_mask"])
    trunk: Any = getattr(model, "trunk", model)
    takes = inspect.signature(trunk.forward).parameters

    def mean(batch: dict[str, Tensor]) -> Tensor:
        read = {name: value for name, value in batch.items() if name in takes or name != "token_type_ids"}  # a BERT's tokenizer has types
        hidden: Tensor | None = getattr(trunk(**read), "last_hidden_state", None)
        if hidden is None:
            raise UserError(f"{type(model).__name__} has no text vectors: load a text encoder such as BERT, or CLIP")
        keep = batch["attention_mask"].to(hidden.dtype)[..., None]
        return (hidden * keep).sum(1) / keep.sum(1).clamp(min=1e-9)

    if "input_ids" not in takes:
        raise UserError(f"{type(model).__name__} does not read text: load a text encoder such as BERT, or CLIP")
    return mean


def _positions(model: nn.Module, tokenizer: Tokenizer) -> int | None:
    """The longest input: the tokenizer's limit, and never more than a learned position table holds."""
    return min((n for n in (longest_input(model), tokenizer.max_length) if n is not None), default=None)
