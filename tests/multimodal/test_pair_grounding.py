"""UNITER's fine-tuning to find what a phrase means: the loss beside its formula, which regions are right, and what an evaluation counts."""

import json

import numpy as np
import pytest
import torch
from parity import assert_equal, noise
from polymodal.multimodal.pair_grounding import Grounder, PhraseObjective, PhraseSystem, UniterForReferringExpressionComprehension
from polymodal.multimodal.region_pairs import PairSettings, RegionBatch, batch_of_pairs
from polymodal.multimodal.uniter import FAMILIES, UniterForPreTraining, UniterModel
from polymodal.multimodal.uniter_formats import grounding_rules
from polymodal.pipelines.evaluation.tasks import Answers
from polymodal.pipelines.train.start import copy_weights
from polymodal.shared.convert import to_ours, to_theirs
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.family import Context
from polymodal.shared.regions import Regions, overlaps
from polymodal.shared.sample import Sample
from region_samples import CLASSES, CONFIG, TOKENIZER, WIDTH, regions

BOXES = np.array([[0, 0, 0.4, 0.5], [0.5, 0, 1, 0.5], [0.52, 0.02, 1, 0.5], [0, 0.6, 0.3, 1]], dtype=np.float32)


def phrase(n, box, boxes=BOXES):
    found = Regions(np.random.default_rng(n).normal(size=(len(boxes), WIDTH)), boxes, None)
    return Sample(str(n), {"txt": f"w{n} w1".encode(), "json": json.dumps({"box": box}).encode(), **found.fields()}, n, "here")


def net_of():
    return UniterForReferringExpressionComprehension(UniterModel(CONFIG, pooler=False), CONFIG)


def objective(training=True):
    return PhraseObjective(TOKENIZER, PairSettings(), WIDTH, training)


def batch_of(samples, training=True):
    own = objective(training)
    return own.collate([e for s in samples for e in own.example(s, np.random.default_rng(0))])


def test_overlap_is_the_share_of_the_union():
    found = overlaps(BOXES, np.array([0.5, 0, 1, 0.5], dtype=np.float32))
    assert found.tolist() == pytest.approx([0, 1, 0.48 * 0.48 / 0.25, 0], rel=1e-5)
    assert overlaps(BOXES[:1], np.array([0.2, 0.25, 0.6, 0.75]))[0] == pytest.approx(0.05 / (0.2 + 0.2 - 0.05), rel=1e-5)


def test_the_loss_is_cross_entropy_over_the_regions_of_each_picture():
    net = noise(net_of().double(), seed=4)
    samples = [phrase(0, [0.5, 0, 1, 0.5]), phrase(1, [0, 0.6, 0.3, 1]), phrase(2, [0, 0, 0.4, 0.5], BOXES[:2])]
    batch = batch_of(samples)
    assert batch.labels.tolist() == [1, 3, 0] and batch.right.tolist() == [0, 1, 1, 0, 0, 0, 0, 1, 1, 0]
    step = PhraseSystem(net, objective())(batch)
    theirs = to_theirs(grounding_rules(CONFIG), net.state_dict())
    total = right = guessed = 0.0
    for sample, label, allowed in zip(samples, (1, 3, 0), ([1, 2], [3], [0])):
        one = batch_of([sample])
        count = one.counts_of_regions[0]
        scores = net.trunk.packed(one).last_hidden_state[0, -count:] @ theirs["re_output.weight"][0] + theirs["re_output.bias"]
        total -= scores.log_softmax(0)[label].item()
        right += int(scores.argmax()) in allowed
        guessed += len(allowed) / count
    assert batch.counts == {"phrases": 3} and step.terms["region"].total.item() == pytest.approx(total, rel=1e-9)
    assert float(step.metrics["accuracy"][0]) == right and float(step.metrics["guessed"][0]) == pytest.approx(guessed, rel=1e-6)
    assert float(step.metrics["region_chance"][0]) == pytest.approx(2 * np.log(4) + np.log(2), rel=1e-6)


def test_padded_pairs_have_the_scores_of_packed_ones_and_a_pretrained_trunk_fits():
    start, net = noise(UniterForPreTraining(CONFIG)), net_of()
    lines = copy_weights(net, start, FAMILIES[0], "uniter", FAMILIES[0].starts["uniter"])
    assert torch.equal(net.trunk.regions.features.weight, start.trunk.regions.features.weight) and any("score" in line for line in lines)
    texts, found = [np.array([2, 7, 8, 3]), np.array([2, 9, 3])], [regions(0, 3), regions(1, 2)]
    packed = RegionBatch(counts={}, **batch_of_pairs(texts, found))
    ids, keep = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    features, places = (torch.nn.utils.rnn.pad_sequence([torch.from_numpy(x).float() for x in parts], batch_first=True)
                        for parts in ([r.features for r in found], [r.locations for r in found]))
    with torch.no_grad():
        padded = net.eval()(ids, keep, visual_feats=features, visual_pos=places, visual_attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))
        ours = net.logits(packed)
    there = ours.isfinite()
    assert there.tolist() == [[True] * 3, [True, True, False]] and torch.equal(there, padded.isfinite())
    assert_equal(padded[there], ours[there])


def test_a_file_of_the_published_code_may_have_a_pooler():
    net = noise(net_of())
    theirs = {**to_theirs(grounding_rules(CONFIG), net.state_dict()), "uniter.pooler.dense.weight": torch.zeros(16, 16)}
    assert "re_output.weight" in theirs and to_ours(grounding_rules(CONFIG), theirs).keys() == net.state_dict().keys()


@pytest.mark.parametrize(("box", "message"), [
    ([0, 0, 1], "the box is .0, 0, 1., expected four numbers from 0 to 1"), ([0, 0, 1, 40], "expected four numbers from 0 to 1"),
    ([0.5, 0, 0.2, 1], "expected left < right"), (None, "no 'box' in field 'json'"), ([0, 0, True, 1], "expected four numbers"),
    ([0.7, 0.7, 1, 1], "none of its 4 regions overlaps the box by more than 0.5 .the best by 0.00."),
])
def test_boxes_that_mean_nothing_are_told(box, message):
    with pytest.raises(BadSample, match=message):
        batch_of([phrase(0, box)])


def test_a_picture_without_a_right_region_counts_as_wrong_in_an_evaluation():
    batch = batch_of([phrase(0, [0.7, 0.7, 1, 1])], training=False)
    step = PhraseSystem(noise(net_of()), objective(False)).eval()(batch)
    assert not batch.right.any() and float(step.metrics["accuracy"][0]) == 0 and float(step.metrics["guessed"][0]) == 0


def test_an_evaluation_counts_right_regions(monkeypatch):
    by = Grounder(noise(net_of()), TOKENIZER)
    told = by.answer([by.labelled(phrase(0, [0, 0, 0.4, 0.5]))[0], by.labelled(phrase(1, [0, 0, 0.4, 0.5], BOXES[:2]))[0]])
    assert [len(row) for row in told] == [4, 2] and all(sum(row) == pytest.approx(1, abs=1e-5) for row in told)
    monkeypatch.setattr(by, "answer", lambda inputs: [[0.1, 0.2, 0.6, 0.1][:len(found.features)] for _, found in inputs])
    measure = Answers(by)
    samples = [phrase(0, [0.5, 0, 1, 0.5]), phrase(1, [0, 0.6, 0.3, 1]), phrase(2, [0.7, 0.7, 1, 1])]
    batch = measure.objective.collate([e for s in samples for e in measure.objective.example(s, np.random.default_rng(0))])
    batch.sample_ids = [0, 1, 2]
    measure.add(batch)
    found = measure.result()
    assert found.metrics == pytest.approx({"accuracy": 1 / 3, "chance": (0.5 + 0.25 + 0) / 3, "found": 2 / 3})
    assert found.predictions[0]["prediction"] == 2 and found.predictions[0]["right"] == [1, 2]


def test_boxes_are_packed_from_lists(tmp_path):
    from polymodal.pipelines.crew.pieces import Workers
    from polymodal.pipelines.data.dataset import DataSet
    from polymodal.pipelines.pack.pack import pack
    from polymodal.pipelines.pack.settings import PackSettings, Reading

    found = regions(0, 2)
    np.savez(tmp_path / "0.npz", features=found.features, norm_bb=found.boxes)

    def packed(box, name):
        (tmp_path / "t.jsonl").write_text(json.dumps({"image": "0.npz", "caption": ["w1", "w2"], "box": box}))
        return pack([tmp_path / "t.jsonl"], tmp_path / name, PackSettings(Reading("regions", label_field="box")), workers=Workers(1))

    packed([0, 0.25, 1, 0.5], "good")
    first = DataSet.open(tmp_path / "good").read(0)
    assert first.box().tolist() == [0, 0.25, 1, 0.5] and first.json()["captions"] == ["w1", "w2"]
    with pytest.raises(UserError, match=r"line 1: 'box': the box is .0, 10, 40, 20., expected four numbers from 0 to 1"):
        packed([0, 10, 40, 20], "bad")


def test_what_does_not_fit_is_refused():
    task = FAMILIES[0].task("ground")
    with pytest.raises(UserError, match="width 10, and those of the data have width 11"):
        task.adapt(CONFIG, Context(regions=(WIDTH + 1, CLASSES)))
    assert task.build(CONFIG, {}, Context(TOKENIZER)).net.trunk.pooler is None
