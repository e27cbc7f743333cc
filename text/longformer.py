"""Longformer. Beltagy, Peters and Cohan, "Longformer: The Long-Document Transformer", 2020. https://arxiv.org/abs/2004.05150

RoBERTa for long texts: a token sees those near it, and a few tokens see all and are seen by all. What token 7 of 16 sees, with a window
of 4 and token 0 global; and with a dilation of 2:

    0         5 6 7 8 9                    0     3   5   7   9   11

Faithful: networks and outputs as in transformers' `Longformer*` classes; a window of its own for each layer, as many tokens to the left
as to the right; global tokens look around by projections of their own (section 3.1), and are seen through the ordinary ones; `<s>` is
global to classify, the question to answer it, the second text to choose it, nothing to tag and to pretrain. A network begins with
RoBERTa's or BERT's weights: its positions are copied until there are enough, the global projections are copies of the ordinary ones
(section 5). Then it computes what the shorter network does on texts of up to half a window, and one token.

Deviations, each with its reason:
* Dilated windows are the paper's for its character model (section 3.1: the last heads of a layer) and no published encoder's; networks
  with them are none of transformers', and have a format of their own. A dilated head reads what its window reaches over, and its time is
  that of so wide a window.
* Texts are packed side by side without padding, and no text is padded to a multiple of a window: each sees only itself.
* Pretraining without global tokens, as in the paper, does not train their projections. `global_first` makes `<s>` global. In the last
  layer nobody reads what some tokens see, `<s>` in pretraining, all others where a class is read off it: those projections stay, too.
* The character model's growing lengths, and networks that write (LED), are left out.
* `position_ids` count from 0, as in every family here; transformers' count from `pad_token_id` + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.attention import Attention
from ..shared.attention.mask import Mask
from ..shared.attention.plan import Seen
from ..shared.convert import Ignore, Rule, affine, fused, layers, prefixed
from ..shared.encoder import LEGACY, EncoderConfig, EncoderOutput, encoder_rules
from ..shared.errors import UserError
from ..shared.family import Adopt, Card, Context, Family, Net, Task, Vocabulary, or_our_own, transformers
from ..shared.packed import starts
from ..shared.system import System
from . import bert, masking, tasks
from ._global import GlobalAttention, GlobalMask
from .bert import ConfigT
from .encoder_tasks import encoder_tasks
from .framing import longest
from .masking import MaskedLM, MaskedLMSystem, MaskingSettings
from .roberta import RobertaConfig, RobertaModel, RobertaObjective


@dataclass(frozen=True, kw_only=True)
class LongformerConfig(RobertaConfig):
    """transformers' `LongformerConfig`, with its defaults; the published models have 4098 positions, one token type, epsilon 1e-5."""

    vocab_size: int = 30522
    """Rows of the word table."""
    attention_window: int | tuple[int, ...] = 512
    """Tokens that a token sees beside itself, half of them to each side: for all layers, or one number for each."""
    sep_token_id: int | None = 2
    """Ends a question: what stands before it is global where a span answers it."""
    attention_dilation: int | tuple[int, ...] = 1
    """How far apart these tokens are for the heads that are dilated: for all layers, or one number for each."""
    dilated_heads: int = 2
    """Heads of a layer that are dilated where its `attention_dilation` is not 1: the last ones."""

    IGNORED: ClassVar[Mapping[str, str]] = MappingProxyType({**RobertaConfig.IGNORED, "onnx_export": "about another format of weights"})
    NOT_NEGATIVE = (*RobertaConfig.NOT_NEGATIVE, "dilated_heads")

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        for name, allowed, expected in (("attention_window", lambda n: n > 0 and n % 2 == 0, "an even number of at least 2"),
                                        ("attention_dilation", lambda n: n > 0, "at least 1")):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.num_hidden_layers:
                found.append(f"{name} has {len(value)} numbers, expected one or as many as num_hidden_layers, {self.num_hidden_layers}")
            wrong = [n for n in (value if isinstance(value, tuple) else (value,)) if not allowed(n)]
            if wrong:
                found.append(f"{name} is {wrong[0]}, expected {expected} for each layer")
        if self.dilated_heads > self.num_attention_heads and self.is_dilated:
            found.append(f"dilated_heads is {self.dilated_heads}, there are {self.num_attention_heads} heads")
        return found

    @property
    def is_dilated(self) -> bool:
        """Whether any layer is dilated."""
        return max(self.each(self.attention_dilation)) > 1

    def each(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        """A number for each layer."""
        return value if isinstance(value, tuple) else (value,) * self.num_hidden_layers

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json; those that transformers does not know where they say something."""
        record = super().to_dict()
        if self.classifier_dropout is None:
            del record["classifier_dropout"]
        if not self.is_dilated:
            del record["attention_dilation"], record["dilated_heads"]
        return record


_PUBLISHED: dict[str, Any] = {"vocab_size": 50265, "max_position_embeddings": 4098, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {**_PUBLISHED, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512,
             "max_position_embeddings": 1026, "attention_window": 64},
    "base": _PUBLISHED,
    "large": {**_PUBLISHED, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
"""`base` and `large` are the paper's."""


# ------------------------------------------------------------------------------------------ global tokens

Look = Callable[[Tensor, int], Tensor]
"""(ids of whole texts [B, S], the id of the separator) -> which tokens are global, bool [B, S]."""


def first(ids: Tensor, sep: int) -> Tensor:
    """The first token, from which the class of a text is read."""
    return torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1) == 0


def question(ids: Tensor, sep: int) -> Tensor:
    """What stands before the first separator."""
    return (ids == sep).cumsum(1) == 0


def second_text(ids: Tensor, sep: int) -> Tensor:
    """What stands behind the first separator and the token after it: where two separate the texts, the second one."""
    return F.pad((ids == sep).cumsum(1) > 0, (2, 0))[:, :ids.shape[1]]


def marks(look: Look, input_ids: Tensor, lengths: tuple[int, ...] | None, sep: int | None) -> Tensor:
    """What is global in a padded batch [B, S] or in each of some packed texts, bool [B, S]."""
    texts = (input_ids,) if lengths is None else input_ids.split(list(lengths), 1)
    return torch.cat([look(text, -1 if sep is None else sep) for text in texts], 1)


# ---------------------------------------------------------------------------------------------- networks


class LongformerModel(RobertaModel):
    """RoBERTa's trunk with windows and global tokens.

    Args:
        config: the sizes.
        pooler: whether to read a summary off the first token.
        look: which tokens are global where the caller does not say; by default none.
    """

    config: LongformerConfig

    def __init__(self, config: LongformerConfig, *, pooler: bool = True, look: Look | None = None) -> None:
        super().__init__(config, pooler=pooler)
        self.look = look

    def attention(self, number: int) -> Attention:
        """See `Encoder.attention`."""
        c = self.config
        return GlobalAttention(c.hidden_size, c.num_attention_heads, dropout=c.attention_probs_dropout_prob)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
                position_ids: Tensor | None = None, *, lengths: tuple[int, ...] | None = None,
                mask: Mask | Sequence[Mask] | None = None, output_hidden_states: bool = False, seen: list[Seen] | None = None,
                global_attention_mask: Tensor | None = None) -> EncoderOutput:
        """Encode a padded batch, or texts packed in one row.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], as in `Encoder.forward`.
            token_type_ids: [B, S], as there.
            position_ids: [B, S], as there.
            lengths: as there.
            mask: instead of all windows.
            output_hidden_states: as there.
            seen: as there; without what global tokens see by their own projections.
            global_attention_mask: [B, S], nonzero for tokens that see all tokens and are seen by all; by default what `look` marks.
        """
        assert attention_mask is None or lengths is None, "packed texts need no padding mask"
        if mask is None:
            mask = self.masks(input_ids, attention_mask, lengths, global_attention_mask)
        return super().forward(input_ids, None, token_type_ids, position_ids, lengths=lengths, mask=mask,
                               output_hidden_states=output_hidden_states, seen=seen)

    def masks(self, input_ids: Tensor, attention_mask: Tensor | None, lengths: tuple[int, ...] | None,
              global_attention_mask: Tensor | None = None) -> tuple[Mask, ...]:
        """What each layer sees; layers of one window have the same value."""
        c = self.config
        keep = None if attention_mask is None else attention_mask.bool()
        marked = None if global_attention_mask is None else global_attention_mask.bool()
        places: tuple[int, ...] | None = None
        if marked is None and self.look is not None:
            marked = marks(self.look, input_ids, lengths, c.sep_token_id)
            if self.look is first and keep is None:  # no need to look, and to wait for a GPU
                places = tuple(range(0, input_ids.numel(), input_ids.shape[1])) if lengths is None else tuple(starts(lengths))
        if marked is not None and keep is not None:
            marked = marked & keep
        seen: dict[tuple[int, int], Mask] = {}
        kinds = list(zip(c.each(c.attention_window), c.each(c.attention_dilation), strict=True))
        for window, dilation in kinds:
            steps = () if dilation == 1 else (1,) * (c.num_attention_heads - c.dilated_heads) + (dilation,) * c.dilated_heads
            seen.setdefault((window, dilation), GlobalMask(window=(window // 2, window // 2), dilation=steps, keep=keep, lengths=lengths,
                                                           global_tokens=marked, places=places))
        return tuple(seen[kind] for kind in kinds)

    @property
    def attentions(self) -> list[GlobalAttention]:
        """The self-attention of each layer."""
        return [part for part in self.modules() if isinstance(part, GlobalAttention)]


class LongformerForMaskedLM(MaskedLM):
    """The trunk without pooler, and the masked-language-model head with the exact GELU."""

    trunk: LongformerModel

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__(LongformerModel(config, pooler=False), config, activation="gelu")


# ------------------------------------------------------------------------------------------ pretraining


@dataclass(frozen=True)
class LongformerSettings(MaskingSettings):
    """What of the objective can be set."""

    global_first: bool = False
    """Whether the first token of a text is global. Without, as in the paper, there are no global tokens and their projections stay as
    they are: copies of the ordinary ones in a network that began with another one's weights."""


def _own(layers: Iterable[GlobalAttention]) -> Iterator[nn.Module]:
    """The projections of global tokens."""
    for attention in layers:
        yield from (attention.global_q, attention.global_kv)


class LongformerSystem(MaskedLMSystem[LongformerForMaskedLM, RobertaObjective]):
    """Longformer's pretraining: masked words of long texts."""

    def __init__(self, net: LongformerForMaskedLM, objective: RobertaObjective, *, global_first: bool) -> None:
        super().__init__(net, objective)
        net.trunk.look = first if global_first else None
        for part in _own(net.trunk.attentions[-1:] if global_first else net.trunk.attentions):
            part.requires_grad_(False)


def create(config: LongformerConfig, settings: LongformerSettings, context: Context) -> LongformerSystem:
    """Build Longformer with randomly initialized weights and its objective."""
    length = longest(config, settings.max_length)
    objective = context.objective("longformer", lambda tokenizer: RobertaObjective(tokenizer.fitting(config.vocab_size), settings, length))
    return LongformerSystem(LongformerForMaskedLM(config), objective, global_first=settings.global_first)


# ------------------------------------------------------------------------------------------- warm starts

POSITION = "trunk.embed.position.weight"


def repeated_positions(tensors: Mapping[str, Tensor], net: Any, offset: int | None = None) -> Mapping[str, Tensor]:
    """Weights of a shorter network: its positions again and again.

    Args:
        tensors: the other network's.
        net: the one that begins.
        offset: rows of the other's position table that are no positions; by default as many as here.
    """
    table, rows, before = tensors[POSITION], net.config.max_position_embeddings, net.config.position_offset
    offset = before if offset is None else offset
    own = table[offset:]
    return {**tensors, POSITION: torch.cat([table[:1].expand(before, -1) if offset != before else table[:before],
                                            own[torch.arange(rows - before) % len(own)]])}


def lengthened(tensors: Mapping[str, Tensor], net: Any, offset: int | None = None) -> Mapping[str, Tensor]:
    """The same, and the ordinary projections for the global tokens, too; arguments as there."""
    made: dict[str, Tensor] = {}
    width = net.config.hidden_size
    for name, tensor in tensors.items():
        above, found, kind = name.partition(".attention.qkv.")
        if found and f"{above}.attention.global_q.{kind}" not in tensors:
            made[f"{above}.attention.global_q.{kind}"] = tensor[:width]
            made[f"{above}.attention.global_kv.{kind}"] = tensor[width:]
    return {**repeated_positions(tensors, net, offset), **made}


def from_shorter(config: EncoderConfig, *, positions: int = 4096) -> LongformerConfig:
    """The config of a network that begins with RoBERTa's or BERT's weights."""
    known = {f.name for f in fields(LongformerConfig)} - {"extra", "max_position_embeddings"}
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name in known}
    before = (config.pad_token_id or 0) + 1
    return LongformerConfig(**values, max_position_embeddings=positions + before)


def from_bert(config: EncoderConfig) -> LongformerConfig:
    """The same of a BERT, whose head must be Longformer's."""
    if config.hidden_act != "gelu":
        raise UserError(f"a network with hidden_act {config.hidden_act} has a head for masked words that Longformer, whose head has gelu, "
                        "cannot begin with: start from one with gelu")
    return from_shorter(config)


def with_separator(config: ConfigT, context: Context) -> ConfigT:
    """The config, one with `sep_token_id`, with the separator of the tokenizer."""
    return config if context.tokenizer is None else replace(config, sep_token_id=context.tokenizer.sep_id)


def _adapt(config: LongformerConfig, context: Context) -> LongformerConfig:
    return with_separator(bert.adapt(config, context), context)


_UNREAD: Mapping[str, Callable[[Sequence[GlobalAttention]], Iterable[nn.Module]]] = MappingProxyType({
    "classify": lambda layers: (layers[-1].qkv,), "score": lambda layers: (layers[-1].qkv,), "choice": lambda layers: _own(layers[-1:]),
    "tag": _own,
})
"""Parts of the network that the loss of a task does not depend on."""


def _told(task: Task) -> Task:
    """A task whose network knows the separator, and which trains what its loss depends on."""
    def create(config: LongformerConfig, settings: Any, context: Context) -> System:
        system = task.create(config, settings, context)
        for part in _UNREAD.get(task.name, lambda layers: ())(cast("LongformerModel", cast("Any", system.net).trunk).attentions):
            part.requires_grad_(False)
        return system

    return replace(task, create=create, adapt=lambda config, context: with_separator(task.adapt(config, context), context))


# ------------------------------------------------------------------------------------------------ the entry


def _layers(config: LongformerConfig) -> tuple[Rule, ...]:
    """The projections of global tokens."""
    own, at = "encoder.layer.{i}.attention.self.", "stack.blocks.{i}.attention."
    rules = (*affine(f"{own}query_global", f"{at}global_q"), *fused((f"{own}key_global", f"{own}value_global"), f"{at}global_kv"))
    return layers(config.num_hidden_layers, rules)


def _model(config: LongformerConfig, pooler: bool = True) -> tuple[Rule, ...]:
    return (*encoder_rules(config, pooler=pooler), *_layers(config))


def _trunk(config: LongformerConfig, pooler: bool) -> tuple[Rule, ...]:
    return (*prefixed(_model(config, pooler), "longformer.", "trunk."), *LEGACY)


_HEAD = masking.head_rules("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder",
                           "longformer.embeddings.word_embeddings.weight")


def _task(number: int, trunk: Callable[..., LongformerModel]) -> Net:
    """The network with the head of that number, over a trunk whose global tokens are the task's."""
    return tasks.task_nets("Longformer", trunk, _trunk, first_token="tanh")[number]


_TASKS = (_task(0, partial(LongformerModel, look=first)), _task(1, LongformerModel), _task(2, partial(LongformerModel, look=question)),
          _task(3, partial(LongformerModel, look=second_text)))


def _beyond(config: LongformerConfig) -> str:
    return "dilated windows" if config.is_dilated else ""


NETS = tuple(or_our_own(net, LongformerConfig, "polymodal-longformer", _beyond) for net in (
    Net("LongformerForMaskedLM", LongformerForMaskedLM,
        transformers(lambda c: (*_trunk(c, False), *_HEAD, Ignore(r"longformer\.pooler\..*")))),
    Net("LongformerModel", LongformerModel, transformers(lambda c: (*_model(c), *LEGACY))),
    *_TASKS,
))

_SEEN = torch.arange(16)[None] == 0

CARD = Card(
    title="Longformer",
    paper="Beltagy, Peters, Cohan. Longformer: The Long-Document Transformer",
    year=2020,
    url="https://arxiv.org/abs/2004.05150",
    equation=r"\mathcal{L} = -\frac{1}{|M|} \sum_{i \in M} \log p_\theta(x_i \mid \tilde{x})",
    symbols="M are the 15 % of the tokens that are to be predicted; in the input x with a tilde, 80 % of them are masked, 10 % replaced "
            "and 10 % kept. The mean is over the whole global batch.",
    masks={"Windows": Mask(window=(2, 2)), "Windows and a global token": Mask(window=(2, 2), global_tokens=_SEEN),
           "Dilated windows": Mask(window=(2, 2), dilation=(2,))},
    reference="transformers.LongformerForMaskedLM",
)

FAMILIES = (
    Family(
        name="longformer",
        card=CARD,
        config=LongformerConfig,
        sizes=SIZES,
        adapt=_adapt,
        pretraining=Task("masked words of long texts", LongformerSettings, create, adapt=with_separator),
        tasks=tuple(_told(task) for task in encoder_tasks(_TASKS)),
        nets=NETS,
        heads=("head", "classifier", "trunk.pooler"),
        starts={"longformer": Adopt(lengthened), "roberta": Adopt(lengthened, from_shorter),
                **{name: Adopt(partial(lengthened, offset=0), from_bert) for name in ("bert", "macbert", "spanbert")}},
        model_type="longformer",
        vocabulary=Vocabulary("byte-bpe", "roberta"),
    ),
)
