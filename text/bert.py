"""BERT. Devlin, Chang, Lee and Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for
Language Understanding", 2018. https://arxiv.org/abs/1810.04805

Faithful: trunk, heads, initialisation and outputs as in transformers' `Bert*` classes; pairs made by the
procedure of google-research/bert (`create_instances_from_document`: 10% short targets, half of the second
segments from another document with the unused ones put back, truncation at random ends); masking of 15%,
[CLS] and [SEP] counted, 80/10/10; next-sentence label 0 "follows", 1 "random".

Deviations, each with its reason:
* Noise is drawn anew at each epoch, where the reference wrote ten fixed copies (`dupe_factor`).
* Sequences are packed side by side without padding; each sees only itself, so nothing changes but speed.
* The random document is a neighbour in the shuffled stream, not any of the corpus: the stream is shuffled.
* Raw text is cut into sentences at line ends and after . ! ? (the reference expects one sentence a line).
* Pre-tokenised rows hold no sentences: pieces of an eighth of the sequence stand in for them.
* GELU is the exact one, as in transformers; the reference computes its tanh form (`hidden_act: gelu_new`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.attention.mask import Mask
from ..shared.block import LayerNorm
from ..shared.convert import Alias, Ignore, Rename, Rule, Tied, affine, prefixed
from ..shared.corrupt import mask_tokens, truncate_pair
from ..shared.embed import normal_
from ..shared.encoder import LEGACY, Encoder, EncoderConfig, EncoderOutput, encoder_rules
from ..shared.errors import BadSample, UserError
from ..shared.family import Card, Context, Family, Net, Task, transformers
from ..shared.heads import LMHead, Transform
from ..shared.loss import accuracy_sum, cross_entropy_sum, perplexity
from ..shared.sample import Sample
from ..shared.system import Batch, Objective, Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from . import classify, tasks

IS_NEXT, IS_RANDOM = 0, 1


@dataclass(frozen=True, kw_only=True)
class BertConfig(EncoderConfig):
    """transformers' `BertConfig`; see `EncoderConfig` for the fields of the trunk."""

    classifier_dropout: float | None = None
    """Dropout before a task head; None takes `hidden_dropout_prob`."""
    num_labels: int = 2
    """Classes of a task head."""
    labels: tuple[str, ...] | None = None
    """Names of the classes."""

    AT_LEAST_ONE = (*EncoderConfig.AT_LEAST_ONE, "num_labels")
    PROBABILITIES = (*EncoderConfig.PROBABILITIES, "classifier_dropout")


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512,
             "max_position_embeddings": 128},
    "small": {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048},
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
"""`small` is one of Google's later miniatures (Turc et al. 2019); `base` and `large` are the paper's."""


# ---------------------------------------------------------------------------------------------- networks


@dataclass
class MaskedLMOutput:
    """Outputs of `BertForMaskedLM`."""

    logits: Tensor
    """[B, S, V], or [N, V] where rows were asked for."""
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class BertForPreTrainingOutput:
    """Outputs of `BertForPreTraining`."""

    prediction_logits: Tensor
    """[B, S, V], or [N, V] where rows were asked for."""
    seq_relationship_logits: Tensor
    """[B, 2]; class 0: the second segment follows, 1: it is random."""
    hidden_states: tuple[Tensor, ...] | None = None


def language_head(config: BertConfig, trunk: Encoder) -> LMHead:
    """The masked-language-model head: dense, activation, norm, then the word table and a bias."""
    width = config.table_size
    transform = Transform(config.hidden_size, config.hidden_act, lambda: LayerNorm(width, eps=config.layer_norm_eps), output_size=width)
    normal_(transform, config.initializer_range)
    table = cast("nn.Parameter", trunk.embed.word.weight)
    return LMHead(width, config.vocab_size, transform=transform, weight=table, bias=True)


class BertForMaskedLM(nn.Module):
    """The trunk without pooler, and the masked-language-model head tied to the word table."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Encoder(config, pooler=False)
        self.head = language_head(config, self.trunk)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        output_hidden_states: bool = False,
    ) -> MaskedLMOutput:
        """Map ids [B, S] to logits over the vocabulary; see `Encoder.forward` for the arguments."""
        out = self.trunk(input_ids, attention_mask, token_type_ids, position_ids,
                         lengths=lengths, output_hidden_states=output_hidden_states)
        return MaskedLMOutput(self.head(out.last_hidden_state), out.hidden_states)


class BertForPreTraining(nn.Module):
    """The trunk, the masked-language-model head and the next-sentence head."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Encoder(config)
        self.head = language_head(config, self.trunk)
        self.next_sentence = nn.Linear(config.hidden_size, 2)
        tasks.init_head(self.next_sentence, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        output_hidden_states: bool = False,
    ) -> BertForPreTrainingOutput:
        """Map ids [B, S] to logits of both heads; see `Encoder.forward` for the arguments."""
        out = self.trunk(input_ids, attention_mask, token_type_ids, position_ids,
                         lengths=lengths, output_hidden_states=output_hidden_states)
        words = self.head(out.last_hidden_state)
        return BertForPreTrainingOutput(words, self.next_sentence(out.pooled), out.hidden_states)


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class MaskingSettings:
    """What every masked-language objective lets one set."""

    mask_prob: float = 0.15
    """Fraction of a sequence that is predicted."""
    max_length: int | None = None
    """Tokens of a sequence, special ones included; None takes the model's positions."""
    max_predictions: int | None = None
    """At most so many predictions in a sequence; None for no limit (the paper's 20 at length 128 and 80 at 512 never bind at 15%)."""
    short_prob: float = 0.1
    """Probability that a document is cut into sequences of a shorter, random length."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("mask_prob", "short_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected a probability between 0 and 1")
        if self.max_length is not None and self.max_length < 8:
            raise UserError(f"max_length is {self.max_length}, expected at least 8 tokens")
        if self.max_predictions is not None and self.max_predictions < 1:
            raise UserError(f"max_predictions is {self.max_predictions}, expected at least 1 or null")


@dataclass(frozen=True)
class BertSettings(MaskingSettings):
    """What of the objective can be set."""

    nsp: bool = True
    """Whether sequences are pairs and the next-sentence head is trained."""


@dataclass(frozen=True, slots=True)
class BertExample:
    """One corrupted sequence, with [CLS] and [SEP]."""

    input_ids: np.ndarray
    """int64 [S]"""
    token_type_ids: np.ndarray
    """int64 [S]"""
    positions: np.ndarray
    """int64 [M]: the places to predict."""
    targets: np.ndarray
    """int64 [M]: the original ids there."""
    next_sentence: int | None
    """`IS_NEXT`, `IS_RANDOM`, or None where the sequence is no pair."""


@dataclass(kw_only=True)
class BertBatch(Batch):
    """Packed sequences. T tokens, N sequences, M predictions."""

    input_ids: Tensor
    """[1, T]"""
    token_type_ids: Tensor
    """[1, T]"""
    position_ids: Tensor
    """[1, T], from 0 in each sequence."""
    lengths: tuple[int, ...]
    """N lengths, their sum T."""
    target_rows: Tensor
    """[M]: places to predict, counted over the T tokens."""
    targets: Tensor
    """[M]: the original ids there."""
    next_sentence: Tensor
    """[N], or [0] without pairs."""


Segments = Sequence[np.ndarray]


def sentences(text: str) -> list[str]:
    """Cut text at line ends and after sentence marks that are followed by a space (or stand in Chinese or Japanese)."""
    return [part for part in (p.strip() for p in _SENTENCE_END.sub(r"\1\n", text).splitlines()) if part]


_SENTENCE_END = re.compile(r"([.!?][\"'”’)\]]*(?=\s)|[。！？][”’」』）]*)")


def pairs(
    document: Segments, other: Segments, max_tokens: int, short_prob: float, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Cut a document into pairs of segments, as google-research/bert's `create_instances_from_document`.

    Args:
        document: the ids of each sentence.
        other: the sentences of the random document.
        max_tokens: tokens of a pair without [CLS] and [SEP]s.
        short_prob: probability of a shorter target.
        rng: the sample's generator.

    Yields:
        First segment, second segment, `IS_NEXT` or `IS_RANDOM`.
    """
    target = int(rng.integers(2, max_tokens + 1)) if rng.random() < short_prob else max_tokens
    chunk: list[np.ndarray] = []
    place = 0
    while place < len(document):
        chunk.append(document[place])
        place += 1
        if place < len(document) and sum(map(len, chunk)) < target:
            continue
        cut = int(rng.integers(1, len(chunk))) if len(chunk) >= 2 else 1
        a = np.concatenate(chunk[:cut])
        if len(chunk) == 1 or rng.random() < 0.5:
            label = IS_RANDOM
            drawn: list[np.ndarray] = []
            for segment in other[int(rng.integers(len(other))):]:
                drawn.append(segment)
                if sum(map(len, drawn)) >= target - len(a):
                    break
            b = np.concatenate(drawn)
            place -= len(chunk) - cut  # the sentences that were not used come again
        else:
            label = IS_NEXT
            b = np.concatenate(chunk[cut:])
        yield *truncate_pair(a, b, max_tokens, rng), label
        chunk = []


ExampleT = TypeVar("ExampleT", bound=BertExample)


class MaskingObjective(Objective[ExampleT]):
    """What objectives over masked sequences share: documents as sentences, framing, masking, packing."""

    replaced_by_mask: ClassVar[float] = 0.8
    """Share of the drawn places that become [MASK]."""
    replaced_at_random: ClassVar[float] = 0.1
    """Share of the drawn places that become a random token; the rest stay."""

    def __init__(self, tokenizer: Tokenizer, settings: MaskingSettings, max_length: int) -> None:
        """Make the data side for sequences of at most `max_length` tokens."""
        self.cls_id, self.sep_id, self.mask_id = tokenizer.need("masking", "cls", "sep", "mask")
        self.tokenizer = tokenizer
        self.settings = settings
        self.max_length = max_length

    def _documents(self, sample: Sample) -> list[list[np.ndarray]]:
        """The documents of a sample, each as the ids of its sentences."""
        if not sample.tokenized:
            encoded = self.tokenizer.encode_batch(sentences(sample.text()), add_special_tokens=False)
            document = [np.asarray(ids, dtype=np.int64) for ids in encoded if ids]
            if not document:
                raise sample.bad("the tokenizer makes no tokens of the text")
            return [document]
        ids, lengths = sample.tokens()
        documents: list[list[np.ndarray]] = []
        edges = (self.tokenizer.cls_id, self.tokenizer.sep_id, self.tokenizer.bos_id, self.tokenizer.eos_id)
        piece = max(1, (self.max_length - 3) // 8)
        for document in np.split(ids, np.cumsum(lengths)[:-1]):
            begin, end = 0, len(document)
            while begin < end and document[begin] in edges:
                begin += 1
            while begin < end and document[end - 1] in edges:
                end -= 1
            if begin < end:
                size = min(piece, -(-(end - begin) // 2))  # at least two pieces, so that a pair can be made
                documents.append([document[i:min(i + size, end)] for i in range(begin, end, size)])
        if not documents:
            raise sample.bad("the row holds special tokens only")
        return documents

    def _corrupt(self, a: np.ndarray, b: np.ndarray | None, label: int | None, rng: np.random.Generator) -> BertExample:
        cls, sep = self.cls_id, self.sep_id
        ids = np.concatenate([[cls], a, [sep]] if b is None else [[cls], a, [sep], b, [sep]])
        types = np.zeros(len(ids), dtype=np.int64)
        types[len(a) + 2:] = 1
        maskable = np.ones(len(ids), dtype=bool)
        maskable[[0, len(a) + 1, len(ids) - 1]] = False
        noisy = mask_tokens(ids, maskable, rng, mask_id=self.mask_id, vocab_size=self.tokenizer.vocab_size,
                            mask_prob=self.settings.mask_prob, max_predictions=self.settings.max_predictions,
                            replaced_by_mask=self.replaced_by_mask, replaced_at_random=self.replaced_at_random)
        return BertExample(noisy.ids, types, noisy.positions, noisy.targets, label)

    def collate(self, examples: list[ExampleT]) -> BertBatch:
        """Pack sequences side by side."""
        lengths = [len(e.input_ids) for e in examples]
        starts = np.cumsum([0, *lengths[:-1]])
        labels = [e.next_sentence for e in examples if e.next_sentence is not None]
        rows = np.concatenate([e.positions + s for e, s in zip(examples, starts)])
        return BertBatch(
            counts={"masked": len(rows), "pairs": len(labels)} if labels else {"masked": len(rows)},
            tokens=sum(lengths),
            input_ids=_row([e.input_ids for e in examples]),
            token_type_ids=_row([e.token_type_ids for e in examples]),
            position_ids=_row([np.arange(n) for n in lengths]),
            lengths=tuple(lengths),
            target_rows=torch.from_numpy(rows),
            targets=torch.from_numpy(np.concatenate([e.targets for e in examples])),
            next_sentence=torch.tensor(labels, dtype=torch.long),
        )

    def describe(self, example: ExampleT) -> Preview:
        """The corrupted sequence, what must be predicted, and the label of a pair."""
        rows = [("input", self.tokenizer.show(example.input_ids))]
        rows.append(("predict", ", ".join(f"{p}: {self.tokenizer.show([t])}" for p, t in zip(example.positions, example.targets))))
        if example.next_sentence is not None:
            rows.append(("second segment", "random" if example.next_sentence == IS_RANDOM else "follows"))
        return Preview(tuple(rows))


class BertObjective(MaskingObjective[BertExample]):
    """Masked words, and with `nsp` whether the second segment follows the first."""

    def __init__(self, tokenizer: Tokenizer, settings: BertSettings, max_length: int) -> None:
        """Make the data side for sequences of at most `max_length` tokens."""
        super().__init__(tokenizer, settings, max_length)
        self.needs_partner = settings.nsp

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[BertExample]:
        """Yield every sequence that a document, or a row of documents, gives."""
        documents = self._documents(sample)
        if not self.needs_partner:
            for document in documents:
                yield from self._singles(np.concatenate(document), rng)
            return
        others = self._others(sample) or documents
        for document in documents:
            other = others[int(rng.integers(len(others)))]
            for a, b, label in pairs(document, other, self.max_length - 3, self.settings.short_prob, rng):
                yield self._corrupt(a, b, label, rng)

    def _singles(self, ids: np.ndarray, rng: np.random.Generator) -> Iterator[BertExample]:
        """Consecutive stretches of a document, without pairs."""
        longest = self.max_length - 2
        size = int(rng.integers(2, longest + 1)) if rng.random() < self.settings.short_prob else longest
        for start in range(0, len(ids), size):
            yield self._corrupt(ids[start:start + size], None, None, rng)

    def _others(self, sample: Sample) -> list[list[np.ndarray]]:
        """The partner's documents; a partner that is missing or bad (it is counted when its own turn comes) gives none."""
        if sample.partner is None:
            return []
        try:
            return self._documents(sample.partner)
        except BadSample:
            return []


# ------------------------------------------------------------------------------------------ the loss side


class BertSystem(System[BertForPreTraining | BertForMaskedLM, BertObjective]):
    """BERT's pretraining: masked words, and next sentence where the objective makes pairs."""

    def forward(self, batch: BertBatch, carry: Any = None) -> Step:
        """Both losses as sums over their targets; the vocabulary is scored only where something is predicted."""
        net = self.net
        out: EncoderOutput = net.trunk(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths)
        rows = out.last_hidden_state[0, batch.target_rows]  # [M, D]
        step = Step({})
        if self.training:
            total = net.head.loss(rows, batch.targets)
        else:
            logits = net.head(rows)
            total = cross_entropy_sum(logits, batch.targets)
            step.metrics["mlm_accuracy"] = (accuracy_sum(logits, batch.targets), len(batch.targets))
        step.terms["mlm"] = Term(total, "masked", labels=batch.targets)
        if isinstance(net, BertForPreTraining):
            logits = net.next_sentence(out.pooled)
            step.terms["nsp"] = Term(cross_entropy_sum(logits, batch.next_sentence), "pairs", labels=batch.next_sentence)
            step.metrics["nsp_accuracy"] = (accuracy_sum(logits, batch.next_sentence), len(batch.next_sentence))
        return step

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity of the masked words."""
        return {"mlm_perplexity": perplexity(means["mlm"])} if "mlm" in means else {}

    @torch.no_grad()
    def preview(self, batch: BertBatch, limit: int = 4) -> list[Preview]:
        """Sequences with their masks, and the model's fillings with the true words beside them."""
        tokenizer = self.objective.tokenizer
        net = self.net
        out = net.trunk(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths)
        fillings = net.head(out.last_hidden_state[0, batch.target_rows]).argmax(-1).cpu().numpy()
        rows, targets = batch.target_rows.cpu().numpy(), batch.targets.cpu().numpy()
        ids = batch.input_ids[0].cpu().numpy()
        previews: list[Preview] = []
        start = 0
        for length in batch.lengths[:limit]:
            inside = (rows >= start) & (rows < start + length)
            filled = ids[start:start + length].copy()
            filled[rows[inside] - start] = fillings[inside]
            words = ", ".join(f"{tokenizer.show([f])} ({tokenizer.show([t])})" for f, t in zip(fillings[inside], targets[inside]))
            previews.append(Preview((
                ("masked", tokenizer.show(ids[start:start + length])),
                ("filled", tokenizer.decode(filled.tolist(), skip_special_tokens=True)),
                ("filling (truth)", words),
            )))
            start += length
        return previews


def _row(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))[None]


# --------------------------------------------------------------------------------------------- the entry


def sequence_length(config: BertConfig, settings: MaskingSettings) -> int:
    """The longest sequence, special tokens included."""
    length = settings.max_length or config.max_position_embeddings
    if length > config.max_position_embeddings:
        raise UserError(f"objective.max_length is {length}, the model has {config.max_position_embeddings} positions: "
                        f"lower it or raise model.max_position_embeddings")
    return length


def create(config: BertConfig, settings: BertSettings, context: Context) -> BertSystem:
    """Build BERT with fresh weights and its objective."""
    length = sequence_length(config, settings)
    if settings.nsp and config.type_vocab_size < 2:
        raise UserError("next sentence prediction needs two token types: set model.type_vocab_size to 2 or objective.nsp to false")

    objective = context.objective("bert", lambda tokenizer: BertObjective(tokenizer.fitting(config.vocab_size), settings, length))
    return BertSystem(BertForPreTraining(config) if settings.nsp else BertForMaskedLM(config), objective)


def adapt(config: BertConfig, context: Context) -> BertConfig:
    """Take vocabulary size and padding id from the tokenizer."""
    if context.tokenizer is None:
        return config
    return replace(config, vocab_size=context.tokenizer.vocab_size, pad_token_id=context.tokenizer.pad_id or 0)


def _trunk(config: BertConfig, *, pooler: bool) -> tuple[Rule, ...]:
    return (*prefixed(encoder_rules(config, pooler=pooler), "bert.", "trunk."), *LEGACY)


def _words() -> tuple[Rule, ...]:
    return (
        *affine("cls.predictions.transform.dense", "head.transform.dense"),
        *affine("cls.predictions.transform.LayerNorm", "head.transform.norm"),
        Rename("cls.predictions.bias", "head.bias"),
        Tied("head.weight", "trunk.embed.word.weight"),
        Alias("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        Alias("cls.predictions.decoder.bias", "cls.predictions.bias"),
    )


NETS = (
    Net("BertForPreTraining", BertForPreTraining,
        transformers(lambda c: (*_trunk(c, pooler=True), *_words(), *affine("cls.seq_relationship", "next_sentence")))),
    Net("BertForMaskedLM", BertForMaskedLM, transformers(lambda c: (
        *_trunk(c, pooler=False), *_words(),
        Ignore(r"bert\.pooler\..*|cls\.seq_relationship\..*"),  # the released files of this architecture hold them too
    ))),
    Net("BertModel", Encoder, transformers(lambda c: (*encoder_rules(c), *LEGACY))),
    Net("BertForSequenceClassification", lambda c: tasks.SequenceClassification(Encoder(c), c),
        transformers(lambda c: (*_trunk(c, pooler=True), *affine("classifier", "classifier")))),
    Net("BertForTokenClassification", lambda c: tasks.TokenClassification(Encoder(c, pooler=False), c),
        transformers(lambda c: (*_trunk(c, pooler=False), *affine("classifier", "classifier")))),
    Net("BertForQuestionAnswering", lambda c: tasks.QuestionAnswering(Encoder(c, pooler=False), c),
        transformers(lambda c: (*_trunk(c, pooler=False), *affine("qa_outputs", "classifier")))),
    Net("BertForMultipleChoice", lambda c: tasks.MultipleChoice(Encoder(c), c),
        transformers(lambda c: (*_trunk(c, pooler=True), *affine("classifier", "classifier")))),
)

CARD = Card(
    title="BERT",
    paper="Devlin, Chang, Lee, Toutanova. BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
    year=2018,
    url="https://arxiv.org/abs/1810.04805",
    equation=r"\mathcal{L} = -\frac{1}{|M|} \sum_{i \in M} \log p_\theta(x_i \mid \tilde{x}) "
             r"- \frac{1}{B} \sum_{b=1}^{B} \log p_\theta(n_b \mid \tilde{x}_b)",
    symbols="M are the 15 % of the tokens that are to be predicted; in the input x with a tilde, 80 % of them are masked, 10 % "
            "replaced and 10 % kept. n says whether the second segment follows the first. Both means are over the whole global batch.",
    masks={"Packed pairs": Mask(lengths=(5, 7, 4))},
    reference="transformers.BertForPreTraining",
)

FAMILIES = (
    Family(
        name="bert",
        card=CARD,
        config=BertConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("masked words and next sentence", BertSettings, create),
        tasks=(classify.task("BertForSequenceClassification", lambda c: tasks.SequenceClassification(Encoder(c), c)),),
        nets=NETS,
        heads=("head", "next_sentence", "classifier", "trunk.pooler"),
        model_type="bert",
    ),
)
