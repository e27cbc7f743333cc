"""BEiT: BERT pretraining of image transformers.

Bao, Dong, Piao, Wei, "BEiT: BERT Pre-Training of Image Transformers", 2021 (https://arxiv.org/abs/2106.08254). Blocks of patches, about
40 % of a picture, are replaced by a mask token; a ViT with relative positions predicts the visual tokens of these patches, which a dVAE
(`vision/dvae.py`) makes of the same view.

    picture    [B, 3, H, W] -> patches, masked ones replaced -> blocks with position bias -> rows of masked patches -> norm -> scores [N, V]
    picture    [B, 3, h, w] -> dVAE (companion `tokenizer`)  -> codes of masked patches, int64 [N]

Faithful: the blockwise masks of the authors' generator (75 of 196 patches, blocks of 16 or more with aspect ratios from 0.3 to 1 / 0.3; it
gives up after ten vain attempts, so that a mask may be smaller), biases of queries and values alone, layer scale, stochastic depth, one
table of relative positions for all layers in pretraining and one for each in fine-tuning, which begins with copies of it (at another
resolution on the authors' geometric grid), initial weights with the outputs of layer l divided by sqrt(2 l), fine-tuning of the mean of the
patches through a fresh norm. Deviations: the tokenizer is a run of `dvae` and not DALL-E's; its view is the same crop, resized bicubically
(the authors: Lanczos), and the colours change after the resizing. No mask is empty. Parity: transformers BeitForMaskedImageModeling and
BeitForImageClassification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..shared.attention import Attention
from ..shared.attention.cache import LayerCache
from ..shared.attention.choose import make_plan
from ..shared.attention.mask import Mask
from ..shared.attention.plan import Plan
from ..shared.block import Block, FeedForward, LayerNorm
from ..shared.convert import Fuse, Ignore, Legacy, Rename, Rule, affine, layers
from ..shared.embed import PatchEmbedding
from ..shared.errors import UserError
from ..shared.family import Adopt, Card, Context, Family, Net, Task, transformers
from ..shared.heads import LMHead, rows
from ..shared.loss import accuracy_sum
from ..shared.stack import Stack
from ..shared.system import Companion, Preview, Step, System, Term
from . import dvae
from ._beit_layers import GridBias, QueryKeyValue, geometric, linear
from ._masked_views import GREY, BeitSettings, MaskedViewBatch, MaskedViews, on_pixels
from .classify import ClassificationSettings, ClassificationSystem, ImageClassifierOutput, adapt, check_classes
from .processor_files import reads_preprocessing, to_transformers
from .tower import TowerConfig, patch_rule
from .transforms import HALF, Normalize, Preprocessing
from .vit import LEGACY, TRANSFORMERS
from .vit import SIZES as VIT


@dataclass(frozen=True, kw_only=True)
class BeitConfig(TowerConfig):
    """The shape of a BEiT, in transformers' terms (and with transformers' defaults)."""

    vocab_size: int = 8192
    """Visual tokens; follows the tokenizer."""
    hidden_dropout_prob: float = 0.0
    """Dropout of the embeddings and before each residual sum."""
    attention_probs_dropout_prob: float = 0.0
    """Dropout of the attention weights."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights, of class and mask token."""
    layer_norm_eps: float = 1e-12
    """Epsilon of every layer norm. This is transformers' default; the authors' code and the named sizes use 1e-6."""
    use_mask_token: bool = False
    """Whether there is a mask token, as pretraining needs it."""
    use_relative_position_bias: bool = False
    """Whether each layer has a table of relative positions, as in fine-tuning."""
    use_shared_relative_position_bias: bool = False
    """Whether all layers share one, as in pretraining."""
    layer_scale_init_value: float = 0.1
    """What each channel of a residual branch is multiplied by at first; 0 for no layer scale."""
    drop_path_rate: float = 0.1
    """Stochastic depth: in training, the probability of leaving a part of the last block out for a picture; it rises evenly from 0."""
    num_labels: int = 2
    """Classes, of a network that classifies."""
    labels: tuple[str, ...] | None = None
    """Class names in the order of their numbers (`id2label`)."""

    AT_LEAST_ONE = (*TowerConfig.AT_LEAST_ONE, "vocab_size", "num_labels")
    NOT_NEGATIVE = (*TowerConfig.NOT_NEGATIVE, "initializer_range", "layer_scale_init_value")
    PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
    FIXED = MappingProxyType({"use_mean_pooling": (True,), "use_absolute_position_embeddings": (False,), "add_fpn": (False,)})
    IGNORED = MappingProxyType({
        "pool_scales": "about segmentation", "use_auxiliary_head": "about segmentation", "auxiliary_loss_weight": "about segmentation",
        "auxiliary_channels": "about segmentation", "auxiliary_num_convs": "about segmentation",
        "auxiliary_concat_input": "about segmentation", "semantic_loss_ignore_index": "about segmentation",
        "segmentation_indices": "about segmentation", "reshape_hidden_states": "about use as a backbone",
        "out_features": "about use as a backbone", "out_indices": "about use as a backbone", "stage_names": "about use as a backbone",
        "_out_features": "about use as a backbone", "_out_indices": "about use as a backbone",
    })  # fmt: skip

    def problems(self) -> list[str]:
        """What is wrong with the fields."""
        found = super().problems()
        if self.labels is not None and len(self.labels) != self.num_labels:
            found.append(f"{len(self.labels)} labels for num_labels {self.num_labels}: expected one name for each class")
        if self.use_relative_position_bias and self.use_shared_relative_position_bias:
            found.append("use_relative_position_bias and use_shared_relative_position_bias are both true: expected tables of each layer "
                         "(fine-tuning) or one of all (pretraining)")  # fmt: skip
        if self.drop_path_rate == 1:
            found.append("drop_path_rate is 1, expected less: the last block would never be there")
        return found

    @property
    def grid(self) -> int:
        """Patches of a side."""
        return self.image_size // self.patch_size


PRETRAINED: dict[str, Any] = {"use_mask_token": True, "use_shared_relative_position_bias": True}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {**VIT["tiny"], **PRETRAINED, "vocab_size": 256, "drop_path_rate": 0.0},
    "base": {**VIT["base"], **PRETRAINED},
    "large": {**VIT["large"], **PRETRAINED, "layer_scale_init_value": 1e-5},
}
"""`base` and `large` are the paper's, in pretraining."""


# --------------------------------------------------------------------------------------------- the network


class BeitAttention(Attention):
    """Attention with layer scale and, in fine-tuning, with a table of relative positions of its own."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__(config.hidden_size, config.num_attention_heads, dropout=config.attention_probs_dropout_prob)
        self.qkv = QueryKeyValue(config.hidden_size)
        self.out = linear(config.hidden_size, config.hidden_size, config.layer_scale_init_value)
        self.position_bias = GridBias(config.grid, config.num_attention_heads) if config.use_relative_position_bias else None

    def forward(self, x: Tensor, plan: Plan, memory: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """Attend: [B, 1 + P, D] -> the same."""
        if self.position_bias is not None:
            batch, length = x.shape[:2]
            plan = make_plan(Mask(), batch, length, length, x.device, self.position_bias(length, length))
        return super().forward(x, plan, memory, cache)


class BeitEmbedding(nn.Module):
    """Patches, masked ones replaced, with a class token in front."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        c = config
        self.patches = PatchEmbedding(c.patch_size, c.hidden_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c.hidden_size)) if c.use_mask_token else None
        self.no_decay = ("cls_token", "mask_token") if c.use_mask_token else ("cls_token",)
        self.dropout = nn.Dropout(c.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor, masked: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] and bool [B, P] -> [B, 1 + P, D]."""
        patches = self.patches(pixel_values)
        if masked is not None:
            if self.mask_token is None:
                raise UserError("this BEiT has no mask token: leave bool_masked_pos out, or build it with use_mask_token")
            patches = torch.where(masked[..., None], self.mask_token.to(patches.dtype), patches)
        return self.dropout(torch.cat([self.cls_token.expand(len(patches), -1, -1).to(patches.dtype), patches], dim=1))


class BeitTower(nn.Module):
    """A picture becomes tokens, and blocks read them."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        c = config
        self.image_size = c.image_size
        self.embed = BeitEmbedding(c)
        blocks: list[Block] = []
        for number in range(c.num_hidden_layers):
            feed_forward = FeedForward(c.hidden_size, c.intermediate_size, c.hidden_act)
            feed_forward.down = linear(c.intermediate_size, c.hidden_size, c.layer_scale_init_value)
            depth = number / max(1, c.num_hidden_layers - 1)
            blocks.append(Block(BeitAttention(c), feed_forward, norm=lambda: LayerNorm(c.hidden_size, eps=c.layer_norm_eps), order="pre",
                                dropout=c.hidden_dropout_prob, drop_path=depth * c.drop_path_rate))  # fmt: skip
        shared = GridBias(c.grid, c.num_attention_heads) if c.use_shared_relative_position_bias else None
        self.stack = Stack(blocks, position_bias=shared)

    def forward(self, pixel_values: Tensor, masked: Tensor | None = None, interpolate_pos_encoding: bool = False,
                hidden_states: list[Tensor] | None = None) -> Tensor:  # fmt: skip
        """Read normalised pictures [B, 3, H, W], squares, with patches masked by bool [B, P]: [B, 1 + P, D], without a norm."""
        height, width = pixel_values.shape[-2:]
        if height != width or (height != self.image_size and not interpolate_pos_encoding):
            raise UserError(f"pictures of {height}x{width} pixels, the model was made for {self.image_size}x{self.image_size}: resize them"
                            + (", or pass interpolate_pos_encoding=True" if height == width else ""))
        return self.stack(self.embed(pixel_values, masked), Mask(), hidden_states=hidden_states)


def initialise_(net: nn.Module, tower: BeitTower, std: float) -> None:
    """The authors' initial weights: truncated normal; what writes to the residual stream in layer l is divided by sqrt(2 l)."""
    for module in net.modules():
        if isinstance(module, (nn.Linear, LMHead)):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for token in (tower.embed.cls_token, tower.embed.mask_token):
        if token is not None:
            nn.init.trunc_normal_(token, std=std)
    with torch.no_grad():
        for number in range(tower.stack.num_layers):
            block = tower.stack.block(number)
            for layer in (block.attention.out, cast("FeedForward", block.feed_forward).down):
                layer.weight.div_(math.sqrt(2 * (number + 1)))


@dataclass
class MaskedImageModelingOutput:
    """What `BeitForMaskedImageModeling.forward` returns, with transformers' names."""

    logits: Tensor
    """[B, P, V], of the visual tokens of all patches."""
    last_hidden_state: Tensor
    """[B, 1 + P, D], before the head's norm."""
    hidden_states: tuple[Tensor, ...] | None = None
    """The embeddings and each layer's output, where asked for."""


class BeitForMaskedImageModeling(nn.Module):
    """The trunk, and a head for visual tokens."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        c = self.config = config
        self.preprocessing = preprocessing(c.image_size)
        self.trunk = BeitTower(c)
        self.head = LMHead(c.hidden_size, c.vocab_size, transform=LayerNorm(c.hidden_size, eps=c.layer_norm_eps), bias=True)
        initialise_(self, self.trunk, c.initializer_range)

    def forward(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, interpolate_pos_encoding: bool = False,
                output_hidden_states: bool = False) -> MaskedImageModelingOutput:  # fmt: skip
        """Scores of visual tokens for normalised pictures [B, 3, H, W], of which the patches in bool [B, P] are masked."""
        states: list[Tensor] | None = [] if output_hidden_states else None
        hidden = self.trunk(pixel_values, bool_masked_pos, interpolate_pos_encoding, states)
        return MaskedImageModelingOutput(self.head(hidden[:, 1:]), hidden, None if states is None else tuple(states))

    def get_image_features(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Vectors of whole pictures [B, 3, H, W]: the mean of the patches' states behind the norm, [B, D]."""
        return self.head.hidden(self.trunk(pixel_values, None, interpolate_pos_encoding)[:, 1:]).mean(1)


class BeitForImageClassification(nn.Module):
    """The trunk, and a head that classifies the mean of the patches."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        c = self.config = config
        self.preprocessing = preprocessing(c.image_size)
        self.trunk = BeitTower(c)
        self.fc_norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.head = nn.Linear(c.hidden_size, c.num_labels)
        initialise_(self, self.trunk, c.initializer_range)

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False,
                output_hidden_states: bool = False) -> ImageClassifierOutput:  # fmt: skip
        """Classify normalised pictures [B, 3, H, W]."""
        states: list[Tensor] | None = [] if output_hidden_states else None
        hidden = self.trunk(pixel_values, None, interpolate_pos_encoding, states)
        pooled = self.fc_norm(hidden[:, 1:].mean(1))
        return ImageClassifierOutput(self.head(pooled), hidden, pooled, None if states is None else tuple(states))

    def get_image_features(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Vectors of pictures [B, 3, H, W]: what the head reads, [B, D]."""
        return self.fc_norm(self.trunk(pixel_values, None, interpolate_pos_encoding)[:, 1:].mean(1))


def preprocessing(image_size: int, mean: tuple[float, float, float] = HALF, std: tuple[float, float, float] = HALF) -> Preprocessing:
    """How pictures are prepared."""
    return Preprocessing(image_size=image_size, image_mean=mean, image_std=std)


# ------------------------------------------------------------------------------------------- the loss side


class BeitSystem(System[BeitForMaskedImageModeling, MaskedViews]):
    """BEiT with the cross-entropy of the visual tokens of masked patches.

    Args:
        config: the network's.
        settings: the objective's.
        tokenizer: a dVAE that makes the visual tokens; None for a system that gets batches with tokens in them.
    """

    def __init__(self, config: BeitConfig, settings: BeitSettings, tokenizer: Companion | None) -> None:
        net = BeitForMaskedImageModeling(config)
        net.preprocessing = preprocessing(config.image_size, settings.image_mean, settings.image_std)
        view = dvae.preprocessing(token_image_size(config, settings, tokenizer))
        super().__init__(net, MaskedViews(config, settings, (net.preprocessing, view)))
        self.companions = {} if tokenizer is None else {"tokenizer": tokenizer}
        self.normalize = Normalize(net.preprocessing)
        self.normalize_tokens = Normalize(view)

    @torch.no_grad()
    def codes(self, batch: MaskedViewBatch) -> Tensor:
        """The visual tokens of all patches, int64 [B, P]; in full precision, as an argmax has no half of one."""
        if batch.codes is not None:
            return batch.codes
        assert batch.token_images is not None
        if "tokenizer" not in self.companions:
            raise UserError("this beit was built without a tokenizer and cannot read pictures: pass companions={\"tokenizer\": DIR}")
        net: dvae.DVAE = self.companions["tokenizer"].on(batch.token_images.device)
        with torch.autocast(batch.token_images.device.type, enabled=False):
            return net.get_codebook_indices(self.normalize_tokens(batch.token_images).to(net.encoder.head.weight.dtype))

    def forward(self, batch: MaskedViewBatch, carry: Any = None) -> Step:
        """The summed cross-entropy over the masked patches, which alone go through the head."""
        count = batch.counts["masked_patches"]
        hidden = self.net.trunk(self.normalize(batch.images), batch.masked)
        places = F.pad(batch.masked, (1, 0)).flatten().nonzero_static(size=count)[:, 0]  # as many as are known: no device is waited for
        codes = self.codes(batch).flatten()[batch.masked.flatten().nonzero_static(size=count)[:, 0]]
        states = rows(hidden, places)
        step = Step({"visual_tokens": Term(self.net.head.loss(states, codes), "masked_patches", labels=codes)})
        if not self.training:
            step.metrics["accuracy"] = (accuracy_sum(self.net.head(states), codes), count)
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "visual_tokens", "visual_tokens_chance", "accuracy"

    @torch.no_grad()
    def preview(self, batch: MaskedViewBatch, limit: int = 4) -> list[Preview]:
        """Each picture, what the network sees of it, and what the tokenizer draws: of its own tokens, and with the predicted ones."""
        images, masked, codes = batch.images[:limit], batch.masked[:limit], self.codes(batch)[:limit]
        predicted = self.net(self.normalize(images), masked).logits.argmax(-1)
        right = ((predicted == codes) & masked).sum(1)
        shown = [images, images.masked_fill(on_pixels(masked, self.net.config)[:, None], GREY)]
        if "tokenizer" in self.companions:
            net: dvae.DVAE = self.companions["tokenizer"].on(images.device)
            for tokens in (codes, torch.where(masked, predicted, codes)):
                drawn = F.interpolate(net.draw(tokens, self.net.config.grid), size=images.shape[-2:], mode="nearest")
                shown.append((255 * drawn).round().to(torch.uint8))
        pictures = torch.cat(shown, dim=-1).permute(0, 2, 3, 1).cpu().numpy()
        told = "the picture, what the network sees, what the tokenizer draws of its tokens, and of the predicted ones where it is masked"
        return [Preview((("shown", told), ("right", f"{hits} of {count} masked patches")), picture)
                for picture, hits, count in zip(pictures, right.tolist(), masked.sum(1).tolist(), strict=True)]  # fmt: skip


def token_image_size(config: BeitConfig, settings: BeitSettings, tokenizer: Companion | None) -> int:
    """The side of the pictures for the tokenizer; a tokenizer that does not make the network's tokens is refused."""
    if tokenizer is None:
        return settings.token_image_size or config.image_size
    c: dvae.DVAEConfig = cast("dvae.DVAE", tokenizer.net).config
    side, fitting = settings.token_image_size or c.image_size, config.grid * c.downsampling
    if c.vocab_size != config.vocab_size:
        raise UserError(f"the tokenizer {tokenizer.source} has {c.vocab_size} visual tokens and this network {config.vocab_size}: set "
                        f"companions.tokenizer to another one, or model.vocab_size={c.vocab_size}")
    if side != fitting:
        raise UserError(f"the tokenizer {tokenizer.source} makes a token of {c.downsampling} x {c.downsampling} pixels, its pictures have "
                        f"{side} x {side}, and the network's {config.grid} x {config.grid} patches: set "
                        f"objective.token_image_size={fitting}, or model.image_size and model.patch_size")
    return side


# ------------------------------------------------------------------------------------ names of the reference


def trunk_rules(config: BeitConfig) -> tuple[Rule, ...]:
    """Transformers' BeitModel below `beit.`; transformers 4's spelling is read too."""
    c, table = config, "relative_position_bias.relative_position_bias_table"
    their, our = "beit.layers.{i}.", "trunk.stack.blocks.{i}."
    t = {part: their + name for part, name in TRANSFORMERS.items()}
    block: tuple[Rule, ...] = (
        *affine(t["norm1"], f"{our}attention_residual.norm"),
        Fuse(tuple(f"{t[part]}.weight" for part in "qkv"), f"{our}attention.qkv.weight"),
        Rename(f"{t['q']}.bias", f"{our}attention.qkv.query_bias"),
        Rename(f"{t['v']}.bias", f"{our}attention.qkv.value_bias"),
        *affine(t["out"], f"{our}attention.out"),
        *affine(t["norm2"], f"{our}feed_forward_residual.norm"),
        *affine(t["up"], f"{our}feed_forward.up"),
        *affine(t["down"], f"{our}feed_forward.down"),
    )
    if c.layer_scale_init_value:
        block += (Rename(f"{their}lambda_1", f"{our}attention.out.scale"), Rename(f"{their}lambda_2", f"{our}feed_forward.down.scale"))
    if c.use_relative_position_bias:
        block += (Rename(their + table, f"{our}attention.position_bias.table.weight"),)
    shared = "beit.shared_position_bias.relative_position_bias_table"
    return (
        Ignore(r".*relative_position_index"),
        Legacy(r"^beit\.encoder\.relative_position_bias\.", "beit.shared_position_bias."),
        Legacy(r"\.attention\.attention\.relative_position_bias\.", ".relative_position_bias."),
        Legacy(r"^beit\.encoder\.layer\.", "beit.layers."),
        *LEGACY,
        Rename("beit.embeddings.cls_token", "trunk.embed.cls_token"),
        *((Rename("beit.embeddings.mask_token", "trunk.embed.mask_token"),) if c.use_mask_token else ()),
        patch_rule("beit.embeddings.patch_embeddings.projection.weight", "trunk.embed.patches.projection.weight", c.patch_size),
        Rename("beit.embeddings.patch_embeddings.projection.bias", "trunk.embed.patches.projection.bias"),
        *((Rename(shared, "trunk.stack.position_bias.table.weight"),) if c.use_shared_relative_position_bias else ()),
        *layers(c.num_hidden_layers, block),
    )


def pretraining_rules(config: BeitConfig) -> Sequence[Rule]:
    """Transformers' BeitForMaskedImageModeling."""
    return (*trunk_rules(config), *affine("layernorm", "head.transform"), *affine("lm_head", "head"))


def classifier_rules(config: BeitConfig) -> Sequence[Rule]:
    """Transformers' BeitForImageClassification."""
    return (*trunk_rules(config), *affine("beit.pooler.layernorm", "fc_norm"), *affine("classifier", "head"))


# ------------------------------------------------------------------------------------------- fine-tuning


def tables(tensors: Mapping[str, Tensor], net: BeitForMaskedImageModeling | BeitForImageClassification) -> Mapping[str, Tensor]:
    """The weights of a BEiT for `net`: a table that all layers shared becomes that of each, and tables are fitted to another grid."""
    shared, made = "trunk.stack.position_bias.table.weight", dict(tensors)
    wanted = {name: t for name, t in net.state_dict().items() if name.endswith("position_bias.table.weight")}
    for name, table in wanted.items():
        found = made.get(name, made.get(shared))
        if found is not None:
            made[name] = geometric(found, math.isqrt(len(table)))
    return made


# --------------------------------------------------------------------------------------------- the entry


def fitted(config: BeitConfig, context: Context) -> BeitConfig:
    """As many visual tokens as the tokenizer has."""
    tokenizer = context.companions.get("tokenizer")
    return config if tokenizer is None else replace(config, vocab_size=cast("dvae.DVAE", tokenizer.net).config.vocab_size)


def create(config: BeitConfig, settings: BeitSettings, context: Context) -> BeitSystem:
    """The pretraining system with randomly initialized weights."""
    if not config.use_mask_token:
        raise UserError("use_mask_token is false, and pretraining masks patches: set model.use_mask_token=true")
    return BeitSystem(config, settings, context.companion("tokenizer", "beit"))


def create_classifier(config: BeitConfig, settings: ClassificationSettings, context: Context) -> ClassificationSystem:
    """The fine-tuning system with randomly initialized weights."""
    check_classes(config, context)
    return ClassificationSystem(BeitForImageClassification(config), settings)


def _files(net: BeitForMaskedImageModeling | BeitForImageClassification) -> dict[str, dict[str, Any]]:
    return {"preprocessor_config.json": to_transformers(net.preprocessing, "BeitImageProcessor")}


def _net(architecture: str, build: Callable[[Any], nn.Module], rules: Callable[[Any], Sequence[Rule]]) -> Net:
    return Net(architecture, build, transformers(rules, files=_files, finish=reads_preprocessing("BeitImageProcessor")))


CARD = Card(
    title="BEiT",
    paper='Bao, Dong, Piao, Wei, "BEiT: BERT Pre-Training of Image Transformers", 2021',
    year=2021,
    url="https://arxiv.org/abs/2106.08254",
    equation=r"\mathcal{L} = -\frac{1}{|M|} \sum_{i \in M} \log p_\theta(z_i \mid \tilde{x})",
    symbols="M are the masked patches of all pictures, z_i the visual token of one of them, which the tokenizer makes of the whole "
            "picture, and x with a tilde the picture with a mask token in the place of each masked patch.",
    masks={"Patches and class token": Mask()},
    reference="transformers BeitForMaskedImageModeling, BeitForImageClassification",
)  # fmt: skip

FAMILIES = (
    Family(
        name="beit",
        card=CARD,
        config=BeitConfig,
        sizes=SIZES,
        adapt=fitted,
        pretraining=Task("visual tokens of masked patches", BeitSettings, create, companions={"tokenizer": ("dvae",)}),
        tasks=(Task("image classification with the classes of the data", ClassificationSettings, create_classifier, "classify", adapt,
                    "BeitForImageClassification"),),
        nets=(
            _net("BeitForMaskedImageModeling", BeitForMaskedImageModeling, pretraining_rules),
            _net("BeitForImageClassification", BeitForImageClassification, classifier_rules),
        ),
        heads=("head", "fc_norm", "trunk.embed.mask_token"),
        starts={"beit": Adopt(tables)},
        model_type="beit",
    ),
)  # fmt: skip
