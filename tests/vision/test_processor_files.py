"""What the files of transformers, open_clip and timm say of pictures gives their pixels here, or is refused."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import open_clip
import polymodal
import pytest
import timm
import torch
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from polymodal.pipelines.inference.embed import embed_pictures
from polymodal.shared.errors import UserError
from polymodal.vision.processor_files import (
    from_open_clip,
    from_timm,
    from_transformers,
    reads_preprocessing,
    to_open_clip,
    to_timm,
    to_transformers,
)
from polymodal.vision.transforms import HALF, Normalize, Preprocessing
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

KINDS = {"CLIPImageProcessor": transformers.CLIPImageProcessor, "ViTImageProcessor": transformers.ViTImageProcessor,
         "BeitImageProcessor": transformers.BeitImageProcessor}


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def normalized(preprocessing, image):
    return Normalize(preprocessing)(preprocessing.pixels(image)[None])[0]


CASES = [
    ("ViTImageProcessor", {"size": {"height": 48, "width": 48}}),
    ("BeitImageProcessor", {"size": 48}),
    ("BeitImageProcessor", {"size": 53, "do_center_crop": True, "crop_size": 48, "do_reduce_labels": True}),
    ("ViTImageProcessor", {"size": 48}),
    ("ViTImageProcessor", {"size": [48, 48], "resample": 3, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}),
    ("ViTImageProcessor", {"size": 53, "do_center_crop": True, "crop_size": 48}),
    ("ViTImageProcessor", {"size": {"shortest_edge": 53}, "do_center_crop": True, "crop_size": {"height": 48, "width": 48}}),
    ("ViTImageProcessor", {"size": 48, "crop_size": 20}),  # ViT does not crop unless it is told to
    ("ViTImageProcessor", {"size": 48, "do_normalize": False}),
    ("ViTImageProcessor", {"size": 48, "do_rescale": False, "image_mean": 127.5, "image_std": 60.0}),
    ("ViTImageProcessor", {"size": 48, "do_rescale": False, "do_normalize": False}),
    ("ViTImageProcessor", {"size": 48, "rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 52}, "crop_size": {"height": 48, "width": 48}}),
    ("CLIPImageProcessor", {"size": 53, "crop_size": [48, 48], "resample": 2}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 48}, "crop_size": 48, "do_convert_rgb": False}),
    ("CLIPImageProcessor", {"size": {"height": 48, "width": 48}, "do_center_crop": False}),
    ("CLIPImageProcessor", {"size": [61, 61], "crop_size": 48}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": 48, "do_pad": False}),  # black around it
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=[f"{k[:3]}-{json.dumps(o)[:60]}" for k, o in CASES])
def test_transformers_pixels(kind, options, tmp_path):
    theirs = KINDS[kind](**options)
    theirs.save_pretrained(tmp_path)
    for record in (json.loads((tmp_path / "preprocessor_config.json").read_text()), options):  # as written, and as someone wrote it
        ours = from_transformers(record, kind)
        assert ours.image_size == 48
        for shape in ((50, 70), (91, 33), (48, 48)):
            image = picture(*shape)
            wanted = theirs(image, return_tensors="pt")["pixel_values"][0].float()
            assert torch.allclose(normalized(ours, image), wanted, rtol=1e-5, atol=1e-5), (shape, record)
    again = from_transformers(to_transformers(ours, kind), kind)
    assert again == ours
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(to_transformers(ours, kind)))
    back = KINDS[kind].from_pretrained(tmp_path)(picture(91, 33), return_tensors="pt")["pixel_values"][0].float()
    assert torch.allclose(back, theirs(picture(91, 33), return_tensors="pt")["pixel_values"][0].float(), rtol=1e-5, atol=1e-5)


def test_transformers_without_torchvision_gives_these_pixels_within_a_level():
    options = {"size": {"shortest_edge": 52}, "crop_size": 48, "image_mean": HALF, "image_std": HALF}
    ours, image = from_transformers(options, "CLIPImageProcessor"), picture(60, 90)
    difference = (normalized(ours, image) - CLIPImageProcessorPil(**options)(image, return_tensors="pt")["pixel_values"][0]).abs() * 127.5
    assert difference.max() < 1.5 and difference.mean() < 0.25


@pytest.mark.parametrize(("record", "named"), [
    ({"size": {"height": 4, "width": 5}}, "size is 4x5"), ({"size": 224, "do_resize": False}, "do_resize = False"),
    ({"size": {"shortest_edge": 224}}, "expected do_center_crop"), ({"size": 224, "resample": 0}, "interpolation 0"),
    ({"size": 224, "image_mean": [0.5, 0.5]}, "each of 3 channels"), ({"size": {"shortest_edge": 5, "longest_edge": 9}}, "size"),
    ({"size": 224, "do_pad": True}, "do_pad = True"), ({"size": 224, "offset": True}, "key offset = True is unknown"),
    ({"size": 224, "image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"), ({"size": True}, "size"),
    ({"size": 224, "image_std": 0.0}, "image_std"), ({"size": 224, "rescale_factor": "x"}, "rescale_factor"),
    ({"size": 224, "crop_pct": 0.9}, "crop_pct"), ({"size": "large"}, "size"),
])  # fmt: skip
def test_processors_that_are_not_understood(record, named):
    with pytest.raises(UserError, match=named):
        from_transformers(record, "ViTImageProcessor")


def test_what_was_trained_here_keeps_its_pixels(tmp_path):
    """transformers' own differ by a level and, where an odd number is left over, by a place; it reads the file all the same."""
    ours = Preprocessing(image_size=48, resize_size=53)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(to_transformers(ours, "CLIPImageProcessor")))
    assert from_transformers(json.loads((tmp_path / "preprocessor_config.json").read_text()), "CLIPImageProcessor") == ours
    image = picture(64, 64)
    theirs = transformers.CLIPImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"][0]
    as_theirs = dataclasses.replace(ours, like="transformers")
    assert torch.allclose(normalized(as_theirs, image), theirs, atol=1e-5)
    assert not torch.allclose(normalized(ours, image), theirs, atol=1e-5)
    with pytest.raises(UserError, match="pixels_like is 'x'"):
        from_transformers({"pixels_like": "x"}, "CLIPImageProcessor")


def test_old_names_of_the_classes():
    for name in ("ViTFeatureExtractor", "ViTImageProcessorFast", "ViTImageProcessor"):
        key = "feature_extractor_type" if "Feature" in name else "image_processor_type"
        assert from_transformers({key: name}, "ViTImageProcessor") == from_transformers({}, "ViTImageProcessor")


def test_processor_config_comes_before_preprocessor_config(tmp_path):
    inside, beside = {"size": 48, "resample": 3}, {"size": 48, "resample": 2}
    net = SimpleNamespace(preprocessing=Preprocessing(image_size=48))
    read = reads_preprocessing("ViTImageProcessor")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(beside))
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))  # as transformers 4 wrote it
    read(net, {}, tmp_path)
    assert net.preprocessing == from_transformers(beside, "ViTImageProcessor")
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor", "image_processor": inside}))
    read(net, {}, tmp_path)
    assert net.preprocessing == from_transformers(inside, "ViTImageProcessor")
    for wrong, named in (({"image_processor": 5}, "image_processor is 5"), ({"video_processor": {"size": 4}}, "video_processor"),
                         ({"image_processor": {"size": 50}}, "makes pictures of 50 pixels")):
        (tmp_path / "processor_config.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=named):
            read(net, {}, tmp_path)


@pytest.mark.parametrize("record", [
    {"input_size": [3, 48, 48], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3},
    {"input_size": [3, 48, 48], "crop_pct": 1.0, "interpolation": "bilinear", "mean": [0.1, 0.2, 0.3], "std": [0.3] * 3},
    {"input_size": [3, 48, 48], "crop_pct": 0.77, "crop_mode": "squash"}, {"crop_mode": "center", "fixed_input_size": True},
    {"input_size": [3, 48, 48], "crop_pct": 1.2},
])  # fmt: skip
def test_timms_pixels(record):
    ours = from_timm(record, 48)
    whole = timm.models.PretrainedCfg(**record)  # what timm makes of the file
    whole = dataclasses.replace(whole, input_size=(3, 48, 48))
    theirs = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=whole.to_dict()))
    for shape in ((91, 133), (60, 50)):
        assert torch.allclose(normalized(ours, picture(*shape)), theirs(picture(*shape)), atol=1e-6)
    assert from_timm(to_timm(ours), 48) == ours


@pytest.mark.parametrize("before", range(48, 130))
def test_timms_share_of_the_picture_survives_rounding(before):
    ours = Preprocessing(image_size=48, resize_size=before if before > 48 else None)
    assert from_timm(to_timm(ours), 48) == ours


@pytest.mark.parametrize(("record", "named"), [
    ({"crop_mode": "border"}, "border"), ({"interpolation": "lanczos"}, "lanczos"), ({"input_size": [3, 64, 64]}, "input_size"),
    ({"input_size": [1, 48, 48]}, "input_size"), ({"label_offset": 1}, "label_offset"), ({"mean": [0.5]}, "each of 3 channels"),
    ({"custom_load": True}, "custom_load"), ({"new_key": 1}, "new_key"),
])  # fmt: skip
def test_what_timm_does_otherwise_is_refused(record, named):
    with pytest.raises(UserError, match=named):
        from_timm(record, 48)


@pytest.mark.parametrize("record", [
    {}, {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.1, 0.2, 0.3]},
    {"interpolation": "random", "size": 99, "mode": "RGB", "fill_color": 7},
])  # fmt: skip
def test_open_clips_pixels(record):
    ours = from_open_clip(record, 48)
    theirs = image_transform_v2(PreprocessCfg(**{**record, "size": 48}), is_train=False)
    for shape in ((91, 134), (60, 50)):
        assert torch.allclose(normalized(ours, picture(*shape)), theirs(picture(*shape)), atol=1e-6)
    assert from_open_clip(to_open_clip(ours), 48) == ours


def test_what_open_clip_does_otherwise_is_refused():
    for record, named in (({"resize_mode": "longest"}, "longest"), ({"mode": "L"}, "mode"), ({"new_key": 1}, "new_key"),
                          ({"interpolation": "nearest"}, "nearest")):
        with pytest.raises(UserError, match=named):
            from_open_clip(record, 48)
    with pytest.raises(UserError, match="resizes pictures to what the model sees, 48 pixels, this model to 52"):
        to_open_clip(Preprocessing(image_size=48, resize_size=52))
    assert tuple(open_clip.OPENAI_DATASET_MEAN) == Preprocessing().image_mean
    assert Preprocessing(image_mean=HALF) != Preprocessing()


@pytest.mark.parametrize("options", [{}, {"pretrained_cfg_overlay": {"crop_mode": "squash", "crop_pct": 1.0, "mean": (0.1, 0.2, 0.3)}}])
def test_what_timms_save_for_hf_writes_loads(options, tmp_path):
    """in_chans, sizes as lists, and the preprocessing: pixels and logits are timm's."""
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=3, **options)
    timm.models.save_for_hf(net.eval(), tmp_path, safe_serialization=True, model_config={"label_names": ["a", "b", "c"]})
    ours, image = polymodal.load(tmp_path), picture(40, 70)
    net = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels = timm.data.create_transform(**timm.data.resolve_model_data_config(net))(image)[None]
    assert torch.allclose(normalized(ours.preprocessing, image), pixels[0], atol=1e-6)
    assert ours.config.labels == ("a", "b", "c")
    with torch.no_grad():
        assert torch.allclose(ours(pixels).logits, net(pixels), atol=1e-5)


def test_vectors_of_what_clips_processor_writes(tmp_path):
    """transformers 5 writes no preprocessor_config.json for CLIP; the sizes of the towers may be lists."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(text_config={**tower, "vocab_size": 3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
                                     vision_config={**tower, "image_size": 32, "patch_size": 8}, projection_dim=16)  # fmt: skip
    net = transformers.CLIPModel(config).eval()
    kind = transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=32, image_mean=HALF, image_std=[0.25] * 3, resample=2)
    tokenizer = transformers.CLIPTokenizer(vocab={"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, merges=[])
    processor = transformers.CLIPProcessor(kind, tokenizer)
    net.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    written = json.loads((tmp_path / "config.json").read_text())
    written["vision_config"] |= {"image_size": [32, 32]}
    (tmp_path / "config.json").write_text(json.dumps(written))
    with torch.no_grad():
        theirs = net.get_image_features(**processor(images=picture(50, 70), return_tensors="pt"))
    theirs = torch.nn.functional.normalize(getattr(theirs, "pooler_output", theirs), dim=-1)
    assert torch.allclose(embed_pictures(polymodal.load(tmp_path), [picture(50, 70)]), theirs, atol=1e-5)
