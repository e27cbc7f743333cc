"""UNIMO. Li, Gao, Niu, Xiao, Liu, Liu, Wu and Wang, "UNIMO: Towards Unified-Modal Understanding and Generation via Cross-Modal Contrastive
Learning", 2021. https://arxiv.org/abs/2012.15409

One network, RoBERTa's, reads texts, the regions of pictures, and both in a row, and learns from data sets of each kind in one run: from
texts nobody has drawn, pictures nobody has described, and pairs. What it makes of a text and of a picture is brought together by contrast:
of rewritten captions, pictures and texts that were retrieved, it learns which belong to a pair (`unimo_data`).

    [IMG] region1 ... regionR [CLS] a red boat [SEP]      [IMG] is the mean of the regions, with the whole picture as its box

Faithful (Li et al. 2021; PaddlePaddle/Research, NLP/UNIMO, whose pretraining is not published): the trunk and its text side are
transformers' `RobertaModel`; the picture stands before the text; a region is LN(features W + location W'), with five numbers of location;
the features of a masked region are zeros, and regions that overlap one by more than 0.4 are masked with it (section 2.1); spans of words
with SpanBERT's lengths, 15 %, 80/10/10; fragments of up to a quarter of a text are written from the rest of it (section 2.2), behind [CLS],
with positions that begin anew; masked words and regions of pairs together; the contrast of section 2.3 over a pair, its rewrites, other
pictures and captions, and what was retrieved: pairs are read together and scored by a layer on the product of the pooled [IMG] and [CLS]
(ReLU), what was retrieved is read alone and scored by the cosine of [IMG] and [CLS]; a run may begin with RoBERTa's weights.

Deviations, each with its reason:
* The mean that [IMG] holds leaves out masked regions: with few regions it would tell them.
* A pair's score goes through a sigmoid before it is divided by the temperature, so that its range is like a cosine's; the paper does not
  say.
* The rewrites are made by `polymodal relate`, without scene graphs and translations: see `pipelines.relate`.
* An update has one task, in exact shares; shares, the optimiser's length and the temperature are not published.
* A text without a picture keeps RoBERTa's row of token types, so that its weights mean what they meant; a picture has none.
* Rows are packed side by side without padding; each sees only itself.
* Other pictures and captions of `contrast` are those of a neighbour in the shuffled stream.
* Retrieval is tuned as UNITER's, by margins to two other pairs (`pair_ranking`); the published code compares 20 with a circle loss.
Parity: transformers' RobertaModel for the text side; nothing public runs the rest, so tests have the formulas again, in fp64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..shared.attention.mask import Mask
from ..shared.block import LayerNorm
from ..shared.embed import normal_
from ..shared.encoder import EncoderOutput
from ..shared.errors import UserError
from ..shared.family import Adopt, Card, Context, Family, Net, Task, Vocabulary, transformers
from ..shared.loss import at_least_fp32, perplexity
from ..shared.packed import starts
from ..shared.system import Preview, Step, System, Term, named
from ..text import bert, classify, roberta
from ..text.bert import BertConfig
from ..text.masking import MaskedWords
from ..text.roberta import RobertaConfig, RobertaModel
from . import captions, pair_classes, pair_ranking
from .captions import LM, CaptionSettings, UnimoForImageCaptioning, Writer
from .pair_classes import UniterForVisualQuestionAnswering
from .pair_ranking import UniterForImageTextRetrieval
from .region_heads import RegionClassifier, RegionRegression, divergence_step, features_step, words_step
from .region_pairs import MLM, MRC_KL, MRFR, PairSettings, RegionBatch, check_length
from .unimo_data import (
    CAPTION,
    CONTRAST,
    EACH,
    PAIRS,
    REGIONS,
    SEQ2SEQ,
    WORDS,
    UnimoBatch,
    UnimoObjective,
    UnimoSettings,
    batch_of_padded,
    check_text_length,
    kept,
    row_order,
)
from .unimo_formats import text_rules, trunk_rules, with_head, with_parts
from .unimo_previews import shown_candidates, shown_rows

PLACE = 5
"""Numbers that say where a region is: left, top, right, bottom and area of `Regions.locations`, as shares of the picture."""


@dataclass(frozen=True, kw_only=True)
class UnimoConfig(RobertaConfig):
    """transformers' `RobertaConfig`, what regions are, in the words of its `LxmertConfig`, and the tokens that writing needs."""

    visual_feat_dim: int = 2048
    """Width of a region's features."""
    num_object_labels: int = 1601
    """Classes of regions; class 0 is the background."""
    cls_token_id: int = 0
    """Id of [CLS], which begins a text and what is written."""
    sep_token_id: int = 2
    """Id of [SEP], which ends them."""

    AT_LEAST_ONE = (*RobertaConfig.AT_LEAST_ONE, "visual_feat_dim", "num_object_labels")
    NOT_NEGATIVE = (*RobertaConfig.NOT_NEGATIVE, "cls_token_id", "sep_token_id")


SIZES = roberta.SIZES


# ---------------------------------------------------------------------------------------------- networks


class RegionEmbedding(nn.Module):
    """Regions become vectors like those of words."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__()
        self.features, self.location = nn.Linear(config.visual_feat_dim, config.hidden_size), nn.Linear(PLACE, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        normal_(self, config.initializer_range)

    def forward(self, features: Tensor, location: Tensor) -> Tensor:
        """Features [..., visual_feat_dim], zeros where masked, and locations [..., 7] (`Regions.locations`) -> [..., D]."""
        dtype = self.features.weight.dtype
        place = torch.cat([location[..., :4], location[..., 6:]], -1)
        return self.dropout(self.norm(self.features(features.to(dtype)) + self.location(place.to(dtype))))


class Streams(NamedTuple):
    """What the trunk makes of N rows: T tokens, P pictures, V regions."""

    words: Tensor
    """[T, D]"""
    pictures: Tensor
    """[P, D], the states of [IMG]."""
    regions: Tensor
    """[V, D]"""


class UnimoModel(RobertaModel):
    """The trunk: RoBERTa's, that may read regions before a text, or alone.

    Args:
        config: the sizes.
        pooler: whether [IMG] and [CLS] are pooled, each by a layer of its own.
    """

    config: UnimoConfig

    def __init__(self, config: UnimoConfig, *, pooler: bool = True) -> None:
        super().__init__(config, pooler=False)
        self.regions = RegionEmbedding(config)
        self.text_pooler, self.picture_pooler = (nn.Linear(config.hidden_size, config.hidden_size) if pooler else None for _ in range(2))
        for part in (self.text_pooler, self.picture_pooler):
            if part is not None:
                normal_(part, config.initializer_range)

    def masks_nothing(self) -> None:
        """For systems that mask no region: nothing here stands for one."""

    def embedded(self, batch: RegionBatch) -> Tensor:
        """T tokens, P pictures, V regions as vectors, [T + P + V, D]."""
        counts = [count for count in batch.counts_of_regions if count]
        features = batch.features.to(self.regions.features.weight.dtype)
        owner = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(features.device, non_blocking=True)
        seen = features.new_zeros(len(counts)).index_add_(0, owner, (~batch.masked).to(features.dtype))
        means = features.new_zeros(len(counts), features.shape[1]).index_add_(0, owner, features) / seen.clamp(min=1)[:, None]
        whole = torch.ones_like(batch.locations[:1]).expand(len(counts), -1) * (torch.arange(7, device=features.device) > 1)
        regions = self.regions(torch.cat([means, features]), torch.cat([whole, batch.locations]))
        return torch.cat([self.embed(batch.input_ids, batch.position_ids)[0], regions])

    def read(self, batch: RegionBatch, prefixes: tuple[int, ...] | None = None) -> Streams:
        """Read rows side by side; with `prefixes`, what stands behind the first ones of each row is seen from behind it alone."""
        order = row_order(batch.lengths, batch.counts_of_regions)
        there, back = (torch.from_numpy(x).to(batch.features.device, non_blocking=True) for x in (order, order.argsort()))
        lengths = tuple(s + r + (r > 0) for s, r in zip(batch.lengths, batch.counts_of_regions, strict=True))
        mask = Mask(lengths=lengths) if prefixes is None else Mask(causal=True, lengths=lengths, prefix_lengths=prefixes)
        x = self.stack(self.embedded(batch)[None, there], mask)[0, back]
        pictures = sum(count > 0 for count in batch.counts_of_regions)
        return Streams(*x.split([sum(batch.lengths), pictures, len(batch.features)]))

    def fused(self, texts: Tensor, pictures: Tensor) -> Tensor:
        """What is made of pairs, from the states of [CLS] and [IMG]: the product of both pooled, [..., D] each."""
        assert self.text_pooler is not None and self.picture_pooler is not None, "this trunk was built without poolers"
        return F.relu(self.text_pooler(texts)) * F.relu(self.picture_pooler(pictures))

    def packed(self, batch: RegionBatch) -> EncoderOutput:
        """Read pairs side by side: states of the words and then of the regions [1, T + V, D], and what is made of each pair, [N, D]."""
        out = self.read(batch)
        first = torch.tensor(starts(batch.lengths)).to(out.words.device, non_blocking=True)
        return EncoderOutput(torch.cat([out.words, out.regions])[None], self.fused(out.words[first], out.pictures))

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None, *, visual_feats: Tensor | None = None, visual_pos: Tensor | None = None,
        visual_attention_mask: Tensor | None = None, **options: Any,
    ) -> EncoderOutput:  # fmt: skip
        """Read padded texts [B, S], each alone, or behind the regions [B, R] of a picture: states [B, S + R, D], zeros at padding.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], nonzero where there is not padding, which stands behind the text.
            token_type_ids: [B, S], of texts alone.
            position_ids: [B, S], of texts alone.
            visual_feats: [B, R, visual_feat_dim]; None for texts alone.
            visual_pos: [B, R, 7]: left, top, right, bottom, width, height, area.
            visual_attention_mask: [B, R], nonzero where there is a region, at least one in each row.
            options: of texts alone, see `Encoder.forward`.
        """
        if visual_feats is None:
            return super().forward(input_ids, attention_mask, token_type_ids, position_ids, **options)
        assert visual_pos is not None and not options, "regions have locations"
        words, there = kept(attention_mask, input_ids), kept(visual_attention_mask, visual_feats[..., 0])
        out = self.packed(batch_of_padded(input_ids, words, visual_feats, visual_pos, there))
        x = out.last_hidden_state.new_zeros(*torch.cat([words, there], dim=1).shape, self.config.hidden_size)
        states, regions = out.last_hidden_state[0].split([int(words.sum()), int(there.sum())])
        x[:, :words.shape[1]][words], x[:, words.shape[1]:][there] = states, regions
        return EncoderOutput(x, out.pooler_output)


@dataclass
class UnimoForPreTrainingOutput:
    """Outputs of `UnimoForPreTraining`."""

    prediction_logits: Tensor
    """[B, S, V], of the words."""
    match_logits: Tensor
    """[B], how well picture and text fit."""
    region_features: Tensor
    """[B, R, visual_feat_dim]"""
    region_logits: Tensor
    """[B, R, num_object_labels]"""


class UnimoForPreTraining(MaskedWords, Writer):
    """The trunk, and a head for each task."""

    config: UnimoConfig
    trunk: UnimoModel

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__(UnimoModel(config), config, activation="gelu")
        self.region_regression = RegionRegression(config)
        self.region_classifier = RegionClassifier(config)
        self.match = nn.Linear(config.hidden_size, 1)
        normal_(self.match, config.initializer_range)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, visual_feats: Tensor, visual_pos: Tensor,
                visual_attention_mask: Tensor | None = None) -> UnimoForPreTrainingOutput:
        """What all heads say of padded pairs; see `UnimoModel.forward` for the arguments."""
        out = self.trunk(input_ids, attention_mask, visual_feats=visual_feats, visual_pos=visual_pos,
                         visual_attention_mask=visual_attention_mask)
        words, regions = out.last_hidden_state.split([input_ids.shape[1], visual_feats.shape[1]], dim=1)
        return UnimoForPreTrainingOutput(self.head(words), self.match(out.pooled)[:, 0], self.features_of(regions),
                                         self.region_classifier(regions))

    def features_of(self, regions: Tensor) -> Tensor:
        """The features that states [..., D] of masked regions stand for, [..., visual_feat_dim]."""
        return self.region_regression(regions, self.trunk.regions.features.weight)

    def score_pairs(self, batch: RegionBatch) -> Tensor:
        """How well each caption fits its picture, fp32 [N]."""
        return at_least_fp32(self.match(self.trunk.packed(batch).pooled))[:, 0]


class UnimoForImageTextRetrieval(UniterForImageTextRetrieval):
    """The trunk, and one score for each pair."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__(UnimoModel(config), config)


class UnimoForVisualQuestionAnswering(UniterForVisualQuestionAnswering):
    """The trunk, and a score for each answer."""

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__(UnimoModel(config), config)


# ------------------------------------------------------------------------------------------ the loss side


def log_sums(scores: Tensor, owners: Tensor, count: int) -> Tensor:
    """Log sum exp of the scores [J] of each owner, [count]; -inf where it has none."""
    most = scores.detach().new_full((count,), float("-inf")).scatter_reduce(0, owners, scores.detach(), "amax").nan_to_num(neginf=0)
    sums = scores.new_zeros(count).index_add(0, owners, (scores - most[owners]).exp())
    none = sums == 0
    return (sums.masked_fill(none, 1).log() + most).masked_fill(none, float("-inf"))


class UnimoSystem(System[UnimoForPreTraining, UnimoObjective]):
    """UNIMO's pretraining: the losses of an update's task.

    Args:
        net: the network.
        objective: makes the batches.
        temperature: what the scores of `contrast` are divided by.
        each: whether each positive candidate is to stand out, or their sum.
    """

    def __init__(self, net: UnimoForPreTraining, objective: UnimoObjective, temperature: float, each: bool = False) -> None:
        super().__init__(net, objective)
        self.temperature, self.each = temperature, each

    def forward(self, batch: UnimoBatch, carry: Any = None) -> Step:
        """The losses as sums over their targets; the heads of the other tasks run on no rows (`Objective.turns`)."""
        net, out = self.net, self.net.trunk.read(batch, batch.prefixes)
        step = Step({})
        parts = [self._contrast(out, batch)] if batch.kind == CONTRAST else []
        if "words" in batch.counts:
            parts.append(words_step(net.head, out.words[batch.target_rows], batch.targets, self.training,
                                    MLM if batch.prefixes is None else LM))
        if "regions" in batch.counts:
            states = out.regions[batch.region_rows]
            parts.append(features_step(net.features_of(states), batch.region_features, batch, self.training))
            if batch.region_classes.shape[1]:
                parts.append(divergence_step(net.region_classifier(states), batch.region_classes))
        for part in parts:
            step.terms |= part.terms
            step.metrics |= part.metrics
        none = out.words[:0]
        unused = (net.head(none), net.features_of(none), net.region_classifier(none), net.match(net.trunk.fused(none, out.pictures[:0])))
        first = next(iter(step.terms.values()))
        first.total = first.total + sum(part.sum() for part in unused)
        return step

    def scores(self, out: Streams, batch: UnimoBatch) -> Tensor:
        """Of candidates that are read together, then of those that are read apart, fp32 [J + A]."""
        (text, picture), (words, alone) = batch.together.unbind(1), batch.apart.unbind(1)
        together = at_least_fp32(self.net.match(self.net.trunk.fused(out.words[text], out.pictures[picture])))[:, 0].sigmoid()
        apart = F.cosine_similarity(at_least_fp32(out.words[words]), at_least_fp32(out.pictures[alone]), dim=-1)
        return torch.cat([together, apart])

    def _contrast(self, out: Streams, batch: UnimoBatch) -> Step:
        """-log of the positive candidates' share of all; beside it that of scores that are all alike."""
        scores, count = self.scores(out, batch) / self.temperature, len(batch.own)
        step = Step({CONTRAST: Term(self._shares(scores, batch).sum(), "examples")})
        if not self.training:
            chance = self._shares(torch.zeros_like(scores), batch)
            together, positive = scores[:len(batch.together)], batch.positive[:len(batch.together)]
            wrong = together.new_full((count,), float("-inf")).scatter_reduce(
                0, batch.owners[:len(together)][~positive], together[~positive], "amax")
            step.metrics |= {"contrast_chance": (chance.sum(), count), "contrast_accuracy": ((together[batch.own] > wrong).sum(), count)}
        return step

    def _shares(self, scores: Tensor, batch: UnimoBatch) -> Tensor:
        """-log of the positive candidates' share in each example, [E]: of all together, or the mean of each one beside the negatives."""
        owners, positive, count, none = batch.owners, batch.positive, len(batch.own), float("-inf")
        if not self.each:
            return log_sums(scores, owners, count) - log_sums(scores.masked_fill(~positive, none), owners, count)
        wrong = log_sums(scores.masked_fill(positive, none), owners, count)[owners]
        losses = F.softplus(wrong - scores).masked_fill(~positive, 0)
        summed, right = (losses.new_zeros(count).index_add(0, owners, x.to(losses.dtype)) for x in (losses, positive))
        return summed / right

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        words, written = (tuple(f"{name}{part}" for part in ("", "_chance", "_accuracy", "_perplexity")) for name in (MLM, LM))
        regions = (MRFR, f"{MRFR}_neighbours", *((MRC_KL, f"{MRC_KL}_accuracy") if self.objective.classes else ()))
        numbers = {WORDS: words, SEQ2SEQ: written, CAPTION: written, REGIONS: regions, PAIRS: (*words, *regions),
                   CONTRAST: (CONTRAST, "contrast_chance", "contrast_accuracy")}
        return tuple(named(task, name) for task in self.objective.turns for name in ("loss", *numbers[task]))

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexities of masked and of written words."""
        return {f"{name}_perplexity": perplexity(means[name]) for name in (MLM, LM) if name in means}

    @torch.no_grad()
    def preview(self, batch: UnimoBatch, limit: int = 4) -> list[Preview]:
        """What the network tells of masked words and regions, beside the truth; scores of what is compared; captions that it writes."""
        out, tokenizer = self.net.trunk.read(batch, batch.prefixes), self.objective.tokenizer
        if batch.kind == CAPTION:
            return captions.written(self.net, batch, tokenizer, limit)
        if batch.kind == CONTRAST:
            return shown_candidates(batch, self.scores(out, batch), tokenizer, limit)
        return shown_rows(batch, self.net.head(out.words[batch.target_rows]).argmax(-1),
                          self.net.features_of(out.regions[batch.region_rows]), tokenizer, limit)


# --------------------------------------------------------------------------------------------- the entry


def adapt(config: UnimoConfig, context: Context) -> UnimoConfig:
    """Take vocabulary size and special ids from the tokenizer, and what regions are from the data."""
    return special(with_regions(bert.adapt(config, context), context), context)


def with_regions(config: UnimoConfig, context: Context) -> UnimoConfig:
    """Take the width of regions' features and the number of their classes from the data, and the ids of [CLS] and [SEP]."""
    if context.regions is not None:
        config = replace(config, visual_feat_dim=context.regions[0], num_object_labels=context.regions[1] or config.num_object_labels)
    return special(config, context)


def special(config: UnimoConfig, context: Context) -> UnimoConfig:
    """Take the ids of [CLS] and [SEP] from the tokenizer."""
    if context.tokenizer is None:
        return config
    cls, sep = context.tokenizer.need("reading and writing", "cls", "sep")
    return replace(config, cls_token_id=cls, sep_token_id=sep)


def create(config: UnimoConfig, settings: UnimoSettings, context: Context) -> UnimoSystem:
    """Build UNIMO with randomly initialized weights and its objective."""
    check_length(settings, config.longest_input)
    longest = check_text_length(settings, config.longest_input)
    classes = config.num_object_labels if context.regions is None or context.regions[1] else 0

    def make(tokenizer: Any) -> UnimoObjective:
        return UnimoObjective(tokenizer.fitting(config.vocab_size), settings, config.visual_feat_dim, classes, longest)

    return UnimoSystem(UnimoForPreTraining(config), context.objective("unimo", make), settings.temperature, settings.positives == EACH)


def create_ranking(config: UnimoConfig, settings: pair_ranking.RankingSettings, context: Context) -> pair_ranking.RankingSystem:
    """Build UNIMO for retrieval, with randomly initialized weights."""
    return pair_ranking.create(UnimoForImageTextRetrieval(config), settings, context)


def create_answers(config: UnimoConfig, settings: PairSettings, context: Context) -> pair_classes.AnswerSystem:
    """Build UNIMO for answering, with randomly initialized weights."""
    return pair_classes.create(UnimoForVisualQuestionAnswering(config), settings, context)


def create_captions(config: UnimoConfig, settings: CaptionSettings, context: Context) -> captions.CaptionSystem:
    """Build UNIMO for captions, with randomly initialized weights."""
    return captions.create(UnimoForImageCaptioning(UnimoModel(config, pooler=False), config), settings, context)


def from_roberta(config: BertConfig) -> UnimoConfig:
    """The config of a UNIMO that begins with a RoBERTa, or with a BERT, whose positions have no rows before the first."""
    known = {f.name for f in fields(UnimoConfig)}
    values: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(config) if f.init and f.name in known and f.name != "extra"}
    pad = config.pad_token_id or 0
    values |= {"pad_token_id": pad, "type_vocab_size": 1,
               "max_position_embeddings": config.max_position_embeddings + pad + 1 - config.position_offset}
    return UnimoConfig(**values)


def with_positions(tensors: Mapping[str, Tensor], net: Any) -> Mapping[str, Tensor]:
    """RoBERTa's or BERT's weights: a row for each id up to padding's before the positions, and the first row of token types."""
    place, kind = "trunk.embed.position.weight", "trunk.embed.token_type.weight"
    lacking = len(net.trunk.embed.position.weight) - len(tensors[place])
    if lacking < 0:
        raise UserError(f"the model to start from has {-lacking} more positions than this one: raise model.max_position_embeddings")
    return {**tensors, kind: tensors[kind][:1], place: torch.cat([tensors[place][:1].expand(lacking, -1), tensors[place]])}


_CLASSES = bert.tasks.task_nets("Unimo", RobertaModel, lambda c, pooler: text_rules(c), first_token="tanh")[0]
NETS = (
    Net("UnimoForPreTraining", UnimoForPreTraining, transformers(lambda c: (*trunk_rules(c), *with_head(), *with_parts()))),
    Net("UnimoForImageTextRetrieval", UnimoForImageTextRetrieval, transformers(lambda c: (*trunk_rules(c), *with_parts("match")))),
    Net("UnimoForVisualQuestionAnswering", UnimoForVisualQuestionAnswering,
        transformers(lambda c: (*trunk_rules(c), *with_parts("classifier.0", "classifier.2", "classifier.3")))),
    Net("UnimoForImageCaptioning", lambda c: UnimoForImageCaptioning(UnimoModel(c, pooler=False), c),
        transformers(lambda c: (*trunk_rules(c, pooler=False), *with_head()))),
    _CLASSES,
)

CARD = Card(
    title="UNIMO",
    paper="Li, Gao, Niu, Xiao, Liu, Liu, Wu, Wang. UNIMO: Towards Unified-Modal Understanding and Generation via Cross-Modal Contrastive "
          "Learning",
    year=2021,
    url="https://arxiv.org/abs/2012.15409",
    equation=r"\mathcal{L}_u = \begin{cases} "
             r"-\frac{1}{|M|} \sum_{i \in M} \log p_\theta(w_i \mid w_{\setminus M}, v) & \text{words, pairs} \\ "
             r"-\frac{1}{|y|} \sum_t \log p_\theta(y_t \mid y_{<t}, x) & \text{seq2seq, caption} \\ "
             r"\frac{1}{|M|} \sum_{i \in M} \lVert v_i - \hat{v}_i \rVert^2 + D_{KL}(c_i \,\|\, \hat{c}_i) & \text{regions, pairs} \\ "
             r"-\frac{1}{B} \sum_b \log \frac{\sum_{X_b^+} e^{d(v, w) / \tau}}{\sum_{X_b^+ \cup X_b^-} e^{d(v, w) / \tau}} "
             r"& \text{contrast} \end{cases}",
    symbols="w are the words of a text, v the regions of a picture, either of which may be lacking; M those that are masked, c the "
            "detector's class probabilities. y are the removed fragments of a text x, or the caption of a picture x. d scores a picture "
            "and a text; "
            "X+ and X- are the candidates that belong to pair b, and those that do not. Means are over the whole global batch; each update "
            "u has one task.",
    masks={"Words and regions of packed rows": Mask(lengths=(7, 9)),
           "Captions and fragments": Mask(causal=True, lengths=(7, 9), prefix_lengths=(4, 5))},
    reference="transformers.RobertaModel for the text side",
)

FAMILIES = (
    Family(
        name="unimo",
        card=CARD,
        config=UnimoConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("masked words and regions, fragments, captions and contrast, of texts, pictures and pairs", UnimoSettings, create,
                         adapt=with_regions),
        tasks=(Task("ranking of pictures for a caption and of captions for a picture", pair_ranking.RankingSettings, create_ranking,
                    "retrieval", pair_ranking.fitting, "UnimoForImageTextRetrieval"),
               Task("answers to a text about a picture, or its class", PairSettings, create_answers, "classify", pair_classes.fitting,
                    "UnimoForVisualQuestionAnswering"),
               Task("captions of pictures", CaptionSettings, create_captions, "caption", captions.fitting, "UnimoForImageCaptioning"),
               replace(classify.TASK.of(_CLASSES), name="classify-text")),
        nets=NETS,
        heads=("head", "trunk.text_pooler", "trunk.picture_pooler", "trunk.regions", "region_regression", "region_classifier", "match",
               "classifier"),
        starts={name: Adopt(with_positions, from_roberta) for name in ("roberta", "bert")},
        model_type="unimo",
        vocabulary=Vocabulary("byte-bpe", "roberta", lowercase=True),
    ),
)
