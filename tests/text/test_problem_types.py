"""What a classifier's outputs are: scores as transformers' pipelines show them, for every problem type."""

from __future__ import annotations

import numpy as np
import polymodal
import pytest
import torch
import transformers
from PIL import Image
from polymodal.pipelines.model.frontdoor import system
from polymodal.shared.errors import UserError
from polymodal.shared.family import Context
from polymodal.text.classify import TextClassifier
from polymodal.vision.classify import TrainedClassifier

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "the", "plot"]
KINDS = [("single_label_classification", 3), ("multi_label_classification", 3), ("regression", 1), ("regression", 3), (None, 1), (None, 3)]


@pytest.mark.parametrize(("kind", "count"), KINDS)
def test_texts(kind, count, tmp_path):
    torch.manual_seed(count)
    net = transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16,
        num_labels=count, problem_type=kind)).eval()  # fmt: skip
    with torch.no_grad():
        net.classifier.weight.normal_()
        net.classifier.bias.copy_(torch.linspace(-1, 2, count))
    net.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    pipeline = transformers.TextClassificationPipeline(model=net, tokenizer=transformers.BertTokenizer.from_pretrained(tmp_path))
    theirs = pipeline("good film", top_k=None)
    ours = TextClassifier(polymodal.load(tmp_path), polymodal.tokenizer(tmp_path))
    scores, places = ours.probabilities([("good film", None)])[0].sort(descending=True)
    assert [ours.labels[i] for i in places] == [t["label"] for t in theirs]
    assert scores.tolist() == pytest.approx([t["score"] for t in theirs], abs=1e-5)
    polymodal.save(polymodal.load(tmp_path), tmp_path / "again")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "again").problem_type == kind


@pytest.mark.parametrize(("kind", "count"), KINDS)
def test_pictures(kind, count, tmp_path):
    torch.manual_seed(count)
    net = transformers.ViTForImageClassification(transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8, num_labels=count,
        problem_type=kind)).eval()  # fmt: skip
    with torch.no_grad():
        net.classifier.weight.normal_()
    processor = transformers.ViTImageProcessor(size=16)
    net.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    theirs = transformers.ImageClassificationPipeline(model=net, image_processor=processor)(picture, top_k=count)
    ours = TrainedClassifier(polymodal.load(tmp_path))
    scores = ours.probabilities([picture])[0].sort(descending=True).values
    assert scores.tolist() == pytest.approx([t["score"] for t in theirs], abs=1e-5)


@pytest.mark.parametrize(("name", "kind"), [
    ("bert", "regression"), ("vit", "multi_label_classification"), ("vit", "regression")])
def test_they_are_not_trained_as_if_each_sample_had_one_class(name, kind):
    built = system(name, size="tiny")
    config = type(built.net.config).from_dict({**built.net.config.to_dict(), "problem_type": kind})
    entry = polymodal.registry.family(name)
    with pytest.raises(UserError, match=f"training.*says problem_type {kind}|fine-tuning.*says problem_type {kind}"):
        entry.task("classify").build(config, {}, Context(classes=("a", "b"), net_only=True))
