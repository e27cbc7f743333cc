"""ViT in timm's files: rule table and config.json, both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from ..shared.convert import Rename, Rule, affine, layers
from ..shared.errors import UserError, raise_problems
from ..shared.keys import Keys, honoured, key_problems, no_effect, only, shown
from ..shared.settings import build_settings
from .processor_files import PRETRAINED_CFG, from_timm, to_timm
from .tower import block_rules, patch_rule, square_side
from .transforms import Preprocessing
from .vit_config import ViTConfig


class Classifier(Protocol):
    """What a file says of the network, beside its weights."""

    config: ViTConfig
    preprocessing: Preprocessing


TIMM = {"norm1": "norm1", "qkv": "attn.qkv.", "out": "attn.proj", "norm2": "norm2", "up": "mlp.fc1", "down": "mlp.fc2"}


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


def is_timm(record: Mapping[str, Any]) -> bool:
    """Whether a config.json is timm's, of a ViT."""
    return str(record.get("architecture", "")).startswith("vit_")


def suits_timm(config: ViTConfig) -> bool:
    """Whether timm has this network."""
    return config.hidden_act == "gelu" and config.layer_norm_eps == 1e-6 and not config.representation_size


def timm_record(net: Classifier) -> dict[str, Any]:
    """Timm's config.json for `net`; the shape goes into `model_args`, whatever the name says."""
    c = net.config
    if c.representation_size:
        raise UserError("timm's vit has no hidden layer before its head (representation_size): save this model as polymodal")
    if not suits_timm(c):
        other = "in transformers' format" if c.pooling == "cls" else "as polymodal"
        raise UserError(f"timm's vit has gelu and layer_norm_eps 1e-6, this model {c.hidden_act} and {c.layer_norm_eps:g}: save it {other}")
    pool = "token" if c.pooling == "cls" else "avg"
    arguments = {"img_size": c.image_size, "patch_size": c.patch_size, "embed_dim": c.hidden_size, "depth": c.num_hidden_layers,
                 "num_heads": c.num_attention_heads, "mlp_ratio": c.intermediate_size / c.hidden_size, "qkv_bias": c.qkv_bias,
                 "global_pool": pool, **({"fc_norm": c.fc_norm} if pool == "avg" else {})}  # fmt: skip
    named = {"label_names": list(c.labels)} if c.labels else {}
    return {"architecture": "vit_base_patch16_224", "num_classes": c.num_labels, "num_features": c.hidden_size, "global_pool": pool,
            **named, "model_args": arguments,
            "pretrained_cfg": {**to_timm(net.preprocessing), "num_classes": c.num_labels, "first_conv": "patch_embed.proj",
                               "classifier": "head", **named}}  # fmt: skip


def read_timm(net: Classifier, record: Mapping[str, Any], directory: Path) -> None:
    """Take the preprocessing of pictures over."""
    net.preprocessing = from_timm(_timm_pretrained(record, "config.json"), net.config.image_size)
