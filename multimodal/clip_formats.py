"""CLIP in transformers' and in open_clip's files: rule tables and configs, both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..shared.convert import Ignore, Rename, Reshape, Rule, Transpose, affine, layers, prefixed
from ..shared.errors import UserError, raise_problems
from ..shared.keys import Keys, honoured, key_problems, no_effect, only
from ..vision.processor_files import from_open_clip, to_open_clip
from ..vision.resnet import ResNetConfig
from ..vision.tower import block_rules, patch_rule, square_side
from ..vision.transforms import Preprocessing
from .clip_config import HIGHEST_ID, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from .pretrained_text import PretrainedTextConfig, read_config, trunk_rules


class DualEncoder(Protocol):
    """What a file says of the network, beside its weights."""

    config: CLIPConfig
    preprocessing: Preprocessing


TEXT_ENCODER = "text_encoder"
"""Folder of an open_clip directory that holds the config.json of a pretrained text tower."""
TRANSFORMERS = {
    "norm1": "layer_norm1", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "out": "self_attn.out_proj",
    "norm2": "layer_norm2", "up": "mlp.fc1", "down": "mlp.fc2",
}  # fmt: skip
OPEN_CLIP = {"norm1": "ln_1", "qkv": "attn.in_proj_", "out": "attn.out_proj", "norm2": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj"}


def suits_transformers(config: CLIPConfig) -> bool:
    """Whether transformers knows this net: it has neither the ResNet, nor a text tower of another family, nor a bias."""
    return (isinstance(config.text_config, CLIPTextConfig) and isinstance(config.vision_config, CLIPVisionConfig)
            and config.logit_bias_init_value is None)


def transformers_rules(config: CLIPConfig) -> Sequence[Rule]:
    """Transformers' CLIPModel."""
    text, vision = config.text_config, config.vision_config
    if not isinstance(text, CLIPTextConfig) or not isinstance(vision, CLIPVisionConfig):
        raise UserError("transformers' CLIPModel has a ViT and CLIP's own text tower: save this model in open_clip's format")
    if config.logit_bias_init_value is not None:
        raise UserError("transformers' CLIPModel has no logit_bias, which SigLIP's loss learns (and its SiglipModel has other towers): "
                        "save this model in open_clip's format")  # fmt: skip
    return (
        Ignore(r".*\.position_ids"),
        Rename("logit_scale", "logit_scale"),
        Rename("text_projection.weight", "text_head.weight"),
        Rename("visual_projection.weight", "image_head.projection.weight"),
        Rename("text_model.embeddings.token_embedding.weight", "text_trunk.embed.word.weight"),
        Rename("text_model.embeddings.position_embedding.weight", "text_trunk.embed.position.weight"),
        *layers(text.num_hidden_layers, block_rules(TRANSFORMERS, "text_model.encoder.layers.{i}.", "text_trunk.stack.blocks.{i}")),
        *affine("text_model.final_layer_norm", "text_trunk.stack.final_norm"),
        *_embedding(vision, "vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding.weight",
                    "vision_model.embeddings.patch_embedding.weight"),
        *affine("vision_model.pre_layrnorm", "image_trunk.pre_norm"),
        *layers(vision.num_hidden_layers,
                block_rules(TRANSFORMERS, "vision_model.encoder.layers.{i}.", "image_trunk.stack.blocks.{i}")),
        *affine("vision_model.post_layernorm", "image_head.norm"),
    )  # fmt: skip


def _embedding(vision: CLIPVisionConfig, cls: str, positions: str, patches: str) -> tuple[Rule, ...]:
    width, count = vision.hidden_size, (vision.image_size // vision.patch_size) ** 2 + 1
    return (
        Reshape(cls, "image_trunk.embed.cls_token", their_shape=(width,), our_shape=(1, 1, width)),
        Reshape(positions, "image_trunk.embed.position_embeddings", their_shape=(count, width), our_shape=(1, count, width)),
        patch_rule(patches, "image_trunk.embed.patches.projection.weight", vision.patch_size),
    )


def open_clip_rules(config: CLIPConfig) -> Sequence[Rule]:
    """open_clip's CLIP, or its CustomTextCLIP where the text tower is of another family."""
    text, vision = config.text_config, config.vision_config
    table: list[Rule] = [Rename("logit_scale", "logit_scale")]
    if config.logit_bias_init_value is not None:
        table.append(Rename("logit_bias", "logit_bias"))
    if isinstance(text, CLIPTextConfig):
        table += [
            Ignore("attn_mask"),
            Rename("token_embedding.weight", "text_trunk.embed.word.weight"),
            Rename("positional_embedding", "text_trunk.embed.position.weight"),
            *layers(text.num_hidden_layers, block_rules(OPEN_CLIP, "transformer.resblocks.{i}.", "text_trunk.stack.blocks.{i}")),
            *affine("ln_final", "text_trunk.stack.final_norm"),
            Transpose("text_projection", "text_head.weight"),
        ]
    else:
        table += [*prefixed(trunk_rules(text), "text.transformer.", "text_trunk.encoder."), Rename("text.proj.weight", "text_head.weight")]
    return (*table, *(_resnet(vision) if isinstance(vision, ResNetConfig) else _vit(vision)))


def _vit(vision: CLIPVisionConfig) -> tuple[Rule, ...]:
    return (
        *_embedding(vision, "visual.class_embedding", "visual.positional_embedding", "visual.conv1.weight"),
        *affine("visual.ln_pre", "image_trunk.pre_norm"),
        *layers(vision.num_hidden_layers,
                block_rules(OPEN_CLIP, "visual.transformer.resblocks.{i}.", "image_trunk.stack.blocks.{i}")),
        *affine("visual.ln_post", "image_head.norm"),
        Transpose("visual.proj", "image_head.projection.weight"),
    )  # fmt: skip


def _convolution(theirs: tuple[str, str], ours: tuple[str, str]) -> tuple[Rule, ...]:
    """A convolution without bias and the batch norm behind it."""
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return (Rename(f"{theirs[0]}.weight", f"{ours[0]}.weight"), *(Rename(f"{theirs[1]}.{p}", f"{ours[1]}.{p}") for p in parts))


def _resnet(vision: ResNetConfig) -> tuple[Rule, ...]:
    table: list[Rule] = []
    for n in (1, 2, 3):
        table += _convolution((f"visual.conv{n}", f"visual.bn{n}"), (f"image_trunk.conv{n}", f"image_trunk.bn{n}"))
    for stage, blocks in enumerate(vision.layers):
        for block in range(blocks):
            theirs, ours = f"visual.layer{stage + 1}.{block}", f"image_trunk.stages.{stage}.{block}"
            for n in (1, 2, 3):
                table += _convolution((f"{theirs}.conv{n}", f"{theirs}.bn{n}"), (f"{ours}.conv{n}", f"{ours}.bn{n}"))
            if block == 0:
                theirs, ours = f"{theirs}.downsample", f"{ours}.downsample"
                table += _convolution((f"{theirs}.0", f"{theirs}.1"), (f"{ours}.conv", f"{ours}.bn"))
    table.append(Rename("visual.attnpool.positional_embedding", "image_head.positional_embedding"))
    for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
        table += affine(f"visual.attnpool.{name}", f"image_head.{name}")
    return tuple(table)


def is_open_clip(record: Mapping[str, Any]) -> bool:
    """Whether an open_clip_config.json describes a CLIP."""
    model = record.get("model_cfg")
    return isinstance(model, Mapping) and "vision_cfg" in model and "text_cfg" in model


WHAT = "open_clip_config.json"
NOT_THERE = "belongs to what is not there"
MODEL_CFG: Keys = {
    "embed_dim": honoured(),
    "vision_cfg": honoured("see below"),
    "text_cfg": honoured("see below"),
    "quick_gelu": honoured(),
    "init_logit_scale": honoured("the weights hold the scale itself"),
    "init_logit_bias": honoured("with a number the network has a bias of its logits (SigLIP's loss); the weights hold the bias itself"),
    "nonscalar_logit_scale": only(False, None),
    "custom_text": no_effect("names one of open_clip's classes for the same network"),
    "output_dict": no_effect("about the form of open_clip's outputs"),
    "cast_dtype": no_effect("about the type of open_clip's weights; here --dtype or the recipe's precision"),
    "multimodal_cfg": only(None),
}
"""Keys of `model_cfg` in open_clip_config.json."""
_BLOCKS: Keys = {
    "ls_init_value": only(None), "block_type": only(None, "default"), "qk_norm": only(False), "scaled_cosine_attn": only(False),
    "scale_heads": only(False), "scale_attn_inner": only(False), "scale_attn": only(False), "scale_fc": only(False),
    "act_kwargs": only(None, {}), "norm_kwargs": only(None, {}), "final_ln_after_pool": only(False, note="the norm comes first"),
    "output_tokens": no_effect("about the form of open_clip's outputs"),
}  # fmt: skip
VISION_CFG: Keys = {
    "image_size": honoured("a number or a square [height, width]"),
    "layers": honoured("a number, or of a ResNet a list of four"),
    "width": honoured(), "head_width": honoured(), "mlp_ratio": honoured(),
    "patch_size": honoured("a number or a square [height, width]; null of a ResNet"),
    **_BLOCKS,
    "attentional_pool": only(False), "no_ln_pre": only(False), "pos_embed_type": only("learnable"), "pool_type": only("tok"),
    "timm_model_name": only(None),
    "patch_dropout": no_effect("about training"),
    **{name: no_effect(NOT_THERE) for name in (
        "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop",
        "timm_drop_path")},
}  # fmt: skip
"""Keys of `vision_cfg` in open_clip_config.json."""
_TOKENIZER: Keys = {
    "hf_tokenizer_name": no_effect("the tokenizer is read from its own files in the directory"),
    "tokenizer_mode": no_effect("about open_clip's reading of text in training"),
    "tokenizer_kwargs": only(None, {}),
}
TEXT_CFG: Keys = {
    **{name: honoured() for name in ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pad_id")},
    "pool_type": honoured("argmax, or eos with another eos_id than 2"),
    "eos_id": honoured("with pool_type eos"),
    **_BLOCKS,
    "embed_cls": only(False), "no_causal_mask": only(False), "proj_bias": only(False), "proj_type": only("linear"),
    **_TOKENIZER,
    "hf_model_name": only(None, note="with a name, the table below"),
    **{name: no_effect(NOT_THERE) for name in ("hf_model_pretrained", "hf_proj_type", "hf_pooler_type")},
}  # fmt: skip
"""Keys of `text_cfg` in open_clip_config.json, of CLIP's own text tower."""
HF_TEXT_CFG: Keys = {
    "hf_model_name": honoured("a folder in the directory that holds the tower's config.json"),
    "hf_proj_type": only("linear"),
    "hf_pooler_type": only("mean_pooler", "cls_last_hidden_state_pooler"),
    "hf_model_pretrained": no_effect("the weights are in the directory"),
    "output_tokens": _BLOCKS["output_tokens"],
    **_TOKENIZER,
    **{name: no_effect(NOT_THERE) for name in TEXT_CFG
       if name not in ("output_tokens", "context_length", *_TOKENIZER) and not name.startswith("hf_")},
}
"""Keys of `text_cfg` in open_clip_config.json, of a text tower of transformers."""
POOLERS = {"mean_pooler": "mean", "cls_last_hidden_state_pooler": "cls"}


def read_open_clip(record: Mapping[str, Any], directory: Path) -> CLIPConfig:
    """From the contents of open_clip_config.json."""
    model = dict(record["model_cfg"])
    vision, text = dict(model["vision_cfg"]), dict(model["text_cfg"])
    hf = text.get("hf_model_name") is not None
    raise_problems([f"{place}: {problem}" for place, part, known in (
        ("model_cfg", model, MODEL_CFG), ("vision_cfg", vision, VISION_CFG), ("text_cfg", text, HF_TEXT_CFG if hf else TEXT_CFG),
    ) for problem in key_problems(part, known)], WHAT)
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    dim, scale = int(model["embed_dim"]), float(model.get("init_logit_scale", CLIPConfig.logit_scale_init_value))
    return CLIPConfig(
        text_config=_read_hf_text(text, directory) if hf else _read_text(text, activation),
        vision_config=_read_resnet(vision) if isinstance(vision.get("layers"), (list, tuple)) else _read_vit(vision, activation),
        projection_dim=dim, logit_scale_init_value=scale,
        logit_bias_init_value=None if model.get("init_logit_bias") is None else float(model["init_logit_bias"]),
    )  # fmt: skip


def _read_vit(vision: Mapping[str, Any], activation: str) -> CLIPVisionConfig:
    width = int(vision.get("width", 768))
    return CLIPVisionConfig(
        hidden_size=width, intermediate_size=int(width * vision.get("mlp_ratio", 4.0)), num_hidden_layers=int(vision.get("layers", 12)),
        num_attention_heads=width // int(vision.get("head_width", 64)), image_size=_side(vision, "image_size", 224),
        patch_size=_side(vision, "patch_size", 16), hidden_act=activation,
    )  # fmt: skip


def _read_resnet(vision: Mapping[str, Any]) -> ResNetConfig:
    return ResNetConfig(tuple(vision["layers"]), int(vision.get("width", 64)), _side(vision, "image_size", 224),
                        int(vision.get("head_width", 64)))  # fmt: skip


def _side(vision: Mapping[str, Any], name: str, default: int) -> int:
    return square_side(vision.get(name, default), f"{WHAT}: {name}")


def _read_text(text: Mapping[str, Any], activation: str) -> CLIPTextConfig:
    width, pool, end = int(text.get("width", 512)), text.get("pool_type", "argmax"), text.get("eos_id", HIGHEST_ID)
    if pool not in ("argmax", "eos") or (pool == "eos" and end == HIGHEST_ID):
        raise UserError(f"open_clip_config.json: pool_type {pool!r} with eos_id {end}: expected argmax, or eos with another id")
    vocabulary = int(text.get("vocab_size", 49408))
    return CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=int(width * text.get("mlp_ratio", 4.0)),
        num_hidden_layers=int(text.get("layers", 12)), num_attention_heads=int(text.get("heads", 8)),
        max_position_embeddings=int(text.get("context_length", 77)), hidden_act=activation, pad_token_id=int(text.get("pad_id", 0)),
        bos_token_id=vocabulary - 2, eos_token_id=HIGHEST_ID if pool == "argmax" else int(end),
    )  # fmt: skip


def _read_hf_text(text: Mapping[str, Any], directory: Path) -> PretrainedTextConfig:
    file = directory / str(text["hf_model_name"]) / "config.json"
    if not file.is_file():
        raise UserError(f"open_clip_config.json: the config of the text tower {text['hf_model_name']!r} is not in the directory: "
                        f"put it at {file}")  # fmt: skip
    record, _ = read_config(file)
    pooler = text.get("hf_pooler_type", "mean_pooler")
    if text.get("hf_proj_type") != "linear" or pooler not in POOLERS:
        raise UserError(f"open_clip_config.json: expected hf_proj_type 'linear' and hf_pooler_type {' or '.join(POOLERS)}, "
                        f"got {text.get('hf_proj_type')!r} and {pooler!r}")  # fmt: skip
    return PretrainedTextConfig(record, "cls" if POOLERS[pooler] == "cls" else "mean")


def write_open_clip(net: DualEncoder) -> dict[str, Any]:
    """The contents of open_clip_config.json."""
    config = net.config
    text, vision = config.text_config, config.vision_config
    towers = [t for t in (text, vision) if isinstance(t, (CLIPTextConfig, CLIPVisionConfig))]
    activations = {t.hidden_act for t in towers}
    problems: list[str] = []
    if len(activations) > 1 or not activations <= {"gelu", "quick_gelu"}:
        problems.append(f"it has one activation for both towers, gelu or quick_gelu, this model {' and '.join(sorted(activations))}")
    if any(t.layer_norm_eps != 1e-5 for t in towers):
        problems.append("its layer norms have eps 1e-5, this model's another")
    if isinstance(vision, ResNetConfig) and len(vision.layers) != 4:
        problems.append(f"its ResNet has 4 stages, this model's {len(vision.layers)}")
    raise_problems(problems, "open_clip cannot hold this model")
    bias = {} if config.logit_bias_init_value is None else {"init_logit_bias": config.logit_bias_init_value}
    return {
        "model_cfg": {"embed_dim": config.projection_dim, **({"quick_gelu": True} if activations == {"quick_gelu"} else {}), **bias,
                      "vision_cfg": _write_vision(vision), "text_cfg": _write_text(text)},
        "preprocess_cfg": to_open_clip(net.preprocessing),
    }  # fmt: skip


def _write_vision(vision: CLIPVisionConfig | ResNetConfig) -> dict[str, Any]:
    if isinstance(vision, ResNetConfig):
        return {"image_size": vision.image_size, "layers": list(vision.layers), "width": vision.width, "head_width": vision.head_width,
                "patch_size": None}  # fmt: skip
    return {"image_size": vision.image_size, "layers": vision.num_hidden_layers, "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads, "patch_size": vision.patch_size,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size}  # fmt: skip


def _write_text(text: CLIPTextConfig | PretrainedTextConfig) -> dict[str, Any]:
    if isinstance(text, PretrainedTextConfig):
        pooler = next(name for name, pooling in POOLERS.items() if pooling == text.pooling)
        return {"hf_model_name": TEXT_ENCODER, "hf_tokenizer_name": ".", "hf_model_pretrained": False, "hf_proj_type": "linear",
                "hf_pooler_type": pooler}  # fmt: skip
    end = {} if text.eos_token_id == HIGHEST_ID else {"pool_type": "eos", "eos_id": text.eos_token_id}
    return {"context_length": text.max_position_embeddings, "vocab_size": text.vocab_size, "width": text.hidden_size,
            "heads": text.num_attention_heads, "layers": text.num_hidden_layers, "mlp_ratio": text.intermediate_size / text.hidden_size,
            "pad_id": text.pad_token_id or 0, **end}  # fmt: skip


def open_clip_files(net: DualEncoder) -> dict[str, Mapping[str, Any]]:
    """The config of a pretrained text tower, which open_clip reads by the name in `hf_model_name`."""
    text = net.config.text_config
    return {f"{TEXT_ENCODER}/config.json": dict(text.encoder)} if isinstance(text, PretrainedTextConfig) else {}


def finish_open_clip(net: DualEncoder, record: Mapping[str, Any], directory: Path) -> None:
    """Take the preprocessing of pictures over."""
    net.preprocessing = from_open_clip(record.get("preprocess_cfg") or {}, net.config.vision_config.image_size)
