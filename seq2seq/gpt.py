"""GPT. Radford, Narasimhan, Salimans and Sutskever, "Improving Language Understanding by Generative Pre-Training", 2018.
https://openai.com/index/language-unsupervised/

    ids [B, S] --> word vectors + position vectors --> n_layer blocks --> head (the word vectors again) --> logits [B, S, V]

    block:  x --+-- causal self-attention --(+)-- norm --+-- 4 D wide feed-forward --(+)-- norm -->
                +--------------------------->            +--------------------------->

Fine-tuned (section 3.3, figure 1), a text stands between tokens that the vocabulary gets for it, and a linear layer reads the last one:

    class, score of a text     _start_ text _classify_
    of a pair (entailment)     _start_ first _delimiter_ second _classify_
    of a pair without order    both orders, the two states added (`both_orders`)
    choice                     _start_ text _delimiter_ choice _classify_, one number each, softmax over the choices

    L3 = the task's loss + lm_weight * the mean over the samples of the language model's loss over what they read

Faithful: network, initialisation and outputs as in transformers' `OpenAIGPTLMHeadModel`. Norms behind the sums, none at the end and none
of the embeddings; GELU by its tanh formula, which the released code calls `gelu`; learned positions; blocks of 512 tokens that follow one
another in a text. In fine-tuning: the four inputs, rows of the word table for the three tokens, the language model's loss as a mean over
a sequence's tokens, then over sequences, as in the released code (openai/finetune-transformer-lm), dropout of the state before the linear
layer. The networks are transformers' `OpenAIGPTForSequenceClassification` and `OpenAIGPTDoubleHeadsModel`.

Deviations, each with its reason:
* Documents packed in one row do not see each other, and positions start anew in each, as in GPT-2's file. The paper read runs of 512
  tokens of books.
* A document ends with an end-of-text token where the vocabulary has one, so that generated texts can end. The published vocabulary has
  none.
* Dropout falls on the sum of the embeddings. The released code drops parts of the table, which then are missing in the output layer, too.
* The vocabulary that `tokenizer train --for gpt` learns is a BPE over lower-case text by SentencePiece, with the space before a word. In
  the published one, which is read as well, the last piece of a word is marked, and spaCy and ftfy clean the text.
* The linear layer of classes and scores has no bias, as in transformers; the released code, which only has the choice, has one there.
* Dropout of the state is drawn for each choice; the released code draws it once for all choices of a question.
* With both orders a network is none of transformers', and has a format of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..shared.attention.mask import Mask
from ..shared.attention.position import document_positions
from ..shared.convert import Alias, Ignore, Legacy, Rename, Rule, Tied, affine, prefixed
from ..shared.encoder import last_tokens
from ..shared.errors import UserError
from ..shared.family import Adopt, Card, Context, Family, Net, Task, Vocabulary, or_our_own, transformers
from ..shared.generation_config import defaults_files, read_defaults
from ..shared.heads import LMHead
from ..shared.loss import at_least_fp32
from ..shared.packed import starts
from ..shared.system import System, Term
from ..shared.tokenizer import Tokenizer
from ..text import choice, classify, score
from ..text.encoder_task import Beside, EncoderTask, TaskSettings, TaskSystem
from ..text.tasks import ClassifierOutput, MultipleChoice, SequenceClassifier
from .causal import CausalConfig, CausalLM, CausalTrunk, adapt, block_rules, pretraining

ACTIVATIONS: Mapping[str, str] = MappingProxyType({"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "swish"})
"""What `afn` may be, and what that is elsewhere."""


@dataclass(frozen=True, kw_only=True)
class OpenAIGPTConfig(CausalConfig):
    """transformers' `OpenAIGPTConfig`."""

    vocab_size: int = 40478
    """Rows of the word table."""
    n_positions: int = 512
    """Rows of the position table: the longest sequence."""
    afn: str = "gelu"
    """Activation of the feed-forward layer; `gelu` is the tanh form here."""
    summary_first_dropout: float = 0.1
    """Dropout of the state that the linear layer of a task reads."""
    num_labels: int = 2
    """Classes of a classifier."""
    labels: tuple[str, ...] | None = None
    """Their names, in the order of their numbers."""
    both_orders: bool = False
    """A classifier reads a pair in both orders and adds the two states: for pairs whose order says nothing, such as paraphrases."""
    delimiter_token_id: int | None = None
    """Id between the two texts of a pair, which `both_orders` needs; a task takes it from its vocabulary."""

    type_vocab_size: ClassVar[int] = 1
    """There are no token types."""
    summary_token: ClassVar[Literal["first", "last"]] = "last"
    """Where the classification token stands, whose state is read."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({
        "tie_word_embeddings": (True,), "summary_type": ("cls_index",), "summary_use_proj": (True,), "summary_activation": (None,),
        "summary_proj_to_labels": (True,),
    })
    IGNORED: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(("n_special", "predict_special_tokens"), "in the published files; no code reads it"))

    AT_LEAST_ONE = (*CausalConfig.AT_LEAST_ONE, "num_labels")
    PROBABILITIES = (*CausalConfig.PROBABILITIES, "summary_first_dropout")

    @property
    def longest_input(self) -> int:
        """Tokens of the longest text."""
        return self.n_positions

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json; with what transformers does not know only where it counts."""
        record = super().to_dict()
        return record if self.both_orders else {k: v for k, v in record.items() if k not in ("both_orders", "delimiter_token_id")}

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        if self.afn not in ACTIVATIONS:
            found.append(f"afn is {self.afn!r}, expected one of {', '.join(ACTIVATIONS)}")
        return found


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"n_embd": 128, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "base": {},
}
"""`base` is the paper's."""


# ---------------------------------------------------------------------------------------------- networks


class OpenAIGPTModel(CausalTrunk):
    """Embeddings of words and positions, causal post-norm blocks."""

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__(config, order="post", inner=4 * config.n_embd, activation=ACTIVATIONS[config.afn])


class OpenAIGPTLMHeadModel(CausalLM):
    """The trunk and a language-model head that shares the word table."""

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__(OpenAIGPTModel(config))


@dataclass(kw_only=True)
class SummaryOutput(ClassifierOutput):
    """Logits of a task, and what the language model's loss is computed from. B sequences, packed ones in one row."""

    last_hidden_state: Tensor
    """[B, S, D]"""
    input_ids: Tensor
    """[B, S]; with both orders those of one, then those of the other."""
    lengths: tuple[int, ...] | None
    """Of packed sequences."""


class _Summary(nn.Module):
    """A trunk, a linear layer that reads the last token's state, and the language model's head, whose loss lies beside the task's."""

    def __init__(self, config: OpenAIGPTConfig, outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.config = config
        self.trunk = OpenAIGPTModel(config)
        self.head = LMHead(config.n_embd, config.vocab_size, weight=cast("nn.Parameter", self.trunk.embed.word.weight))
        self.dropout = nn.Dropout(config.summary_first_dropout)
        self.classifier = nn.Linear(config.n_embd, outputs, bias=bias)
        nn.init.normal_(self.classifier.weight, std=config.initializer_range)
        if bias:
            nn.init.zeros_(self.classifier.bias)

    def read(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, lengths: tuple[int, ...] | None,
             output_hidden_states: bool, *, orders: int = 1) -> SummaryOutput:
        """Logits of the states of the last tokens, which are added up over `orders` parts of equal numbers of sequences."""
        out = self.trunk(input_ids, attention_mask, position_ids, lengths=lengths, output_hidden_states=output_hidden_states)
        states = last_tokens(out.last_hidden_state, attention_mask, lengths).unflatten(0, (orders, -1)).sum(0)
        return SummaryOutput(logits=self.classifier(self.dropout(states)), hidden_states=out.hidden_states,
                             last_hidden_state=out.last_hidden_state, input_ids=input_ids, lengths=lengths)


class OpenAIGPTForSequenceClassification(_Summary, SequenceClassifier):
    """Classes, or a score, of a text or a pair."""

    config: OpenAIGPTConfig

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__(config, config.num_labels, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        output_hidden_states: bool = False,
    ) -> SummaryOutput:
        """Map ids [B, S] to logits [B, classes], or N texts packed in one row to [N, classes].

        Arguments as in `Encoder.forward`. With `both_orders`, hidden states are those of both, and padding is on the right.
        """
        if not self.config.both_orders:
            return self.read(input_ids, attention_mask, position_ids, lengths, output_hidden_states)
        delimiter = self.config.delimiter_token_id
        if delimiter is None:
            raise UserError("both_orders needs delimiter_token_id, the id between the two texts of a pair: give the network a tokenizer")
        dim = 0 if lengths is None else 1
        if position_ids is None and lengths is not None:
            position_ids = document_positions(lengths, input_ids.device)
        ids = torch.cat([input_ids, other_order(input_ids, delimiter, attention_mask, lengths)], dim)
        mask, places = (None if x is None else torch.cat([x, x], dim) for x in (attention_mask, position_ids))
        return self.read(ids, mask, places, None if lengths is None else lengths * 2, output_hidden_states, orders=2)


class OpenAIGPTDoubleHeadsModel(_Summary, MultipleChoice):
    """One of several texts, each scored by one number."""

    config: OpenAIGPTConfig

    def __init__(self, config: OpenAIGPTConfig) -> None:
        super().__init__(config, 1, bias=True)

    def scored(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None, position_ids: Tensor | None,
               lengths: tuple[int, ...] | None, output_hidden_states: bool) -> SummaryOutput:
        """See `MultipleChoice.scored`."""
        return self.read(input_ids, attention_mask, position_ids, lengths, output_hidden_states)


def other_order(input_ids: Tensor, delimiter: int, attention_mask: Tensor | None, lengths: tuple[int, ...] | None) -> Tensor:
    """Each pair the other way round: start A delimiter B end as start B delimiter A end; a text without delimiter as it is.

    Args:
        input_ids: [B, S], padded on the right, or N texts packed in one row [1, T].
        delimiter: the first one in a text counts.
        attention_mask: [B, S], nonzero where there is not padding.
        lengths: of packed texts.
    """
    flat, device = input_ids.flatten(), input_ids.device
    if lengths is None:
        rows, width = input_ids.shape
        begins = torch.arange(0, rows * width, width, device=device)
        sizes = torch.full_like(begins, width) if attention_mask is None else attention_mask.bool().sum(1)
        number = torch.arange(rows, device=device).repeat_interleave(width)
    else:
        begins, sizes = (torch.tensor(x).to(device, non_blocking=True) for x in (starts(lengths), lengths))
        number = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(device, non_blocking=True)
    first, size = begins[number], sizes[number]
    place = torch.arange(len(flat), device=device) - first
    cut = sizes.scatter_reduce(0, number, torch.where(flat == delimiter, place, size), "amin")[number]  # the size where there is none
    second = size - 2 - cut
    source = torch.where(place <= second, place + cut, torch.where(place == second + 1, cut, place - second - 1))
    keep = (place == 0) | (place >= size - 1) | (cut >= size)
    return flat[first + torch.where(keep, place, source)].view_as(input_ids)


# ------------------------------------------------------------------------------------------ the loss side


CHUNK = 1024
"""Tokens whose scores over the vocabulary are held at a time."""


@dataclass(frozen=True)
class GPTTaskSettings(TaskSettings):
    """What of a task's objective can be set."""

    lm_weight: float = 0.5
    """Weight of the language model's loss over the texts of the task (the paper's lambda); 0 leaves it out."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.lm_weight < 0:
            raise UserError(f"lm_weight is {self.lm_weight}, expected 0 or more")


class LanguageModel(Beside):
    """L1, the language model's loss over what a task reads, as the second term of L3.

    The mean over the tokens of a sequence, then over the sequences of a sample (its choices, both orders), then over the samples.
    """

    names = ("lm",)

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def terms(self, net: _Summary, out: SummaryOutput, batch: Any, count: str) -> dict[str, Term]:
        """The loss of each token but the first of each packed sequence."""
        assert out.lengths is not None
        sizes = np.array(out.lengths)
        rows = torch.from_numpy(np.delete(np.arange(sizes.sum()), sizes.cumsum() - 1))  # on the host, where the lengths are
        of_a_sample: tuple[int, ...] = getattr(batch, "choices", None) or (len(sizes) // batch.counts[count],) * batch.counts[count]
        each = np.repeat(of_a_sample, of_a_sample)
        shares = torch.from_numpy(np.repeat(1 / (np.maximum(sizes - 1, 1) * each), sizes - 1))
        weights = at_least_fp32(shares.to(out.last_hidden_state.dtype))
        rows, weights = (x.to(out.input_ids.device, non_blocking=True) for x in (rows, weights))
        hidden, targets = out.last_hidden_state[0, rows], out.input_ids[0, rows + 1]

        def loss(h: Tensor, t: Tensor, w: Tensor) -> Tensor:
            nats = nn.functional.cross_entropy(at_least_fp32(net.head(h)), t, reduction="none")
            return (nats * w).sum()

        parts = zip(hidden.split(CHUNK), targets.split(CHUNK), weights.split(CHUNK), strict=True)
        total = torch.stack([checkpoint(loss, *part, use_reentrant=False) for part in parts]).sum()
        return {"lm": Term(total, count, self.weight)}


# --------------------------------------------------------------------------------------------- the entry


def framed(tokenizer: Tokenizer) -> Tokenizer:
    """The vocabulary with the tokens of fine-tuning, behind all others where it lacks them."""
    return tokenizer.framed({"sep": "_delimiter_", "cls": "_classify_"}, "_start_:0 $A:0 _classify_:0",
                            "_start_:0 $A:0 _delimiter_:0 $B:0 _classify_:0")


def _with_tokens(task: EncoderTask) -> EncoderTask:
    """A task of encoders with GPT's three tokens, and its language model's loss beside the task's."""

    def told(context: Context) -> Context:
        return context if context.tokenizer is None else replace(context, tokenizer=framed(context.tokenizer))

    def adapt(config: OpenAIGPTConfig, context: Context) -> OpenAIGPTConfig:
        context = told(context)
        config, t = task.adapt(config, context), context.tokenizer
        return config if t is None else replace(config, vocab_size=max(config.vocab_size, t.vocab_size),
                                                delimiter_token_id=t.sep_id if config.both_orders else None,
                                                pad_token_id=t.pad_id if config.pad_token_id is None else config.pad_token_id)

    def create(net: _Summary, settings: GPTTaskSettings, context: Context) -> System:
        if net.config.both_orders and isinstance(net, MultipleChoice):
            raise UserError("model.both_orders is true, and a text and its choices have one order: set it for the tasks classify and score")
        system = cast("TaskSystem[Any, Any]", task.create(net, settings, told(context)))
        if settings.lm_weight:
            system.beside = LanguageModel(settings.lm_weight)
        return system

    return replace(task, settings=GPTTaskSettings, adapt=adapt, create=create)


def _trunk(config: OpenAIGPTConfig) -> tuple[Rule, ...]:
    return Rename("tokens_embed.weight", "embed.word.weight"), *_behind_words(config)


def _behind_words(config: OpenAIGPTConfig) -> tuple[Rule, ...]:
    return (
        Rename("positions_embed.weight", "embed.position.weight"),
        *block_rules(config),
        Ignore(r"(.*\.)?position_ids"),  # a buffer that older checkpoints saved
    )


NETS = (
    Net("OpenAIGPTLMHeadModel", OpenAIGPTLMHeadModel, transformers(lambda c: (
        *prefixed(_trunk(c), "transformer.", "trunk."),
        Alias("lm_head.weight", "transformer.tokens_embed.weight"),
        Tied("head.weight", "trunk.embed.word.weight"),
        Legacy(r"^(?=(tokens_embed|positions_embed|h|position_ids)\b)", "transformer."),  # the released files hold the bare trunk
    ), files=defaults_files, finish=read_defaults)),
    Net("OpenAIGPTModel", OpenAIGPTModel, transformers(_trunk)),
)  # fmt: skip
CLASSIFIER = or_our_own(
    Net("OpenAIGPTForSequenceClassification", OpenAIGPTForSequenceClassification, transformers(lambda c: (
        *prefixed(_trunk(c), "transformer.", "trunk."), Rename("score.weight", "classifier.weight"),
        Tied("head.weight", "trunk.embed.word.weight")))),
    OpenAIGPTConfig, "polymodal-gpt", lambda c: "pairs in both orders" if c.both_orders else "",
)  # fmt: skip
CHOOSER = Net("OpenAIGPTDoubleHeadsModel", OpenAIGPTDoubleHeadsModel, transformers(lambda c: (
    *prefixed(_behind_words(c), "transformer.", "trunk."), *affine("multiple_choice_head.summary", "classifier"),
    Rename("lm_head.weight", "trunk.embed.word.weight"), Alias("transformer.tokens_embed.weight", "lm_head.weight"),
    Tied("head.weight", "trunk.embed.word.weight"))))
TASKS: tuple[Task, ...] = tuple(_with_tokens(task).of(net) for task, net in (
    (classify.TASK, CLASSIFIER), (score.TASK, CLASSIFIER), (choice.TASK, CHOOSER)))

def with_more_rows(tensors: Mapping[str, Tensor], net: Any) -> Mapping[str, Tensor]:
    """The weights of a network whose word table ends earlier than that of `net`, which got tokens for a task: their rows stay as drawn."""
    name = "trunk.embed.word.weight"
    return {**tensors, name: torch.cat([tensors[name], net.trunk.embed.word.weight.detach()[len(tensors[name]):].to(tensors[name])])}


CARD = Card(
    title="GPT",
    paper="Radford, Narasimhan, Salimans, Sutskever. Improving Language Understanding by Generative Pre-Training",
    year=2018,
    url="https://openai.com/index/language-unsupervised/",
    equation=r"\mathcal{L}_1 = -\frac{1}{T} \sum_{t=1}^{T} \log p_\theta(x_t \mid x_{<t})",
    symbols="The tokens before t are those of the same block of 512; T counts the targets of the whole global batch.",
    masks={"Packed documents": Mask(causal=True, lengths=(5, 7, 4))},
    reference="transformers.OpenAIGPTLMHeadModel",
)

FAMILIES = (
    Family(
        name="gpt",
        card=CARD,
        config=OpenAIGPTConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=pretraining("GPT", OpenAIGPTLMHeadModel, ended=False),
        tasks=TASKS,
        nets=(*NETS, CLASSIFIER, CHOOSER),
        heads=("head", "classifier"),
        starts={"gpt": Adopt(with_more_rows)},
        model_type="openai-gpt",
        vocabulary=Vocabulary("bpe", "plain", lowercase=True),
    ),
)
