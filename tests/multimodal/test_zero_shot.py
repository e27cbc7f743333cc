"""Zero-shot: prompts, class weights against open_clip's, accuracy."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from polymodal.multimodal.clip import CLIP, FAMILIES
from polymodal.multimodal.clip_formats import read_open_clip
from polymodal.multimodal.zero_shot import ZeroShotClassifier, class_weights, templates, top_k_accuracy
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer
from torch.nn import functional as F

LABELS = ["cat", "dog", "a house"]
CFG = {"embed_dim": 20, "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 4, "head_width": 16},
       "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = CLIP(read_open_clip({"model_cfg": CFG}, None)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load("open_clip")


def test_templates():
    assert [t("cat") for t in templates(())] == ["a photo of a cat."]
    assert [t("cat") for t in templates(["{} {x}"])] == ["cat {x}"]
    assert len(templates(["openai"])) == 80 and len(templates(["simple", "an icon of a {}"])) == 8
    assert templates(["openai"])[0]("cat") == "a bad photo of a cat."
    with pytest.raises(UserError, match=r"no \{\} for the class name"):
        templates(["a photo"])


def test_templates_of_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa photo of a {}.\r\n\n  a {} {x}\u2028drawn\n", encoding="utf-8")
    assert [t("cat") for t in templates([str(file), "one {}"])] == ["a photo of a cat.", "a cat {x}\u2028drawn", "one cat"]
    for content, message in ((b"a {}\na cat\n", "line 2 is 'a cat', which has no {}"), (b"\n \n", "holds no templates"),
                             (b"\xff{}", "cannot be read: expected a file of UTF-8")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            templates([str(file)])
    with pytest.raises(UserError, match="cannot be read"):
        templates([str(tmp_path / "none.txt")])


def test_class_weights_equal_open_clips(model, tokenizer):
    theirs = open_clip.CLIP(**CFG).eval()
    theirs.load_state_dict(to_theirs(FAMILIES[0].nets[0].formats[1].rules(model.config), model.state_dict()))
    expected = open_clip.build_zero_shot_classifier(theirs, open_clip.SimpleTokenizer(), LABELS, open_clip.SIMPLE_IMAGENET_TEMPLATES)
    found = class_weights(model, tokenizer, LABELS, templates(["simple"]))
    assert torch.allclose(found.T, expected, atol=2e-6)


def test_the_ensemble_lies_in_the_embedding_space(model, tokenizer):
    prompts = templates(["a {}", "no {} here"])
    each = [class_weights(model, tokenizer, LABELS, [p]) for p in prompts]
    assert torch.allclose(class_weights(model, tokenizer, LABELS, prompts), F.normalize(sum(each), dim=-1), atol=1e-6)


def test_probabilities(model, tokenizer):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)) for _ in range(4)]
    by = ZeroShotClassifier(model, tokenizer, LABELS)
    found = by.probabilities(pictures)
    assert found.shape == (4, 3) and torch.allclose(found.sum(1), torch.ones(4))
    tokens = tokenizer([f"a photo of a {name}." for name in LABELS])
    out = model(tokens["input_ids"], by.normalize(torch.stack([model.preprocessing.pixels(p) for p in pictures])), tokens["attention_mask"])
    assert torch.allclose(found, out.logits_per_image.softmax(-1), atol=1e-5)


def test_labels_are_checked(model, tokenizer):
    with pytest.raises(UserError, match="given twice: cat"):
        ZeroShotClassifier(model, tokenizer, ["cat", "dog", "cat"])
    with pytest.raises(UserError, match="at least one label"):
        ZeroShotClassifier(model, tokenizer, [])


def test_top_k_accuracy():
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    targets = torch.tensor([1, 1, 0])
    assert top_k_accuracy(scores, targets, 1) == pytest.approx(1 / 3)
    assert top_k_accuracy(scores, targets, 2) == pytest.approx(2 / 3)
    assert top_k_accuracy(scores, targets, 9) == 1
