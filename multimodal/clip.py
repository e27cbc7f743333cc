"""CLIP: contrastive language-image pretraining.

Radford, Kim, Hallacy et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021
(https://arxiv.org/abs/2103.00020). An image tower and a text tower map to one space; in a batch of N pairs each picture
must find its caption among N and each caption its picture. The loss couples the whole batch, so it is never split by
accumulation: `chunk` runs the towers piece by piece under activation checkpointing and keeps only features, with the
same gradient.

Faithful: both towers (ViT with a norm before the blocks and one after on the class token; the modified ResNet), QuickGELU,
pooling at the end-of-text token, projections without bias, the learned logit scale that starts at ln(1/0.07) and is
clamped to at most ln 100 (transformers does not clamp), initialisation as in the released code (transformers swaps the
deviations of the attention's input and output). Additions: the text tower may be a pretrained encoder (`text_tower`), and
either tower may be locked (Zhai et al., LiT, 2021); a locked text tower reads each distinct caption once; a network with
a bias of its logits learns with SigLIP's loss (`sigmoid_loss.py`). Deviation: on several ranks batch norm of the ResNet
uses each rank's own statistics, unless the recipe has `sync_batchnorm`. Parity: transformers CLIPModel and SiglipModel's
loss, open_clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..shared.attention.mask import Mask, on_device
from ..shared.block import Block, FeedForward, LayerNorm
from ..shared.dist import all_gather_with_grad, first_dims, rank
from ..shared.embed import TokenEmbedding
from ..shared.errors import UserError
from ..shared.family import Card, Context, Family, Format, Net, Task, Vocabulary, transformers
from ..shared.loss import accuracy_sum, at_least_fp32, contrastive_sum
from ..shared.packed import Packed
from ..shared.stack import Stack
from ..shared.system import Preview, Step, System, Term
from ..shared.tokenizer import Tokenizer
from ..vision.processor_files import reads_preprocessing, to_transformers
from ..vision.resnet import AttentionPool, ResNet, ResNetConfig
from ..vision.tower import ImageEmbedding, ImageTower, pre_norm_stack
from ..vision.transforms import CLIP_MEAN, CLIP_STD, Augmentation, Normalize, Preprocessing
from . import clip_formats as formats
from .clip_config import HIGHEST_ID, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from .pairs import ImageTextPairs, Memo, PairBatch
from .pretrained_text import PretrainedText, describe, load_weights
from .sigmoid_loss import sigmoid_sum
from .zero_shot import ZeroShotSystem


class TextTower(nn.Module):
    """A causal pre-norm Transformer; the state at the end-of-text token stands for the text."""

    no_decay: ClassVar[tuple[str, ...]] = ("embed.position",)

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = TokenEmbedding(config.vocab_size, config.hidden_size, max_positions=config.max_position_embeddings)
        self.stack = pre_norm_stack(config, final_norm=True, attention_dropout=config.attention_dropout)
        assert self.embed.position is not None
        nn.init.normal_(self.embed.position.weight, std=0.01)
        init_blocks_(self.stack, config.hidden_size)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        *, lengths: tuple[int, ...] | None = None,
    ) -> Tensor:  # fmt: skip
        """Encode padded texts [N, S], or N texts packed in one row [1, T], as vectors [N, D]."""
        keep = None if attention_mask is None else attention_mask.bool()
        hidden = self.stack(self.embed(input_ids, position_ids), Mask(causal=True, keep=keep, lengths=lengths))
        if lengths is None:
            rows = torch.arange(len(input_ids), device=input_ids.device)
            return hidden[rows, self._ends(input_ids)]
        count = on_device(lengths, input_ids.device)
        starts = count.cumsum(0) - count
        steps = torch.arange(max(lengths), device=input_ids.device)
        ids = input_ids[0, (starts[:, None] + steps).clamp(max=input_ids.shape[1] - 1)]
        return hidden[0, starts + self._ends(ids.masked_fill(steps >= count[:, None], -1))]

    def _ends(self, ids: Tensor) -> Tensor:
        """The position of the end-of-text token in each row of ids [N, S]."""
        end = self.config.eos_token_id
        return ids.argmax(-1) if end == HIGHEST_ID else (ids == end).int().argmax(-1)


def image_tower(config: CLIPVisionConfig) -> ImageTower:
    """CLIP's ViT: no patch bias, a norm before the blocks and none after them."""
    width = config.hidden_size
    tower = ImageTower(
        ImageEmbedding(config.image_size, config.patch_size, width, bias=False),
        pre_norm_stack(config, final_norm=False, attention_dropout=config.attention_dropout),
        pre_norm=LayerNorm(width, eps=config.layer_norm_eps),
    )
    nn.init.normal_(tower.embed.cls_token, std=width**-0.5)
    nn.init.normal_(tower.embed.position_embeddings, std=width**-0.5)
    init_blocks_(tower.stack, width)
    return tower


class ClassTokenHead(nn.Module):
    """The head of CLIP's ViT: a norm on the class token alone, and a projection into the shared space."""

    def __init__(self, config: CLIPVisionConfig, output_size: int) -> None:
        super().__init__()
        self.norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.hidden_size, output_size, bias=False)
        nn.init.normal_(self.projection.weight, std=config.hidden_size**-0.5)

    def forward(self, states: Tensor) -> Tensor:
        """[B, 1 + P, D] -> [B, output_size]."""
        return self.projection(self.norm(states[:, 0]))


def init_blocks_(stack: Stack, width: int) -> None:
    """The released code's deviations: smaller for what writes to the residual stream, by depth."""
    depth = (2 * stack.num_layers) ** -0.5
    for block in stack.blocks:
        assert isinstance(block, Block) and isinstance(block.feed_forward, FeedForward)
        for linear, std in (
            (block.attention.qkv, width**-0.5), (block.attention.out, width**-0.5 * depth),
            (block.feed_forward.up, (2 * width) ** -0.5), (block.feed_forward.down, width**-0.5 * depth),
        ):  # fmt: skip
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)


@dataclass
class CLIPOutput:
    """What `CLIP.forward` returns, with transformers' names."""

    image_embeds: Tensor
    """Unit vectors [B, projection_dim]."""
    text_embeds: Tensor
    """Unit vectors [N, projection_dim]."""
    logits_per_image: Tensor
    """[B, N]: scaled cosines, with the bias where there is one."""
    logits_per_text: Tensor
    """[N, B]."""


class CLIP(nn.Module):
    """Two towers, each a trunk and a head that projects into the shared space, the logit scale, and the bias that SigLIP's loss needs."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        text, vision, dim = config.text_config, config.vision_config, config.projection_dim
        self.preprocessing = Preprocessing(image_size=vision.image_size)
        self.text_trunk: TextTower | PretrainedText = TextTower(text) if isinstance(text, CLIPTextConfig) else PretrainedText(text)
        self.text_head = nn.Linear(text.hidden_size, dim, bias=False)
        self.image_trunk: ImageTower | ResNet
        self.image_head: ClassTokenHead | AttentionPool
        if isinstance(vision, ResNetConfig):
            self.image_trunk, self.image_head = ResNet(vision), AttentionPool(vision, dim)
        else:
            self.image_trunk, self.image_head = image_tower(vision), ClassTokenHead(vision, dim)
        nn.init.normal_(self.text_head.weight, std=text.hidden_size**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        bias = config.logit_bias_init_value
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def get_image_features(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Project normalised pictures [B, 3, H, W] into the shared space: [B, projection_dim], not yet unit vectors."""
        return self.image_head(self.image_trunk(pixel_values, interpolate_pos_encoding))

    def get_patch_features(self, pixel_values: Tensor) -> Tensor:
        """States of the patches of pictures [B, 3, H, W], or of the cells of a ResNet's last map, row by row: [B, P, D]."""
        states = self.image_trunk(pixel_values)
        return states[:, 1:] if isinstance(self.image_trunk, ImageTower) else states.flatten(2).transpose(1, 2)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Project texts [N, S] into the shared space: [N, projection_dim], not yet unit vectors."""
        return self.text_head(self.text_trunk(input_ids, attention_mask))

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None, interpolate_pos_encoding: bool = False
    ) -> CLIPOutput:
        """Compare every picture with every text."""
        image = F.normalize(self.get_image_features(pixel_values, interpolate_pos_encoding), dim=-1)
        text = F.normalize(self.get_text_features(input_ids, attention_mask), dim=-1)
        logits = self.logit_scale.exp() * image @ text.T + (0.0 if self.logit_bias is None else self.logit_bias)
        return CLIPOutput(image, text, logits, logits.T)


@dataclass(frozen=True)
class CLIPSettings:
    """The objective: contrastive, over the whole batch."""

    loss: Literal["clip", "siglip"] | None = None
    """`clip`: find the caption among all captions, and the picture. `siglip`: a yes or no for each pair, with a bias that is learned
    (`model.logit_bias_init_value`). None: what the network is made for."""
    max_length: int | None = None
    """Longest caption in tokens, the end-of-text token included; None is the text tower's limit, at most 77."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes of the training pictures."""
    image_mean: tuple[float, float, float] = CLIP_MEAN
    """Subtracted from each colour, of pixels from 0 to 1."""
    image_std: tuple[float, float, float] = CLIP_STD
    """Each colour is divided by it, after the mean is subtracted."""
    chunk: int | None = None
    """Pairs that go through the towers at a time; None is all. Saves memory for a second forward pass; the gradient stays."""
    memo: int = 100_000
    """Captions whose features a locked text tower keeps, so that they are read once."""


class CLIPSystem(System[CLIP, ImageTextPairs]):
    """CLIP with the symmetric contrastive loss over the batch of all ranks."""

    coupled = True

    def __init__(self, config: CLIPConfig, settings: CLIPSettings, context: Context) -> None:
        room = config.text_config.max_position_embeddings
        length = min(room, 77) if settings.max_length is None else settings.max_length
        if not 3 <= length <= room:
            raise UserError(f"objective.max_length is {length}: expected 3 to {room}, the text tower's positions")
        if settings.chunk is not None and isinstance(config.vision_config, ResNetConfig) and not config.lock_image:
            raise UserError("objective.chunk needs an image tower without batch statistics: use a ViT, or leave chunk out")
        if settings.loss == "siglip" and config.logit_bias_init_value is None:
            raise UserError("objective.loss is siglip, which learns a bias of the logits, and this network has none: set "
                            "model.logit_bias_init_value=-10 and model.logit_scale_init_value=2.3026 (the paper's), or start from a model "
                            "with a bias")  # fmt: skip
        if settings.loss == "clip" and config.logit_bias_init_value is not None:
            raise UserError("objective.loss is clip, which a bias of the logits does not change, and this network has one: set "
                            "objective.loss=siglip, or model.logit_bias_init_value=null for a network without it")  # fmt: skip
        if settings.chunk is not None and settings.chunk < 1:
            raise UserError(f"objective.chunk is {settings.chunk}: expected at least 1 pair, or null")
        net = CLIP(config)
        net.preprocessing = Preprocessing(image_size=config.vision_config.image_size, image_mean=settings.image_mean,
                                          image_std=settings.image_std)  # fmt: skip
        super().__init__(net, context.objective(
            "clip", lambda tokenizer: ImageTextPairs(tokenizer, net.preprocessing, settings.augmentation, length)))
        self.normalize = Normalize(net.preprocessing)
        self.chunk = settings.chunk
        self.memo = Memo(settings.memo) if config.lock_text else None
        net = self.net
        self.locked: list[nn.Module] = [
            *([net.text_trunk] if config.lock_text else []), *([net.image_trunk, net.image_head] if config.lock_image else []),
        ]  # fmt: skip
        if config.lock_text_projection:
            width = config.text_config.hidden_size
            if width != config.projection_dim:
                raise UserError(f"model.lock_text_projection needs model.projection_dim {width}, the text tower's width; "
                                f"it is {config.projection_dim}")  # fmt: skip
            nn.init.eye_(net.text_head.weight)
            self.locked.append(net.text_head)
        for tower in self.locked:
            tower.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Locked towers stay in evaluation mode: no dropout, and batch statistics as they are."""
        super().train(mode)
        for tower in self.locked if hasattr(self, "locked") else ():
            tower.eval()
        return self

    def forward(self, batch: PairBatch, carry: Any = None) -> Step:
        """The summed loss over this rank's pairs, against the pairs of all ranks."""
        sizes = first_dims(batch.images)
        image, text = self.image_embeds(batch.images, max(sizes)), self.text_embeds(batch, max(sizes))
        return self._clip(image, text, sizes) if self.net.logit_bias is None else self._siglip(image, text, self.net.logit_bias, sizes)

    def _clip(self, image: Tensor, text: Tensor, sizes: list[int]) -> Step:
        """A softmax over all texts for each picture, and the reverse."""
        offset = sum(sizes[: rank()])
        all_image, all_text = all_gather_with_grad(image, sizes), all_gather_with_grad(text, sizes)
        scale = self.net.logit_scale.exp()
        total = contrastive_sum(image, text, scale, all_image, all_text, offset)
        with torch.no_grad():
            pairs = len(image)
            targets = torch.arange(offset, offset + pairs, device=image.device)
            metrics: dict[str, tuple[Tensor, Tensor | int]] = {
                "image_to_text": (accuracy_sum(image @ all_text.T, targets), pairs),
                "text_to_image": (accuracy_sum(text @ all_image.T, targets), pairs),
                "logit_scale": (scale * pairs, pairs),
            }
        return Step({"contrastive": Term(total, "pairs", labels=targets)}, metrics)

    def _siglip(self, image: Tensor, text: Tensor, bias: Tensor, sizes: list[int]) -> Step:
        """A sigmoid for each pair. The chance is what a predictor loses that knows only that one of N answers is yes."""
        scale = self.net.logit_scale.exp()
        found = sigmoid_sum(image, text, scale, bias.to(image.dtype), sizes)
        pairs, everyone = len(image), sum(sizes)
        chance = math.log(everyone) + (everyone - 1) * math.log(everyone / max(1, everyone - 1))
        return Step({"sigmoid": Term(found.total, "pairs")}, {
            "image_to_text": (found.image_to_text, pairs), "text_to_image": (found.text_to_image, pairs),
            "logit_scale": (scale.detach() * pairs, pairs), "logit_bias": (bias.detach() * pairs, pairs),
            **({} if self.training else {"sigmoid_chance": (scale.new_tensor(chance * pairs), pairs)}),
        })  # fmt: skip

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        both = ("image_to_text", "text_to_image", "logit_scale")
        if self.net.logit_bias is None:
            return "contrastive", "contrastive_chance", *both
        return "sigmoid", "sigmoid_chance", *both, "logit_bias"

    def zero_shot(self, classes: Sequence[str], templates: Sequence[str]) -> ZeroShotSystem:
        """See `System.zero_shot`."""
        return ZeroShotSystem(self.net, self.objective.tokenizer, classes, templates)

    def undivided(self) -> Iterable[nn.Module]:
        """A locked text tower: captions that this rank knows may be new to another."""
        return () if self.memo is None else (self.net.text_trunk,)

    def image_embeds(self, images: Tensor, most: int | None = None) -> Tensor:
        """Unit vectors [B, projection_dim] of uint8 pictures; `most` is the largest B of all ranks, where they run together."""
        features = self._in_chunks(len(images), lambda low, high: self.net.get_image_features(self.normalize(images[low:high])), most)
        return F.normalize(at_least_fp32(features), dim=-1)

    def text_embeds(self, batch: PairBatch, most: int | None = None) -> Tensor:
        """Unit vectors [B, projection_dim] of the packed captions; `most` as in `image_embeds`."""
        texts = Packed(batch.input_ids, batch.position_ids, batch.lengths)

        def pooled(part: Packed) -> Tensor:
            return self.net.text_trunk(part.input_ids, None, part.position_ids, lengths=part.lengths)

        if self.memo is not None:
            with torch.no_grad():
                states = self.memo(batch.keys, lambda rows: pooled(texts.select(rows)))
        else:
            states = self._in_chunks(len(batch.lengths), lambda low, high: pooled(texts.select(range(low, high))), most)
        return F.normalize(at_least_fp32(self.net.text_head(states)), dim=-1)

    def _in_chunks(self, count: int, tower: Callable[[int, int], Tensor], most: int | None = None) -> Tensor:
        """Run a tower over rows [low, high) at a time; only its features are kept, the rest is computed again for the gradient.

        Ranks with fewer rows than `most` (a sample was bad) run it as often as the others: their weights may be divided.
        """
        most = most or count
        if self.chunk is None or most <= self.chunk:
            return tower(0, count)
        parts: list[Tensor] = []
        for low in range(0, most, self.chunk):
            bounds = (min(low, count - 1), min(low + self.chunk, count))
            part = checkpoint(tower, *bounds, use_reentrant=False) if torch.is_grad_enabled() else tower(*bounds)
            parts.append(part[: max(0, count - low)])  # behind the last row it was read once more, for nothing
        return torch.cat(parts)

    @torch.no_grad()
    def after_update(self, update: int) -> None:
        """Keep the logit scale in [0, ln 100], as the released code does."""
        self.net.logit_scale.clamp_(0, math.log(100))

    @torch.no_grad()
    def preview(self, batch: PairBatch, limit: int = 4) -> list[Preview]:
        """Pictures with their captions and the captions of the batch that fit best."""
        tokenizer = self.objective.tokenizer
        text = self.text_embeds(batch)
        images = batch.images[:limit]
        scores, best = (self.image_embeds(images) @ text.T).topk(min(3, len(text)))
        texts = Packed(batch.input_ids, batch.position_ids, batch.lengths)
        names = [tokenizer.decode(ids) for ids in batch.input_ids[0].split(list(texts.lengths))]
        return [
            Preview((("caption", names[row]), *(("match", f"{names[int(b)]} ({float(s):.2f})") for b, s in zip(best[row], scores[row]))),
                    images[row].permute(1, 2, 0).cpu().numpy())
            for row in range(len(images))
        ]  # fmt: skip


def adapt(config: CLIPConfig, context: Context) -> CLIPConfig:
    """Take the text tower's shape from its directory, or its vocabulary from the tokenizer."""
    if config.text_tower is not None:
        return replace(config, text_config=describe(config.text_tower, config.text_pooling))
    if not isinstance(config.text_config, CLIPTextConfig):
        return config
    if context.tokenizer is None and context.net_only:
        return config
    tokenizer = context.need_tokenizer("clip")
    ids = tokenizer.encode("a")
    if not ids or ids[-1] not in tokenizer.special_ids:
        raise UserError("CLIP reads the state at the end-of-text token, and this tokenizer ends a text without one: "
                        "train it with --style clip, or pass open_clip's")  # fmt: skip
    end = ids[-1]
    if end == HIGHEST_ID and end != tokenizer.vocab_size - 1:
        raise UserError(f"the tokenizer's end-of-text id is {HIGHEST_ID}, which transformers' CLIP takes for 'the highest id': "
                        "train it with --style clip, whose special tokens come last")  # fmt: skip
    begin = ids[0] if ids[0] in tokenizer.special_ids else None
    return replace(config, text_config=replace(config.text_config, vocab_size=tokenizer.vocab_size, eos_token_id=end, bos_token_id=begin,
                                               pad_token_id=end if tokenizer.pad_id is None else tokenizer.pad_id))


def create(config: CLIPConfig, settings: CLIPSettings, context: Context) -> CLIPSystem:
    """The pretraining system: randomly initialized weights, and the text tower's own where `text_tower` names one."""
    if config.text_tower is not None:
        own = Tokenizer.load(config.text_tower)
        if context.tokenizer is not None and context.tokenizer.fingerprint != own.fingerprint:
            raise UserError(f"the tokenizer is not the one of text_tower {config.text_tower}: leave --tokenizer out")
        context = replace(context, tokenizer=own)
    if context.tokenizer is not None and context.tokenizer.vocab_size > config.text_config.vocab_size:
        raise UserError(f"the tokenizer has {context.tokenizer.vocab_size} entries, the text tower {config.text_config.vocab_size}")
    system = CLIPSystem(config, settings, context)
    if config.text_tower is not None:
        assert isinstance(system.net.text_trunk, PretrainedText)
        load_weights(system.net.text_trunk, config.text_tower)
    return system


def _files(net: CLIP) -> dict[str, dict[str, Any]]:
    return {"preprocessor_config.json": to_transformers(net.preprocessing, "CLIPImageProcessor")}


def _vit(width: int, layers: int, patch_size: int, image_size: int = 224) -> dict[str, Any]:
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": max(1, width // 64),
            "patch_size": patch_size, "image_size": image_size}  # fmt: skip


def _text(width: int, layers: int, positions: int = 77) -> dict[str, Any]:
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": max(1, width // 64),
            "max_position_embeddings": positions}  # fmt: skip


SIGLIP = {"logit_scale_init_value": math.log(10), "logit_bias_init_value": -10.0}
"""SigLIP's first values (its section 3.2): with a batch of many pairs, nearly all answers are no."""

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"projection_dim": 128, "vision_config": _vit(128, 2, 8, 64), "text_config": _text(128, 2)},
    "tiny-resnet": {"projection_dim": 128, "text_config": _text(128, 2),
                    "vision_config": {"layers": (1, 1, 1, 1), "width": 16, "image_size": 64, "head_width": 32}},
    "tiny-siglip": {"projection_dim": 128, "vision_config": _vit(128, 2, 8, 64), "text_config": _text(128, 2), **SIGLIP},
    "small": {"projection_dim": 256, "vision_config": _vit(384, 12, 16), "text_config": _text(256, 6)},
    "base": {"vision_config": _vit(768, 12, 32), "text_config": _text(512, 12)},
    "base16": {"vision_config": _vit(768, 12, 16), "text_config": _text(512, 12)},
    "large": {"projection_dim": 768, "vision_config": _vit(1024, 24, 14), "text_config": _text(768, 12)},
    "rn50": {"projection_dim": 1024, "vision_config": {"layers": (3, 4, 6, 3), "width": 64}, "text_config": _text(512, 12)},
}
"""`base`, `base16`, `large` and `rn50` are the paper's ViT-B/32, ViT-B/16, ViT-L/14 and RN50."""

CARD = Card(
    title="CLIP",
    paper='Radford, Kim, Hallacy et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021',
    year=2021,
    url="https://arxiv.org/abs/2103.00020",
    equation=r"\mathcal{L} = -\frac{1}{2N} \sum_{i=1}^{N} \left[ \log \frac{e^{\tau u_i \cdot v_i}}{\sum_{j} e^{\tau u_i \cdot v_j}} "
             r"+ \log \frac{e^{\tau u_i \cdot v_i}}{\sum_{j} e^{\tau u_j \cdot v_i}} \right]",
    symbols="u and v are the unit vectors of picture and caption, N the pairs of the whole global batch, over all "
            "ranks; the scale is learned, at most 100. SigLIP's loss is instead the sum over all i and j of "
            "log(1 + exp(-z(τ u_i · v_j + b))), divided by N, with z = 1 for i = j, else -1, and a learned bias b.",
    masks={"Patches and class token": Mask(), "Caption": Mask(causal=True)},
    reference="transformers CLIPModel; open_clip",
)

FAMILIES = (
    Family(
        name="clip",
        card=CARD,
        config=CLIPConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("contrastive: match pictures and captions within the batch", CLIPSettings, create),
        nets=(
            Net("CLIPModel", CLIP,
                transformers(formats.transformers_rules, files=_files, finish=reads_preprocessing("CLIPImageProcessor"),
                             suits=formats.suits_transformers),
                Format("open_clip", formats.open_clip_rules, "open_clip_config.json", "open_clip_model.safetensors",
                       recognises=formats.is_open_clip, read=formats.read_open_clip, write=formats.write_open_clip,
                       files=formats.open_clip_files, finish=formats.finish_open_clip)),
        ),
        model_type="clip",
        vocabulary=Vocabulary("byte-bpe", "clip", lowercase=True, strip_accents=False),
    ),
)  # fmt: skip
