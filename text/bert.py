"""BERT. Devlin, Chang, Lee and Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for
Language Understanding", 2018. https://arxiv.org/abs/1810.04805

Faithful: trunk, heads, initialisation and outputs as in transformers' `Bert*` classes; pairs made by the
procedure of google-research/bert (`create_instances_from_document`: 10% short targets, half of the second
segments from another document with the unused ones put back); masking of 15%, [CLS] and [SEP] counted,
80/10/10; next-sentence label 0 "follows", 1 "random".

Deviations, each with its reason:
* Noise is drawn anew at each epoch, where the reference wrote ten fixed copies (`dupe_factor`).
* Sequences are packed side by side without padding; each sees only itself, so nothing changes but speed.
* The random document is a neighbour in the shuffled stream, not any of the corpus: the stream is shuffled.
* Raw text is cut into sentences at line ends and after . ! ? (the reference expects one sentence a line).
* Pairs are of whole sentences, and second segments of both kinds fill the same room, so that only the words tell the
  label (`sentences.pairs`). The reference truncates pairs at random ends and throws the rest away; here each token of a
  document is read once in an epoch.
* Pre-tokenised rows hold no sentences: pairs of them are cut at any token, and so is a sentence that is longer than half
  a sequence.
* GELU is the exact one, as in transformers; the reference computes its tanh form (`hidden_act: gelu_new`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.attention.mask import Mask
from ..shared.convert import Ignore, Rule, affine, prefixed
from ..shared.encoder import LEGACY, Encoder, EncoderConfig, encoder_rules
from ..shared.errors import BadSample, UserError
from ..shared.family import Card, Context, Family, Net, Task, Vocabulary, transformers
from ..shared.loss import accuracy_sum, cross_entropy_sum
from ..shared.sample import Sample
from ..shared.system import Preview, Step, Term
from ..shared.tokenizer import Tokenizer
from . import masking, tasks
from .encoder_tasks import encoder_tasks
from .framing import longest
from .masking import MaskedLM, MaskedLMSystem, MaskedWords, MaskingObjective, MaskingSettings
from .sentences import Sentences, pairs, sentence_documents


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
class BertForPreTrainingOutput:
    """Outputs of `BertForPreTraining`."""

    prediction_logits: Tensor
    """[B, S, V]"""
    seq_relationship_logits: Tensor
    """[B, 2]; class 0: the second segment follows, 1: it is random."""
    hidden_states: tuple[Tensor, ...] | None = None


class BertForMaskedLM(MaskedLM):
    """The trunk without pooler, and the masked-language-model head."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(Encoder(config, pooler=False), config)


class PairedWords(MaskedWords):
    """A trunk with the masked-language-model head, and one that tells from the pooled first token whether the second segment follows.

    Args:
        trunk: with a pooler.
        config: the trunk's.
        dropout: before the second head.
    """

    def __init__(self, trunk: Encoder, config: EncoderConfig, dropout: float = 0.0) -> None:
        super().__init__(trunk, config)
        self.dropout = nn.Dropout(dropout)
        self.next_sentence = nn.Linear(config.hidden_size, 2)
        tasks.init_head(self.next_sentence, config.initializer_range)

    def judge(self, pooled: Tensor) -> Tensor:
        """Logits [B, 2] of pooled tokens [B, D]; class 0: the second segment follows the first."""
        return self.next_sentence(self.dropout(pooled))


class BertForPreTraining(PairedWords):
    """The trunk, the masked-language-model head and the next-sentence head."""

    def __init__(self, config: BertConfig, trunk: Encoder | None = None) -> None:
        """Build the network, by default over BERT's trunk."""
        super().__init__(trunk or Encoder(config), config)

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
        return BertForPreTrainingOutput(words, self.judge(out.pooled), out.hidden_states)


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class PairSettings(MaskingSettings):
    """What objectives over pairs of segments let one set."""

    short_prob: float = 0.1
    """Probability that a document is cut into sequences of a shorter, random length."""

    PROBABILITIES: ClassVar[tuple[str, ...]] = (*MaskingSettings.PROBABILITIES, "short_prob")

    @property
    def paired(self) -> bool:
        """Whether sequences are pairs."""
        return True


@dataclass(frozen=True)
class BertSettings(PairSettings):
    """What of the objective can be set."""

    nsp: bool = True
    """Whether sequences are pairs and the next-sentence head is trained."""

    @property
    def paired(self) -> bool:
        """Whether sequences are pairs."""
        return self.nsp


@dataclass(frozen=True, slots=True)
class BertExample(masking.MaskedExample):
    """One corrupted sequence."""

    next_sentence: int | None
    """`IS_NEXT`, `IS_RANDOM` (or `IS_SWAPPED`), or None where the sequence is not a pair."""


@dataclass(kw_only=True)
class BertBatch(masking.MaskedBatch):
    """Packed sequences, N of them."""

    next_sentence: Tensor
    """[N], or [0] without pairs."""


class BertObjective(MaskingObjective[BertExample]):
    """Masked words, and of pairs whether the second segment follows the first."""

    swap: ClassVar[bool] = False
    """Whether segments that do not follow are in the wrong order (`pairs`)."""
    kinds: ClassVar[tuple[str, str]] = ("follows", "random")
    """What the two kinds of second segments are called."""

    def __init__(self, tokenizer: Tokenizer, settings: PairSettings, max_length: int) -> None:
        """Make the data side for sequences of at most `max_length` tokens."""
        super().__init__(tokenizer, settings, max_length)
        self.short_prob = settings.short_prob
        self.needs_partner = settings.paired
        self.room = self.frame.room(max_length, pair=True)

    def sentences(self, sample: Sample) -> list[Sentences]:
        """The documents of a sample as sentences, with their words as in `documents`; where they have none, each token stands for one."""
        return sentence_documents(sample, self.tokenizer, self.room, 1, units=self.settings.whole_words)

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[BertExample]:
        """Yield every sequence that a document, or a row of documents, gives."""
        documents = self.sentences(sample)
        if not self.needs_partner:
            for document in documents:
                yield from self._singles(np.concatenate(document), rng)
            return
        others = self._others(sample) or documents
        ends = np.cumsum([len(other) for other in others])
        for document in documents:
            other = others[int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))]
            for a, b, label in pairs(document, other, self.room, self.short_prob, rng, swap=self.swap):
                yield BertExample(*self.masked(a, b, rng), label)

    def _singles(self, ids: np.ndarray, rng: np.random.Generator) -> Iterator[BertExample]:
        """Consecutive stretches of a document, without pairs."""
        room = self.frame.room(self.max_length, pair=False)
        size = int(rng.integers(2, room + 1)) if rng.random() < self.short_prob else room
        for start in range(0, len(ids), size):
            yield BertExample(*self.masked(ids[start:start + size], None, rng), None)

    def _others(self, sample: Sample) -> list[Sentences]:
        """The partner's documents; a partner that is missing or bad (it is counted when its own turn comes) gives none."""
        if sample.partner is None:
            return []
        try:
            return self.sentences(sample.partner)
        except BadSample:
            return []

    def collate(self, examples: list[BertExample]) -> BertBatch:
        """Pack sequences side by side; the next-sentence loss is counted in pairs."""
        masked = super().collate(examples)
        labels = [e.next_sentence for e in examples if e.next_sentence is not None]
        known: dict[str, Any] = {**vars(masked), "counts": {**masked.counts, **({"pairs": len(labels)} if labels else {})}}
        return BertBatch(**known, next_sentence=torch.tensor(labels, dtype=torch.long))

    def describe(self, example: BertExample) -> Preview:
        """The corrupted sequence, what must be predicted, and the label of a pair."""
        rows = super().describe(example).rows
        if example.next_sentence is None:
            return Preview(rows)
        return Preview((*rows, ("second segment", self.kinds[example.next_sentence])))


# ------------------------------------------------------------------------------------------ the loss side


class BertSystem(MaskedLMSystem[PairedWords | MaskedLM, BertObjective]):
    """BERT's pretraining: masked words, and next sentence where the objective makes pairs."""

    pair_term: ClassVar[str] = "nsp"
    """What the loss of the pairs is called."""

    def forward(self, batch: BertBatch, carry: Any = None) -> Step:
        """Both losses as sums over their targets."""
        out = self.read(batch)
        step = self.predict(out, batch)
        if isinstance(self.net, PairedWords):
            logits = self.net.judge(out.pooled)
            step.terms[self.pair_term] = Term(cross_entropy_sum(logits, batch.next_sentence), "pairs", labels=batch.next_sentence)
            step.metrics[f"{self.pair_term}_accuracy"] = (accuracy_sum(logits, batch.next_sentence), len(batch.next_sentence))
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        pair = self.pair_term
        return (*super().measured(), *((pair, f"{pair}_chance", f"{pair}_accuracy") if isinstance(self.net, PairedWords) else ()))


# --------------------------------------------------------------------------------------------- the entry

ConfigT = TypeVar("ConfigT", bound=EncoderConfig)


def create(config: BertConfig, settings: BertSettings, context: Context) -> BertSystem:
    """Build BERT with randomly initialized weights and its objective."""
    length = longest(config, settings.max_length)
    if settings.nsp and config.type_vocab_size < 2:
        raise UserError("next sentence prediction needs two token types: set model.type_vocab_size to 2 or objective.nsp to false")

    objective = context.objective("bert", lambda tokenizer: BertObjective(tokenizer.fitting(config.vocab_size), settings, length))
    return BertSystem(BertForPreTraining(config) if settings.nsp else BertForMaskedLM(config), objective)


def adapt(config: ConfigT, context: Context) -> ConfigT:
    """Take vocabulary size and padding id from the tokenizer."""
    if context.tokenizer is None:
        return config
    return replace(config, vocab_size=context.tokenizer.vocab_size, pad_token_id=context.tokenizer.pad_id or 0)


def nets(prefix: str) -> tuple[Net, ...]:
    """The networks of transformers' classes that begin with `prefix` ("Bert", "Ernie"), as the keys of their trunks do in lower case."""
    above = f"{prefix.lower()}."

    def trunk(config: EncoderConfig, pooler: bool) -> tuple[Rule, ...]:
        return (*prefixed(encoder_rules(config, pooler=pooler), above, "trunk."), *LEGACY)

    head = masking.head_rules("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias",
                              "cls.predictions.decoder", f"{above}embeddings.word_embeddings.weight")
    # the released files of the second architecture hold what the first one has, too
    others = Ignore(rf"{prefix.lower()}\.pooler\..*|cls\.seq_relationship\..*")
    return (
        Net(f"{prefix}ForPreTraining", BertForPreTraining,
            transformers(lambda c: (*trunk(c, True), *head, *affine("cls.seq_relationship", "next_sentence")))),
        Net(f"{prefix}ForMaskedLM", BertForMaskedLM, transformers(lambda c: (*trunk(c, False), *head, others))),
        Net(f"{prefix}Model", Encoder, transformers(lambda c: (*encoder_rules(c), *LEGACY))),
        *tasks.task_nets(prefix, Encoder, trunk),
    )


NETS = nets("Bert")

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
        tasks=encoder_tasks(NETS),
        nets=NETS,
        heads=("head", "next_sentence", "classifier", "trunk.pooler"),
        model_type="bert",
        vocabulary=Vocabulary("wordpiece", "bert", lowercase=True),
    ),
)
