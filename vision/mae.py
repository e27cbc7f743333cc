"""MAE: masked autoencoders are scalable vision learners.

He, Chen, Xie, Li, Dollar, Girshick, "Masked Autoencoders Are Scalable Vision Learners", 2021
(https://arxiv.org/abs/2111.06377). Three quarters of a picture's patches are left out. A ViT encodes the others, and
nothing else; a light decoder gets its states and one mask token for each patch that is missing, and draws those patches.

Faithful: random masks of a fixed number of patches, an encoder that never computes a masked patch, fixed 2-D sine
positions in encoder and decoder, the squared error of masked patches alone, against pixels that are normalised patch by
patch (`norm_pix_loss`, the paper's best; the named sizes from `base` on have it, transformers' default and `tiny` take
plain pixels), initial weights as in the authors' code (Xavier-uniform). Deviation: a mask is a permutation drawn with
the sample's own generator, so that it does not depend on batch, rank or worker; the reference sorts uniform noise, which
gives the same masks as often. Parity: transformers, given the noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.attention.mask import Mask
from ..shared.convert import Legacy, Rename, Rule, affine, layers
from ..shared.embed import chosen_rows, patchify
from ..shared.family import Card, Context, Family, Net, Task, transformers
from ..shared.loss import at_least_fp32
from ..shared.sample import Sample
from ..shared.system import Batch, Objective, Preview, Step, System, Term
from .processor_files import reads_preprocessing, to_transformers
from .tower import (
    ImageEmbedding,
    ImageTower,
    PatchStates,
    TowerConfig,
    TransformerConfig,
    block_rules,
    patch_rule,
    pre_norm_stack,
    sine_positions,
)
from .transforms import IMAGENET_MEAN, IMAGENET_STD, Augmentation, Normalize, Preprocessing
from .vit import LEGACY, TRANSFORMERS
from .vit import SIZES as VIT

GREY = 128


@dataclass(frozen=True, kw_only=True)
class MAEConfig(TowerConfig):
    """The shape of an MAE, in transformers' terms (and with transformers' defaults)."""

    hidden_dropout_prob: float = 0.0
    """Dropout of the encoder's embeddings and before each residual sum."""
    attention_probs_dropout_prob: float = 0.0
    """Dropout of the attention weights."""
    initializer_range: float = 0.02
    """Standard deviation of the class token and of the mask token at first; the layers begin Xavier-uniform."""
    layer_norm_eps: float = 1e-12
    """Epsilon of every layer norm. This is transformers' default; the authors' code and the named sizes use 1e-6."""
    qkv_bias: bool = True
    """Whether queries, keys and values have biases."""
    decoder_num_attention_heads: int = 16
    """Attention heads of the decoder; they divide `decoder_hidden_size`."""
    decoder_hidden_size: int = 512
    """Width of the decoder."""
    decoder_num_hidden_layers: int = 8
    """Blocks of the decoder."""
    decoder_intermediate_size: int = 2048
    """Width of the decoder's feed-forward layers."""
    mask_ratio: float = 0.75
    """Share of the patches that are masked."""
    norm_pix_loss: bool = False
    """Whether a patch's pixels are normalised by their own mean and deviation before they are compared."""

    AT_LEAST_ONE = (*TowerConfig.AT_LEAST_ONE, "decoder_num_attention_heads", "decoder_hidden_size", "decoder_num_hidden_layers",
                    "decoder_intermediate_size")  # fmt: skip
    NOT_NEGATIVE = (*TowerConfig.NOT_NEGATIVE, "initializer_range")
    PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "mask_ratio")

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        if found:
            return found
        if self.decoder_hidden_size % self.decoder_num_attention_heads:
            found.append(f"decoder_num_attention_heads {self.decoder_num_attention_heads} does not divide decoder_hidden_size "
                         f"{self.decoder_hidden_size}")  # fmt: skip
        found += [f"{name} is {width}, expected a multiple of 4: sines and cosines of a column and of a row"
                  for name in ("hidden_size", "decoder_hidden_size") if (width := getattr(self, name)) % 4]  # fmt: skip
        if not 0 < self.num_visible < self.num_patches:
            found.append(f"mask_ratio {self.mask_ratio:g} leaves {self.num_visible} of {self.num_patches} patches visible, expected "
                         "some visible and some masked: set mask_ratio, image_size or patch_size")  # fmt: skip
        return found

    @property
    def num_patches(self) -> int:
        """P."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_visible(self) -> int:
        """K, the patches that the encoder reads."""
        return int(self.num_patches * (1 - self.mask_ratio))

    @property
    def decoder(self) -> TransformerConfig:
        """The shape of the decoder's blocks."""
        return TransformerConfig(
            hidden_size=self.decoder_hidden_size, num_hidden_layers=self.decoder_num_hidden_layers, hidden_act=self.hidden_act,
            num_attention_heads=self.decoder_num_attention_heads, intermediate_size=self.decoder_intermediate_size,
            layer_norm_eps=self.layer_norm_eps)  # fmt: skip


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {**VIT["tiny"], "decoder_hidden_size": 64, "decoder_num_attention_heads": 4, "decoder_num_hidden_layers": 1,
             "decoder_intermediate_size": 256},
    **{size: {**VIT[size], "norm_pix_loss": True} for size in ("base", "large", "huge")},
}  # fmt: skip
"""`base`, `large` and `huge` are the paper's, with its decoder of 8 blocks of width 512."""


@dataclass
class MAEOutput:
    """What `MAE.forward` returns, with transformers' names."""

    logits: Tensor
    """[B, P, p * p * 3], what the decoder draws of every patch; a pixel's three colours are neighbours."""
    mask: Tensor
    """bool [B, P], which patches were masked."""
    ids_restore: Tensor
    """int64 [B, P], where each patch stands behind the shuffle: below K, it is visible."""
    last_hidden_state: Tensor
    """[B, 1 + K, D], the encoder's, after its final norm."""
    hidden_states: tuple[Tensor, ...] | None = None
    """The encoder's embeddings and each layer's output, where asked for."""


class MAEDecoder(nn.Module):
    """States of the visible patches become pixels of all."""

    no_decay: ClassVar[tuple[str, ...]] = ("mask_token",)

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        c = config
        width = c.decoder_hidden_size
        self.embed = nn.Linear(c.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("position_embeddings", sine_positions(c.image_size // c.patch_size, width))
        self.position_embeddings: Tensor
        self.stack = pre_norm_stack(c.decoder, final_norm=True, qkv_bias=c.qkv_bias, dropout=c.hidden_dropout_prob,
                                    attention_dropout=c.attention_probs_dropout_prob)  # fmt: skip
        self.head = nn.Linear(width, c.num_channels * c.patch_size**2)

    def forward(self, hidden: Tensor, ids_restore: Tensor) -> Tensor:
        """[B, 1 + K, D] -> [B, P, p * p * 3]: mask tokens are put behind the visible patches, and all go to their places."""
        x = self.embed(hidden)
        missing = ids_restore.shape[1] + 1 - x.shape[1]
        shuffled = torch.cat([x[:, 1:], self.mask_token.expand(len(x), missing, -1)], dim=1)
        x = torch.cat([x[:, :1], chosen_rows(shuffled, ids_restore)], dim=1) + self.position_embeddings
        return self.head(self.stack(x, Mask())[:, 1:])


class MAE(PatchStates):
    """Encoder and decoder."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        c = self.config = config
        self.preprocessing = preprocessing(c.image_size)
        self.trunk = ImageTower(
            ImageEmbedding(c.image_size, c.patch_size, c.hidden_size, dropout=c.hidden_dropout_prob, learned_positions=False),
            pre_norm_stack(c, final_norm=True, qkv_bias=c.qkv_bias, dropout=c.hidden_dropout_prob,
                           attention_dropout=c.attention_probs_dropout_prob),
        )  # fmt: skip
        self.decoder = MAEDecoder(c)
        self.apply(self._init)

    def _init(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                nn.init.zeros_(module.bias)
        elif isinstance(module, ImageEmbedding):
            nn.init.normal_(module.cls_token, std=std)
        elif isinstance(module, MAEDecoder):
            nn.init.normal_(module.mask_token, std=std)

    def forward(self, pixel_values: Tensor, noise: Tensor, output_hidden_states: bool = False) -> MAEOutput:
        """Draw what is masked in normalised pictures.

        Args:
            pixel_values: [B, 3, H, W], of the config's size.
            noise: [B, P] numbers; the K patches with the lowest ones are visible.
            output_hidden_states: also return the encoder's states.
        """
        states: list[Tensor] | None = [] if output_hidden_states else None
        order = noise.argsort(dim=1)
        restore, visible = order.argsort(dim=1), self.config.num_visible
        hidden = self.trunk(pixel_values, keep=order[:, :visible], hidden_states=states)
        return MAEOutput(self.decoder(hidden, restore), restore >= visible, restore, hidden, None if states is None else tuple(states))

    def get_image_features(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Vectors of whole pictures [B, 3, H, W]: the mean of the patches' states, [B, D]."""
        return self.trunk(pixel_values, interpolate_pos_encoding)[:, 1:].mean(1)

    def patches(self, pixel_values: Tensor) -> Tensor:
        """The patches of pictures [B, 3, H, W], laid out as in `MAEOutput.logits`: [B, P, p * p * 3]."""
        patches = patchify(pixel_values, self.config.patch_size)
        return patches.unflatten(-1, (3, -1)).transpose(-1, -2).flatten(-2)

    def pictures(self, patches: Tensor) -> Tensor:
        """The inverse of `patches`."""
        side, size = self.config.image_size // self.config.patch_size, self.config.patch_size
        grid = patches.unflatten(-1, (size, size, 3)).unflatten(1, (side, side))
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, side * size, side * size)


def scale_of(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch [B, P, N], by which `norm_pix_loss` normalises: [B, P, 1] each. The variance divides by N - 1."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def preprocessing(image_size: int, mean: tuple[float, float, float] = IMAGENET_MEAN,
                  std: tuple[float, float, float] = IMAGENET_STD) -> Preprocessing:  # fmt: skip
    """How pictures are prepared."""
    return Preprocessing(image_size=image_size, image_mean=mean, image_std=std)


# ------------------------------------------------------------------------------------------- the data side


@dataclass(frozen=True)
class MAESettings:
    """The objective: drawing masked patches."""

    augmentation: Augmentation = field(default_factory=lambda: Augmentation(crop_scale=(0.2, 1.0), flip=0.5))
    """A crop and a flip, as in the paper, which needs no more."""
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from each colour, of pixels from 0 to 1."""
    image_std: tuple[float, float, float] = IMAGENET_STD
    """Each colour is divided by it, after the mean is subtracted."""


@dataclass(frozen=True)
class MaskedPicture:
    """One example."""

    pixels: Tensor
    """uint8 [3, H, W]."""
    noise: Tensor
    """int64 [P], a permutation; the lowest numbers are the visible patches."""


@dataclass(kw_only=True)
class MaskedPictureBatch(Batch):
    """Pictures with the order in which their patches are left out."""

    images: Tensor
    """uint8 [B, 3, H, W]."""
    noise: Tensor
    """int64 [B, P]."""


class MaskedPictures(Objective[MaskedPicture]):
    """A picture and a random mask over its patches.

    Args:
        config: the network's.
        preprocessing: how pictures are resized where they are not augmented.
        augmentation: of training pictures; None for none.
    """

    def __init__(self, config: MAEConfig, preprocessing: Preprocessing, augmentation: Augmentation | None) -> None:
        self.config = config
        self.preprocessing = preprocessing
        self.augmentation = augmentation

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[MaskedPicture]:
        """One picture with its mask."""
        pixels = self.preprocessing.view(sample, self.augmentation, rng)
        return [MaskedPicture(pixels, torch.from_numpy(rng.permutation(self.config.num_patches)))]

    def collate(self, examples: list[MaskedPicture]) -> MaskedPictureBatch:
        """Stack them; the loss is counted in masked patches."""
        masked = self.config.num_patches - self.config.num_visible
        return MaskedPictureBatch(counts={"masked_patches": masked * len(examples)}, images=torch.stack([e.pixels for e in examples]),
                                  noise=torch.stack([e.noise for e in examples]))  # fmt: skip

    def evaluation(self) -> MaskedPictures:
        """Without augmentation."""
        return MaskedPictures(self.config, self.preprocessing, None)

    def describe(self, example: MaskedPicture) -> Preview:
        """The picture, grey where it is masked."""
        masked = example.noise >= self.config.num_visible
        side, size = self.config.image_size // self.config.patch_size, self.config.patch_size
        hidden = masked.view(side, side).repeat_interleave(size, 0).repeat_interleave(size, 1)
        shown = example.pixels.masked_fill(hidden, GREY)
        return Preview((("masked", f"{int(masked.sum())} of {len(masked)} patches"),), shown.permute(1, 2, 0).numpy())


# ------------------------------------------------------------------------------------------- the loss side

MEANS = ("pixel", "pixel_squared")
"""What the error of a constant is computed from."""


class MAESystem(System[MAE, MaskedPictures]):
    """MAE with the squared error of masked patches."""

    def __init__(self, config: MAEConfig, settings: MAESettings) -> None:
        net = MAE(config)
        net.preprocessing = preprocessing(config.image_size, settings.image_mean, settings.image_std)
        super().__init__(net, MaskedPictures(config, net.preprocessing, settings.augmentation))
        self.normalize = Normalize(net.preprocessing)

    def targets(self, patches: Tensor) -> Tensor:
        """What is to be drawn of each patch [B, P, N]."""
        if not self.net.config.norm_pix_loss:
            return patches
        mean, deviation = scale_of(patches)
        return (patches - mean) / deviation

    def forward(self, batch: MaskedPictureBatch, carry: Any = None) -> Step:
        """The squared error, mean over a patch's pixels, summed over the masked patches."""
        pixels = self.normalize(batch.images)
        out = self.net(pixels, batch.noise)
        target = self.targets(self.net.patches(pixels))
        error = (at_least_fp32(out.logits) - target).square().mean(-1)
        step = Step({"reconstruction": Term((error * out.mask).sum(), "masked_patches")})
        if not self.training:
            values = ((value.mean(-1) * out.mask).sum() for value in (target, target.square()))
            step.metrics |= {f"mean/{name}": (value, batch.counts["masked_patches"]) for name, value in zip(MEANS, values, strict=True)}
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "reconstruction", "reconstruction_chance", *(f"mean/{name}" for name in MEANS)

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """The squared error of always drawing the same grey: with normalised pixels, of drawing each patch's own mean."""
        if f"mean/{MEANS[0]}" not in means:
            return {}
        pixel, squared = (means[f"mean/{name}"] for name in MEANS)
        return {"reconstruction_chance": max(squared - pixel * pixel, 0.0)}

    @torch.no_grad()
    def preview(self, batch: MaskedPictureBatch, limit: int = 4) -> list[Preview]:
        """Each picture three times, side by side: whole, masked, and with its masked patches drawn."""
        net, images = self.net, batch.images[:limit]
        pixels = self.normalize(images)
        out = net(pixels, batch.noise[:limit])
        patches, drawn = net.patches(pixels), at_least_fp32(out.logits)
        errors = ((drawn - self.targets(patches)).square().mean(-1) * out.mask).sum(-1) / out.mask.sum(-1)
        note = ""
        if net.config.norm_pix_loss:
            mean, deviation = scale_of(patches)
            drawn, note = drawn * deviation + mean, ", in the true mean and contrast of each patch"
        drawn = net.pictures(torch.where(out.mask[..., None], drawn, patches))
        drawn = ((drawn - self.normalize.shift) / self.normalize.scale).round().clamp(0, 255).to(torch.uint8)
        masked = net.pictures(torch.where(out.mask[..., None], GREY, net.patches(images)))
        rows = torch.cat([images, masked, drawn], dim=-1).permute(0, 2, 3, 1).cpu().numpy()
        shown = f"the picture, what the encoder sees, what the decoder makes of it{note}"
        return [Preview((("shown", shown), ("error", f"{error:.3f}")), row) for row, error in zip(rows, errors.tolist(), strict=True)]


# ------------------------------------------------------------------------------------ names of the reference


def rules(config: MAEConfig) -> Sequence[Rule]:
    """Transformers' ViTMAEForPreTraining; the spellings of transformers 4, and of the files that 5 writes, are read too."""
    c = config
    return (
        Legacy(r"\.decoder_encoder\.layer\.", ".decoder_layers."),  # 5 makes ViT's old names of the decoder's, too, when it saves
        *LEGACY,
        Rename("vit.embeddings.cls_token", "trunk.embed.cls_token"),
        Rename("vit.embeddings.position_embeddings", "trunk.embed.position_embeddings"),
        patch_rule("vit.embeddings.patch_embeddings.projection.weight", "trunk.embed.patches.projection.weight", c.patch_size),
        Rename("vit.embeddings.patch_embeddings.projection.bias", "trunk.embed.patches.projection.bias"),
        *layers(c.num_hidden_layers, block_rules(TRANSFORMERS, "vit.layers.{i}.", "trunk.stack.blocks.{i}", qkv_bias=c.qkv_bias)),
        *affine("vit.layernorm", "trunk.stack.final_norm"),
        *affine("decoder.decoder_embed", "decoder.embed"),
        Rename("decoder.mask_token", "decoder.mask_token"),
        Rename("decoder.decoder_pos_embed", "decoder.position_embeddings"),
        *layers(c.decoder_num_hidden_layers,
                block_rules(TRANSFORMERS, "decoder.decoder_layers.{i}.", "decoder.stack.blocks.{i}", qkv_bias=c.qkv_bias)),
        *affine("decoder.decoder_norm", "decoder.stack.final_norm"),
        *affine("decoder.decoder_pred", "decoder.head"),
    )  # fmt: skip


def _files(net: MAE) -> dict[str, dict[str, Any]]:
    return {"preprocessor_config.json": to_transformers(net.preprocessing, "ViTImageProcessor")}


def create(config: MAEConfig, settings: MAESettings, context: Context) -> MAESystem:
    """The pretraining system with randomly initialized weights; it needs nothing from the data."""
    return MAESystem(config, settings)


CARD = Card(
    title="MAE",
    paper='He, Chen, Xie, Li, Dollár, Girshick, "Masked Autoencoders Are Scalable Vision Learners", 2021',
    year=2021,
    url="https://arxiv.org/abs/2111.06377",
    equation=r"\mathcal{L} = \frac{1}{|M|} \sum_{i \in M} \frac{1}{N} \left\lVert \hat{x}_i - x_i \right\rVert^2",
    symbols="M are the masked patches of all pictures, x_i the N pixel values of one of them (normalised by their own mean and deviation "
            "with norm_pix_loss), and with a hat what the decoder draws.",
    masks={"Encoder": Mask(), "Decoder": Mask()},
    reference="transformers ViTMAEForPreTraining",
)  # fmt: skip

FAMILIES = (
    Family(
        name="mae",
        card=CARD,
        config=MAEConfig,
        sizes=SIZES,
        pretraining=Task("drawing masked patches", MAESettings, create),
        nets=(Net("ViTMAEForPreTraining", MAE, transformers(rules, files=_files, finish=reads_preprocessing("ViTImageProcessor"))),),
        heads=("decoder",),
        model_type="vit_mae",
    ),
)
