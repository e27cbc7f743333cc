"""TinyBERT. Jiao, Yin, Shang, Jiang, Chen, Li, Wang and Liu, "TinyBERT: Distilling BERT for Natural Language Understanding", 2019.
https://arxiv.org/abs/1909.10351

A narrow BERT of few layers, which learns layer by layer how a trained one beside it attends and what it thinks of each token.

    teacher   embeddings  0  1  2 | 3  4  5 | 6  7  8 | 9 10 11      12 layers: each student's layer stands for 3
    student   embeddings        0         1         2         3      attention scores of the last of the three, and the states behind it

Faithful: BERT's network, 4 layers of width 312 or 6 of 768; the distance of the attention scores before the softmax, mean over heads and
pairs of tokens, and of the states of embeddings and layers through one linear map to the teacher's width, with bias, shared by all; both
summed over the layers (equations 7 to 9). The first stage learns from text alone (pretraining), the second from the texts of a task and a
teacher that was fine-tuned for it (`task=classify`): first the same distances (`stage=intermediate`), then its soft predictions
(`stage=prediction`), whose cross-entropy the authors' code divides by the number of classes, too. Here it is less the entropy of the
teacher's predictions, which has no gradient: 0 is a student that predicts the same.

Deviations, each with its reason:
* Means are over real tokens; the authors' code counts padding, whose distance is zero, too.
* The map to the teacher's width belongs to a run and not to the network: the second stage begins with a new one.
* The last batch of an epoch is not dropped: batches go on over its end.
* Sequences are packed side by side without padding; each sees only itself, so nothing changes but speed.
* The first stage reads single texts with BERT's masks (`mask_prob`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.attention.mask import Mask
from ..shared.attention.plan import Seen
from ..shared.embed import normal_
from ..shared.encoder import Encoder, EncoderOutput
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Task, Vocabulary
from ..shared.loss import at_least_fp32
from ..shared.packed import PackedBatch
from ..shared.system import Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from . import bert, classify
from ._distances import score_distance_sum, state_distance_sum
from .bert import BertConfig
from .classify import ClassifyBatch, ClassifyExample, ClassifyObjective, ClassifySystem
from .distillation import ENCODERS, Teacher, check_sizes, find_teacher, with_vocabulary
from .encoder_task import TaskSettings, class_names, fitting, need_classes, read
from .framing import longest
from .masking import MaskedBatch, MaskedExample, MaskingSettings, SingleTexts
from .tasks import SequenceClassification, SequenceClassifier

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128, "max_position_embeddings": 128},
    "base": {"hidden_size": 312, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 1200},
    "base-6": {"num_hidden_layers": 6},
}
"""`base` and `base-6` are the paper's; `tiny` learns from `bert-tiny`."""


# ------------------------------------------------------------------------------------------ the distances


class Imitation(nn.Module):
    """How far a student's attention scores and states are from its teacher's, layer by layer.

    Args:
        width: of the student's states.
        teacher_width: of the teacher's.
        std: of the map's initial weights.
    """

    def __init__(self, width: int, teacher_width: int, std: float) -> None:
        super().__init__()
        self.fit_dense = nn.Linear(width, teacher_width)
        normal_(self.fit_dense, std)

    def forward(self, student: Encoder, teacher: Encoder, batch: Any, training: bool) -> Step:
        """Both distances as sums, over pairs of tokens and over tokens; in evaluation also what a student loses whose states are 0."""
        ours, theirs = list[Seen](), list[Seen]()
        out = _watch(student, batch, ours)
        with torch.no_grad():
            told = _watch(teacher, batch, theirs)
        assert out.hidden_states is not None and told.hidden_states is not None
        each = len(theirs) // len(ours)
        scores = [score_distance_sum(mine, theirs[(i + 1) * each - 1], batch.lengths) for i, mine in enumerate(ours)]
        states = [(mine, told.hidden_states[i * each]) for i, mine in enumerate(out.hidden_states)]
        step = Step({
            "attention": Term(torch.stack(scores).sum(), "pairs"),
            "hidden": Term(torch.stack([state_distance_sum(self.fit_dense(mine), theirs) for mine, theirs in states]).sum(), "tokens"),
        })
        if not training:
            naught = torch.stack([at_least_fp32(theirs).square().mean(-1).sum() for _, theirs in states]).sum()
            step.metrics["hidden_chance"] = (naught, batch.counts["tokens"])
        return step


MEASURED = ("attention", "hidden", "hidden_chance")


def _watch(trunk: Encoder, batch: Any, seen: list[Seen]) -> EncoderOutput:
    types = batch.token_type_ids.clamp(max=max(trunk.config.type_vocab_size - 1, 0))
    return trunk(batch.input_ids, None, types, batch.position_ids, lengths=batch.lengths, output_hidden_states=True, seen=seen)


def distance_counts(batch: PackedBatch) -> dict[str, int]:
    """What the distances are divided by: tokens, and pairs of tokens of one text."""
    return {"tokens": sum(batch.lengths), "pairs": sum(length**2 for length in batch.lengths)}


def trunk_of(net: nn.Module) -> Encoder:
    """The trunk of a network, or a bare one."""
    return getattr(net, "trunk", net)  # pyright: ignore[reportReturnType]


def check_layers(teacher: Teacher, config: BertConfig, width: int) -> None:
    """Refuse a teacher whose layers, heads or width the student cannot imitate."""
    theirs, source = teacher.net.config, teacher.companion.source
    depth, count, heads = theirs.num_hidden_layers, config.num_hidden_layers, theirs.num_attention_heads
    if depth % count:
        raise UserError(f"the teacher {source} has {depth} layers and the student {count}, which must divide them: set "
                        f"model.num_hidden_layers to one of {', '.join(str(n) for n in range(1, depth + 1) if not depth % n)}")
    if heads != config.num_attention_heads:
        raise UserError(f"the teacher {source} has {heads} attention heads and the student {config.num_attention_heads}, whose scores are "
                        f"compared: set model.num_attention_heads={heads}, and a model.hidden_size that it divides")
    if theirs.hidden_size != width:
        raise UserError(f"the teacher {source} has states of {theirs.hidden_size} numbers: set objective.teacher_size={theirs.hidden_size} "
                        f"(it is {width})")


# ------------------------------------------------------------------------------------------- general stage


@dataclass(frozen=True)
class TinyBertSettings(MaskingSettings):
    """What of the objective can be set."""

    teacher_size: int = 768
    """Width of the teacher's states."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.teacher_size < 1:
            raise UserError(f"teacher_size is {self.teacher_size}, expected the width of the teacher's states")


class TinyBertObjective(SingleTexts):
    """Masked texts, of which nothing is predicted: the teacher reads them, too."""

    def collate(self, examples: list[MaskedExample]) -> MaskedBatch:
        """Pack sequences side by side, counted in tokens and in pairs of them."""
        packed = super().collate(examples)
        return replace(packed, counts=distance_counts(packed))

    def describe(self, example: MaskedExample) -> Preview:
        """The text as both networks read it."""
        return Preview((("input", self.tokenizer.show(example.input_ids)),))


class TinyBertSystem(System[Encoder, TinyBertObjective]):
    """The first stage: a trunk that imitates its teacher's. Its pooler waits for a task."""

    def __init__(self, net: Encoder, objective: TinyBertObjective, imitation: Imitation, teacher: Teacher | None) -> None:
        super().__init__(net, objective)
        assert net.pooler is not None
        net.pooler.requires_grad_(False)
        self.imitation, self.teacher = imitation, teacher
        self.companions = {} if teacher is None else {"teacher": teacher.companion}

    def forward(self, batch: MaskedBatch, carry: Any = None) -> Step:
        """Both distances."""
        teacher = need(self.teacher).like(self.imitation.fit_dense.weight)
        return self.imitation(self.net, trunk_of(teacher), batch, self.training)

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return MEASURED

    @torch.no_grad()
    def preview(self, batch: MaskedBatch, limit: int = 4) -> list[Preview]:
        """Texts, and how much of the teacher's last states the student's have."""
        teacher = trunk_of(need(self.teacher).like(self.imitation.fit_dense.weight))
        found, told = _watch(self.net, batch, []).last_hidden_state, _watch(teacher, batch, []).last_hidden_state
        apart = (at_least_fp32(self.imitation.fit_dense(found)) - told).square().sum(-1)[0] / at_least_fp32(told).square().sum(-1)[0]
        parts = zip(batch.input_ids[0].split(list(batch.lengths)), apart.split(list(batch.lengths)), strict=True)
        return [Preview((("text", self.objective.tokenizer.show(ids.cpu().numpy())), ("imitated", f"{1 - float(each.mean()):.3f}")))
                for ids, each in list(parts)[:limit]]


def need(teacher: Teacher | None) -> Teacher:
    """The teacher, or a clear error."""
    if teacher is None:
        raise UserError("this tinybert was built without a teacher: pass companions={\"teacher\": DIR}")
    return teacher


def create(config: BertConfig, settings: TinyBertSettings, context: Context) -> TinyBertSystem:
    """The first stage with randomly initialized weights."""
    length = longest(config, settings.max_length)
    teacher = find_teacher(context, "tinybert", nn.Module, "an encoder such as a BERT")
    if teacher is not None:
        check_sizes(teacher, config, length)
        check_layers(teacher, config, settings.teacher_size)

    def objective(tokenizer: Tokenizer) -> TinyBertObjective:
        return TinyBertObjective(tokenizer.fitting(config.vocab_size), settings, length)

    imitation = Imitation(config.hidden_size, settings.teacher_size, config.initializer_range)
    return TinyBertSystem(Encoder(config), context.objective("tinybert", objective), imitation, teacher)


# ---------------------------------------------------------------------------------------------- task stage


@dataclass(frozen=True)
class TinyBertTaskSettings(TaskSettings):
    """What of the second stage can be set."""

    stage: Literal["intermediate", "prediction"] = "prediction"
    """What is learnt: attention scores and states, or the teacher's predictions."""
    temperature: float = 1.0
    """By which both logits are divided for the predictions."""
    teacher_size: int = 768
    """Width of the teacher's states, for the intermediate stage."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not self.temperature > 0:
            raise UserError(f"temperature is {self.temperature}, expected a number above 0")
        if self.teacher_size < 1:
            raise UserError(f"teacher_size is {self.teacher_size}, expected the width of the teacher's states")


class TaskObjective(ClassifyObjective):
    """Texts and pairs with their classes, counted in tokens and pairs of them, too."""

    def collate(self, examples: list[ClassifyExample]) -> ClassifyBatch:
        """Pack texts side by side."""
        batch = super().collate(examples)
        return replace(batch, counts={**batch.counts, **distance_counts(batch)})


class TinyBertClassifySystem(ClassifySystem):
    """The second stage, of a teacher that tells the same classes apart."""

    beside_intermediate: ClassVar[tuple[str, ...]] = ("trunk.pooler", "classifier")
    """Parts that wait for the predictions."""

    def __init__(self, net: SequenceClassification, objective: ClassifyObjective, settings: TinyBertTaskSettings,
                 teacher: Teacher | None) -> None:
        super().__init__(net, objective, class_names(net.config))
        self.settings, self.teacher = settings, teacher
        self.companions = {} if teacher is None else {"teacher": teacher.companion}
        self.imitation: Imitation | None = None
        if settings.stage == "intermediate":
            self.imitation = Imitation(net.config.hidden_size, settings.teacher_size, net.config.initializer_range)
            for name in self.beside_intermediate:
                net.get_submodule(name).requires_grad_(False)

    def forward(self, batch: ClassifyBatch, carry: Any = None) -> Step:
        """The distances, or the divergence from the teacher's predictions; the true classes are measured and not learnt."""
        teacher = need(self.teacher).like(next(self.net.parameters()))
        if self.imitation is not None:
            return self.imitation(trunk_of(self.net), trunk_of(teacher), batch, self.training)
        logits = self.logits(batch)
        with torch.no_grad():
            types = batch.token_type_ids.clamp(max=max(teacher.config.type_vocab_size - 1, 0))
            told: Tensor = read(teacher, replace(batch, token_type_ids=types)).logits
        step = self.judged(logits, batch)
        step.terms["classification"].weight = 0.0
        mine, theirs = ((at_least_fp32(x) / self.settings.temperature).log_softmax(-1) for x in (logits, told))
        step.terms["prediction"] = Term(F.kl_div(mine, theirs.to(mine.dtype), reduction="none", log_target=True).mean(-1).sum(), "texts")
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return MEASURED if self.imitation is not None else ("prediction", *super().measured())


def create_classifier(config: BertConfig, settings: TinyBertTaskSettings, context: Context) -> TinyBertClassifySystem:
    """The second stage with randomly initialized weights."""
    need_classes(config, context, "classification", "pack it with --label-field, or as folders of one class each")
    if context.several_labels:
        raise UserError("tinybert learns one class for each text: for several labels, fine-tune it as a bert")
    teacher = find_teacher(context, "tinybert", SequenceClassifier, "one that was fine-tuned to classify texts (bert-classify)")
    length = longest(config, settings.max_length)
    if teacher is not None:
        check_sizes(teacher, config, length)
        if settings.stage == "intermediate":
            check_layers(teacher, config, settings.teacher_size)
        ours, theirs = class_names(config), class_names(teacher.net.config)
        if ours != theirs and not context.net_only:
            raise UserError(f"the teacher {teacher.companion.source} tells the classes {', '.join(theirs[:6])} apart and the data has "
                            f"{', '.join(ours[:6])}: pack the data with the teacher's classes in its order (--classes)")

    def objective(tokenizer: Tokenizer) -> TaskObjective:
        vocabulary, most = fitting(tokenizer, config, settings.max_length)
        return TaskObjective(vocabulary, class_names(config), most, config.type_vocab_size, config.summary_token)

    return TinyBertClassifySystem(SequenceClassification(Encoder(config), config), context.objective("tinybert", objective), settings,
                                  teacher)


# --------------------------------------------------------------------------------------------- the entry


def adapt(config: BertConfig, context: Context) -> BertConfig:
    """Take vocabulary size and padding id from the teacher, or from the tokenizer."""
    return replace(config, **with_vocabulary(config, context))


CARD = Card(
    title="TinyBERT",
    paper="Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu. TinyBERT: Distilling BERT for Natural Language Understanding",
    year=2019,
    url="https://arxiv.org/abs/1909.10351",
    equation=r"\mathcal{L} = \sum_{l=1}^{N} \frac{1}{H P} \sum_{h} \sum_{i,j} \big(A^{lh}_{ij} - B^{g(l)h}_{ij}\big)^2 "
             r"+ \sum_{l=0}^{N} \frac{1}{D T} \sum_{i} \big\| s^l_i W + b - t^{g(l)}_i \big\|^2",
    symbols="A and B are the attention scores of student and teacher before the softmax, of head h of H, over the P pairs of tokens of one "
            "text; s and t their states, of D numbers in the teacher; T is the number of tokens. The student's layer l of N stands for the "
            "teacher's layer g(l) = l M / N, layer 0 are the embeddings; W and b are one map for all layers. The means are over the whole "
            "global batch.",
    masks={"Packed texts": Mask(lengths=(5, 7, 4))},
    reference="transformers.BertModel for the network; the formulas of the authors' code for the losses",
)

FAMILIES = (
    Family(
        name="tinybert",
        card=CARD,
        config=BertConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("a teacher's attention scores and states", TinyBertSettings, create, architecture="BertModel",
                         companions={"teacher": ENCODERS}),
        tasks=(Task("a teacher's attention, states, and classes of a text or a pair of texts", TinyBertTaskSettings, create_classifier,
                    "classify", classify.with_one_or_several, "BertForSequenceClassification", companions={"teacher": ENCODERS}),),
        nets=tuple(net for net in bert.NETS if net.architecture in ("BertModel", "BertForSequenceClassification")),
        heads=("pooler", "trunk.pooler", "classifier"),
        model_type="bert",
        vocabulary=Vocabulary("wordpiece", "bert", lowercase=True),
    ),
)
