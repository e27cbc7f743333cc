"""GPT-3. Brown, Mann, Ryder, Subbiah, Kaplan and 26 others, "Language Models are Few-Shot Learners", 2020.
https://arxiv.org/abs/2005.14165

GPT-2's network, whose layers see in turn everything before a token and the nearest tokens alone. What token 7 sees, with a band of 3:

    layers 0, 2, ...   0 1 2 3 4 5 6 7
    layers 1, 3, ...             5 6 7

Faithful: GPT-2's block and initialisation, 2048 positions, feed-forward nets of 4 D, "alternating dense and locally banded sparse
attention patterns in the layers" (section 2.1), sizes, learning rates and batches of table 2.1; Adam 0.9/0.95 with epsilon 1e-8, clipping
at 1, weight decay 0.1, a batch that grows linearly from 32k tokens over the first 4 to 12 billion, warmup over 375M tokens, cosine to a
tenth at 260B of the 300B tokens and flat from there (appendix B), in the recipes. A network with `window_size` null is all dense: it is
GPT-2's, and is exported as transformers' `GPT2LMHeadModel`.

Deviations, each with its reason:
* The paper does not publish the bands. Here the first layer is dense, every second one banded, and a band is 256 tokens with the token
  itself, as in the local layers of GPT-Neo. The strides of the Sparse Transformer, which the paper compares its own with, are left out.
* Networks with bands are none of transformers': they have a format of their own.
* Documents packed in one row do not see each other, as in GPT-2's file. In the paper a row is 2048 tokens of several documents, without a
  mask between them, and the end-of-text token alone says that a new one begins.
* The batch grows in steps of 32k tokens, and which size has which of the 4 to 12 billion tokens is a guess: the paper says that
  they depend on the size.
* Table 2.1 gives the 1.3B model 24 heads of 128 at a width of 2048, and the 13B model a width of 5140 with 40 heads of 128. Neither fits;
  here they are 16 heads and a width of 5120.
* No dropout: the paper names none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..shared.attention.mask import Mask
from ..shared.family import Card, Family, Vocabulary, or_our_own
from .causal import CausalLM, adapt, pretraining
from .gpt2 import GPT2Config, GPT2Model, nets


@dataclass(frozen=True, kw_only=True)
class GPT3Config(GPT2Config):
    """transformers' `GPT2Config`, with the paper's defaults, and `window_size`."""

    n_positions: int = 2048
    """Rows of the position table: the longest sequence."""
    resid_pdrop: float = 0.0
    """Dropout before each residual sum."""
    embd_pdrop: float = 0.0
    """Dropout of the embeddings."""
    attn_pdrop: float = 0.0
    """Dropout of the attention weights."""
    window_size: int | None = 256
    """Tokens that a token sees in every second layer, itself included; None: all before it, as in the other layers."""

    AT_LEAST_ONE = (*GPT2Config.AT_LEAST_ONE, "window_size")

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json; `window_size` where there are bands, as transformers does not know it."""
        record = super().to_dict()
        if self.window_size is None:
            del record["window_size"]
        return record


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"n_embd": 128, "n_layer": 2, "n_head": 2, "n_positions": 128, "window_size": 32},
    "base": {},
    "350m": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "760m": {"n_embd": 1536, "n_layer": 24, "n_head": 16},
    "1.3b": {"n_embd": 2048, "n_layer": 24, "n_head": 16},
    "2.7b": {"n_embd": 2560, "n_layer": 32, "n_head": 32},
    "6.7b": {"n_embd": 4096, "n_layer": 32, "n_head": 32},
    "13b": {"n_embd": 5120, "n_layer": 40, "n_head": 40},
    "175b": {"n_embd": 12288, "n_layer": 96, "n_head": 96},
}
"""`base` is the paper's smallest model, with 125M parameters; `350m` to `175b` are the others of its table 2.1."""


# ---------------------------------------------------------------------------------------------- networks


class GPT3Model(GPT2Model):
    """GPT-2's trunk with bands in every second layer."""

    config: GPT3Config

    def masks(self, mask: Mask) -> Mask | Sequence[Mask]:
        """The dense mask and the banded one, which layers take in turn."""
        size = self.config.window_size
        return mask if size is None else (mask, replace(mask, window=(size - 1, 0)))


class GPT3LMHeadModel(CausalLM):
    """The trunk and a language-model head that shares the word table."""

    def __init__(self, config: GPT3Config) -> None:
        super().__init__(GPT3Model(config))


# --------------------------------------------------------------------------------------------- the entry


def _bands(config: GPT3Config) -> str:
    return "" if config.window_size is None else f"bands of {config.window_size} tokens"


CARD = Card(
    title="GPT-3",
    paper="Brown, Mann, Ryder, Subbiah, Kaplan, et al. Language Models are Few-Shot Learners",
    year=2020,
    url="https://arxiv.org/abs/2005.14165",
    equation=r"\mathcal{L} = -\frac{1}{T} \sum_{t=1}^{T} \log p_\theta(x_t \mid x_{<t})",
    symbols="The tokens before t are those of the same document; T counts the targets of the whole global batch.",
    masks={"Packed documents in dense layers": Mask(causal=True, lengths=(5, 7, 4)),
           "Packed documents in banded layers": Mask(causal=True, window=(2, 0), lengths=(5, 7, 4))},
    reference="transformers.GPT2LMHeadModel, where all layers are dense",
)

FAMILIES = (
    Family(
        name="gpt3",
        card=CARD,
        config=GPT3Config,
        sizes=SIZES,
        adapt=adapt,
        pretraining=pretraining("GPT-3", GPT3LMHeadModel),
        nets=tuple(or_our_own(net, GPT3Config, "polymodal-gpt3", _bands) for net in nets(GPT3LMHeadModel, GPT3Model)),
        heads=("head",),
        model_type="gpt2",
        vocabulary=Vocabulary("byte-bpe", "gpt2"),
    ),
)
