"""UNITER's fine-tuning to answer: the loss beside its formula, soft scores, and what an evaluation makes of them."""

import json

import numpy as np
import pytest
import torch
from parity import assert_equal, noise
from polymodal.multimodal import pair_classes
from polymodal.multimodal.pair_classes import AnswerObjective, PairClassifier, UniterForVisualQuestionAnswering
from polymodal.multimodal.region_pairs import PairSettings, RegionBatch, batch_of_pairs
from polymodal.multimodal.uniter import FAMILIES, UniterConfig, UniterForPreTraining, UniterModel
from polymodal.multimodal.uniter_formats import answer_rules
from polymodal.pipelines.evaluation.answers import PairAnswers
from polymodal.pipelines.train.start import copy_weights
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.family import Context
from polymodal.shared.sample import Sample
from region_samples import CLASSES, SHAPE, TOKENIZER, WIDTH, regions
from torch.nn import functional as F

LABELS = ("yes", "no", "red")
CONFIG = UniterConfig(vocab_size=TOKENIZER.vocab_size, visual_feat_dim=WIDTH, num_object_labels=CLASSES, num_labels=3, labels=LABELS,
                      **SHAPE)


def asked(n, **fields):
    return Sample(str(n), {"txt": f"w{n} w1".encode(), **regions(n, 2 + n % 3).fields(), **fields}, n, "here")


def scored(n, scores):
    return asked(n, json=json.dumps({"scores": scores}).encode())


def net_of():
    return UniterForVisualQuestionAnswering(UniterModel(CONFIG), CONFIG)


def objective():
    return AnswerObjective(TOKENIZER, PairSettings(), WIDTH, LABELS)


def examples(samples):
    return [e for s in samples for e in objective().example(s, np.random.default_rng(0))]


def test_the_loss_is_binary_cross_entropy_summed_over_the_answers():
    net = noise(net_of().double(), seed=4)
    samples = [scored(0, {"yes": 1.0, "no": 0.3}), scored(1, {"blue": 1.0}), asked(2, cls=b"2"), scored(3, {"red": 0.6, "yes": 0.9})]
    made = examples(samples)
    wanted = torch.tensor([[1, 0.3, 0], [0, 0, 0], [0, 0, 1], [0.9, 0, 0.6]], dtype=torch.float64)
    assert np.allclose([e.scores for e in made], wanted)
    batch = objective().collate(made)
    step = pair_classes.AnswerSystem(net, objective())(batch)
    theirs = to_theirs(answer_rules(CONFIG), net.state_dict())
    pooled = net.trunk.packed(batch).pooled
    x = F.gelu(F.linear(pooled, theirs["vqa_output.0.weight"], theirs["vqa_output.0.bias"]))
    x = F.layer_norm(x, (2 * SHAPE["hidden_size"],), theirs["vqa_output.2.weight"], theirs["vqa_output.2.bias"], 1e-12)
    chances = F.linear(x, theirs["vqa_output.3.weight"], theirs["vqa_output.3.bias"]).sigmoid()
    expected = -(wanted * chances.log() + (1 - wanted) * (1 - chances).log()).sum()
    assert batch.counts == {"pairs": 4} and step.terms["answers"].total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert float(step.metrics["accuracy"][0]) == pytest.approx(float(wanted[range(4), chances.argmax(1)].sum()))


def test_the_baseline_is_the_entropy_of_the_mean_scores():
    system = pair_classes.AnswerSystem(net_of(), objective()).eval()
    batch = objective().collate(examples([scored(0, {"yes": 1.0, "no": 0.5}), scored(1, {"yes": 1.0, "red": 0.4})]))
    step = system(batch)
    means = {name: float(total) / count for name, (total, count) in step.metrics.items()}
    assert means["share/no"] == pytest.approx(0.25) and means["share/red"] == pytest.approx(0.2)
    constant = torch.tensor([[1 - 1e-12, 0.25, 0.2]], dtype=torch.float64).expand(2, -1)
    expected = F.binary_cross_entropy(constant, batch.scores.double(), reduction="sum") / 2
    assert system.derive(means)["answers_chance"] == pytest.approx(float(expected), rel=1e-6)


def test_padded_pairs_have_the_logits_of_packed_ones_and_a_pretrained_trunk_fits():
    start, net = noise(UniterForPreTraining(CONFIG)), net_of()
    copy_weights(net, start, FAMILIES[0], "uniter", FAMILIES[0].starts["uniter"])
    assert torch.equal(net.trunk.regions.features.weight, start.trunk.regions.features.weight)
    found, ids = regions(0, 4), np.array([TOKENIZER.cls_id, 7, 8, TOKENIZER.sep_id])
    packed = RegionBatch(counts={}, **batch_of_pairs([ids], [found]))
    features, places = (torch.from_numpy(x).float()[None] for x in (found.features, found.locations))
    with torch.no_grad():
        assert_equal(net.eval()(torch.from_numpy(ids)[None], visual_feats=features, visual_pos=places), net.logits(packed))


@pytest.mark.parametrize(("fields", "message"), [
    ({"json": b'{"scores": {"yes": 2}}'}, "the score of 'yes' is '2', expected a number from 0 to 1"),
    ({"json": b'{"scores": {"yes": "a"}}'}, "the score of 'yes'"), ({"json": b'{"scores": [1]}'}, "is no mapping of answers to numbers"),
    ({"cls": b"3"}, "class 3, the model has 3"), ({"json": b"{}"}, "no whole number as class"),
])
def test_answers_that_mean_nothing_are_told(fields, message):
    with pytest.raises(BadSample, match=message):
        examples([asked(0, **fields)])


def test_data_without_classes_is_refused():
    task = FAMILIES[0].task("classify")
    with pytest.raises(UserError, match="answering needs classes and the data set names none"):
        task.build(UniterConfig(vocab_size=TOKENIZER.vocab_size, **SHAPE), {}, Context(TOKENIZER))
    fitted = task.adapt(CONFIG, Context(classes=("a", "b"), regions=(WIDTH, 0)))
    assert fitted.labels == ("a", "b") and fitted.num_labels == 2
    assert task.build(CONFIG, {}, Context(TOKENIZER)).labels == LABELS


def test_an_evaluation_is_the_mean_score_of_the_most_probable_answer(monkeypatch):
    by = PairClassifier(net_of().eval(), TOKENIZER)
    told = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.8, 0.2], [0.3, 0.2, 0.1], [0.0, 0.1, 0.2]])
    samples = [scored(0, {"yes": 1.0, "no": 0.3}), scored(1, {"no": 0.6}), scored(2, {"red": 1.0}), asked(3, cls=b"2")]
    measure = PairAnswers(by, TOKENIZER)
    order = [int(measure.objective.reader.framed(f"w{n}")[1]) for n in range(4)]
    monkeypatch.setattr(by, "probabilities", lambda pairs: told[[order.index(int(ids[1])) for ids, _ in pairs]])
    for part in ((2, 0), (3, 1)):
        batch = measure.objective.collate([e for n in part for e in measure.objective.example(samples[n], np.random.default_rng(0))])
        batch.sample_ids = list(part)
        measure.add(batch)
    found = measure.result()
    assert found.metrics["accuracy"] == pytest.approx((1 + 0.6 + 0 + 1) / 4) and found.metrics["most_frequent"] == pytest.approx(0.5)
    assert found.metrics["chance"] == pytest.approx((1 + 0.3 + 0.6 + 1 + 1) / 12)
    assert [p["index"] for p in found.predictions] == [0, 1, 2, 3] and found.predictions[0]["predictions"][0] == "yes"
    assert found.predictions[0]["answers"] == pytest.approx({"yes": 1.0, "no": 0.3})
