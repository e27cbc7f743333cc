"""Every key that transformers, open_clip and timm write for our networks is in a table of docs/compatibility.md."""

from __future__ import annotations

import dataclasses
import inspect
import json

import open_clip
import pytest
import timm
import transformers
from open_clip.transform import PreprocessCfg
from polymodal.multimodal import clip_formats
from polymodal.multimodal.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from polymodal.pipelines.cards.compatibility import compatibility_page
from polymodal.seq2seq.bart import BartConfig
from polymodal.seq2seq.gpt import OpenAIGPTConfig
from polymodal.seq2seq.gpt2 import GPT2Config
from polymodal.seq2seq.t5 import T5Config
from polymodal.shared.config import COMMON
from polymodal.shared.errors import UserError
from polymodal.shared.keys import check_keys, honoured, no_effect, only, same
from polymodal.text.albert import AlbertConfig
from polymodal.text.bert import BertConfig
from polymodal.text.electra import ElectraConfig
from polymodal.text.ernie import ErnieConfig
from polymodal.text.roberta import RobertaConfig
from polymodal.vision.beit import BeitConfig
from polymodal.vision.processor_files import IMAGE_PROCESSOR, PREPROCESS_CFG, PRETRAINED_CFG, PROCESSOR_KEYS
from polymodal.vision.vit_config import ViTConfig
from polymodal.vision.vit_timm import MODEL_ARGS, TIMM_KEYS
from timm.models.vision_transformer import VisionTransformer

CODE = {"embed_layer", "block_fn", "mlp_layer"}  # arguments of timm's network that are classes, and never in a file


@pytest.mark.parametrize(("written", "table"), [
    (transformers.CLIPImageProcessor.valid_kwargs.__annotations__, IMAGE_PROCESSOR),
    (transformers.CLIPImageProcessor().to_dict(), IMAGE_PROCESSOR),
    (transformers.ViTImageProcessor().to_dict(), IMAGE_PROCESSOR),
    (transformers.BeitImageProcessor().to_dict(), IMAGE_PROCESSOR),
    ({f.name for f in dataclasses.fields(timm.models.PretrainedCfg)}, PRETRAINED_CFG),
    (set(inspect.signature(VisionTransformer.__init__).parameters) - CODE - {"self"}, MODEL_ARGS),
    ({f.name for f in dataclasses.fields(PreprocessCfg)}, PREPROCESS_CFG),
    ({f.name for f in dataclasses.fields(open_clip.CLIPVisionCfg)}, clip_formats.VISION_CFG),
    ({f.name for f in dataclasses.fields(open_clip.CLIPTextCfg)}, clip_formats.TEXT_CFG),
    ({f.name for f in dataclasses.fields(open_clip.CLIPTextCfg)} - {"context_length"}, clip_formats.HF_TEXT_CFG),
    (set(inspect.signature(open_clip.CLIP.__init__).parameters) - {"self"}, clip_formats.MODEL_CFG),
], ids=["clip-arguments", "clip", "vit", "beit", "timm-cfg", "timm-args", "open_clip-pictures", "open_clip-vision", "open_clip-text",
        "open_clip-hf-text", "open_clip"])  # fmt: skip
def test_every_key_is_in_a_table(written, table):
    assert not sorted(set(written) - set(table))


def test_what_the_libraries_write_is_in_the_tables(tmp_path):
    """The files themselves, beside the classes: what is written may have keys of its own."""
    tokenizer = transformers.CLIPTokenizer(vocab={"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, merges=[])
    transformers.CLIPProcessor(transformers.CLIPImageProcessor(), tokenizer).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "processor_config.json").read_text())
    check_keys(written, PROCESSOR_KEYS, "processor_config.json")
    check_keys(written["image_processor"], IMAGE_PROCESSOR, "image_processor")
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=3)
    timm.models.save_for_hf(net, tmp_path, safe_serialization=True, model_config={"label_names": ["a", "b", "c"]})
    written = json.loads((tmp_path / "config.json").read_text())
    check_keys(written, TIMM_KEYS, "config.json")
    check_keys(written["model_args"], MODEL_ARGS, "model_args")
    check_keys(written["pretrained_cfg"], PRETRAINED_CFG, "pretrained_cfg")


def test_a_table_says_what_is_taken():
    known = {"a": honoured(), "b": only(False, None), "c": no_effect("speed")}
    check_keys({"a": 5, "b": False, "c": object(), "d": None}, known, "it")
    with pytest.raises(UserError, match=r"it: b = 0 is not supported, only False or None; key d = 0 is unknown"):
        check_keys({"b": 0, "d": 0}, known, "it")


def test_the_page_has_a_row_for_every_key():
    page = compatibility_page()
    for table in (IMAGE_PROCESSOR, PRETRAINED_CFG, MODEL_ARGS, clip_formats.TEXT_CFG):
        assert all(f"| `{name}` | " in page for name in table)
    assert "| `do_pad` | only `false` or `null` |" in page


CONFIGS = {
    "BertConfig": BertConfig, "ElectraConfig": ElectraConfig, "GPT2Config": GPT2Config, "T5Config": T5Config, "ViTConfig": ViTConfig,
    "RobertaConfig": RobertaConfig, "AlbertConfig": AlbertConfig, "ErnieConfig": ErnieConfig, "CLIPConfig": CLIPConfig,
    "CLIPTextConfig": CLIPTextConfig, "CLIPVisionConfig": CLIPVisionConfig, "OpenAIGPTConfig": OpenAIGPTConfig, "BartConfig": BartConfig,
    "BeitConfig": BeitConfig,
}  # fmt: skip


def other(value):
    """Another value than this one, of a kind that may stand there."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return f"{value}-x" if isinstance(value, str) else [*value, "x"] if isinstance(value, list) else {**value, "x": 1}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_of_a_config_is_in_a_table_and_does_what_it_says(name):
    """Each key that is written, with another value: honoured ones are seen or refused, `only` refuses, the rest changes nothing."""
    ours, written = CONFIGS[name], getattr(transformers, name)().to_dict()
    table = {**COMMON, **ours.keys()}
    assert not sorted(set(written) - set(table))
    plain = ours.from_dict(written)
    for key, value in written.items():
        changed = {**written, key: other(value)}
        if table[key].fate == "only" and not any(same(changed[key], v) for v in table[key].values):
            with pytest.raises(UserError, match=key):
                ours.from_dict(changed)
        elif table[key].fate == "no effect" or key in ("id2label", "problem_type"):  # of networks that have classes; see below
            assert key in ("id2label", "problem_type", "text_config_dict", "vision_config_dict") or ours.from_dict(changed) == plain, key
        else:
            try:
                assert ours.from_dict(changed) != plain, key
            except UserError as error:
                assert str(error), key  # named, such as a width that the heads do not divide


def test_an_unknown_problem_type_is_refused():
    assert BertConfig.from_dict({"problem_type": "regression"}).problem_type == "regression"
    with pytest.raises(UserError, match="problem_type is 'ranking'"):
        BertConfig.from_dict({"problem_type": "ranking"})
