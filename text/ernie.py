"""ERNIE 1.0. Sun, Wang, Li, Feng, Chen, Zhang, Tian, Zhu, Tian and Wu, "ERNIE: Enhanced Representation through Knowledge Integration",
2019. https://arxiv.org/abs/1904.09223

BERT that predicts phrases and names as wholes, so that it cannot guess one character from the next.

    stage        哈  尔  滨  是  黑  龙  江  的  省  会
    character    哈  [M] 滨  是  黑  龙  [M] 的  省  会        one unit is a character, or a word of English
    phrase       哈  尔  滨  是  黑  龙  江  的  [M] [M]       a word of the segmenter
    entity       [M] [M] [M] 是  黑  龙  江  的  省  会        a name; a word where there is none

Faithful: BERT's network with ReLU and 513 positions (transformers' `Ernie*`); three stages of masking, each going on from the one before
(section 3.3); 15 % of the units are chosen, all tokens of a unit are masked together, by one draw of 80/10/10.

Deviations, each with its reason:
* Phrases are the words of your data or of the segmenter jieba, entities the tagged names of your data; the authors' tools are not public.
* The paper's dialogue objective (section 3.5) is left out: it needs threads of a forum. So is the next sentence, which the released code
  trains and the paper does not name.
* A document is cut where a sequence is full.
* Random tokens are no special tokens.
* Sequences are packed side by side without padding; each sees only itself, so nothing changes but speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ..shared.attention.mask import Mask
from ..shared.corrupt import Masked, replace_places
from ..shared.documents import apart, documents
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Task, Vocabulary
from ..shared.sample import ENTITY, WORD, Sample
from ..shared.tokenizer import Tokenizer
from . import bert
from .bert import BertConfig, BertForMaskedLM, adapt
from .encoder_tasks import encoder_tasks
from .framing import longest
from .masking import MaskedLMSystem, MaskingSettings, SingleTexts
from .words import choose_units, need_words, single_characters, units_of


@dataclass(frozen=True, kw_only=True)
class ErnieConfig(BertConfig):
    """transformers' `ErnieConfig`; see `EncoderConfig` for the fields of the trunk."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {**BertConfig.FIXED, "use_task_id": (False,)}
    IGNORED: ClassVar[Mapping[str, str]] = {**BertConfig.IGNORED, "task_type_vocab_size": "for task ids, which ERNIE 1.0 has not"}


_RELEASED: dict[str, Any] = {"vocab_size": 18000, "max_position_embeddings": 513, "hidden_act": "relu"}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {**bert.SIZES["tiny"], "hidden_act": "relu"},
    "base": _RELEASED,
}
"""`base` is the released one."""

NETS = bert.nets("Ernie")


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class ErnieSettings(MaskingSettings):
    """What of the objective can be set."""

    whole_words: bool = True
    """Always: units are masked as wholes."""
    stage: Literal["character", "phrase", "entity"] = "character"
    """What a unit is: a Chinese character (or a word of another script); a word of the data; an entity of the data, elsewhere a word."""

    def __post_init__(self) -> None:
        """Check what belongs together."""
        super().__post_init__()
        if not self.whole_words:
            raise UserError("whole_words is False, and ERNIE masks whole units: leave it out, or train bert")


class ErnieObjective(SingleTexts):
    """Masked units in single texts."""

    def __init__(self, tokenizer: Tokenizer, settings: ErnieSettings, max_length: int) -> None:
        """Make the data side for sequences of at most `max_length` tokens."""
        super().__init__(tokenizer, settings, max_length)
        self.words = np.setdiff1d(np.arange(tokenizer.vocab_size), sorted(tokenizer.special_ids))
        self.single = single_characters(tokenizer)
        self.stage = settings.stage
        self.level = ENTITY if settings.stage == "entity" else WORD

    def documents(self, sample: Sample) -> list[np.ndarray]:
        """The documents of a sample as ids int64 [T], with what the stage needs to know of them."""
        if self.stage == "character":
            return documents(sample, self.tokenizer)
        found = super().documents(sample)
        for document in found:
            need_words(sample, document, self.single, f"ERNIE's stage {self.stage}")
        if self.stage == "entity" and not any((apart(document)[1] & ENTITY).any() for document in found):
            raise sample.bad("ERNIE's stage entity needs to know the entities of the text: pack words with their tags (BIO or BIOES) with "
                             "--kind words (`polymodal pack`), or train with objective.stage=phrase")
        return found

    def choose(self, ids: np.ndarray, bounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The places of a framed sequence [S], int64 [M], ascending: units; [CLS] and [SEP] do not count."""
        return choose_units(bounds, self.settings.mask_prob, rng, self.settings.max_predictions)

    def replace(self, ids: np.ndarray, positions: np.ndarray, bounds: np.ndarray, rng: np.random.Generator) -> Masked:
        """Corrupt the chosen units, each as a whole."""
        return replace_places(ids, positions, rng, mask_id=self.mask_id, words=self.words, units=units_of(bounds, positions))


# --------------------------------------------------------------------------------------------- the entry


def create(config: ErnieConfig, settings: ErnieSettings, context: Context) -> MaskedLMSystem:
    """Build ERNIE with randomly initialized weights and its objective."""
    length = longest(config, settings.max_length)
    objective = context.objective("ernie", lambda tokenizer: ErnieObjective(tokenizer.fitting(config.vocab_size), settings, length))
    return MaskedLMSystem(BertForMaskedLM(config), objective)


CARD = Card(
    title="ERNIE 1.0",
    paper="Sun, Wang, Li, Feng, Chen, Zhang, Tian, Zhu, Tian, Wu. ERNIE: Enhanced Representation through Knowledge Integration",
    year=2019,
    url="https://arxiv.org/abs/1904.09223",
    equation=r"\mathcal{L} = -\frac{1}{|M|} \sum_{i \in M} \log p_\theta(x_i \mid \tilde{x})",
    symbols="M are the tokens of the 15 % of the units that are to be predicted; a unit is a character, a phrase or an entity, by the "
            "stage. In the input x with a tilde, all tokens of a unit are masked (80 %), replaced (10 %) or kept (10 %). The mean is over "
            "the whole global batch.",
    masks={"Packed texts": Mask(lengths=(5, 7, 4))},
    reference="transformers.ErnieForMaskedLM",
)

FAMILIES = (
    Family(
        name="ernie",
        card=CARD,
        config=ErnieConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("masked characters, phrases and entities", ErnieSettings, create),
        tasks=encoder_tasks(NETS),
        nets=NETS,
        heads=("head", "next_sentence", "classifier", "trunk.pooler"),
        model_type="ernie",
        vocabulary=Vocabulary("wordpiece", "bert", lowercase=True),
    ),
)
