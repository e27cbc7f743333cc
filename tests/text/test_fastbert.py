"""FastBERT: its classifiers against the paper's formulas, and texts that leave early against texts that go through all layers."""

from __future__ import annotations

import json
import math

import numpy as np
import polymodal
import processes
import pytest
import torch
import torch.nn.functional as F
from parity import RELATIVE, assert_equal, noise
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.evaluation.classes import classify
from polymodal.pipelines.evaluation.curve import speed_curve
from polymodal.pipelines.evaluation.evaluate import EvaluationSettings, OutputFiles, evaluate
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.shared.block import Block
from polymodal.shared.errors import UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text.classify import TextClassifier
from polymodal.text.fastbert import uncertainty
from torch.utils.flop_counter import FlopCounterMode

WORDS = [a + b for a in ("ka", "mo", "ti", "su") for b in ("ren", "sol", "an", "es")]
SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 42,
         "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" ".join(WORDS)] * 9, "wordpiece", 50)


def made(tok, task="classify", **changed):
    """With weights of which each layer is certain of other texts."""
    system = polymodal.system("fastbert", size="tiny", task=task, tokenizer=tok, classes=LABELS, **{**SMALL, "num_labels": 3, **changed})
    noise(system, scale=0.25)
    with torch.no_grad():
        for classifier, factor in zip(system.net.exits, (0.3, 2.2, 5.0, 1.0), strict=True):
            classifier.out.bias.zero_()
            classifier.out.weight.mul_(factor)
    return system


def texts(count=12):
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 1 + n % 7 * 3)) for n in range(count)]


def test_uncertainty_is_the_entropy_over_that_of_the_uniform_prediction():
    logits = torch.tensor([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0], [1.0, 0.0, -1.0]])
    p = logits[2].softmax(-1)
    expected = [1.0, 0.0, float(-(p * p.log()).sum() / math.log(3))]
    assert uncertainty(logits).tolist() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_a_classifier_is_the_papers(tok):
    """Dense and tanh, attention of 2 heads with an output layer, the first token, dense and tanh, classes: as torch's own layers."""
    net = made(tok).net.eval()
    x, one = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0)), net.exits[1]
    other = torch.nn.MultiheadAttention(128, 2, batch_first=True).eval()
    other.load_state_dict({"in_proj_weight": one.attention.qkv.weight, "in_proj_bias": one.attention.qkv.bias,
                           "out_proj.weight": one.attention.out.weight, "out_proj.bias": one.attention.out.bias})
    narrow = torch.tanh(one.down(x))
    expected = one.out(torch.tanh(one.dense(other(narrow, narrow, narrow)[0][:, 0])))
    assert_equal(one(x, net._plan(x, None, None), None), expected)


@torch.no_grad()
@pytest.mark.parametrize("speed", [0.0, 0.45, 0.5, 0.55, 1.0])
def test_each_text_has_the_prediction_of_the_layer_where_it_leaves(tok, speed):
    """Packed, padded and alone: what a text's first certain layer says when all layers run."""
    system = made(tok)
    net, by = system.net.eval(), TextClassifier(system.net, tok)
    batch = by.framed([(text, None) for text in texts()])
    states = net.trunk(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths,
                       output_hidden_states=True).hidden_states
    every = torch.stack(net.judged(states, None, batch.lengths, range(4)))  # [layers, N, classes]
    certain = torch.stack([uncertainty(logits) <= speed for logits in every[:3]] + [torch.ones(len(batch.lengths), dtype=torch.bool)])
    first = certain.long().argmax(0)
    expected = every[first, torch.arange(len(first))]
    if 0 < speed < 1:
        assert len(set(first.tolist())) > 2, "the probe is blind"

    net.hurry(speed)
    packed = net(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths)
    assert packed.exit_layers.tolist() == (first + 1).tolist()
    assert_equal(packed.logits, expected)
    rows = torch.nn.utils.rnn.pad_sequence(list(batch.input_ids[0].split(list(batch.lengths))), batch_first=True)
    keep = torch.nn.utils.rnn.pad_sequence([torch.ones(n, dtype=torch.long) for n in batch.lengths], batch_first=True)
    padded = net(rows, keep)
    assert padded.exit_layers.tolist() == (first + 1).tolist()
    assert_equal(padded.logits, expected)


@torch.no_grad()
def test_no_layer_runs_on_a_text_that_has_left(tok, monkeypatch):
    system = made(tok)
    net, by, rows = system.net.eval(), TextClassifier(system.net, tok), []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, *rest: (rows.append(x.shape[1]), forward(self, x, *rest))[1])
    batch = by.framed([(text, None) for text in texts()])
    net.hurry(0.5)
    out = net(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths)
    lengths = torch.tensor(batch.lengths)
    assert rows == [int(lengths[out.exit_layers > layer].sum()) for layer in range(int(out.exit_layers.max()))]
    rows.clear()
    net.hurry(1.0)
    net(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths)
    assert len(rows) == 1


def test_operations_are_those_that_run(tok):
    net = made(tok).net.eval()
    for speed, depth in ((None, 4), (1.0, 1)):
        net.speed = speed
        with FlopCounterMode(display=False) as counter:
            net(torch.arange(5, 30)[None])
        assert net.operations(25, depth) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def batch_of(system):
    samples = [Sample(str(n), {"txt": text.encode(), "cls": str(n % 3).encode()}, n) for n, text in enumerate(texts(5))]
    return system.objective.collate([e for s in samples for e in system.objective.example(s, np.random.default_rng(0))])


def test_the_first_stage_trains_trunk_and_last_classifier(tok):
    system = made(tok)
    assert {name for name, p in system.named_parameters() if not p.requires_grad} == {
        name for name, _ in system.named_parameters() if name.startswith(("net.exits.0", "net.exits.1", "net.exits.2"))}


def test_the_second_stage_is_the_divergence_of_all_lower_classifiers(tok):
    """`F.kl_div(log p_s, p_t, reduction="batchmean")`, summed over the layers, as the authors' code has it; no labels are read."""
    system = made(tok, "exits").train()
    batch = batch_of(system)
    states = system.net.trunk(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths,
                              output_hidden_states=True).hidden_states
    *students, teacher = system.net.judged(states, None, batch.lengths, range(4))
    expected = sum(F.kl_div(s.log_softmax(-1), teacher.softmax(-1).detach(), reduction="batchmean") for s in students)
    found = system(batch).terms["exits"].total / batch.counts["texts"]
    assert found.item() == pytest.approx(expected.item(), rel=RELATIVE)
    found.backward()
    reached = {name.split(".")[1] + "." + name.split(".")[2] for name, p in system.named_parameters() if p.grad is not None}
    assert reached == {"exits.0", "exits.1", "exits.2"}
    unlabelled = Sample("x", {"txt": b"karen"}, 0)
    assert len(list(system.objective.example(unlabelled, np.random.default_rng(0)))) == 1


def test_accuracy_and_cost_at_several_speeds(tok, tmp_path):
    net = made(tok).net
    polymodal.save(net, tmp_path / "net", tokenizer=tok)
    lines = [{"text": text, "label": LABELS[n % 3]} for n, text in enumerate(texts())]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pack([tmp_path / "texts.jsonl"], tmp_path / "data", PackSettings(Reading(label_field="label", classes=LABELS)), workers=Workers(1))
    settings = EvaluationSettings(device="cpu", batch_size=5)
    found = evaluate(classify(DataSet.open(tmp_path / "data"), (0.5, 1.0)), tmp_path / "net", tmp_path / "data", settings,
                     output=OutputFiles(curve=tmp_path / "curve.svg"), console=Console(quiet=True))["metrics"]
    assert found["layers"] == 4 and found["speed-1/layers"] == 1 and 1 < found["speed-0.5/layers"] < 4
    # at this width the classifiers cost more than the layers
    assert found["operations_share"] == 1 and found["speed-0.5/operations_share"] > found["speed-1/operations_share"] > 0.25
    assert {"accuracy", "speed-0.5/accuracy", "speed-0.5/seconds_per_text"} <= found.keys()
    svg = (tmp_path / "curve.svg").read_text()
    assert svg == speed_curve(found) and svg.count(">all layers<") == 2 and svg.count(">speed 0.5<") == 2


def test_the_figure_is_not_written_under_another_kinds_name():
    child = processes.polymodal("evaluate", "classify", "--model", "x", "--data", "y", "--speed", "0.5", "--plot", "curve.png")
    assert child.wait() == 2 and "--plot curve.png: the figure is an SVG; name it curve.svg" in child.err


def test_speeds_are_checked(tok, tmp_path):
    net = made(tok).net
    for speed in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="expected a number from 0"):
            TextClassifier(net, tok, speed)
    other = polymodal.system("bert", size="tiny", task="classify", tokenizer=tok, classes=LABELS).net
    with pytest.raises(UserError, match="speed is for networks with a classifier behind each layer"):
        TextClassifier(other, tok, 0.5)
