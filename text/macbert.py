"""MacBERT. Cui, Che, Liu, Qin, Wang and Hu, "Revisiting Pre-Trained Models for Chinese Natural Language Processing", 2020.
https://arxiv.org/abs/2004.13922

BERT that corrects words: what is to be predicted is replaced by similar words, so that pretraining sees no token that fine-tuning lacks.

    the text        使用  语言    模型
    BERT            使用  [MASK]  模型
    MacBERT         使用  文字    模型        "语言" is predicted where "文字" stands

Faithful: BERT's network; whole words (of a segmenter), and n-grams of 1 to 4 of them with shares of 40, 30, 20 and 10 %, within 15 % of a
sequence; of the chosen words 80 % become a similar word, each word of an n-gram its own, 10 % a random word, 10 % stay; a word without
a similar one becomes a random one; no [MASK] in the input; the loss at all chosen tokens; sentence order in place of the next sentence
(section 4). The authors released weights and no code for this.

Deviations, each with its reason:
* The similar words are a table that you bring, or that `polymodal similar-words` makes from your texts; the authors took theirs from the
  toolkit Synonyms (word2vec). Of the similar words of a word, each is as likely.
* Words keep their number of tokens, so that every token has its target: a similar word has as many tokens as the word, a random one is of
  random tokens. Random tokens are no special tokens.
* Without a table, similar words are random words; the paper's table 9 compares both.
* Pairs, sentence order, noise and packing are as the files of BERT and ALBERT say. The authors began with BERT's weights:
  `--model` takes those of any `BertForPreTraining`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..shared.attention.mask import Mask
from ..shared.corrupt import Masked
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Task, Vocabulary
from ..shared.sample import Sample
from ..shared.tokenizer import Tokenizer
from . import bert
from .albert import OrderObjective, OrderSystem
from .bert import BertConfig, BertForMaskedLM, BertForPreTraining, PairSettings, adapt
from .encoder_tasks import encoder_tasks
from .framing import longest
from .sentences import Sentences
from .similar import Similar, by_tokens, read_similar
from .words import need_words, single_characters, units_of

SIZES: dict[str, dict[str, Any]] = {
    "tiny": bert.SIZES["tiny"],
    "base": {"vocab_size": 21128},
    "large": {**bert.SIZES["large"], "vocab_size": 21128},
}
"""BERT's; `base` and `large` are the paper's, with the Chinese vocabulary of 21,128 tokens."""


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class MacBertSettings(PairSettings):
    """What of the objective can be set."""

    whole_words: bool = True
    """Always: words are replaced by words."""
    similar: str | None = None
    """A file of similar words: each line a word, a tab, and its similar words with tabs between them (`polymodal similar-words` makes one).
    Without it, random words stand in for similar ones."""
    sop: bool = True
    """Whether sequences are pairs and the head for their order is trained."""

    def __post_init__(self) -> None:
        """Check what belongs together."""
        super().__post_init__()
        if not self.whole_words:
            raise UserError("whole_words is False, and MacBERT replaces whole words: leave it out, or train bert")

    @property
    def paired(self) -> bool:
        """Whether sequences are pairs."""
        return self.sop


class MacBertObjective(OrderObjective):
    """Words replaced by similar ones, in n-grams, and of pairs whether the segments are in order."""

    ngrams = (0.4, 0.3, 0.2, 0.1)
    replaced_by_similar = 0.8
    """Share of the chosen words that become a similar word; `replaced_at_random` a random one, the rest stays."""

    def __init__(self, tokenizer: Tokenizer, settings: MacBertSettings, max_length: int) -> None:
        """Make the data side for sequences of at most `max_length` tokens."""
        super().__init__(tokenizer, settings, max_length)
        self.plain = np.setdiff1d(np.arange(tokenizer.vocab_size), sorted(tokenizer.special_ids))
        self.single = single_characters(tokenizer)
        self.similar: Similar = {}
        if settings.similar is None:
            self.notes = ("note: no table of similar words, so random words stand in for them: give one with objective.similar=FILE "
                          "(`polymodal similar-words` makes it)",)
            return
        table, sha256 = read_similar(settings.similar)
        self.inputs = {"objective.similar": sha256}
        self.similar = by_tokens(table, tokenizer)
        if not self.similar:
            raise UserError(f"no word of {settings.similar} has a similar word with as many tokens in this tokenizer: make the table with "
                            "`polymodal similar-words --tokenizer DIR`")
        self.notes = (f"similar words: {len(self.similar)} words of {settings.similar} (sha256 {sha256[:12]})",)

    def sentences(self, sample: Sample) -> list[Sentences]:
        """The documents of a sample as sentences; Chinese ones with their words, or they are refused."""
        found = super().sentences(sample)
        for document in found:
            need_words(sample, np.concatenate(document), self.single, "MacBERT")
        return found

    def replace(self, ids: np.ndarray, positions: np.ndarray, bounds: np.ndarray, rng: np.random.Generator) -> Masked:
        """Replace the chosen words; each keeps its number of tokens."""
        noisy, numbers = ids.copy(), units_of(bounds, positions)
        kinds = rng.random(numbers.max(initial=-1) + 1)
        random_ids = self.plain[rng.integers(len(self.plain), size=len(positions))]
        for number, kind in enumerate(kinds.tolist()):
            mine = numbers == number
            places = positions[mine]
            similar = self.similar.get(tuple(ids[places].tolist())) if kind < self.replaced_by_similar else None
            if similar is not None:
                noisy[places] = similar[rng.integers(len(similar))]
            elif kind < self.replaced_by_similar + self.replaced_at_random:
                noisy[places] = random_ids[mine]
        return Masked(noisy, positions, ids[positions])


# --------------------------------------------------------------------------------------------- the entry


def create(config: BertConfig, settings: MacBertSettings, context: Context) -> OrderSystem:
    """Build MacBERT with randomly initialized weights and its objective."""
    length = longest(config, settings.max_length)
    if settings.sop and config.type_vocab_size < 2:
        raise UserError("the order of segments needs two token types: set model.type_vocab_size to 2 or objective.sop to false")
    objective = context.objective("macbert", lambda tokenizer: MacBertObjective(tokenizer.fitting(config.vocab_size), settings, length))
    return OrderSystem(BertForPreTraining(config) if settings.sop else BertForMaskedLM(config), objective)


CARD = Card(
    title="MacBERT",
    paper="Cui, Che, Liu, Qin, Wang, Hu. Revisiting Pre-Trained Models for Chinese Natural Language Processing",
    year=2020,
    url="https://arxiv.org/abs/2004.13922",
    equation=r"\mathcal{L} = -\frac{1}{|M|} \sum_{i \in M} \log p_\theta(x_i \mid \tilde{x}) "
             r"- \frac{1}{B} \sum_{b=1}^{B} \log p_\theta(o_b \mid \tilde{x}_b)",
    symbols="M are the 15 % of the tokens that are to be predicted, in n-grams of whole words; in the input x with a tilde, 80 % of these "
            "words are similar words, 10 % random words and 10 % are kept. o says whether the segments are in order. Both means are over "
            "the whole global batch.",
    masks={"Packed pairs": Mask(lengths=(5, 7, 4))},
    reference="transformers.BertForPreTraining",
)

FAMILIES = (
    Family(
        name="macbert",
        card=CARD,
        config=BertConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("corrected words and sentence order", MacBertSettings, create),
        tasks=encoder_tasks(bert.NETS),
        nets=bert.NETS,
        heads=("head", "next_sentence", "classifier", "trunk.pooler"),
        model_type="bert",
        vocabulary=Vocabulary("wordpiece", "bert", lowercase=True),
    ),
)
