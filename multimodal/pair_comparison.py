"""Fine-tuning UNITER on two pictures: whether a text is true of both together (NLVR2), or another class for them.

Chen et al. 2019, section 4.1, and ChenRocks/UNITER (`UniterForNlvr2PairedAttn` of `model/nlvr2.py`, the best of its three ways). The trunk
reads the text twice, with each picture; the regions of the second picture have a token type of their own. Each of the two rows attends to
the other one, a layer of half the width and ReLU joins both views, a row is pooled by a weight for each of its places, and a linear layer
reads the two together.

    a = fc([attn1(x, y), x])    b = fc([attn2(y, x), y])    logits = W [pool(a), pool(b)]

A sample holds regions, those of the second picture (`second.regions.npy` ...), a text, and the number of its class (`cls`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.attention import Attention
from ..shared.attention.choose import make_plan
from ..shared.attention.mask import Mask
from ..shared.embed import normal_
from ..shared.family import Context
from ..shared.loss import accuracy_sum, at_least_fp32, cross_entropy_sum
from ..shared.regions import Regions
from ..shared.sample import Sample
from ..shared.system import Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from ..text.encoder_task import class_names, need_classes, with_classes
from . import pair_ranking
from .region_pairs import PairSettings, RegionBatch, RegionReader, batch_of_pairs, check_length

TYPES = 3
"""Token types: of words, and of the regions of the first and of the second picture."""
TYPE_TABLE = "trunk.embed.token_type.weight"


@dataclass(frozen=True, slots=True)
class ComparisonExample:
    """A text about two pictures, and its class."""

    input_ids: np.ndarray
    """int64 [S], with special tokens."""
    pictures: tuple[Regions, Regions]
    label: int


@dataclass(kw_only=True)
class ComparisonBatch(RegionBatch):
    """2 N pairs: of each of N samples the text with the first picture, and the text with the second one."""

    labels: Tensor
    """int64 [N]"""


def two_by_two(texts: Sequence[np.ndarray], pictures: Sequence[tuple[Regions, Regions]]) -> dict[str, Any]:
    """The fields of a `RegionBatch` of N texts, each with either of its pictures: 2 N pairs."""
    shown = [regions for both in pictures for regions in both]
    types = np.concatenate([np.full(len(regions.features), 1 + number % 2) for number, regions in enumerate(shown)])
    return {**batch_of_pairs([ids for ids in texts for _ in range(2)], shown), "types": torch.from_numpy(types)}


class ComparisonObjective(Objective[ComparisonExample]):
    """A text about two pictures, and its class.

    Args:
        tokenizer: with tokens for classification and separation.
        settings: limits of length.
        width: of the features of regions.
        labels: names of the classes.
        training: whether a random text of several is taken; else the first.
    """

    def __init__(self, tokenizer: Tokenizer, settings: PairSettings, width: int, labels: tuple[str, ...], training: bool = True) -> None:
        self.tokenizer, self.settings, self.width, self.labels = tokenizer, settings, width, labels
        self.reader = RegionReader(tokenizer, settings, width, 0, training)

    def evaluation(self) -> ComparisonObjective:
        """With the first text of each sample."""
        return ComparisonObjective(self.tokenizer, self.settings, self.width, self.labels, False)

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[ComparisonExample]:
        """The one example of a sample."""
        ids, pictures, label = self.reader.caption(sample, rng), both_pictures(self.reader, sample), sample.label()
        if not 0 <= label < len(self.labels):
            raise sample.bad(f"class {label}, the model has {len(self.labels)}")
        yield ComparisonExample(ids, pictures, label)

    def tokens_of(self, example: ComparisonExample) -> int:
        """Tokens and regions of both."""
        return sum(len(example.input_ids) + len(regions.features) for regions in example.pictures)

    def collate(self, examples: list[ComparisonExample]) -> ComparisonBatch:
        """Pack pairs side by side; the loss is counted in samples."""
        fields = two_by_two([e.input_ids for e in examples], [e.pictures for e in examples])
        return ComparisonBatch(counts={"samples": len(examples)}, **fields, labels=torch.tensor([e.label for e in examples]))

    def describe(self, example: ComparisonExample) -> Preview:
        """The text, how many regions the pictures have, and the class."""
        return Preview((("text", self.tokenizer.show(example.input_ids)),
                        ("regions", " and ".join(str(len(regions.features)) for regions in example.pictures)),
                        ("class", self.labels[example.label])))


def both_pictures(reader: RegionReader, sample: Sample) -> tuple[Regions, Regions]:
    """The regions of the two pictures of a sample."""
    return reader.regions(sample), reader.regions(sample.second())


class AttentionPool(nn.Module):
    """The mean of a row's places by weights: the softmax of a number for each, which is not below 0 (`model/nlvr2.py`)."""

    def __init__(self, width: int, dropout: float, std: float) -> None:
        super().__init__()
        self.weigh, self.dropout = nn.Linear(width, 1), nn.Dropout(dropout)
        normal_(self, std)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """[N, L, D] and bool [N, L], False at padding -> [N, D]."""
        weights = at_least_fp32(self.weigh(x)[..., 0].relu()).masked_fill(~keep, -math.inf).softmax(-1)
        return (self.dropout(weights).to(x.dtype)[:, None] @ x)[:, 0]


class UniterForNlvr2PairedAttn(nn.Module):
    """The trunk, and the layers that put what it reads of two pictures together.

    Args:
        trunk: a `UniterModel` without a pooler, with `TYPES` token types.
        config: its own.
    """

    def __init__(self, trunk: nn.Module, config: Any) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk
        width, std = config.hidden_size, config.initializer_range
        self.first, self.second = (Attention(width, config.num_attention_heads, dropout=config.attention_probs_dropout_prob, cross=True)
                                   for _ in range(2))
        self.join = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Dropout(config.hidden_dropout_prob))
        self.pool = AttentionPool(width, config.attention_probs_dropout_prob, std)
        self.classifier = nn.Linear(2 * width, config.num_labels)
        for part in (self.first, self.second, self.join, self.classifier):
            normal_(part, std)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None, *, visual_feats: Tensor, visual_pos: Tensor, visual_attention_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits [B, classes] of 2 B padded pairs, each text with its first and then with its second picture; see `UniterModel.forward`."""
        rows, places = visual_feats.shape[:2]
        types = (1 + torch.arange(rows, device=input_ids.device) % 2)[:, None].expand(rows, places)
        words, regions = (torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask.bool()
                          for mask, x in ((attention_mask, input_ids), (visual_attention_mask, visual_feats)))
        out = self.trunk(input_ids, attention_mask, token_type_ids, position_ids, visual_feats=visual_feats, visual_pos=visual_pos,
                         visual_attention_mask=visual_attention_mask, visual_token_type_ids=types)
        return self.compare(out.last_hidden_state, torch.cat([words, regions], dim=1))

    def logits(self, batch: RegionBatch) -> Tensor:
        """Logits of packed pairs, fp32 [N, classes]."""
        lengths, longest = torch.tensor(batch.row_lengths), max(batch.row_lengths)
        rows = self.trunk.packed(batch).last_hidden_state[0].split(list(batch.row_lengths))  # type: ignore[operator]
        keep = (torch.arange(longest) < lengths[:, None]).to(rows[0].device, non_blocking=True)
        return at_least_fp32(self.compare(nn.utils.rnn.pad_sequence(list(rows), batch_first=True), keep))

    def compare(self, states: Tensor, keep: Tensor) -> Tensor:
        """Logits [N, classes] of the states of 2 N rows [2 N, L, D] and bool [2 N, L], False at padding."""
        views = [(attention, states[here::2], states[1 - here::2], keep[here::2], keep[1 - here::2])
                 for here, attention in enumerate((self.first, self.second))]
        pooled: list[Tensor] = []
        for attention, x, other, kept, other_kept in views:
            plan = make_plan(Mask(keep=other_kept), len(x), x.shape[1], other.shape[1], x.device)
            pooled.append(self.pool(self.join(torch.cat([attention(x, plan, other), x], dim=-1)), kept))
        return self.classifier(torch.cat(pooled, dim=-1))


class ComparisonSystem(System[UniterForNlvr2PairedAttn, ComparisonObjective]):
    """Fine-tuning on two pictures."""

    def __init__(self, net: UniterForNlvr2PairedAttn, objective: ComparisonObjective) -> None:
        super().__init__(net, objective)
        net.trunk.masks_nothing()  # type: ignore[operator]

    def forward(self, batch: ComparisonBatch, carry: Any = None) -> Step:
        """Cross-entropy of the classes."""
        logits = self.net.logits(batch)
        return Step({"classes": Term(cross_entropy_sum(logits, batch.labels), "samples", labels=batch.labels)},
                    {"accuracy": (accuracy_sum(logits, batch.labels), len(logits))})

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "classes", "classes_chance", "accuracy"

    @torch.no_grad()
    def preview(self, batch: ComparisonBatch, limit: int = 4) -> list[Preview]:
        """Texts with the most probable class and the true one."""
        chances, best = self.net.logits(batch).softmax(-1).max(-1)
        texts, names = batch.input_ids[0].split(list(batch.lengths))[::2], self.objective.labels
        return [Preview((("text", self.objective.tokenizer.show(ids.tolist())), ("class", f"{names[c]} {p:.2f}"), ("truth", names[true])))
                for ids, c, p, true in list(zip(texts, best.tolist(), chances.tolist(), batch.labels.tolist(), strict=True))[:limit]]


class PictureComparer:
    """Classes of texts about two pictures, by a fine-tuned network.

    Args:
        model: in eval mode.
        tokenizer: the model's.
    """

    def __init__(self, model: UniterForNlvr2PairedAttn, tokenizer: Tokenizer) -> None:
        settings = PairSettings(max_length=min(PairSettings.max_length, model.config.longest_input))
        self.model, self.labels = model, class_names(model.config)
        self.reader = RegionReader(tokenizer, settings, model.config.visual_feat_dim, 0, training=False)

    def read(self, sample: Sample) -> tuple[np.ndarray, tuple[Regions, Regions]]:
        """The text of a sample, as ids, and its two pictures."""
        return self.reader.caption(sample, np.random.default_rng(0)), both_pictures(self.reader, sample)

    @torch.no_grad()
    def probabilities(self, inputs: Sequence[tuple[np.ndarray, tuple[Regions, Regions]]]) -> Tensor:
        """Probabilities of the classes [N, classes], on the CPU."""
        fields = two_by_two([ids for ids, _ in inputs], [pictures for _, pictures in inputs])
        batch = RegionBatch(counts={}, **fields).to(next(self.model.parameters()).device)
        return self.model.logits(batch).softmax(-1).cpu()


def fitting(config: Any, context: Context) -> Any:
    """The config with the classes of the data and a token type for the second picture."""
    fitted = with_classes(pair_ranking.fitting(config, context), context)
    return replace(fitted, type_vocab_size=max(TYPES, fitted.type_vocab_size))


def with_types(tensors: Mapping[str, Tensor], net: Any) -> Mapping[str, Tensor]:
    """The token type of the second picture begins as that of the first; other networks take everything as it is."""
    table = tensors.get(TYPE_TABLE)
    if not isinstance(net, UniterForNlvr2PairedAttn) or table is None or len(table) >= net.config.type_vocab_size:
        return tensors
    more = net.config.type_vocab_size - len(table)
    return {**tensors, TYPE_TABLE: torch.cat([table, table[-1:].expand(more, -1)])}


def create(net: UniterForNlvr2PairedAttn, settings: PairSettings, context: Context) -> ComparisonSystem:
    """Build the system around a network."""
    config = net.config
    check_length(settings, config.longest_input)
    need_classes(config, context, "comparing", "pack pictures with --label-field, then find their regions")
    labels = class_names(config)
    objective = context.objective("uniter", lambda tokenizer: ComparisonObjective(tokenizer.fitting(config.vocab_size), settings,
                                                                                   config.visual_feat_dim, labels))
    return ComparisonSystem(net, objective)
