"""RoBERTa. Liu, Ott, Goyal, Du, Joshi, Chen, Levy, Lewis, Zettlemoyer and Stoyanov, "RoBERTa: A Robustly
Optimized BERT Pretraining Approach", 2019. https://arxiv.org/abs/1907.11692

BERT trained better: masked words alone, masked anew every time a text is seen; full sequences across documents; byte-level BPE.

    a row of documents:  <s> A </s> <s> B </s> <s> C </s>     as `pack --tokenize` frames them
    a sequence:          <s> A </s> B </s> C </s>             FULL-SENTENCES: every token sees all others

Faithful: networks and outputs as in transformers' `Roberta*` classes; positions begin behind the id of padding, and padding has none;
the head has the exact GELU whatever the trunk has; a separator between the documents of a sequence (section 4.2); 15 % of a sequence
are predicted, 80/10/10, and random words are no special tokens, as in fairseq; no short sequences.

Deviations, each with its reason:
* A sample of raw text is one document, and no sequence crosses it: whole rows of documents come from `pack --tokenize`.
* A sequence ends where it is full, not at the end of a sentence: rows hold no sentences.
* Places are drawn as BERT draws them: never `<s>` or `</s>`, their number rounded to the nearest; fairseq may take these two, and
  rounds at random.
* Sequences are packed side by side without padding; each sees only itself, so nothing changes but speed.
* `position_ids` count from 0, as in every family here; transformers' count from `pad_token_id` + 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..shared.attention.mask import Mask
from ..shared.convert import Ignore, Rule, prefixed
from ..shared.encoder import LEGACY, Encoder, encoder_rules
from ..shared.family import Card, Context, Family, Net, Task, Vocabulary, transformers
from ..shared.sample import Sample
from ..shared.tokenizer import Tokenizer
from . import masking, tasks
from .bert import BertConfig, adapt
from .encoder_tasks import encoder_tasks
from .framing import longest
from .masking import MaskedExample, MaskedLM, MaskedLMSystem, MaskingObjective, MaskingSettings


@dataclass(frozen=True, kw_only=True)
class RobertaConfig(BertConfig):
    """transformers' `RobertaConfig`, with its defaults; the published models have 514 positions, one token type and an epsilon of 1e-5."""

    vocab_size: int = 50265
    """Rows of the word table."""
    pad_token_id: int | None = 1
    """Id of padding; the position table's rows up to it are no positions."""

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        if self.pad_token_id is None or not 0 <= self.pad_token_id < min(self.vocab_size, self.max_position_embeddings - 1):
            found.append(f"pad_token_id is {self.pad_token_id}, expected an id of the vocabulary that leaves positions behind it")
        return found

    @property
    def position_offset(self) -> int:
        """Positions begin behind the row of the padding id."""
        return (self.pad_token_id or 0) + 1


_PUBLISHED: dict[str, Any] = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {**_PUBLISHED, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512,
             "max_position_embeddings": 130},
    "base": _PUBLISHED,
    "large": {**_PUBLISHED, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
"""`base` and `large` are the paper's."""


class RobertaModel(Encoder):
    """BERT's trunk; padding has no position, wherever it stands."""

    def default_positions(self, input_ids: Tensor) -> Tensor:
        """0, 1, ... over what is not padding; -1 at padding, whose row of the table is that of its id."""
        self.embed.fitting(input_ids.shape[1])
        keep = input_ids != self.config.pad_token_id
        return keep.cumsum(1) * keep - 1


class RobertaForMaskedLM(MaskedLM):
    """The trunk without pooler, and the masked-language-model head with the exact GELU."""

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(RobertaModel(config, pooler=False), config, activation="gelu")


class RobertaObjective(MaskingObjective[MaskedExample]):
    """Masked words in full sequences."""

    def __init__(self, tokenizer: Tokenizer, settings: MaskingSettings, max_length: int) -> None:
        """Make the data side for sequences of at most `max_length` tokens."""
        super().__init__(tokenizer, settings, max_length)
        self.words = np.setdiff1d(np.arange(tokenizer.vocab_size), sorted(tokenizer.special_ids))

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[MaskedExample]:
        """Yield the sequences that a sample's documents give, one behind the other with a separator between them."""
        text = np.concatenate([part for document in self.documents(sample) for part in ([self.sep_id], document)])[1:]
        room = self.frame.room(self.max_length, pair=False)
        for start in range(0, len(text), room):
            yield MaskedExample(*self.masked(text[start:start + room], None, rng))


class RobertaSystem(MaskedLMSystem[RobertaForMaskedLM, RobertaObjective]):
    """RoBERTa's pretraining: masked words."""


def create(config: RobertaConfig, settings: MaskingSettings, context: Context) -> RobertaSystem:
    """Build RoBERTa with randomly initialized weights and its objective."""
    length = longest(config, settings.max_length)
    objective = context.objective("roberta", lambda tokenizer: RobertaObjective(tokenizer.fitting(config.vocab_size), settings, length))
    return RobertaSystem(RobertaForMaskedLM(config), objective)


def _trunk(config: RobertaConfig, pooler: bool) -> tuple[Rule, ...]:
    return (*prefixed(encoder_rules(config, pooler=pooler), "roberta.", "trunk."), *LEGACY)


_HEAD = masking.head_rules("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder",
                           "roberta.embeddings.word_embeddings.weight")
_TASKS = tasks.task_nets("Roberta", RobertaModel, _trunk, first_token="tanh")

NETS = (
    Net("RobertaForMaskedLM", RobertaForMaskedLM,
        transformers(lambda c: (*_trunk(c, False), *_HEAD, Ignore(r"roberta\.pooler\..*")))),  # the released files hold it too
    Net("RobertaModel", RobertaModel, transformers(lambda c: (*encoder_rules(c), *LEGACY))),
    *_TASKS,
)

CARD = Card(
    title="RoBERTa",
    paper="Liu, Ott, Goyal, Du, Joshi, Chen, Levy, Lewis, Zettlemoyer, Stoyanov. RoBERTa: A Robustly Optimized BERT Pretraining Approach",
    year=2019,
    url="https://arxiv.org/abs/1907.11692",
    equation=r"\mathcal{L} = -\frac{1}{|M|} \sum_{i \in M} \log p_\theta(x_i \mid \tilde{x})",
    symbols="M are the 15 % of the tokens that are to be predicted, drawn anew whenever a text is seen; in the input x with a tilde, "
            "80 % of them are masked, 10 % replaced and 10 % kept. The mean is over the whole global batch.",
    masks={"Packed sequences": Mask(lengths=(5, 7, 4))},
    reference="transformers.RobertaForMaskedLM",
)

FAMILIES = (
    Family(
        name="roberta",
        card=CARD,
        config=RobertaConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("masked words", MaskingSettings, create),
        tasks=encoder_tasks(_TASKS),
        nets=NETS,
        heads=("head", "classifier", "trunk.pooler"),
        model_type="roberta",
        vocabulary=Vocabulary("byte-bpe", "roberta"),
    ),
)
