"""Classification by the names of classes with a network that reads a text and a picture together: how well does each name's text fit?

CLIP's zero-shot classification (`zero_shot`) for UNITER's matching (Chen et al. 2019, section 3.2): a picture is scored with the prompts of
every class, and the softmax over the classes is taken of the mean scores. There are no vectors to keep, so a picture costs a pass for each
prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..shared.regions import Regions
from ..shared.tokenizer import Tokenizer
from .region_pairs import PairScorer, PairSettings, RegionBatch, RegionReader, batch_of_pairs
from .zero_shot import Template, check_labels, templates

PAIRS_AT_A_TIME = 256


class PairZeroShotClassifier:
    """Classifies regions of pictures by class names that the model was never trained on.

    Args:
        model: in eval mode.
        tokenizer: its tokenizer.
        labels: class names, all different.
        prompts: templates, see `zero_shot.templates`.
    """

    def __init__(self, model: PairScorer, tokenizer: Tokenizer, labels: Sequence[str], prompts: Sequence[Template] | None = None) -> None:
        check_labels(labels)
        settings = PairSettings(max_length=min(PairSettings.max_length, model.config.longest_input))
        self.model, self.labels = model, tuple(labels)
        self.reader = RegionReader(tokenizer, settings, model.config.visual_feat_dim, 0, training=False)
        prompts = templates(()) if prompts is None else prompts
        self.texts = [self.reader.framed(prompt(name)) for name in labels for prompt in prompts]
        self.each = len(prompts)

    @torch.no_grad()
    def of_regions(self, pictures: Sequence[Regions], device: torch.device) -> Tensor:
        """The softmax over the classes of the mean scores of their prompts: [B, C], on the CPU."""
        pairs = [(ids, regions) for regions in pictures for ids in self.texts]
        scores: list[Tensor] = []
        for start in range(0, len(pairs), PAIRS_AT_A_TIME):
            some = pairs[start:start + PAIRS_AT_A_TIME]
            batch = RegionBatch(counts={}, **batch_of_pairs([ids for ids, _ in some], [regions for _, regions in some]))
            scores.append(self.model.score_pairs(batch.to(device)).cpu())
        return torch.cat(scores).view(len(pictures), -1, self.each).mean(-1).softmax(-1)
