"""Zero-shot classification: class names become prompts, prompts become class weights, pictures are compared with them.

As in CLIP (Radford et al., 2021, section 3.1): every class name is put into every template, each prompt's embedding is
made a unit vector, their mean is made one again. The ensemble lies in the embedding space, so it costs nothing per picture.
`ZeroShotSystem` measures it while a network is trained (`evaluate.zero_shot`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..shared.errors import UserError
from ..shared.system import Step, System
from ..shared.tokenizer import Tokenizer
from ..vision.classify import ImageBatch, ImageClassification
from ..vision.transforms import Normalize, Preprocessing


@runtime_checkable
class ImageTextModel(Protocol):
    """A network with vectors of pictures and of texts in one space (CLIP)."""

    config: Any
    """Has `text_config` with `max_position_embeddings` and `vocab_size`."""
    preprocessing: Preprocessing
    logit_scale: nn.Parameter

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """[B, D] of normalised pixels [B, 3, H, W]."""
        ...

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[N, D] of ids [N, S]."""
        ...


Template = Callable[[str], str]
DEFAULT_TEMPLATE = "a photo of a {}."
ENSEMBLES = ("openai", "simple")
"""Named template sets: the 80 that OpenAI used on ImageNet, and the 7 best of them."""
PROMPTS_AT_A_TIME = 256


def templates(chosen: Sequence[str]) -> list[Template]:
    """Templates by name (`openai`, `simple`), as text with `{}` where the class name goes, or from a file with one a line.

    None are "a photo of a {}.".
    """
    found: list[Template] = []
    for text in chosen or (DEFAULT_TEMPLATE,):
        if text in ENSEMBLES:
            found.extend(_ensemble(text))
        elif "{}" in text:
            found.append(_Filled(text))
        elif text.endswith(".txt") or Path(text).is_file():
            found.extend(map(_Filled, _lines(Path(text))))
        else:
            raise UserError(f"template {text!r} has no {{}} for the class name; expected such as {DEFAULT_TEMPLATE!r}, "
                            f"{' or '.join(ENSEMBLES)}, or a file with one a line")  # fmt: skip
    return found


def _lines(path: Path) -> list[str]:
    """The templates of a file; blank lines are none."""
    try:
        lines = [line.removesuffix("\r") for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError):
        raise UserError(f"the templates {str(path)!r} cannot be read: expected a file of UTF-8 with one template a line") from None
    for number, line in enumerate(lines, 1):
        if line.strip() and "{}" not in line:
            raise UserError(f"{path}, line {number} is {line[:60]!r}, which has no {{}} for the class name")
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"{path} holds no templates: expected one a line, such as {DEFAULT_TEMPLATE!r}")
    return found


def _ensemble(name: str) -> Sequence[Template]:
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES  # here: it takes seconds, and the registry imports this file

    return {"openai": OPENAI_IMAGENET_TEMPLATES, "simple": SIMPLE_IMAGENET_TEMPLATES}[name]


class _Filled:
    """A template given as text; braces other than `{}` mean themselves."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, name: str) -> str:
        return self.text.replace("{}", name)


@torch.no_grad()
def class_weights(model: ImageTextModel, tokenizer: Tokenizer, names: Sequence[str], prompts: Sequence[Template]) -> Tensor:
    """One unit vector for each class: [C, projection_dim]."""
    device = model.logit_scale.device
    limit = min(model.config.text_config.max_position_embeddings, 77)
    texts = [prompt(name) for name in names for prompt in prompts]
    vectors: list[Tensor] = []
    for start in range(0, len(texts), PROMPTS_AT_A_TIME):
        tokens = tokenizer(texts[start : start + PROMPTS_AT_A_TIME], max_length=limit)
        features = model.get_text_features(tokens["input_ids"].to(device), tokens["attention_mask"].to(device))
        vectors.append(F.normalize(features.float(), dim=-1))
    return F.normalize(torch.cat(vectors).unflatten(0, (len(names), len(prompts))).mean(1), dim=-1)


def check_labels(labels: Sequence[str]) -> None:
    """Refuse class names that cannot be told apart."""
    if not labels:
        raise UserError("zero-shot classification needs class names: pass at least one label")
    twice = sorted(name for name, times in Counter(labels).items() if times > 1)
    if twice:
        raise UserError(f"labels are given twice: {', '.join(twice)}")


class ZeroShotClassifier:
    """Classifies pictures by class names that the model was never trained on.

    Args:
        model: in eval mode.
        tokenizer: its tokenizer.
        labels: class names, all different.
        prompts: templates, see `templates`.
    """

    def __init__(
        self, model: ImageTextModel, tokenizer: Tokenizer, labels: Sequence[str], prompts: Sequence[Template] | None = None
    ) -> None:
        check_labels(labels)
        self.model = model
        self.labels = tuple(labels)
        self.normalize = Normalize(model.preprocessing).to(model.logit_scale.device)
        self.weights = class_weights(model, tokenizer.fitting_model(model), labels, templates(()) if prompts is None else prompts)

    def probabilities(self, pictures: Sequence[Image.Image]) -> Tensor:
        """The softmax of the scaled cosines with each class: [B, C], on the CPU."""
        return self.of_pixels(torch.stack([self.model.preprocessing.pixels(p) for p in pictures]))

    @torch.no_grad()
    def of_pixels(self, pixels: Tensor) -> Tensor:
        """The same of pictures that are resized and cropped already: uint8 [B, 3, H, W]."""
        pixels = pixels.to(self.weights.device)
        features = self.model.get_image_features(self.normalize(pixels).to(self.model.logit_scale.dtype))
        logits = self.model.logit_scale.float().exp() * F.normalize(features.float(), dim=-1) @ self.weights.T
        return logits.softmax(-1).cpu()


class ZeroShotSystem(System[nn.Module, ImageClassification]):
    """A network's zero-shot accuracy, measured as the loop measures held-out data; nothing is trained.

    Args:
        net: in eval mode when it is measured; its class weights are computed with the first batch.
        tokenizer: its tokenizer.
        labels: class names, all different.
        chosen: templates, see `templates`.
    """

    def __init__(self, net: nn.Module, tokenizer: Tokenizer, labels: Sequence[str], chosen: Sequence[str]) -> None:
        assert isinstance(net, ImageTextModel)
        check_labels(labels)
        prompts = templates(chosen)
        super().__init__(net, ImageClassification(net.preprocessing, len(labels), tuple(labels), None))
        self._make = lambda: ZeroShotClassifier(net, tokenizer, labels, prompts)
        self._made: ZeroShotClassifier | None = None

    def forward(self, batch: ImageBatch, carry: Any = None) -> Step:
        """How many pictures have their class first, and among the first five."""
        self._made = self._made or self._make()
        scores, count = self._made.of_pixels(batch.images), len(batch.labels)
        labels = batch.labels.cpu()
        return Step({}, {f"zero_shot_top{k}": (torch.tensor(round(top_k_accuracy(scores, labels, k) * count)), count) for k in (1, 5)})

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "zero_shot_top1", "zero_shot_top5"


def top_k_accuracy(probabilities: Tensor, targets: Tensor, k: int) -> float:
    """The share of rows [B, C] whose target [B] is among the `k` largest."""
    best = probabilities.topk(min(k, probabilities.shape[1])).indices
    return (best == targets[:, None]).any(1).float().mean().item()
