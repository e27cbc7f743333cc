"""ELECTRA. Clark, Luong, Le and Manning, "ELECTRA: Pre-training Text Encoders as Discriminators Rather
Than Generators", 2020. https://arxiv.org/abs/2003.10555

A small generator fills masked words in; the discriminator tells for every token whether it is the original.

Faithful: both networks and their outputs as in transformers' `Electra*` classes; segments, masking and losses
by google-research/electra: 15% of a sequence are predicted, of these 85% become [MASK] and the rest stay; a
sampled word that happens to be the original counts as original; one loss over the predicted tokens, the other
over all tokens with weight 50; both networks share the word, position and type tables and their norm, not the
projections behind them; no gradient passes through the samples.

Deviations, each with its reason:
* Places are drawn without replacement, the paper's "random set"; the reference draws with replacement, so that
  some coincide (and then takes the mean of two samples' ids for an id).
* The noise of the sampling follows the example, not the micro-batch: `draw` says how.
* Sequences are packed side by side without padding; each sees only itself, so nothing changes but speed.
* Each document starts a sequence of its own; the reference starts a file of its own for each writer.
* Raw text is cut into sentences as BERT's file says. Pre-tokenised rows hold none: pieces of an eighth of the sequence
  stand in for them, and for a sentence that is longer than half a sequence. What a sequence has no room for begins the
  next one.
* GELU is the exact one, as in transformers; the reference computes its tanh form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.attention.mask import Mask
from ..shared.attention.plan import outside_graphs
from ..shared.block import activation
from ..shared.convert import Rule, affine, prefixed
from ..shared.embed import normal_
from ..shared.encoder import LEGACY, Encoder, encoder_rules
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Net, Task, Vocabulary, transformers
from ..shared.loss import accuracy_sum, at_least_fp32, cross_entropy_sum, perplexity
from ..shared.sample import Sample
from ..shared.system import Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from . import tasks
from .bert import BertConfig, adapt
from .encoder_tasks import encoder_tasks
from .framing import longest
from .masking import MaskedBatch, MaskedExample, MaskedLM, MaskingObjective, MaskingSettings, head_rules
from .sentences import Sentences, sentence_documents


@dataclass(frozen=True, kw_only=True)
class ElectraConfig(BertConfig):
    """transformers' `ElectraConfig`: the discriminator, or the generator as a network of its own."""

    embedding_size: int = 128
    """Width E of the embedding tables; a linear map to D follows where it differs."""
    hidden_size: int = 256
    """Width D."""
    num_attention_heads: int = 4
    """Attention heads; they divide `hidden_size`."""
    intermediate_size: int = 1024
    """Width of the feed-forward layer."""

    summary_last_dropout: float = 0.1
    """Dropout before the score of a choice."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {**BertConfig.FIXED, "summary_type": ("first",), "summary_use_proj": (True,),
                                                      "summary_activation": ("gelu",)}

    PROBABILITIES = (*BertConfig.PROBABILITIES, "summary_last_dropout")
    AT_LEAST_ONE = (*BertConfig.AT_LEAST_ONE, "embedding_size")

    @property
    def table_size(self) -> int:
        """Width E."""
        return self.embedding_size


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embedding_size": 64, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512,
             "max_position_embeddings": 128},
    "small": {},
    "base": {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"embedding_size": 1024, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
"""Of the discriminator; `small`, `base` and `large` are the paper's. The generator's follow by `ElectraSettings`."""


# ---------------------------------------------------------------------------------------------- networks


@dataclass
class ElectraForPreTrainingOutput:
    """Outputs of `ElectraForPreTraining`."""

    logits: Tensor
    """[B, S]; positive where a token is thought to be replaced."""
    hidden_states: tuple[Tensor, ...] | None = None


class DiscriminatorHead(nn.Module):
    """A dense layer, the activation, and one number for each token. No norm between them."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = activation(config.hidden_act)
        self.out = nn.Linear(config.hidden_size, 1)
        normal_(self, config.initializer_range)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [...]."""
        return self.out(self.activation(self.dense(x))).squeeze(-1)


class ElectraForPreTraining(nn.Module):
    """The discriminator: trunk and head."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Encoder(config, pooler=False)
        self.head = DiscriminatorHead(config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        output_hidden_states: bool = False,
    ) -> ElectraForPreTrainingOutput:
        """Map ids [B, S] to logits [B, S]; see `Encoder.forward` for the arguments."""
        out = self.trunk(input_ids, attention_mask, token_type_ids, position_ids,
                         lengths=lengths, output_hidden_states=output_hidden_states)
        return ElectraForPreTrainingOutput(self.head(out.last_hidden_state), out.hidden_states)


class ElectraForMaskedLM(MaskedLM):
    """The generator: BERT's network; its head maps to the width of the word table and always has the exact GELU."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__(Encoder(config, pooler=False), config, activation="gelu")


class ElectraForMultipleChoice(tasks.DenseChoice):
    """Each text scored from its first token, by a dense layer, a GELU and one number."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__(Encoder(config, pooler=False), config, F.gelu, config.summary_last_dropout)


# ------------------------------------------------------------------------------------------ the data side


@dataclass(frozen=True)
class ElectraSettings(MaskingSettings):
    """What of the objective can be set; the generator's size has the names of the reference."""

    short_prob: float = 0.05
    """Probability that a sequence is cut to a shorter, random length."""
    single_prob: float = 0.1
    """Probability that a sequence is one segment; else the second half is another one, with its own token type."""
    generator_hidden_size: float = 0.25
    """The generator's width as a fraction of the discriminator's: 1/4 for the paper's small and large, 1/3 for base."""
    generator_layers: float = 1.0
    """The generator's blocks as a fraction of the discriminator's."""
    temperature: float = 1.0
    """The generator's logits are divided by it before sampling."""
    generator_weight: float = 1.0
    """Of the generator's loss."""
    discriminator_weight: float = 50.0
    """Of the discriminator's loss."""

    PROBABILITIES: ClassVar[tuple[str, ...]] = (*MaskingSettings.PROBABILITIES, "short_prob", "single_prob")

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for name in ("generator_hidden_size", "generator_layers", "temperature"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected more than 0")
        for name in ("generator_weight", "discriminator_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 0")


@dataclass(frozen=True, slots=True)
class ElectraExample(MaskedExample):
    """One masked sequence."""

    seed: int
    """Of the noise with which the generator's words are sampled."""


@dataclass(kw_only=True)
class ElectraBatch(MaskedBatch):
    """Packed sequences. T tokens, N sequences, M predictions."""

    predictions: tuple[int, ...]
    """N numbers of predictions, their sum M."""
    seeds: tuple[int, ...]
    """N seeds."""


def segments(
    document: Sentences, max_length: int, short_prob: float, single_prob: float, rng: np.random.Generator,
    specials: tuple[int, int] = (2, 3),
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut a document into neighbouring segments, as google-research/electra's `ExampleBuilder`.

    Every token of the document is in one segment. (The reference throws away what makes a sequence too long; here the next one begins
    with it.)

    Args:
        document: the document.
        max_length: tokens of a sequence with its special tokens.
        short_prob: probability of a shorter target.
        single_prob: probability that everything goes to the first segment.
        rng: the sample's generator.
        specials: special tokens of a text and of a pair.

    Yields:
        First segment, second segment (perhaps empty).
    """

    def target_length() -> int:
        return int(rng.integers(5, max_length + 1)) if rng.random() < short_prob else max_length

    ahead = list(reversed(document))  # the sentence that comes next is the last one
    while ahead:
        target, chunk = target_length(), [ahead.pop()]
        while ahead and sum(map(len, chunk)) < target:
            chunk.append(ahead.pop())
        wanted = math.inf if rng.random() < single_prob else (target - specials[1]) // 2
        first, second = list[np.ndarray](), list[np.ndarray]()
        length = 0
        for part in chunk:
            fits = not first or length + len(part) < wanted
            if fits or (not second and length < wanted and rng.random() < 0.5):
                first.append(part)
                length += len(part)
            else:
                second.append(part)
        a, b = (np.concatenate([*parts, chunk[0][:0]]) for parts in (first, second))
        ends = min(len(a), max_length - specials[0])
        end = min(len(b), max(0, max_length - ends - specials[1]))
        yield a[:ends], b[:end]
        ahead += [rest for rest in (b[end:], a[ends:]) if len(rest)]


class ElectraObjective(MaskingObjective[ElectraExample]):
    """Masked sequences for the generator; what it makes of them, the system judges."""

    replaced_by_mask = 0.85
    replaced_at_random = 0.0

    def __init__(self, tokenizer: Tokenizer, settings: ElectraSettings, max_length: int) -> None:
        """Make the data side for sequences of at most `max_length` tokens."""
        super().__init__(tokenizer, settings, max_length)
        self.short_prob, self.single_prob = settings.short_prob, settings.single_prob

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterator[ElectraExample]:
        """Yield every sequence that a document, or a row of documents, gives."""
        specials = self.frame.single.specials, self.frame.pair.specials
        room = self.frame.room(self.max_length, pair=True)
        for document in sentence_documents(sample, self.tokenizer, room, units=self.settings.whole_words):
            for a, b in segments(document, self.max_length, self.short_prob, self.single_prob, rng, specials):
                yield ElectraExample(*self.masked(a, b if len(b) else None, rng), int(rng.integers(2**63)))

    def collate(self, examples: list[ElectraExample]) -> ElectraBatch:
        """Pack sequences side by side; the discriminator's denominator is every token."""
        packed = super().collate(examples)
        known: dict[str, Any] = {**vars(packed), "counts": {**packed.counts, "tokens": packed.tokens}}
        return ElectraBatch(**known, predictions=tuple(len(e.targets) for e in examples), seeds=tuple(e.seed for e in examples))


# ------------------------------------------------------------------------------------------ the loss side


@outside_graphs  # other seeds in every batch
@torch.no_grad()
def draw(logits: Tensor, predictions: tuple[int, ...], seeds: tuple[int, ...], temperature: float = 1.0) -> Tensor:
    """Draw an id for each row from softmax(logits / temperature): the largest logit under Gumbel noise. No gradient.

    The noise of a sequence comes from its own seed, which the data side drew with the sample's key, so
    neither the micro-batch nor the rank that a sequence falls into changes what is drawn.

    Args:
        logits: [M, V].
        predictions: rows of each sequence, N numbers with sum M.
        seeds: of each sequence, N.
        temperature: above 1 the draws are more even.

    Returns:
        [M]
    """
    noise = torch.empty(logits.shape, device=logits.device)
    source = torch.Generator(logits.device)
    for part, seed in zip(noise.split(predictions), seeds):
        part.exponential_(generator=source.manual_seed(seed))
    # -log of an exponential variable is a Gumbel one; 0 may be drawn on a CPU, and stands for what is below 2^-24
    return (logits / temperature - noise.clamp_(min=2**-25).log_()).argmax(-1)


def ordered_pairs(scores: Tensor, positive: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, int]:
    """The AUC within sequences as a sum and a count, which add up over batches and ranks exactly.

    Args:
        scores: [T].
        positive: bool [T].
        lengths: of the sequences, their sum T.

    Returns:
        How many pairs of a positive and a negative token of one sequence are in the right order, ties half, and how many pairs there are.
    """
    ordered, pairs = torch.zeros((), dtype=torch.float64 if scores.device.type != "mps" else torch.float32, device=scores.device), 0
    for score, chosen in zip(scores.split(lengths), positive.split(lengths)):
        high, low = score[chosen], score[~chosen].sort().values
        below = torch.searchsorted(low, high) + torch.searchsorted(low, high, right=True)
        ordered += below.sum() / 2
        pairs += len(high) * len(low)
    return ordered, pairs


class ElectraSystem(System[ElectraForPreTraining, ElectraObjective]):
    """ELECTRA's pretraining. `net` is the discriminator; the generator shares its embedding tables."""

    def __init__(
        self, net: ElectraForPreTraining, generator: ElectraForMaskedLM, objective: ElectraObjective, settings: ElectraSettings
    ) -> None:
        super().__init__(net, objective)
        self.generator = generator
        self.settings = settings
        ours, shared = generator.trunk.embed, net.trunk.embed
        ours.word, ours.position, ours.token_type, ours.norm = shared.word, shared.position, shared.token_type, shared.norm
        generator.head.weight = cast("nn.Parameter", shared.word.weight)

    def exports(self) -> Mapping[str, nn.Module]:
        """The discriminator, and the generator below it."""
        return {"": self.net, "generator": self.generator}

    def fill(self, batch: ElectraBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Let the generator fill the masked places in.

        Returns:
            Its logits [M, V], the filled sequences [1, T], and whether a token is not the original [T].
        """
        out = self.generator.trunk(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths)
        logits = self.generator.head(out.last_hidden_state[0, batch.target_rows])
        drawn = draw(logits, batch.predictions, batch.seeds, self.settings.temperature)
        ids = batch.input_ids.index_copy(1, batch.target_rows, drawn[None])
        replaced = torch.zeros_like(ids[0], dtype=torch.bool).index_copy_(0, batch.target_rows, drawn != batch.targets)
        return logits, ids, replaced

    def forward(self, batch: ElectraBatch, carry: Any = None) -> Step:
        """Both losses as sums: over the predicted tokens, and over all tokens."""
        guesses, ids, replaced = self.fill(batch)
        verdicts = at_least_fp32(self.net(ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths).logits[0])  # [T]
        judged = F.binary_cross_entropy_with_logits(verdicts, replaced.to(verdicts.dtype), reduction="sum")
        terms = {
            "mlm": Term(cross_entropy_sum(guesses, batch.targets), "masked", self.settings.generator_weight, batch.targets),
            "rtd": Term(judged, "tokens", self.settings.discriminator_weight, replaced),
        }
        accused = verdicts > 0
        caught, total = (accused & replaced).sum(), replaced.sum()
        metrics: dict[str, tuple[Tensor, Tensor | int]] = {
            "generator_accuracy": (accuracy_sum(guesses, batch.targets), len(batch.targets)),
            "replaced": (total, len(replaced)),
            "rtd_accuracy": ((accused == replaced).sum(), len(replaced)),
            "rtd_precision": (caught, accused.sum()),
            "rtd_recall": (caught, total),
        }
        if not self.training:  # it waits for the device
            metrics["rtd_auc"] = ordered_pairs(verdicts, replaced, batch.lengths)
        return Step(terms, metrics)

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return ("mlm", "mlm_chance", "mlm_perplexity", "generator_accuracy", "rtd", "rtd_chance", "replaced", "rtd_accuracy",
                "rtd_trivial_accuracy", "rtd_precision", "rtd_recall", "rtd_auc")

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """Perplexity of the generator, and the accuracy of calling every token original."""
        derived = {"mlm_perplexity": perplexity(means["mlm"])} if "mlm" in means else {}
        return derived | ({"rtd_trivial_accuracy": 1 - means["replaced"]} if "replaced" in means else {})

    @torch.no_grad()
    def preview(self, batch: ElectraBatch, limit: int = 4) -> list[Preview]:
        """Sequences with their masks, what the generator made of them, and which tokens the discriminator holds for replaced."""
        tokenizer = self.objective.tokenizer
        _, filled, replaced = self.fill(batch)
        verdicts = self.net(filled, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths).logits[0].float().sigmoid()
        masked, ids = batch.input_ids[0].cpu().numpy(), filled[0].cpu().numpy()
        truth = batch.input_ids[0].index_copy(0, batch.target_rows, batch.targets).cpu().numpy()
        fake, chances = replaced.cpu().numpy(), verdicts.cpu().numpy()
        previews: list[Preview] = []
        start = 0
        for length in batch.lengths[:limit]:
            inside = range(start, start + length)
            tokens = {i: tokenizer.show(ids[i:i + 1]) for i in inside}
            accused = [f"{tokens[i]} {chances[i]:.2f} ({'replaced' if fake[i] else 'original'})" for i in inside if chances[i] > 0.5]
            previews.append(Preview((
                ("masked", tokenizer.show(masked[start:start + length])),
                ("generator", " ".join(f"*{tokens[i]}* ({tokenizer.show(truth[i:i + 1])})" if fake[i] else tokens[i]
                                       for i in inside)),
                ("judged replaced (truth)", ", ".join(accused) or "none"),
            )))
            start += length
        return previews


# --------------------------------------------------------------------------------------------- the entry


def generator_config(config: ElectraConfig, settings: ElectraSettings) -> ElectraConfig:
    """The generator beside a discriminator: narrower, with heads of 64 and the same tables."""
    width = max(1, round(config.hidden_size * settings.generator_hidden_size))
    heads = max(1, width // 64)
    if width % heads:
        raise UserError(f"objective.generator_hidden_size {settings.generator_hidden_size} makes a generator of width {width}, which its "
                        f"{heads} heads do not divide: choose a fraction of {config.hidden_size} that makes a multiple of {heads}")
    return replace(config, hidden_size=width, num_hidden_layers=max(1, round(config.num_hidden_layers * settings.generator_layers)),
                   num_attention_heads=heads, intermediate_size=4 * width)


def create(config: ElectraConfig, settings: ElectraSettings, context: Context) -> ElectraSystem:
    """Build ELECTRA with randomly initialized weights and its objective."""
    length = longest(config, settings.max_length)
    if config.type_vocab_size < 2:
        raise UserError("ELECTRA's two segments need two token types: set model.type_vocab_size to 2")
    objective = context.objective("electra", lambda tokenizer: ElectraObjective(tokenizer.fitting(config.vocab_size), settings, length))
    return ElectraSystem(ElectraForPreTraining(config), ElectraForMaskedLM(generator_config(config, settings)), objective, settings)


def _trunk(config: ElectraConfig, theirs: str = "electra.", ours: str = "trunk.") -> tuple[Rule, ...]:
    projection = affine("embeddings_project", "embed.projection") if config.embedding_size != config.hidden_size else ()
    return (*prefixed((*encoder_rules(config, pooler=False), *projection), theirs, ours), *LEGACY)


_HEAD = head_rules("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias",
                   "generator_lm_head", "electra.embeddings.word_embeddings.weight")
_TASKS = (
    *tasks.task_nets("Electra", Encoder, lambda c, pooler: _trunk(c), first_token="gelu", choice=False),
    Net("ElectraForMultipleChoice", ElectraForMultipleChoice, transformers(
        lambda c: (*_trunk(c), *affine("sequence_summary.summary", "summary"), *affine("classifier", "classifier")))),
)

NETS = (
    Net("ElectraForPreTraining", ElectraForPreTraining, transformers(lambda c: (
        *_trunk(c),
        *affine("discriminator_predictions.dense", "head.dense"),
        *affine("discriminator_predictions.dense_prediction", "head.out"),
    ))),
    Net("ElectraForMaskedLM", ElectraForMaskedLM, transformers(lambda c: (*_trunk(c), *_HEAD))),
    Net("ElectraModel", lambda c: Encoder(c, pooler=False), transformers(lambda c: _trunk(c, "", ""))),
    *_TASKS,
)

CARD = Card(
    title="ELECTRA",
    paper="Clark, Luong, Le, Manning. ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators",
    year=2020,
    url="https://arxiv.org/abs/2003.10555",
    equation=r"\mathcal{L} = -\frac{1}{|M|} \sum_{i \in M} \log p_G(x_i \mid \tilde{x}) - \frac{\lambda}{n} \sum_{i=1}^{n} "
             r"\left[ \mathbb{1}(\hat{x}_i = x_i) \log D(\hat{x})_i + \mathbb{1}(\hat{x}_i \neq x_i) \log (1 - D(\hat{x})_i) \right]",
    symbols="M are the masked tokens of the input x with a tilde; the generator G draws what stands there in x with a hat; the "
            "discriminator D says of each of the n tokens whether it is the original. "
            "No gradient passes through the draw. The weight is 50.",
    masks={"Packed texts": Mask(lengths=(5, 7, 4))},
    reference="transformers.ElectraForPreTraining",
)

FAMILIES = (
    Family(
        name="electra",
        card=CARD,
        config=ElectraConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("replaced-token detection", ElectraSettings, create),
        tasks=encoder_tasks(_TASKS),
        nets=NETS,
        heads=("head", "summary", "classifier"),
        model_type="electra",
        vocabulary=Vocabulary("wordpiece", "bert", lowercase=True),
    ),
)
