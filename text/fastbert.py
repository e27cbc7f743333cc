"""FastBERT. Liu, Zhou, Zhao, Wang, Ju and Deng, "FastBERT: a Self-distilling BERT with Adaptive Inference Time", 2020.
https://arxiv.org/abs/2004.02178

A BERT with a small classifier behind each layer; a text leaves where the classifier there is certain enough of its class.

    layer       0 ---- 1 ---- 2 ---- 3 ---- ... ---- 11
                |      |      |      |               |
    classifier  s0     s1     s2     s3              teacher       s0 ... learn what the teacher predicts, without labels

Faithful: the classifiers (width 128: dense and tanh, self-attention with 2 heads, the first token, dense and tanh, classes); first trunk
and last classifier are fine-tuned (`task=classify`), then, with both frozen, the others learn its predictions from texts alone
(`task=exits`), the divergences of all layers added up; uncertainty is the entropy of a prediction over that of the uniform one, and a text
leaves where it is at most the speed (`--speed`, from 0 to 1), at the last layer in any case.

Deviations, each with its reason:
* The trunk is BERT's as it is everywhere else: its layer norm divides by the root of variance plus epsilon, and there are two token types.
  The authors' (UER) divides by the deviation plus epsilon and has a third type for padding.
* A single text ends with [SEP], as BERT's does; the authors' does not.
* Of the authors' ways to pool, the first token alone.
* Texts are packed side by side without padding; each sees only itself, and those that leave take their tokens with them.
* Pretraining is BERT's; `--model` takes any BERT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.attention import Attention
from ..shared.attention.choose import make_plan
from ..shared.attention.mask import Mask
from ..shared.attention.plan import Plan
from ..shared.config import need_one_class_each
from ..shared.convert import Rule, affine, layers, prefixed
from ..shared.embed import normal_
from ..shared.encoder import LEGACY, Encoder, encoder_rules, first_tokens
from ..shared.family import Adopt, Card, Context, Family, Net, Task, Vocabulary, our_own, transformers
from ..shared.loss import at_least_fp32
from ..shared.sample import Sample
from ..shared.system import Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from . import bert, classify
from .bert import BertConfig, BertSettings, adapt
from .classify import ClassifySystem
from .encoder_task import FramedBatch, FramedExample, FramedObjective, TaskSettings, class_names, fitting, need_classes, packed
from .tasks import EarlyExit, EarlyExitOutput

SIZES: dict[str, dict[str, Any]] = {"tiny": bert.SIZES["tiny"], "base": {}}
"""BERT's; `base` is the paper's."""
WIDTH, HEADS = 128, 2
"""Of the classifiers, in any network, as in the authors' code."""


# ---------------------------------------------------------------------------------------------- networks


class Exit(nn.Module):
    """A classifier behind a layer: narrow states that attend to each other, and the class from the first of them."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.down = nn.Linear(config.hidden_size, WIDTH)
        self.attention = Attention(WIDTH, HEADS)
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, config.num_labels)
        normal_(self, config.initializer_range)

    def forward(self, x: Tensor, plan: Plan, lengths: tuple[int, ...] | None) -> Tensor:
        """The logits of texts in x [B, S, D], [B, classes]; of packed ones [N, classes]."""
        attended = self.attention(torch.tanh(self.down(x)), plan)
        return self.out(torch.tanh(self.dense(first_tokens(attended, lengths))))


def uncertainty(logits: Tensor) -> Tensor:
    """The entropy of predictions [N, C] over that of the uniform one: [N], from 0 to 1."""
    log_p = at_least_fp32(logits).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])


class FastBertForSequenceClassification(EarlyExit):
    """The trunk, and a classifier behind each layer; the last one is what the network predicts where nothing leaves early."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Encoder(config, pooler=False)
        self.exits = nn.ModuleList(Exit(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        output_hidden_states: bool = False,
    ) -> EarlyExitOutput:
        """Map ids [B, S] to logits [B, classes], or N texts packed in one row to [N, classes]; see `Encoder.forward`.

        With `speed` set, texts leave early: rows, or the tokens of packed texts, are gathered before the next layer runs.
        """
        texts = input_ids.shape[0] if lengths is None else len(lengths)
        if self.speed is None:
            out = self.trunk(input_ids, attention_mask, token_type_ids, position_ids, lengths=lengths, output_hidden_states=True)
            assert out.hidden_states is not None
            logits = self.judged(out.hidden_states, attention_mask, lengths, [len(self.exits) - 1])[0]
            deep = torch.full((texts,), len(self.exits), device=logits.device)
            return EarlyExitOutput(logits, out.hidden_states if output_hidden_states else None, deep)
        found: Tensor | None = None
        deep = torch.zeros(texts, dtype=torch.long, device=input_ids.device)
        here = torch.arange(texts, device=input_ids.device)
        for number, logits, leaves in self._layers(input_ids, attention_mask, token_type_ids, position_ids, lengths, self.speed):
            found = logits.new_zeros(texts, logits.shape[-1]) if found is None else found
            found[here[leaves]], deep[here[leaves]] = logits[leaves], number + 1
            here = here[~leaves]
        assert found is not None
        return EarlyExitOutput(found, None, deep)

    def judged(self, states: Sequence[Tensor], attention_mask: Tensor | None, lengths: tuple[int, ...] | None,
               numbers: Sequence[int]) -> list[Tensor]:
        """The logits of the classifiers with these numbers, of the states of embeddings and all layers."""
        plan = self._plan(states[0], attention_mask, lengths)
        return [cast("Exit", self.exits[n])(states[n + 1], plan, lengths) for n in numbers]

    def _layers(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None, position_ids: Tensor | None,
                lengths: tuple[int, ...] | None, speed: float) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each layer that still has texts: its number, their logits [n, classes], and which of them leave, bool [n]."""
        x = self.trunk.embed(input_ids, position_ids, token_type_ids)
        plan = self._plan(x, attention_mask, lengths)
        for number in range(len(self.exits)):
            x = self.trunk.stack.block(number)(x, plan)
            logits = cast("Exit", self.exits[number])(x, plan, lengths)
            leaves = uncertainty(logits) <= speed if number + 1 < len(self.exits) else torch.ones_like(logits[:, 0], dtype=torch.bool)
            yield number, logits, leaves
            stays = ~leaves
            left = int(stays.sum())
            if not left:
                return
            if left < len(stays):
                if lengths is None:
                    x, attention_mask = x[stays], None if attention_mask is None else attention_mask[stays]
                else:
                    x = x[:, stays.repeat_interleave(torch.tensor(lengths, device=x.device))]
                    lengths = tuple(n for n, stay in zip(lengths, stays.tolist(), strict=True) if stay)
                plan = self._plan(x, attention_mask, lengths)

    def _plan(self, x: Tensor, attention_mask: Tensor | None, lengths: tuple[int, ...] | None) -> Plan:
        mask = Mask(keep=None if attention_mask is None else attention_mask.bool(), lengths=lengths)
        return make_plan(mask, x.shape[0], x.shape[1], x.shape[1], x.device)

    def operations(self, length: int, depth: int) -> float:
        """See `EarlyExit.operations`; with the classifiers of the layers that ran."""
        c = self.config
        narrow, wide = WIDTH, c.hidden_size
        layer = 2 * length * (4 * wide**2 + 2 * wide * c.intermediate_size) + 4 * length**2 * wide
        exit_ = 2 * length * (wide * narrow + 4 * narrow**2) + 4 * length**2 * narrow + 2 * narrow * (narrow + c.num_labels)
        return depth * layer + (depth if self.speed is not None else 1) * exit_


# -------------------------------------------------------------------------------------------- its two stages


class FastBertSystem(ClassifySystem):
    """The first stage: the trunk and the last classifier learn the classes; the others wait."""

    def __init__(self, net: FastBertForSequenceClassification, objective: classify.ClassifyObjective) -> None:
        super().__init__(net, objective, class_names(net.config))
        net.exits[:-1].requires_grad_(False)


@dataclass(kw_only=True)
class TextBatch(FramedBatch):
    """Packed texts, N of them."""


class TextObjective(FramedObjective[FramedExample]):
    """Texts and pairs without labels."""

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[FramedExample]:
        """Yield the one example of a sample."""
        yield FramedExample(*self.frame(sample.text(), sample.pair()))

    def collate(self, examples: list[FramedExample]) -> TextBatch:
        """Pack texts side by side."""
        return TextBatch(counts={"texts": len(examples)}, **packed(examples))

    def describe(self, example: FramedExample) -> Preview:
        """The framed text."""
        return Preview((("input", self.tokenizer.show(example.input_ids)),))


class ExitsSystem(System[FastBertForSequenceClassification, TextObjective]):
    """The second stage: the classifiers of the lower layers learn what the last one predicts; trunk and last classifier are frozen."""

    def __init__(self, net: FastBertForSequenceClassification, objective: TextObjective) -> None:
        super().__init__(net, objective)
        for part in (net.trunk, net.exits[-1]):
            part.requires_grad_(False)

    def predictions(self, batch: TextBatch) -> tuple[Tensor, list[Tensor]]:
        """The logarithms of the last classifier's predictions [N, classes], and of each other one's."""
        with torch.no_grad():
            states = self.net.trunk(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths,
                                    output_hidden_states=True).hidden_states
            (told,) = self.net.judged(states, None, batch.lengths, [len(self.net.exits) - 1])
        found = self.net.judged(states, None, batch.lengths, range(len(self.net.exits) - 1))
        return at_least_fp32(told).log_softmax(-1), [at_least_fp32(logits).log_softmax(-1) for logits in found]

    def forward(self, batch: TextBatch, carry: Any = None) -> Step:
        """The divergences of all lower classifiers, added up; in evaluation how often each says what the last one says."""
        told, found = self.predictions(batch)
        total = torch.stack([F.kl_div(mine, told, reduction="sum", log_target=True) for mine in found]).sum()
        step = Step({"exits": Term(total, "texts")})
        if not self.training:
            flat = -math.log(told.shape[-1])
            step.metrics["exits_chance"] = (len(found) * (told.exp() * (told - flat)).sum(), len(told))
            for number, mine in enumerate(found):
                step.metrics[f"agrees/{number + 1}"] = ((mine.argmax(-1) == told.argmax(-1)).sum(), len(told))
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "exits", "exits_chance", *(f"agrees/{number + 1}" for number in range(len(self.net.exits) - 1))

    @torch.no_grad()
    def preview(self, batch: TextBatch, limit: int = 4) -> list[Preview]:
        """Texts, and what each layer says of them."""
        told, found = self.predictions(batch)
        labels, said = class_names(self.net.config), torch.stack([*found, told]).argmax(-1).T
        texts = batch.input_ids[0].split(list(batch.lengths))
        return [Preview((("text", self.objective.tokenizer.decode(ids.tolist(), skip_special_tokens=True)),
                         ("layer by layer", ", ".join(labels[c] for c in row.tolist())))) for ids, row in zip(texts[:limit], said)]


# --------------------------------------------------------------------------------------------- the entry


def create_classifier(config: BertConfig, settings: TaskSettings, context: Context) -> FastBertSystem:
    """The first stage with randomly initialized weights."""
    need_classes(config, context, "classification", "pack it with --label-field, or as folders of one class each")
    need_one_class_each(config, "fastbert")
    return FastBertSystem(FastBertForSequenceClassification(config), context.objective(
        "fastbert", lambda tokenizer: classify.objective_of(config, tokenizer, settings)))


def create_exits(config: BertConfig, settings: TaskSettings, context: Context) -> ExitsSystem:
    """The second stage; its weights come from a run of the first."""

    def objective(tokenizer: Tokenizer) -> TextObjective:
        vocabulary, length = fitting(tokenizer, config, settings.max_length)
        return TextObjective(vocabulary, "classification", length, config.type_vocab_size, config.summary_token)

    return ExitsSystem(FastBertForSequenceClassification(config), context.objective("fastbert", objective))


def _rules(config: BertConfig) -> tuple[Rule, ...]:
    parts = (part for name in ("down", "attention.qkv", "attention.out", "dense", "out")
             for part in affine(f"exits.{{i}}.{name}", f"exits.{{i}}.{name}"))
    return (*prefixed(encoder_rules(config, pooler=False), "bert.", "trunk."), *layers(config.num_hidden_layers, parts), *LEGACY)


ARCHITECTURE = "FastBertForSequenceClassification"
NETS = (
    *(net for net in bert.NETS if net.architecture in ("BertForPreTraining", "BertForMaskedLM", "BertModel")),
    Net(ARCHITECTURE, FastBertForSequenceClassification, our_own(transformers(_rules), ARCHITECTURE, BertConfig, "polymodal-fastbert")),
)


CARD = Card(
    title="FastBERT",
    paper="Liu, Zhou, Zhao, Wang, Ju, Deng. FastBERT: a Self-distilling BERT with Adaptive Inference Time",
    year=2020,
    url="https://arxiv.org/abs/2004.02178",
    equation=r"\mathcal{L} = \frac{1}{B} \sum_{b=1}^{B} \sum_{l=0}^{L-2} \mathrm{KL}\big(t_b \,\|\, s^l_b\big), \qquad "
             r"u = - \frac{1}{\log N} \sum_{c=1}^{N} p_c \log p_c",
    symbols="t is what the last classifier predicts of a text and s what the one of layer l predicts; the mean is over the whole global "
            "batch. A text leaves behind the first layer whose prediction p of the N classes has an uncertainty u of at most the speed.",
    masks={"Packed texts": Mask(lengths=(5, 7, 4))},
    reference="transformers.BertModel for the trunk",
)

FAMILIES = (
    Family(
        name="fastbert",
        card=CARD,
        config=BertConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("masked words and next sentence, as BERT", BertSettings, bert.create),
        tasks=(
            Task("a class for a text or a pair of texts, by the last layer", TaskSettings, create_classifier, "classify",
                 classify.with_one_or_several, ARCHITECTURE),
            Task("the last layer's classes, by all others", TaskSettings, create_exits, "exits", architecture=ARCHITECTURE),
        ),
        nets=NETS,
        heads=("head", "next_sentence", "trunk.pooler", "exits"),
        starts={"bert": Adopt()},
        model_type="bert",
        vocabulary=Vocabulary("wordpiece", "bert", lowercase=True),
    ),
)
