"""ViT: an image is worth 16x16 words.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", 2020
(https://arxiv.org/abs/2010.11929). A pre-norm Transformer over the patches of a picture and one class token,
pretrained with labels: softmax cross entropy, or a sigmoid per class as in the paper's runs on ImageNet-21k and JFT.

Faithful: patch embedding with bias, class token first, learned positions for it and the patches, final norm on all
tokens, linear head on the class token; `pooling="mean"` is big_vision's variant (mean of the patch tokens after the
final norm), and with `fc_norm` MAE's and timm's (mean, then a norm). The tanh layer before the head of pretraining
(`pre_logits`) is there with `representation_size`, as in the authors' code, and not in fine-tuning. Class token and
positions do not decay. A run that starts from a model at another resolution resamples its positions. A run may also start
from MAE's encoder, and train a head alone on a frozen one, behind a batch norm (`head_norm`), as MAE's authors probe.
Deviations: positions are resampled bicubically, as in transformers (the authors' code does it bilinearly); weights start
truncated-normal(0.02) as in transformers and timm (the original starts linear maps Xavier-uniform). Parity: transformers
and timm.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..shared.attention.mask import Mask
from ..shared.block import LayerNorm
from ..shared.convert import Ignore, Legacy, Rename, Rule, affine, layers
from ..shared.errors import UserError
from ..shared.family import Adopt, Card, Context, Family, Format, Net, Task, or_our_own, transformers
from . import tower
from .classify import ClassificationSettings, ClassificationSystem, ImageClassifierOutput, adapt, check_classes
from .processor_files import reads_preprocessing, to_transformers
from .tower import ImageEmbedding, ImageTower, TowerConfig, block_rules, interpolate_positions, patch_rule, pre_norm_stack
from .transforms import HALF, Preprocessing
from .vit_config import ViTConfig
from .vit_timm import is_timm, read_timm, suits_timm, timm_config, timm_record, timm_rules

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
        width = c.representation_size or c.hidden_size
        self.pre_logits = nn.Linear(c.hidden_size, width) if c.representation_size else None
        self.head_norm = nn.BatchNorm1d(width, eps=1e-6, affine=False) if c.head_norm else None
        self.head = nn.Linear(width, c.num_labels)
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
        pooled = read = self._pooled(hidden)
        if self.pre_logits is not None:
            read = self.pre_logits(read).tanh()
        if self.head_norm is not None:
            if self.training and len(read) < 2:
                raise UserError("model.head_norm is a norm over the pictures of a micro-batch, and this one has one picture: give it more "
                                "(data.micro_batch, data.global_batch)")  # fmt: skip
            read = self.head_norm(read)
        return ImageClassifierOutput(self.head(read), hidden, pooled, None if states is None else tuple(states))

    def _pooled(self, hidden: Tensor) -> Tensor:
        pooled = hidden[:, 0] if self.config.pooling == "cls" else hidden[:, 1:].mean(1)
        return pooled if self.fc_norm is None else self.fc_norm(pooled)

    def get_image_features(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Vectors of pictures [B, 3, H, W]: what the head reads (before `pre_logits` and `head_norm`), [B, D]."""
        return self._pooled(self.trunk(pixel_values, interpolate_pos_encoding))

    def folded(self) -> ViT:
        """The same function without `head_norm`: its statistics, which are fixed in evaluation, are in the head's weights."""
        if self.head_norm is None:
            return self
        net = copy.deepcopy(self)
        net.config, net.head_norm = replace(self.config, head_norm=False), None
        mean, variance = self.head_norm.running_mean, self.head_norm.running_var
        assert mean is not None and variance is not None
        with torch.no_grad():
            net.head.weight.mul_((variance + self.head_norm.eps).rsqrt())
            net.head.bias.sub_(net.head.weight @ mean)
        return net


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


def rules(config: ViTConfig) -> Sequence[Rule]:
    """Transformers' ViTForImageClassification, and what it has no place for (`beyond`); transformers 4's spelling is read too."""
    return (
        *LEGACY,
        Ignore(r"vit\.pooler\..*"),
        Rename("vit.embeddings.cls_token", "trunk.embed.cls_token"),
        Rename("vit.embeddings.position_embeddings", "trunk.embed.position_embeddings"),
        patch_rule("vit.embeddings.patch_embeddings.projection.weight", "trunk.embed.patches.projection.weight", config.patch_size),
        Rename("vit.embeddings.patch_embeddings.projection.bias", "trunk.embed.patches.projection.bias"),
        *layers(config.num_hidden_layers,
                block_rules(TRANSFORMERS, "vit.layers.{i}.", "trunk.stack.blocks.{i}", qkv_bias=config.qkv_bias)),
        *(affine("fc_norm", "fc_norm") if config.fc_norm else affine("vit.layernorm", "trunk.stack.final_norm")),
        *(affine("pre_logits", "pre_logits") if config.representation_size else ()),
        *affine("classifier", "head"),
    )  # fmt: skip


def beyond(config: ViTConfig) -> str:
    """What transformers' class would leave out or compute in another way; empty where it is the same network."""
    if config.representation_size:
        return "a hidden layer before its head (representation_size)"
    if config.fc_norm:
        return "a norm behind the mean of its patches (fc_norm; timm has that)"
    if config.pooling == "mean":
        return "the mean of its patches before its head, where that class reads the class token (timm has both)"
    return ""


def is_ours(record: Mapping[str, Any]) -> bool:
    """Whether a config.json is of our own format: `polymodal-vit`, or as earlier versions wrote a mean as transformers' where asked to."""
    return record.get("model_type") == "polymodal-vit" or (record.get("model_type") == "vit" and record.get("pooling") == "mean")


def _files(net: ViT) -> dict[str, dict[str, Any]]:
    return {"preprocessor_config.json": to_transformers(net.preprocessing, "ViTImageProcessor")}


def adapt_to_tune(config: ViTConfig, context: Context) -> ViTConfig:
    """As many classes as the data names, and a head of one layer, as the paper fine-tunes."""
    return replace(adapt(config, context), representation_size=None)


def from_mae(config: TowerConfig) -> ViTConfig:
    """The shape of an MAE's encoder; the head reads what MAE's authors fine-tune: the mean of the patches, and then a norm."""
    both = {f.name for f in fields(ViTConfig)} & {f.name for f in fields(config)} - {"extra"}
    return ViTConfig(**{name: getattr(config, name) for name in both}, pooling="mean", fc_norm=True)


def resampled(tensors: Mapping[str, Tensor], net: ViT) -> Mapping[str, Tensor]:
    """The weights of an image tower, its positions resampled for the pictures of `net`."""
    name, grid = "trunk.embed.position_embeddings", net.trunk.embed.grid
    return {**tensors, name: interpolate_positions(tensors[name], (grid, grid))}


def create(config: ViTConfig, settings: ClassificationSettings, context: Context) -> ClassificationSystem:
    """The pretraining system with randomly initialized weights."""
    check_classes(config, context)
    return ClassificationSystem(ViT(config), settings)


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

_THEIRS, _OWN = or_our_own(
    Net("ViTForImageClassification", ViT, transformers(rules, files=_files, finish=reads_preprocessing("ViTImageProcessor"))),
    ViTConfig, "polymodal-vit", beyond).formats
TRANSFORMERS_FORMAT, OWN = replace(_THEIRS, fold=ViT.folded), replace(_OWN, fold=ViT.folded, recognises=is_ours)
"""The second is for what is beyond the first."""

FAMILIES = (
    Family(
        name="vit",
        card=CARD,
        config=ViTConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("image classification: softmax, or a sigmoid per class", ClassificationSettings, create),
        tasks=(Task("image classification with the classes of the data", ClassificationSettings, create, "classify", adapt_to_tune,
                    "ViTForImageClassification"),),
        nets=(Net("ViTForImageClassification", ViT, TRANSFORMERS_FORMAT,
                  Format("timm", timm_rules, recognises=is_timm, read=timm_config, write=timm_record, finish=read_timm, fold=ViT.folded,
                         suits=suits_timm), OWN),),
        heads=("head", "fc_norm", "pre_logits", "head_norm"),
        starts={"vit": Adopt(resampled), "mae": Adopt(resampled, from_mae)},
        model_type="vit",
    ),
)  # fmt: skip
