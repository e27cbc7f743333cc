"""ViT: an image is worth 16x16 words.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", 2020
(https://arxiv.org/abs/2010.11929). A pre-norm Transformer over the patches of a picture and one class token,
pretrained with labels: softmax cross entropy, or a sigmoid per class as in the paper's runs on ImageNet-21k and JFT.

Faithful: patch embedding with bias, class token first, learned positions for it and the patches, final norm on all
tokens, linear head on the class token; `pooling="mean"` is big_vision's variant (mean of the patch tokens after the
final norm), and with `fc_norm` MAE's and timm's (mean, then a norm). A run that starts from a model at another resolution
resamples its positions. A run may also start from MAE's encoder. Deviations: positions are resampled bicubically, as in
transformers (the authors' code does it bilinearly); the optional tanh layer before the head
(`pre_logits`) is left out, as the authors' later code does; weights start truncated-normal(0.02) as in
transformers and timm (the original starts linear maps Xavier-uniform). Parity: transformers and timm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..shared.attention.mask import Mask
from ..shared.block import LayerNorm
from ..shared.config import need_one_class_each
from ..shared.convert import Ignore, Legacy, Rename, Rule, affine, layers
from ..shared.errors import UserError, raise_problems
from ..shared.family import Adopt, Card, Context, Family, Format, Net, Task, transformers
from ..shared.keys import Keys, honoured, key_problems, no_effect, only, shown
from ..shared.loss import accuracy_sum, at_least_fp32, cross_entropy_sum
from ..shared.settings import build_settings
from ..shared.system import Preview, Step, System, Term
from . import tower
from .classify import ImageBatch, ImageClassification, Mixing
from .processor_files import PRETRAINED_CFG, from_timm, reads_preprocessing, to_timm, to_transformers
from .tower import ImageEmbedding, ImageTower, TowerConfig, block_rules, interpolate_positions, patch_rule, pre_norm_stack, square_side
from .transforms import HALF, Augmentation, Normalize, Preprocessing


@dataclass(frozen=True, kw_only=True)
class ViTConfig(TowerConfig):
    """The shape of a ViT, in transformers' terms (and with transformers' defaults)."""

    hidden_dropout_prob: float = 0.0
    """Dropout of the embeddings and before each residual sum."""
    attention_probs_dropout_prob: float = 0.0
    """Dropout of the attention weights."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    layer_norm_eps: float = 1e-12
    """Epsilon of every layer norm. This is transformers' default; the paper's code, timm and the named sizes use 1e-6."""
    qkv_bias: bool = True
    """Whether queries, keys and values have biases."""
    num_labels: int = 2
    """Classes."""
    labels: tuple[str, ...] | None = None
    """Class names in the order of their numbers (`id2label`)."""
    pooling: Literal["cls", "mean"] = "cls"
    """What the head reads: the class token, or the mean of the patch tokens (not known to transformers)."""
    fc_norm: bool = False
    """Whether the final norm stands behind the mean instead of before it (timm's name)."""
    drop_path_rate: float = 0.0
    """Stochastic depth: in training, the probability of leaving a part of the last block out for a picture; it rises evenly from 0."""

    AT_LEAST_ONE = (*TowerConfig.AT_LEAST_ONE, "num_labels")
    NOT_NEGATIVE = (*TowerConfig.NOT_NEGATIVE, "initializer_range")
    PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
    IGNORED = MappingProxyType({
        "encoder_stride": "about masked-image pretraining", "pooler_act": "of the pooler, which a classifier has not",
        "pooler_output_size": "of the pooler, which a classifier has not",
    })

    def problems(self) -> list[str]:
        """What is wrong with the fields."""
        found = super().problems()
        if self.labels is not None and len(self.labels) != self.num_labels:
            found.append(f"{len(self.labels)} labels for num_labels {self.num_labels}: expected one name for each class")
        if self.fc_norm and self.pooling != "mean":
            found.append(f"fc_norm is a norm of the mean, and pooling is {self.pooling!r}: expected pooling 'mean', or fc_norm false")
        if self.drop_path_rate == 1:
            found.append("drop_path_rate is 1, expected less: the last block would never be there")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json; those that transformers does not know only where they say something."""
        record = super().to_dict()
        for name, usual in (("pooling", "cls"), ("fc_norm", False), ("drop_path_rate", 0.0)):
            if record[name] == usual:
                record.pop(name)
        return record


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512, "image_size": 32,
             "patch_size": 4, "layer_norm_eps": 1e-6},
    "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "layer_norm_eps": 1e-6},
    "base": {"layer_norm_eps": 1e-6},
    "base32": {"patch_size": 32, "layer_norm_eps": 1e-6},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
              "layer_norm_eps": 1e-6},
    "huge": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120, "patch_size": 14,
             "layer_norm_eps": 1e-6},
}
"""`base`, `base32`, `large` and `huge` are the paper's; `small` is DeiT's."""


@dataclass
class ImageClassifierOutput:
    """What `ViT.forward` returns, with transformers' names."""

    logits: Tensor
    """[B, num_labels]."""
    last_hidden_state: Tensor
    """[B, 1 + P, D], after the final norm (which stands behind the mean with `fc_norm`)."""
    pooler_output: Tensor
    """[B, D], what the head read."""
    hidden_states: tuple[Tensor, ...] | None = None
    """The embeddings and each layer's output, where asked for."""


class ViT(tower.PatchStates):
    """The trunk, and a head that classifies."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        c = self.config = config
        self.preprocessing = Preprocessing(image_size=c.image_size, resize="squash", interpolation="bilinear",
                                           image_mean=HALF, image_std=HALF)  # fmt: skip
        self.trunk = ImageTower(
            ImageEmbedding(c.image_size, c.patch_size, c.hidden_size, dropout=c.hidden_dropout_prob),
            pre_norm_stack(c, final_norm=not c.fc_norm, qkv_bias=c.qkv_bias, dropout=c.hidden_dropout_prob,
                           attention_dropout=c.attention_probs_dropout_prob, drop_path=c.drop_path_rate),
        )  # fmt: skip
        self.fc_norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps) if c.fc_norm else None
        self.head = nn.Linear(c.hidden_size, c.num_labels)
        self.apply(self._init)

    def _init(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ImageEmbedding):
            nn.init.trunc_normal_(module.cls_token, std=std)
            nn.init.trunc_normal_(module.position_embeddings, std=std)

    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, output_hidden_states: bool = False
    ) -> ImageClassifierOutput:
        """Classify normalised pictures [B, 3, H, W]."""
        states: list[Tensor] | None = [] if output_hidden_states else None
        hidden = self.trunk(pixel_values, interpolate_pos_encoding, hidden_states=states)
        pooled = self._pooled(hidden)
        return ImageClassifierOutput(self.head(pooled), hidden, pooled, None if states is None else tuple(states))

    def _pooled(self, hidden: Tensor) -> Tensor:
        pooled = hidden[:, 0] if self.config.pooling == "cls" else hidden[:, 1:].mean(1)
        return pooled if self.fc_norm is None else self.fc_norm(pooled)

    def get_image_features(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Vectors of pictures [B, 3, H, W]: what the head reads, [B, D]."""
        return self._pooled(self.trunk(pixel_values, interpolate_pos_encoding))


@dataclass(frozen=True)
class ViTSettings:
    """The objective: supervised classification."""

    loss: Literal["softmax", "sigmoid"] = "softmax"
    """`sigmoid`: an independent binary cross entropy for each class (the paper's ImageNet-21k and JFT runs)."""
    head_bias: float | None = None
    """Initial bias of the head; None is 0 for softmax and -10 for sigmoid, so that no class starts likely."""
    head_std: float | None = None
    """Standard deviation of the head's initial weights: 0 in the paper's fine-tuning, 2e-5 in MAE's; None is `initializer_range`."""
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(crop_scale=(0.05, 1.0), flip=0.5))
    """Inception's crop and a flip, as in the paper."""
    mixing: Mixing = field(default_factory=Mixing)
    """mixup and CutMix."""
    label_smoothing: float = 0.0
    """Share of a class's probability that is spread over all classes in training."""
    image_mean: tuple[float, float, float] = HALF
    """Subtracted from each colour, of pixels from 0 to 1."""
    image_std: tuple[float, float, float] = HALF
    """Each colour is divided by it, after the mean is subtracted."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}, expected a fraction from 0 up to 1")
        if self.head_std is not None and self.head_std < 0:
            raise UserError(f"head_std is {self.head_std}, expected 0 or more, or null")


class ViTSystem(System[ViT, ImageClassification]):
    """ViT with the classification loss."""

    def __init__(self, config: ViTConfig, settings: ViTSettings) -> None:
        net = ViT(config)
        # Training crops keep the aspect ratio, so held-out pictures do too
        net.preprocessing = Preprocessing(image_size=config.image_size, image_mean=settings.image_mean, image_std=settings.image_std)
        super().__init__(net, ImageClassification(net.preprocessing, config.num_labels, config.labels, settings.augmentation,
                                                     settings.mixing))  # fmt: skip
        self.normalize = Normalize(net.preprocessing)
        self.loss, self.label_smoothing = settings.loss, settings.label_smoothing
        bias = settings.head_bias if settings.head_bias is not None else (-10.0 if settings.loss == "sigmoid" else 0.0)
        nn.init.constant_(self.net.head.bias, bias)
        if settings.head_std is not None:
            nn.init.normal_(self.net.head.weight, std=settings.head_std)

    def forward(self, batch: ImageBatch, carry: Any = None) -> Step:
        """The summed loss over the pictures, and how many were right."""
        logits = self.net(self.normalize(batch.images)).logits
        smoothing = self.label_smoothing if self.training else 0.0
        if self.loss == "softmax" and batch.others is None and not smoothing:
            total = cross_entropy_sum(logits, batch.labels)
        else:
            scores = at_least_fp32(logits)
            targets = self.targets(batch, smoothing).to(scores.dtype)
            total = (F.cross_entropy(scores, targets, reduction="sum") if self.loss == "softmax"
                     else F.binary_cross_entropy_with_logits(scores, targets, reduction="sum"))
        right = accuracy_sum(logits, batch.labels)
        labels = batch.labels if self.loss == "softmax" else None  # a sigmoid for each class has another baseline
        return Step({"classification": Term(total, "images", labels=labels)}, {"accuracy": (right, len(batch.labels))})

    def targets(self, batch: ImageBatch, smoothing: float) -> Tensor:
        """Probabilities of the classes, [B, num_labels]: a mixed picture has its two classes by their shares."""
        count = self.net.config.num_labels
        wanted = F.one_hot(batch.labels, count).float()
        if batch.others is not None and batch.shares is not None:
            wanted = torch.lerp(F.one_hot(batch.others, count).float(), wanted, batch.shares[:, None])
        return wanted * (1 - smoothing) + smoothing / count

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        return ("classification", *(("classification_chance",) if self.loss == "softmax" else ()), "accuracy")

    @torch.no_grad()
    def preview(self, batch: ImageBatch, limit: int = 4) -> list[Preview]:
        """Pictures with their true and most likely classes."""
        images = batch.images[:limit]
        probabilities, best = self.net(self.normalize(images)).logits.softmax(-1).topk(min(3, self.net.config.num_labels))
        name = self.objective.name
        return [
            Preview((("class", name(int(label))),
                     *(("predicted", f"{name(int(c))} ({float(p):.2f})") for c, p in zip(classes, scores, strict=True))),
                    image.permute(1, 2, 0).cpu().numpy())
            for image, label, classes, scores in zip(images, batch.labels, best, probabilities, strict=False)
        ]  # fmt: skip


TRANSFORMERS = {
    "norm1": "layernorm_before", "q": "attention.q_proj", "k": "attention.k_proj", "v": "attention.v_proj", "out": "attention.o_proj",
    "norm2": "layernorm_after", "up": "mlp.fc1", "down": "mlp.fc2",
}  # fmt: skip
LEGACY: tuple[Rule, ...] = (
    Legacy(r"^vit\.encoder\.layer\.", "vit.layers."),
    *(Legacy(rf"\.attention\.attention\.{n}\.", f".attention.{n[0]}_proj.") for n in ("query", "key", "value")),
    Legacy(r"\.attention\.output\.dense\.", ".attention.o_proj."),
    Legacy(r"\.intermediate\.dense\.", ".mlp.fc1."),
    Legacy(r"(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)
"""The keys of transformers 4, of ViT and of MAE."""
TIMM = {"norm1": "norm1", "qkv": "attn.qkv.", "out": "attn.proj", "norm2": "norm2", "up": "mlp.fc1", "down": "mlp.fc2"}


def rules(config: ViTConfig) -> Sequence[Rule]:
    """Transformers' ViTForImageClassification; transformers 4's spelling is read too."""
    if config.fc_norm:
        raise UserError("transformers' ViT has no norm behind the mean (fc_norm): write this network as timm")
    return (
        *LEGACY,
        Ignore(r"vit\.pooler\..*"),
        Rename("vit.embeddings.cls_token", "trunk.embed.cls_token"),
        Rename("vit.embeddings.position_embeddings", "trunk.embed.position_embeddings"),
        patch_rule("vit.embeddings.patch_embeddings.projection.weight", "trunk.embed.patches.projection.weight", config.patch_size),
        Rename("vit.embeddings.patch_embeddings.projection.bias", "trunk.embed.patches.projection.bias"),
        *layers(config.num_hidden_layers,
                block_rules(TRANSFORMERS, "vit.layers.{i}.", "trunk.stack.blocks.{i}", qkv_bias=config.qkv_bias)),
        *affine("vit.layernorm", "trunk.stack.final_norm"),
        *affine("classifier", "head"),
    )  # fmt: skip


def timm_rules(config: ViTConfig) -> Sequence[Rule]:
    """Timm's VisionTransformer."""
    return (
        Rename("cls_token", "trunk.embed.cls_token"),
        Rename("pos_embed", "trunk.embed.position_embeddings"),
        patch_rule("patch_embed.proj.weight", "trunk.embed.patches.projection.weight", config.patch_size),
        Rename("patch_embed.proj.bias", "trunk.embed.patches.projection.bias"),
        *layers(config.num_hidden_layers, block_rules(TIMM, "blocks.{i}.", "trunk.stack.blocks.{i}", qkv_bias=config.qkv_bias)),
        *(affine("fc_norm", "fc_norm") if config.fc_norm else affine("norm", "trunk.stack.final_norm")),
        *affine("head", "head"),
    )


TIMM_VARIANTS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16)}
DROPOUT = "timm's dropout in training; a recipe sets its own (model.*_dropout_prob)"
MODEL_ARGS: Keys = {
    "img_size": honoured("a number or a square [height, width]"),
    "patch_size": honoured("a number or a square [height, width]"),
    "embed_dim": honoured(),
    "depth": honoured(),
    "num_heads": honoured(),
    "mlp_ratio": honoured(),
    "qkv_bias": honoured(),
    "num_classes": honoured(),
    "global_pool": honoured("token or avg; others are refused"),
    "fc_norm": honoured("where the norm stands with global_pool avg: behind the mean, or with false before it; null or false with token"),
    "in_chans": only(3),
    "qk_norm": only(False), "scale_attn_norm": only(False), "scale_mlp_norm": only(False), "proj_bias": only(True),
    "init_values": only(None), "class_token": only(True), "pos_embed": only("learn"), "no_embed_class": only(False), "reg_tokens": only(0),
    "pre_norm": only(False), "final_norm": only(True), "pool_include_prefix": only(False), "embed_norm_layer": only(None),
    "norm_layer": only(None), "act_layer": only(None), "attn_layer": only(None),
    "dynamic_img_size": no_effect("about pictures of other sizes: interpolate_pos_encoding"),
    "dynamic_img_pad": no_effect("about pictures that are no multiple of a patch, which are refused"),
    "drop_rate": no_effect(DROPOUT), "pos_drop_rate": no_effect(DROPOUT), "patch_drop_rate": no_effect(DROPOUT),
    "proj_drop_rate": no_effect(DROPOUT), "attn_drop_rate": no_effect(DROPOUT), "drop_path_rate": no_effect(DROPOUT),
    "weight_init": no_effect("about initial weights"), "fix_init": no_effect("about initial weights"),
    "device": no_effect("where weights are made"), "dtype": no_effect("how weights are made"),
}  # fmt: skip
"""Keys of `model_args` in timm's config.json: the arguments of its VisionTransformer that JSON can hold."""
TIMM_KEYS: Keys = {
    "architecture": honoured("vit_(tiny|small|base|large|huge)_patch(N)_(SIZE), whose shape model_args may change"),
    "model_args": honoured("see below"),
    "pretrained_cfg": honoured("see below"),
    "num_classes": honoured(),
    "global_pool": honoured("as in model_args"),
    "label_names": honoured("a list, or an object from number to name"),
    "labels": honoured("as label_names"),
    "label_descriptions": no_effect("longer names of the classes"),
    "num_features": no_effect("follows from embed_dim"),
}
"""Keys of timm's config.json."""


def timm_config(record: Mapping[str, Any], directory: Path) -> ViTConfig:
    """From timm's config.json: the shape is in the architecture's name, `model_args` and `pretrained_cfg`."""
    name, what = str(record["architecture"]), "config.json"
    found = re.fullmatch(r"vit_(tiny|small|base|large|huge)_patch(\d+)_(\d+)(\..*)?", name)
    if found is None:
        raise UserError(f"timm architecture {name!r} is not supported, expected vit_(tiny|small|base|large|huge)_patch(N)_(SIZE)")
    arguments, trained = _part(record, "model_args", what), _timm_pretrained(record, what)
    problems = [*key_problems(record, TIMM_KEYS)] if "pretrained_cfg" in record else []
    problems += [f"model_args: {p}" for p in key_problems(arguments, MODEL_ARGS)]
    raise_problems([*problems, *(f"pretrained_cfg: {p}" for p in key_problems(trained, PRETRAINED_CFG))], what)
    width, depth, heads = TIMM_VARIANTS[found[1]]
    given: dict[str, Any] = {
        "img_size": list(trained["input_size"])[1:] if trained.get("fixed_input_size") and trained.get("input_size") else int(found[3]),
        "patch_size": int(found[2]), "embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": 4.0, "qkv_bias": True,
        "global_pool": record.get("global_pool") or trained.get("global_pool") or "token", "fc_norm": None,
        "num_classes": record.get("num_classes", trained.get("num_classes", 1000)), **arguments,
    }  # fmt: skip
    pool, norm = given["global_pool"], given["fc_norm"]
    if pool not in ("token", "avg") or norm not in (None, False, True) or (pool == "token" and norm):
        raise UserError(f"{what}: expected global_pool 'token', or 'avg' with any model_args.fc_norm, got {shown(pool)} with {shown(norm)}")
    numbers = {name: _number(given[name], f"{what}: {name}") for name in ("embed_dim", "mlp_ratio")}
    return build_settings(ViTConfig, {
        "hidden_size": given["embed_dim"], "num_hidden_layers": given["depth"], "num_attention_heads": given["num_heads"],
        "intermediate_size": int(numbers["embed_dim"] * numbers["mlp_ratio"]), "layer_norm_eps": 1e-6,
        "image_size": square_side(given["img_size"], f"{what}: img_size"),
        "patch_size": square_side(given["patch_size"], f"{what}: patch_size"), "qkv_bias": given["qkv_bias"],
        "num_labels": given["num_classes"], "labels": _label_names(record, trained, what), "pooling": "cls" if pool == "token" else "mean",
        "fc_norm": pool == "avg" and norm is not False,
    }, what)  # fmt: skip


def _part(record: Mapping[str, Any], name: str, what: str) -> dict[str, Any]:
    part = record.get(name) or {}
    if not isinstance(part, Mapping):
        raise UserError(f"{what}: {name} is {shown(part)}, expected an object")
    return dict(cast("Mapping[str, Any]", part))


def _timm_pretrained(record: Mapping[str, Any], what: str) -> dict[str, Any]:
    """`pretrained_cfg`; timm's first files had its keys at the top level."""
    if "pretrained_cfg" in record:
        return _part(record, "pretrained_cfg", what)
    return {key: value for key, value in record.items() if key in PRETRAINED_CFG or key not in TIMM_KEYS}


def _label_names(record: Mapping[str, Any], trained: Mapping[str, Any], what: str) -> list[str] | None:
    """The names of the classes in the order of their numbers."""
    names = record.get("label_names") or record.get("labels") or trained.get("label_names")
    if isinstance(names, Mapping):
        by_number = {int(k): v for k, v in cast("Mapping[str, Any]", names).items() if str(k).isdecimal()}
        if sorted(by_number) != list(range(len(cast("Mapping[str, Any]", names)))):
            raise UserError(f"{what}: label_names has gaps between the numbers of its classes, expected 0, 1, 2 ...")
        names = [by_number[i] for i in range(len(by_number))]
    return names or None


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{what} is {shown(value)}, expected a number")
    return value


def _is_timm(record: Mapping[str, Any]) -> bool:
    return str(record.get("architecture", "")).startswith("vit_")


def timm_record(net: ViT) -> dict[str, Any]:
    """Timm's config.json for `net`; the shape goes into `model_args`, whatever the name says."""
    c = net.config
    if c.hidden_act != "gelu" or c.layer_norm_eps != 1e-6:
        raise UserError(f"timm's vit has gelu and layer_norm_eps 1e-6, this model {c.hidden_act} and {c.layer_norm_eps:g}: "
                        "save it in transformers' format")  # fmt: skip
    pool = "token" if c.pooling == "cls" else "avg"
    arguments = {"img_size": c.image_size, "patch_size": c.patch_size, "embed_dim": c.hidden_size, "depth": c.num_hidden_layers,
                 "num_heads": c.num_attention_heads, "mlp_ratio": c.intermediate_size / c.hidden_size, "qkv_bias": c.qkv_bias,
                 "global_pool": pool, **({"fc_norm": c.fc_norm} if pool == "avg" else {})}  # fmt: skip
    named = {"label_names": list(c.labels)} if c.labels else {}
    return {"architecture": "vit_base_patch16_224", "num_classes": c.num_labels, "num_features": c.hidden_size, "global_pool": pool,
            **named, "model_args": arguments,
            "pretrained_cfg": {**to_timm(net.preprocessing), "num_classes": c.num_labels, "first_conv": "patch_embed.proj",
                               "classifier": "head", **named}}  # fmt: skip


def _read_timm(net: ViT, record: Mapping[str, Any], directory: Path) -> None:
    net.preprocessing = from_timm(_timm_pretrained(record, "config.json"), net.config.image_size)


def _files(net: ViT) -> dict[str, dict[str, Any]]:
    return {"preprocessor_config.json": to_transformers(net.preprocessing, "ViTImageProcessor")}


def adapt(config: ViTConfig, context: Context) -> ViTConfig:
    """As many classes as the data names."""
    if context.classes is None:
        return config
    return replace(config, num_labels=len(context.classes), labels=tuple(context.classes))


def from_mae(config: TowerConfig) -> ViTConfig:
    """The shape of an MAE's encoder; the head reads what MAE's authors fine-tune: the mean of the patches, and then a norm."""
    both = {f.name for f in fields(ViTConfig)} & {f.name for f in fields(config)} - {"extra"}
    return ViTConfig(**{name: getattr(config, name) for name in both}, pooling="mean", fc_norm=True)


def resampled(tensors: Mapping[str, Tensor], net: ViT) -> Mapping[str, Tensor]:
    """The weights of an image tower, its positions resampled for the pictures of `net`."""
    name, grid = "trunk.embed.position_embeddings", net.trunk.embed.grid
    return {**tensors, name: interpolate_positions(tensors[name], (grid, grid))}


def _some(names: tuple[str, ...] | None) -> str:
    return ", ".join((names or ())[:4]) + (", ..." if len(names or ()) > 4 else "")


def create(config: ViTConfig, settings: ViTSettings, context: Context) -> ViTSystem:
    """The pretraining system with randomly initialized weights."""
    need_one_class_each(config, "training")
    if None not in (context.classes, config.labels) and context.classes != config.labels:
        raise UserError(f"the model's classes are {_some(config.labels)}, the data's are {_some(context.classes)}: "
                        "set task=classify, which gives it a head for the data's")
    if context.classes is not None and len(context.classes) != config.num_labels:
        raise UserError(f"the model has {config.num_labels} classes, the data {len(context.classes)}: set task=classify, which gives it a "
                        "head for the data's")
    return ViTSystem(config, settings)


CARD = Card(
    title="ViT",
    paper='Dosovitskiy, Beyer, Kolesnikov, Weissenborn, Zhai et al., "An Image is Worth 16x16 Words", 2020',
    year=2020,
    url="https://arxiv.org/abs/2010.11929",
    equation=r"\mathcal{L} = -\frac{1}{B} \sum_{b=1}^{B} \log p_\theta(y_b \mid x_b)",
    symbols="x is a picture, y its class; with a sigmoid for each class the terms are binary cross-entropies over all classes.",
    masks={"Patches and class token": Mask()},
    reference="transformers ViTForImageClassification; timm VisionTransformer",
)

FAMILIES = (
    Family(
        name="vit",
        card=CARD,
        config=ViTConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("image classification: softmax, or a sigmoid per class", ViTSettings, create),
        tasks=(Task("image classification with the classes of the data", ViTSettings, create, "classify", adapt,
                    "ViTForImageClassification"),),
        nets=(
            Net("ViTForImageClassification", ViT,
                transformers(rules, files=_files, finish=reads_preprocessing("ViTImageProcessor"),
                             suits=lambda config: config.pooling == "cls"),
                Format("timm", timm_rules, recognises=_is_timm, read=timm_config, write=timm_record, finish=_read_timm)),
        ),
        heads=("head", "fc_norm"),
        starts={"vit": Adopt(resampled), "mae": Adopt(resampled, from_mae)},
        model_type="vit",
    ),
)  # fmt: skip
