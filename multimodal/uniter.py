"""UNITER. Chen, Li, Yu, El Kholy, Ahmed, Gan, Cheng and Liu, "UNITER: UNiversal Image-TExt Representation Learning", 2019.
https://arxiv.org/abs/1909.11740

A caption and the regions of a picture stand in one row, and BERT's encoder reads both. A region is the vector that a detector made of it,
and where it is. Each update has one of the tasks of `region_pairs`; in those of `itm` the words of a caption and the regions of its picture
are also aligned by optimal transport (`transport`).

    [CLS] a red boat [SEP] region1 ... regionR      each word with its position and type 0, each region with its location and type 1

Faithful (ChenRocks/UNITER): the encoder and its text side are transformers' `BertModel`; a region is LN(LN(features W) + LN(location W') +
type 1), with three norms and seven numbers of location; a masked region is zeros plus a learned vector, before the projection; features are
told by the transposed projection (MRFR), classes without the background (MRC), or by the divergence from the detector's probabilities,
divided by the number of classes too (MRC-kl); matching reads the pooled first token; alignment weighs 0.1, by IPOT with beta 0.5 and 50
steps, and is the mean over the pairs of the distance where they match and of its negative where they do not; a task for each update. Names
of weights are those of the published code.

Deviations, each with its reason:
* Pairs are packed side by side without padding; each sees only itself. The published code pads to the longest of a batch.
* Shares of tasks are exact in each cycle of updates, where the published code draws them.
* The picture that replaces another one is a neighbour in the shuffled stream, not any of the corpus: the stream is shuffled.
* Norms of the image side do not decay; in the published code the weights of two of them do, by a slip in a list of names.
* GELU is the exact one, as there.
Parity: transformers' BertModel for the text side; nothing public runs the rest, so tests have the paper's formulas again, in fp64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..shared.attention.mask import Mask
from ..shared.block import LayerNorm
from ..shared.convert import Rule
from ..shared.embed import normal_
from ..shared.encoder import Encoder, EncoderOutput, first_tokens
from ..shared.errors import UserError
from ..shared.family import Adopt, Card, Context, Family, Net, Task, Vocabulary, transformers
from ..shared.loss import accuracy_sum, at_least_fp32, cross_entropy_sum, perplexity
from ..shared.packed import starts
from ..shared.system import Preview, Step, System, Term, named
from ..text import bert
from ..text.bert import BertConfig
from ..text.masking import MaskedWords
from . import pair_classes, pair_comparison, pair_grounding, pair_ranking
from .pair_classes import UniterForVisualQuestionAnswering
from .pair_comparison import UniterForNlvr2PairedAttn
from .pair_grounding import UniterForReferringExpressionComprehension
from .pair_ranking import UniterForImageTextRetrieval
from .region_heads import RegionClassifier, RegionRegression, divergence_step, features_step, most_probable, words_step
from .region_pairs import (
    ITM,
    MATCHES,
    MLM,
    MRC,
    MRC_KL,
    MRFR,
    PairSettings,
    RegionBatch,
    UniterBatch,
    UniterObjective,
    UniterSettings,
    check_length,
)
from .transport import transport_distances
from .uniter_formats import answer_rules, comparison_rules, grounding_rules, ranking_rules, rules

LOCATION = 7
"""Numbers that say where a region is: left, top, right, bottom, width, height, area, as shares of the picture."""
IMAGE_TYPE = 1
"""The token type of regions."""


@dataclass(frozen=True, kw_only=True)
class UniterConfig(BertConfig):
    """transformers' `BertConfig` with the cased vocabulary, and what regions are, in the words of its `LxmertConfig`."""

    vocab_size: int = 28996
    """Rows of the word table."""
    visual_feat_dim: int = 2048
    """Width of a region's features."""
    num_object_labels: int = 1601
    """Classes of regions; class 0 is the background."""

    AT_LEAST_ONE = (*BertConfig.AT_LEAST_ONE, "visual_feat_dim", "num_object_labels")

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        if self.type_vocab_size < IMAGE_TYPE + 1:
            found.append(f"type_vocab_size is {self.type_vocab_size}, expected at least {IMAGE_TYPE + 1}: words and regions")
        return found


SIZES = {size: bert.SIZES[size] for size in ("tiny", "base", "large")}


# ---------------------------------------------------------------------------------------------- networks


class RegionEmbedding(nn.Module):
    """Regions become vectors like those of words."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.features, self.location = nn.Linear(config.visual_feat_dim, width), nn.Linear(LOCATION, width)
        self.feature_norm, self.location_norm, self.norm = (LayerNorm(width, eps=eps) for _ in range(3))
        self.mask = nn.Embedding(2, config.visual_feat_dim, padding_idx=0)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        normal_(self, config.initializer_range)
        nn.init.zeros_(self.mask.weight[0])

    def forward(self, features: Tensor, location: Tensor, masked: Tensor | None, kind: Tensor) -> Tensor:
        """Embed regions.

        Args:
            features: [B, R, visual_feat_dim], zeros where masked.
            location: [B, R, 7].
            masked: bool [B, R]; None for none.
            kind: the token type's vector, [D], or one for each region.

        Returns:
            [B, R, D].
        """
        features = features.to(self.mask.weight.dtype)
        if masked is not None:
            features = features + masked[..., None] * self.mask.weight[1]
        x = self.feature_norm(self.features(features)) + self.location_norm(self.location(location.to(features.dtype))) + kind
        return self.dropout(self.norm(x))


class UniterModel(Encoder):
    """The trunk: BERT's, that may read regions behind a text."""

    config: UniterConfig

    def __init__(self, config: UniterConfig, *, pooler: bool = True) -> None:
        super().__init__(config, pooler=pooler)
        self.regions = RegionEmbedding(config)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        visual_feats: Tensor | None = None,
        visual_pos: Tensor | None = None,
        visual_attention_mask: Tensor | None = None,
        visual_masked: Tensor | None = None,
        visual_token_type_ids: Tensor | None = None,
        lengths: tuple[int, ...] | None = None,
        mask: Mask | None = None,
        output_hidden_states: bool = False,
    ) -> EncoderOutput:
        """Encode padded texts [B, S], each alone, or with regions [B, R] behind it: states [B, S + R, D]; see `Encoder.forward`.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], nonzero where there is not padding.
            token_type_ids: [B, S].
            position_ids: [B, S].
            visual_feats: [B, R, visual_feat_dim]; None for texts alone.
            visual_pos: [B, R, 7], see `LOCATION`.
            visual_attention_mask: [B, R], nonzero where there is a region.
            visual_masked: bool [B, R], the regions that are masked; their features are left out.
            visual_token_type_ids: [B, R]; by default `IMAGE_TYPE`.
            lengths: of packed texts without regions.
            mask: for texts without regions.
            output_hidden_states: keep the output of every block.
        """
        if visual_feats is None:
            return super().forward(input_ids, attention_mask, token_type_ids, position_ids, lengths=lengths, mask=mask,
                                   output_hidden_states=output_hidden_states)
        assert lengths is None and mask is None and visual_pos is not None, "regions have locations; packed pairs are read by `packed`"
        if visual_masked is not None:
            visual_feats = visual_feats.masked_fill(visual_masked[..., None], 0)
        keep = torch.cat([_kept(attention_mask, input_ids), _kept(visual_attention_mask, visual_feats[..., 0])], dim=1)
        regions = self.regions(visual_feats, visual_pos, visual_masked, self.kind(visual_token_type_ids))
        states: list[Tensor] | None = [] if output_hidden_states else None
        x = self.stack(torch.cat([self.embed(input_ids, position_ids, token_type_ids), regions], dim=1), Mask(keep=keep),
                       hidden_states=states)
        return EncoderOutput(x, None if self.pooler is None else self.pooler(x), None if states is None else tuple(states))

    def masks_nothing(self) -> None:
        """For systems that mask no region: what stands for one is not trained."""
        self.regions.mask.requires_grad_(False)

    def kind(self, types: Tensor | None) -> Tensor:
        """The vectors of regions' token types, [..., D]; without `types` the one of a single picture, [D]."""
        return cast("nn.Embedding", self.embed.token_type).weight[IMAGE_TYPE if types is None else types]

    def packed(self, batch: RegionBatch) -> EncoderOutput:
        """Encode pairs side by side: states [1, T + V, D], and the pooled first token of each, [N, D]."""
        words = self.embed(batch.input_ids, batch.position_ids)
        regions = self.regions(batch.features[None], batch.locations[None], batch.masked[None], self.kind(batch.types))
        lengths = batch.row_lengths
        x = self.stack(torch.cat([words, regions], dim=1)[:, batch.order], Mask(lengths=lengths))
        return EncoderOutput(x, None if self.pooler is None else self.pooler(first_tokens(x, lengths)))


def _kept(attention_mask: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool) if attention_mask is None else attention_mask.bool()


@dataclass
class UniterForPreTrainingOutput:
    """Outputs of `UniterForPreTraining`."""

    prediction_logits: Tensor
    """[B, S, V], of the words."""
    match_logits: Tensor
    """[B, 2]; class 1: the picture and the caption belong together."""
    region_features: Tensor
    """[B, R, visual_feat_dim]"""
    region_logits: Tensor
    """[B, R, num_object_labels]"""


class UniterForPreTraining(MaskedWords):
    """The trunk, and a head for each task."""

    config: UniterConfig
    trunk: UniterModel

    def __init__(self, config: UniterConfig) -> None:
        super().__init__(UniterModel(config), config)
        self.region_regression = RegionRegression(config)
        self.region_classifier = RegionClassifier(config)
        self.match = nn.Linear(config.hidden_size, 2)
        normal_(self.match, config.initializer_range)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None, *, visual_feats: Tensor, visual_pos: Tensor, visual_attention_mask: Tensor | None = None,
        visual_masked: Tensor | None = None,
    ) -> UniterForPreTrainingOutput:  # fmt: skip
        """What all heads say of padded pairs; see `UniterModel.forward` for the arguments."""
        out = self.trunk(input_ids, attention_mask, token_type_ids, position_ids, visual_feats=visual_feats, visual_pos=visual_pos,
                         visual_attention_mask=visual_attention_mask, visual_masked=visual_masked)
        words, regions = out.last_hidden_state.split([input_ids.shape[1], visual_feats.shape[1]], dim=1)
        return UniterForPreTrainingOutput(self.head(words), self.match(out.pooled), self.features_of(regions),
                                          self.region_classifier(regions))

    def features_of(self, regions: Tensor) -> Tensor:
        """The features that states [..., D] of masked regions stand for, [..., visual_feat_dim]."""
        return self.region_regression(regions, self.trunk.regions.features.weight)

    def score_pairs(self, batch: RegionBatch) -> Tensor:
        """How well each caption fits its picture, fp32 [N]: the log odds of matching."""
        logits = at_least_fp32(self.match(self.trunk.packed(batch).pooled))
        return logits[:, MATCHES] - logits[:, 1 - MATCHES]


# ------------------------------------------------------------------------------------------ the loss side


class UniterSystem(System[UniterForPreTraining, UniterObjective]):
    """UNITER's pretraining: the losses of an update's task.

    Args:
        net: the network.
        objective: makes the batches.
        wra: weight of the alignment.
    """

    def __init__(self, net: UniterForPreTraining, objective: UniterObjective, wra: float) -> None:
        super().__init__(net, objective)
        self.wra = wra

    def forward(self, batch: UniterBatch, carry: Any = None) -> Step:
        """The losses as sums over their targets; the heads of the other tasks run on no rows (`Objective.turns`)."""
        net, out = self.net, self.net.trunk.packed(batch)
        states = out.last_hidden_state[0]
        losses = {MLM: self._words, MRFR: self._features, MRC: self._classes, MRC_KL: self._divergence, ITM: self._match}
        step = losses[batch.kind](out, batch)
        none = states[:0]
        unused = (net.head(none), net.features_of(none), net.region_classifier(none), net.match(out.pooled[:0]))
        term = step.terms[batch.kind]
        term.total = term.total + sum(part.sum() for part in unused)
        return step

    def _words(self, out: EncoderOutput, batch: UniterBatch) -> Step:
        """Cross-entropy of the masked words."""
        return words_step(self.net.head, out.last_hidden_state[0, batch.target_rows], batch.targets, self.training)

    def _features(self, out: EncoderOutput, batch: UniterBatch) -> Step:
        """The squared error of features."""
        told = self.net.features_of(out.last_hidden_state[0, batch.region_rows])
        return features_step(told, batch.region_targets, batch, self.training)

    def _logits(self, out: EncoderOutput, batch: UniterBatch) -> Tensor:
        """Logits of the masked regions' classes [K, C]."""
        return self.net.region_classifier(out.last_hidden_state[0, batch.region_rows])

    def _classes(self, out: EncoderOutput, batch: UniterBatch) -> Step:
        """Cross-entropy of the masked regions' classes."""
        logits, labels = self._logits(out, batch), most_probable(batch.region_targets)
        return Step({MRC: Term(cross_entropy_sum(logits, labels), "regions", labels=labels)},
                    {"mrc_accuracy": (accuracy_sum(logits, labels), len(labels))})

    def _divergence(self, out: EncoderOutput, batch: UniterBatch) -> Step:
        """Divergence from the detector's probabilities."""
        return divergence_step(self._logits(out, batch), batch.region_targets)

    def _match(self, out: EncoderOutput, batch: UniterBatch) -> Step:
        """Cross-entropy of matching, and the distances of matching pairs less those of the others."""
        logits = self.net.match(out.pooled)
        step = Step({ITM: Term(cross_entropy_sum(logits, batch.match), "pairs", labels=batch.match)},
                    {"itm_accuracy": (accuracy_sum(logits, batch.match), len(batch.match))})
        if self.wra:
            distances = self.distances(out, batch)
            for name, chosen, sign in (("wra", MATCHES, 1), ("wra_unmatched", 1 - MATCHES, -1)):
                step.terms[name] = Term((distances * (batch.match == chosen)).sum(), "pairs", sign * self.wra)
        return step

    def distances(self, out: EncoderOutput, batch: RegionBatch) -> Tensor:
        """The transport from words ([CLS] and [SEP] among them) to regions for each pair, [N]."""
        (words, word_keep), (regions, region_keep) = batch.word_places(), batch.region_places()
        states = out.last_hidden_state[0]
        return transport_distances(states[words], states[regions], word_keep, region_keep)

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        numbers = {MLM: ("mlm", "mlm_chance", "mlm_accuracy", "mlm_perplexity"), MRFR: ("mrfr", "mrfr_neighbours"),
                   MRC: ("mrc", "mrc_chance", "mrc_accuracy"), MRC_KL: ("mrc_kl", "mrc_kl_accuracy"),
                   ITM: ("itm", "itm_chance", "itm_accuracy", *(("wra", "wra_unmatched") if self.wra else ()))}
        return tuple(named(task, name) for task in self.objective.turns for name in ("loss", *numbers[task]))

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity of the masked words."""
        return {"mlm_perplexity": perplexity(means["mlm"])} if "mlm" in means else {}

    @torch.no_grad()
    def preview(self, batch: UniterBatch, limit: int = 4) -> list[Preview]:
        """Captions, and what the network tells of what is masked or replaced, with the truth in brackets."""
        tokenizer, net, out = self.objective.tokenizer, self.net, self.net.trunk.packed(batch)
        states, show = out.last_hidden_state[0], tokenizer.show
        fillings = net.head(states[batch.target_rows]).argmax(-1).tolist()
        classes = net.region_classifier(states[batch.region_rows]).argmax(-1).tolist()
        chances = net.match(out.pooled).softmax(-1)[:, MATCHES].tolist()
        ids = batch.input_ids[0].split(list(batch.lengths))
        previews: list[Preview] = []
        for number, (begin, length) in enumerate(list(zip(starts(batch.row_lengths), batch.row_lengths))[:limit]):
            rows = [("caption", show(ids[number].tolist())), ("regions", str(batch.counts_of_regions[number]))]
            words = [f"{show([told_id])} ({show([true])})" for told_id, true, at in
                     zip(fillings, batch.targets.tolist(), batch.target_rows.tolist()) if begin <= at < begin + length]
            rows += [("filling (truth)", ", ".join(words))] if words else []
            inside = [row for row, at in enumerate(batch.region_rows.tolist()) if begin <= at < begin + length]
            if inside and batch.region_targets.shape[1] == net.config.num_object_labels:
                true = batch.region_targets[inside, 1:].argmax(-1) + 1
                rows.append(("class (truth)", ", ".join(f"{classes[row]} ({int(c)})" for row, c in zip(inside, true))))
            if len(batch.match):
                rows.append(("its own picture (truth)", f"{chances[number]:.2f} ({self.objective.told(int(batch.match[number]))})"))
            previews.append(Preview(tuple(rows)))
        return previews


# --------------------------------------------------------------------------------------------- the entry


def adapt(config: UniterConfig, context: Context) -> UniterConfig:
    """Take vocabulary size and padding id from the tokenizer, and what regions are from the data."""
    return with_regions(bert.adapt(config, context), context)


def with_regions(config: UniterConfig, context: Context) -> UniterConfig:
    """Take the width of regions' features and the number of their classes from the data."""
    if context.regions is None:
        return config
    return replace(config, visual_feat_dim=context.regions[0], num_object_labels=context.regions[1] or config.num_object_labels)


def create(config: UniterConfig, settings: UniterSettings, context: Context) -> UniterSystem:
    """Build UNITER with randomly initialized weights and its objective."""
    check_length(settings, config.longest_input)
    if context.regions is not None and not context.regions[1] and (settings.mrc or settings.mrc_kl):
        raise UserError("the regions of the data have no class probabilities: set objective.mrc and objective.mrc_kl to 0, or find regions "
                        "with classes")

    def make(tokenizer: Any) -> UniterObjective:
        return UniterObjective(tokenizer.fitting(config.vocab_size), settings, config.visual_feat_dim, config.num_object_labels)

    return UniterSystem(UniterForPreTraining(config), context.objective("uniter", make), settings.wra)


@dataclass(frozen=True)
class _Tuned:
    """A task that the trunk is fine-tuned for, and the network around it."""

    name: str
    objective: str
    module: Any
    """Has `create` and `fitting`."""
    net: type[nn.Module]
    rules: Callable[[Any], Sequence[Rule]]
    settings: type = PairSettings
    pooler: bool = True

    def build(self, config: UniterConfig) -> Any:
        return self.net(UniterModel(config, pooler=self.pooler), config)

    def task(self) -> Task:
        return Task(self.objective, self.settings, lambda config, settings, context: self.module.create(
            self.build(config), settings, context), self.name, self.module.fitting, self.net.__name__)

    def as_net(self) -> Net:
        return Net(self.net.__name__, self.build, transformers(self.rules))


_TUNED = (
    _Tuned("retrieval", "ranking of pictures for a caption and of captions for a picture", pair_ranking, UniterForImageTextRetrieval,
           ranking_rules, pair_ranking.RankingSettings),
    _Tuned("classify", "answers to a text about a picture, or its class", pair_classes, UniterForVisualQuestionAnswering, answer_rules),
    _Tuned("ground", "the region of a picture that a phrase means", pair_grounding, UniterForReferringExpressionComprehension,
           grounding_rules, pooler=False),
    _Tuned("compare", "whether a text is true of two pictures, or their class", pair_comparison, UniterForNlvr2PairedAttn,
           comparison_rules, pooler=False),
)


def begin(tensors: Mapping[str, Tensor], net: Any) -> Mapping[str, Tensor]:
    """How the networks of the tasks begin with those of others."""
    return pair_comparison.with_types(pair_ranking.from_matching(tensors, net), net)


def from_bert(config: BertConfig) -> UniterConfig:
    """The config of a UNITER that begins with a BERT."""
    known = {f.name for f in fields(UniterConfig)}
    return UniterConfig(**{f.name: getattr(config, f.name) for f in fields(config) if f.init and f.name in known})


CARD = Card(
    title="UNITER",
    paper="Chen, Li, Yu, El Kholy, Ahmed, Gan, Cheng, Liu. UNITER: UNiversal Image-TExt Representation Learning",
    year=2019,
    url="https://arxiv.org/abs/1909.11740",
    equation=r"\mathcal{L}_u = \begin{cases} -\frac{1}{|M|} \sum_{i \in M} \log p_\theta(w_i \mid w_{\setminus M}, v) & \text{MLM} \\ "
             r"\frac{1}{|M|} \sum_{i \in M} f_\theta(v_i \mid v_{\setminus M}, w) & \text{MRFR, MRC, MRC-kl} \\ "
             r"\frac{1}{B} \sum_b \left[ -\log p_\theta(y_b \mid w_b, v_b) + 0.1\, (2 y_b - 1)\, D_{ot}(w_b, v_b) \right] & \text{ITM, WRA}"
             r" \end{cases}",
    symbols="w are the words of a caption, v the regions of a picture, and M the 15 % of either that are masked, never of both; f is the "
            "squared error of a region's features, the cross-entropy of its class, or the divergence from its class probabilities. y says "
            "whether a picture belongs to its caption, and D is the optimal transport between them. Means are over the whole global batch; "
            "each update u has one task.",
    masks={"Words and regions of packed pairs": Mask(lengths=(7, 9))},
    reference="transformers.BertModel for the text side",
)

_BERTS = ("bert", "ernie", "macbert", "spanbert")
"""Families with BERT's trunk, word for word."""

FAMILIES = (
    Family(
        name="uniter",
        card=CARD,
        config=UniterConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("masked words, masked regions, matching and alignment", UniterSettings, create, adapt=with_regions),
        tasks=tuple(tuned.task() for tuned in _TUNED),
        nets=(Net("UniterForPretraining", UniterForPreTraining, transformers(rules)), *(tuned.as_net() for tuned in _TUNED)),
        heads=("head", "trunk.pooler", "trunk.regions", "region_regression", "region_classifier", "match", "classifier", "score", "first",
               "second", "join", "pool"),
        starts={"uniter": Adopt(begin), **{name: Adopt(begin, from_bert) for name in _BERTS}},
        model_type="uniter",
        vocabulary=Vocabulary("wordpiece", "bert"),
    ),
)
