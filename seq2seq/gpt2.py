"""GPT-2. Radford, Wu, Child, Luan, Amodei and Sutskever, "Language Models are Unsupervised Multitask
Learners", 2019. https://openai.com/index/better-language-models/

    ids [B, S] --> word vectors + position vectors --> n_layer blocks --> norm --> head (the word vectors again) --> logits [B, S, V]

    block:  x --+-- norm, causal self-attention --+-- norm, 4 D wide feed-forward --+-->
                +------------------------------> (+) -----------------------------> (+)

Faithful: network, initialisation (writers to the residual stream scaled by 1/sqrt(2 layers)) and outputs as
in transformers' `GPT2LMHeadModel`; every token of a document is predicted from those before it, and the end
of a document is a token that is predicted too.

Deviations, each with its reason:
* Documents packed in one row do not see each other, and positions start anew in each; the paper let text
  flow across the end-of-text token. The first token of a document has nothing before it and is not a target.
* Long texts are cut into consecutive blocks; neighbouring blocks share one token, so that each token but
  the first of the document is a target exactly once. Where `pack` has cut a document over several rows, the
  first token of each part is not a target either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from ..shared.attention.mask import Mask
from ..shared.block import depth_scaled_
from ..shared.convert import Alias, Legacy, Rename, Rule, Tied, affine, prefixed
from ..shared.family import Card, Family, Net, Vocabulary, transformers
from ..shared.generation_config import defaults_files, read_defaults
from .causal import CausalConfig, CausalLM, CausalTrunk, adapt, block_rules, pretraining


@dataclass(frozen=True, kw_only=True)
class GPT2Config(CausalConfig):
    """transformers' `GPT2Config`."""

    n_inner: int | None = None
    """Width of the feed-forward layer; None is 4 D."""
    activation_function: str = "gelu_new"
    """Activation of the feed-forward layer."""
    bos_token_id: int | None = 50256
    """Id a text starts from where there is no prompt."""
    eos_token_id: int | tuple[int, ...] | None = 50256
    """Id that ends a document, or several that do."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({
        "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
        "tie_word_embeddings": (True,), "is_decoder": (False, True), "is_encoder_decoder": (False,),
    })
    IGNORED: ClassVar[Mapping[str, str]] = MappingProxyType({
        "reorder_and_upcast_attn": "about the precision of attention in fp16", **dict.fromkeys((
            "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
        ), "about multiple choice, which is not read here"),
    })
    AT_LEAST_ONE = (*CausalConfig.AT_LEAST_ONE, "n_inner")
    ACTIVATION = "activation_function"


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"n_embd": 128, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "small": {"n_embd": 384, "n_layer": 6, "n_head": 6, "n_positions": 512},
    "base": {},
    "medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
}
"""`base` (124M) to `xl` (1.5B) are the released sizes; the paper calls `base` its smallest model."""


# ---------------------------------------------------------------------------------------------- networks


class GPT2Model(CausalTrunk):
    """Embeddings of words and positions, causal pre-norm blocks, a final norm."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config, order="pre", inner=config.n_inner or 4 * config.n_embd, activation=config.activation_function)
        depth_scaled_([self.stack.block(n) for n in range(config.n_layer)], config.initializer_range)


class GPT2LMHeadModel(CausalLM):
    """The trunk and a language-model head that shares the word table."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(GPT2Model(config))


# --------------------------------------------------------------------------------------------- the entry


def _trunk(config: GPT2Config) -> tuple[Rule, ...]:
    return (
        Rename("wte.weight", "embed.word.weight"),
        Rename("wpe.weight", "embed.position.weight"),
        *block_rules(config),
        *affine("ln_f", "stack.final_norm"),
    )


def nets(lm: Callable[[Any], CausalLM], trunk: Callable[[Any], CausalTrunk]) -> tuple[Net, ...]:
    """The language model and the bare trunk, made by these, in transformers' format."""
    return (
        Net("GPT2LMHeadModel", lm, transformers(lambda c: (
            *prefixed(_trunk(c), "transformer.", "trunk."),
            Alias("lm_head.weight", "transformer.wte.weight"),
            Tied("head.weight", "trunk.embed.word.weight"),
            Legacy(r"^(?=(wte|wpe|h|ln_f)\.)", "transformer."),  # the released files hold the bare trunk
        ), files=defaults_files, finish=read_defaults)),
        Net("GPT2Model", trunk, transformers(_trunk)),
    )  # fmt: skip


CARD = Card(
    title="GPT-2",
    paper="Radford, Wu, Child, Luan, Amodei, Sutskever. Language Models are Unsupervised Multitask Learners",
    year=2019,
    url="https://openai.com/index/better-language-models/",
    equation=r"\mathcal{L} = -\frac{1}{T} \sum_{t=1}^{T} \log p_\theta(x_t \mid x_{<t})",
    symbols="The tokens before t are those of the same document; T counts the targets of the whole global batch.",
    masks={"Packed documents": Mask(causal=True, lengths=(5, 7, 4))},
    reference="transformers.GPT2LMHeadModel",
)

FAMILIES = (
    Family(
        name="gpt2",
        card=CARD,
        config=GPT2Config,
        sizes=SIZES,
        adapt=adapt,
        pretraining=pretraining("GPT-2", GPT2LMHeadModel),
        nets=nets(GPT2LMHeadModel, GPT2Model),
        heads=("head",),
        model_type="gpt2",
        vocabulary=Vocabulary("byte-bpe", "gpt2"),
    ),
)
