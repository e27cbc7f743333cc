"""dVAE: a discrete variational autoencoder, which turns pictures into visual tokens.

Ramesh, Pavlov, Goh, Gray, Voss, Radford, Chen, Sutskever, "Zero-Shot Text-to-Image Generation" (DALL-E), 2021
(https://arxiv.org/abs/2102.12092), stage one: a convolutional encoder gives a distribution over a codebook for each place of a grid, a
decoder draws the picture from one code for each. BEiT predicts these codes; there it is a companion (`System.companions`).

    picture                [B, 3, H, W], values from 0.1 to 0.9
      | encoder: residual blocks in groups, halved by max-pooling between them
    logits of codes        [B, V, h, w]
      | training: Gumbel-softmax at temperature tau; else the likeliest code
    codes                  [B, V, h, w]
      | decoder: residual blocks in groups, doubled by nearest neighbours between them
    mean and ln b          [B, 6, H, W] of a logit-Laplace distribution of each colour

Faithful: the blocks, their gain and their initial weights, as in the released code (https://github.com/openai/DALL-E); the evidence lower
bound with the logit-Laplace distribution and its range (appendix A.3), the KL divergence to uniform codes, its weight and the temperature
with their cosine schedules, the sum divided by the number of colour values (A.2): of a density, so it may be negative. Deviations: no
distribution is narrower than one of 256 levels, as pictures with flat areas would else have any likelihood. Each picture has noise of its
own seed, so that it does not depend on batch or rank. No average of the iterates. Crops have the paper's range of sizes, resized in one
step. Parity: an independent implementation of the formulas in the tests; no library has the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..shared.config import Config
from ..shared.convert import Rename, Rule
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Format, Net, Task
from ..shared.loss import at_least_fp32
from ..shared.meta import without_weights
from ..shared.sample import Sample
from ..shared.system import Batch, Objective, Preview, Step, System, Term
from .transforms import Augmentation, Normalize, Preprocessing

EPSILON = 0.1
"""Pixels from 0 to 1 become values from EPSILON to 1 - EPSILON, whose logits are small (A.3)."""
SCALE = 1 - 2 * EPSILON
LEAST_LN_B = -4.0
"""Below it a distribution would be narrower than one of 256 levels, and flat areas would be worth more than all the rest."""


@dataclass(frozen=True, kw_only=True)
class DVAEConfig(Config):
    """The shape of a dVAE, in the released code's terms (and with its defaults)."""

    vocab_size: int = 8192
    """Codes, V."""
    n_hid: int = 256
    """Channels of the first group of the encoder and of the last one of the decoder; each further group has twice as many."""
    n_blk_per_group: int = 2
    """Residual blocks in a group."""
    group_count: int = 4
    """Groups; the grid of codes is smaller than the picture by 2^(groups - 1)."""
    n_init: int = 128
    """Channels of the decoder's input."""
    image_size: int = 256
    """Side of the square pictures in pixels, that training has; others are read, too, if the groups divide them."""

    AT_LEAST_ONE = ("vocab_size", "n_hid", "n_blk_per_group", "group_count", "n_init", "image_size")

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        if not found and self.n_hid % 4:
            found.append(f"n_hid is {self.n_hid}, expected a multiple of 4: a block is a quarter as wide inside")
        if not found and self.image_size % self.downsampling:
            found.append(f"image_size {self.image_size} is not a multiple of {self.downsampling}, by which {self.group_count} groups "
                         "(group_count) make it smaller")  # fmt: skip
        return found

    @property
    def downsampling(self) -> int:
        """Pixels of the side of what one code stands for."""
        return 2 ** (self.group_count - 1)


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 256, "n_hid": 32, "n_blk_per_group": 1, "group_count": 3, "n_init": 32, "image_size": 32},
    "base": {},
}
"""`base` is DALL-E's."""


def convolution(channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size, with the released code's initial weights: N(0, 1 / inputs)."""
    made = nn.Conv2d(channels, out_channels, kernel, padding=(kernel - 1) // 2)
    nn.init.normal_(made.weight, std=(channels * kernel**2) ** -0.5)
    nn.init.zeros_(cast("Tensor", made.bias))
    return made


class ResidualBlock(nn.Module):
    """Four convolutions, each behind a ReLU, beside the identity.

    Args:
        channels: of the input.
        out_channels: of the output; a quarter of them inside.
        kernels: side of each kernel.
        gain: by which what the convolutions make is multiplied.
    """

    def __init__(self, channels: int, out_channels: int, kernels: Sequence[int], gain: float) -> None:
        super().__init__()
        inner = out_channels // 4
        widths = (channels, inner, inner, inner, out_channels)
        self.convolutions = nn.ModuleList(convolution(a, b, k) for a, b, k in zip(widths, widths[1:], kernels, strict=False))
        self.skip = nn.Identity() if channels == out_channels else convolution(channels, out_channels, 1)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, out_channels, h, w]."""
        y = x
        for layer in self.convolutions:
            y = layer(F.relu(y))
        return self.skip(x) + self.gain * y


class Encoder(nn.Module):
    """Pictures become logits of codes."""

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        c = config
        self.embed = convolution(3, c.n_hid, 7)
        self.groups = nn.ModuleList()
        width, gain = c.n_hid, (c.group_count * c.n_blk_per_group) ** -2
        for number in range(c.group_count):
            wider = c.n_hid * 2**number
            self.groups.append(nn.Sequential(*(ResidualBlock(width if n == 0 else wider, wider, (3, 3, 3, 1), gain)
                                               for n in range(c.n_blk_per_group))))  # fmt: skip
            width = wider
        self.head = convolution(width, c.vocab_size, 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, V, h, w]."""
        x = self.embed(pixel_values)
        for number, group in enumerate(self.groups):
            x = group(F.max_pool2d(x, 2) if number else x)
        return self.head(F.relu(x))


class Decoder(nn.Module):
    """Codes become distributions of colours."""

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        c = config
        self.embed = convolution(c.vocab_size, c.n_init, 1)
        self.groups = nn.ModuleList()
        width, gain = c.n_init, (c.group_count * c.n_blk_per_group) ** -2
        for number in reversed(range(c.group_count)):
            narrower = c.n_hid * 2**number
            self.groups.append(nn.Sequential(*(ResidualBlock(width if n == 0 else narrower, narrower, (1, 3, 3, 3), gain)
                                               for n in range(c.n_blk_per_group))))  # fmt: skip
            width = narrower
        self.head = convolution(width, 6, 1)

    def forward(self, codes: Tensor) -> Tensor:
        """Shares of codes [B, V, h, w] -> [B, 6, H, W], three means and three ln b."""
        x = self.embed(codes)
        for number, group in enumerate(self.groups):
            x = group(F.interpolate(x, scale_factor=2, mode="nearest") if number else x)
        return self.head(F.relu(x))


@dataclass
class DVAEOutput:
    """What `DVAE.forward` returns."""

    logits: Tensor
    """[B, V, h, w], of the codes."""
    codes: Tensor
    """int64 [B, h * w], the likeliest code of each place, row by row."""
    reconstruction: Tensor
    """[B, 3, H, W], what the decoder draws from them, in pixels from 0 to 1."""


class DVAE(nn.Module):
    """Encoder and decoder."""

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.preprocessing = preprocessing(config.image_size)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def forward(self, pixel_values: Tensor) -> DVAEOutput:
        """Encode pictures [B, 3, H, W] as `preprocessing` normalises them, and draw them from their codes."""
        logits = self.encoder(pixel_values)
        codes = logits.argmax(1).flatten(1)
        return DVAEOutput(logits, codes, self.draw(codes, logits.shape[-1]))

    def get_codebook_indices(self, pixel_values: Tensor) -> Tensor:
        """The visual tokens of pictures [B, 3, H, W]: int64 [B, h * w], row by row."""
        return self.encoder(pixel_values).argmax(1).flatten(1)

    def draw(self, codes: Tensor, width: int) -> Tensor:
        """The pictures that codes [B, h * width] stand for: [B, 3, H, W], pixels from 0 to 1."""
        wanted = one_hot(codes.unflatten(1, (-1, width)), self.config.vocab_size, self.decoder.embed.weight.dtype)
        return drawn(self.decoder(wanted))


def one_hot(codes: Tensor, vocab_size: int, dtype: torch.dtype) -> Tensor:
    """Codes [B, h, w] as [B, V, h, w]."""
    made = torch.zeros(len(codes), vocab_size, *codes.shape[1:], dtype=dtype, device=codes.device)
    return made.scatter_(1, codes[:, None], 1.0)


def drawn(statistics: Tensor) -> Tensor:
    """The pixels, from 0 to 1, that a decoder's [B, 6, H, W] stand for: the scale is left out (A.3)."""
    return ((at_least_fp32(statistics[:, :3]).sigmoid() - EPSILON) / SCALE).clamp(0, 1)


def preprocessing(image_size: int) -> Preprocessing:
    """How pictures are prepared: pixels from 0 to 1 become EPSILON to 1 - EPSILON."""
    mean, std = -EPSILON / SCALE, 1 / SCALE
    return Preprocessing(image_size=image_size, image_mean=(mean, mean, mean), image_std=(std, std, std))


def logit_laplace_nll(statistics: Tensor, values: Tensor) -> Tensor:
    """-ln of the density of each colour value (A.3).

    Args:
        statistics: [B, 6, H, W], means of the logits, and ln b.
        values: [B, 3, H, W], from EPSILON to 1 - EPSILON.
    """
    mean, ln_b = statistics.chunk(2, dim=1)
    ln_b = LEAST_LN_B + F.softplus(ln_b - LEAST_LN_B)  # a bound at which the gradient does not end
    return (values.logit() - mean).abs() * (-ln_b).exp() + ln_b + (2 * values * (1 - values)).log()


# ------------------------------------------------------------------------------------------- the data side


@dataclass(frozen=True)
class DVAESettings:
    """The objective: drawing pictures from their codes."""

    temperature: tuple[float, float] = (1.0, 1 / 16)
    """Of the relaxation, at first and from `temperature_updates` on."""
    temperature_updates: int = 150_000
    """Updates in which the temperature falls, along half a cosine."""
    kl_weight: float = 6.6
    """Of the KL divergence between a place's codes and uniform ones, beside the loss of all its colour values."""
    kl_updates: int = 5000
    """Updates in which that weight rises from 0, along half a cosine."""
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(crop_scale=(4 / 9, 64 / 81), crop_ratio=(1.0, 1.0), flip=0.5))
    """A square crop and a flip, as in the paper."""

    def __post_init__(self) -> None:
        if not all(t > 0 for t in self.temperature):
            raise UserError(f"temperature is {self.temperature}, expected two numbers above 0")
        if self.kl_weight < 0 or self.kl_updates < 0 or self.temperature_updates < 0:
            raise UserError("kl_weight, kl_updates and temperature_updates are expected to be 0 or more")


@dataclass(frozen=True)
class SeededPicture:
    """One example."""

    pixels: Tensor
    """uint8 [3, H, W]."""
    seed: int
    """Of its noise."""


@dataclass(kw_only=True)
class SeededPictureBatch(Batch):
    """Pictures with the seeds of their noise, which is too large to travel."""

    images: Tensor
    """uint8 [B, 3, H, W]."""
    seeds: Tensor
    """int64 [B]."""


class DrawnPictures(Objective[SeededPicture]):
    """A picture, to be drawn from its codes.

    Args:
        config: the network's.
        preprocessing: how pictures are resized where they are not augmented.
        augmentation: of training pictures; None for none.
    """

    def __init__(self, config: DVAEConfig, preprocessing: Preprocessing, augmentation: Augmentation | None) -> None:
        self.config = config
        self.preprocessing = preprocessing
        self.augmentation = augmentation

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[SeededPicture]:
        """One picture and the seed of its noise."""
        pixels = self.preprocessing.view(sample, self.augmentation, rng)
        return [SeededPicture(pixels, int(rng.integers(2**63)))]

    def collate(self, examples: list[SeededPicture]) -> SeededPictureBatch:
        """Stack them; the loss is counted in colour values, the codes in places."""
        places = (self.config.image_size // self.config.downsampling) ** 2
        images = torch.stack([e.pixels for e in examples])
        return SeededPictureBatch(counts={"values": images.numel(), "places": places * len(examples)}, images=images,
                                  seeds=torch.tensor([e.seed for e in examples]))  # fmt: skip

    def evaluation(self) -> DrawnPictures:
        """Without augmentation."""
        return DrawnPictures(self.config, self.preprocessing, None)

    def describe(self, example: SeededPicture) -> Preview:
        """The picture."""
        side = self.config.image_size // self.config.downsampling
        return Preview((("codes", f"{side} x {side}"),), example.pixels.permute(1, 2, 0).numpy())


# ------------------------------------------------------------------------------------------- the loss side


def gumbel(seeds: Tensor, like: Tensor) -> Tensor:
    """Gumbel noise [B, V, h, w] of the pictures' seeds, int64 [B]: of each number's place, hashed with the seed. The same on any device."""
    place = torch.arange(like[0].numel(), device=like.device)
    low, high = (part[:, None] & WORD for part in (seeds, seeds >> 32))
    bits = _hashed(_hashed((place + low) & WORD) ^ high) >> 9
    uniform = (bits.view_as(like).to(like.dtype) + 0.5) * 2.0**-23
    return -(-uniform.log()).log()


WORD = (1 << 32) - 1


def _hashed(x: Tensor) -> Tensor:
    """A hash of 32-bit words in int64 (C. Wellons, "Prospecting for Hash Functions", 2018: lowbias32)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & WORD
    x = (x ^ (x >> 15)) * 0x846CA68B & WORD
    return x ^ (x >> 16)


def annealed(first: float, last: float, updates: int, update: int) -> float:
    """From `first` to `last` along half a cosine in a number of updates, then `last`."""
    done = min(1.0, update / updates) if updates else 1.0
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))


MEANS = ("pixel", "pixel_squared")
"""What the error of a constant is computed from."""


class DVAESystem(System[DVAE, DrawnPictures]):
    """The dVAE with the evidence lower bound."""

    def __init__(self, config: DVAEConfig, settings: DVAESettings) -> None:
        net = DVAE(config)
        super().__init__(net, DrawnPictures(config, net.preprocessing, settings.augmentation))
        self.normalize = Normalize(net.preprocessing)
        self.settings = settings

    def forward(self, batch: SeededPictureBatch, carry: Any = None) -> Step:
        """-ln of the likelihood, summed over colour values, and the codes' KL divergence to uniform ones, summed over places.

        Training draws from relaxed codes at this update's temperature; evaluation from the likeliest codes, with the whole KL weight.
        """
        s, c, values = self.settings, self.net.config, self.normalize(batch.images)
        logits = at_least_fp32(self.net.encoder(values))
        if self.training:
            temperature = annealed(*s.temperature, s.temperature_updates, batch.update)
            codes = ((logits + gumbel(batch.seeds, logits)) / temperature).softmax(1)
            kl_weight = annealed(0.0, s.kl_weight, s.kl_updates, batch.update)
        else:
            codes, kl_weight = one_hot(logits.argmax(1), c.vocab_size, logits.dtype), s.kl_weight
        statistics = at_least_fp32(self.net.decoder(codes))
        ln_q = logits.log_softmax(1)
        kl = (ln_q.exp() * (ln_q + math.log(c.vocab_size))).sum()
        # the paper divides both sums by the number of colour values
        step = Step({"reconstruction": Term(logit_laplace_nll(statistics, values).sum(), "values"),
                     "kl": Term(kl, "places", kl_weight / (3 * c.downsampling**2))})  # fmt: skip
        if not self.training:
            pixels = (values - EPSILON) / SCALE
            sums = {"squared_error": (drawn(statistics) - pixels).square(), "mean/pixel": pixels, "mean/pixel_squared": pixels.square()}
            step.metrics |= {name: (value.sum(), batch.counts["values"]) for name, value in sums.items()}
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return "reconstruction", "kl", "squared_error", "squared_error_chance", *(f"mean/{name}" for name in MEANS)

    def derive(self, means: Mapping[str, float]) -> dict[str, float]:
        """The squared error of always drawing the same grey."""
        if f"mean/{MEANS[0]}" not in means:
            return {}
        pixel, squared = (means[f"mean/{name}"] for name in MEANS)
        return {"squared_error_chance": max(squared - pixel * pixel, 0.0)}

    @torch.no_grad()
    def preview(self, batch: SeededPictureBatch, limit: int = 4) -> list[Preview]:
        """Each picture beside what is drawn from its codes."""
        images = batch.images[:limit]
        out = self.net(self.normalize(images))
        made = (255 * out.reconstruction).round().to(torch.uint8)
        rows = torch.cat([images, made], dim=-1).permute(0, 2, 3, 1).cpu().numpy()
        used = (f"{len(codes.unique())} different ones at {len(codes)} places" for codes in out.codes)
        return [Preview((("shown", "the picture, and what is drawn from its codes"), ("codes", said)), row)
                for row, said in zip(rows, used, strict=True)]  # fmt: skip


# ------------------------------------------------------------------------------------------ names in files

MODEL_TYPE = "dvae"


def rules(config: DVAEConfig) -> Sequence[Rule]:
    """Our own keys."""
    with without_weights():
        return tuple(Rename(name, name) for name in DVAE(config).state_dict())


FORMAT = Format(
    "polymodal", rules, recognises=lambda record: record.get("model_type") == MODEL_TYPE,
    read=lambda record, directory: DVAEConfig.from_dict(record, f"{directory}/config.json"),
    write=lambda net: {**net.config.to_dict(), "model_type": MODEL_TYPE, "architectures": ["DVAE"]},
)  # fmt: skip


def create(config: DVAEConfig, settings: DVAESettings, context: Context) -> DVAESystem:
    """The system with randomly initialized weights; it needs nothing from the data."""
    return DVAESystem(config, settings)


CARD = Card(
    title="dVAE",
    paper='Ramesh, Pavlov, Goh, Gray, Voss, Radford, Chen, Sutskever, "Zero-Shot Text-to-Image Generation", 2021',
    year=2021,
    url="https://arxiv.org/abs/2102.12092",
    equation=r"\mathcal{L} = \frac{1}{N} \sum_{b=1}^{B} \left[ -\ln p_\theta(x_b \mid \tilde{z}_b) "
             r"+ \beta \sum_{i} \mathrm{KL}\left(q_\phi(z_{bi} \mid x_b) \,\middle\|\, \mathrm{uniform}\right) \right]",
    symbols="x are pictures with N colour values in all, z the codes of the places i of a grid, with a tilde drawn from q by "
            "Gumbel-softmax. p is a logit-Laplace distribution of each colour value. The temperature falls and beta rises during training.",
    masks={},
    reference="the formulas of the paper",
)  # fmt: skip

FAMILIES = (
    Family(
        name="dvae",
        card=CARD,
        config=DVAEConfig,
        sizes=SIZES,
        pretraining=Task("drawing pictures from discrete codes", DVAESettings, create),
        nets=(Net("DVAE", DVAE, FORMAT),),
    ),
)
