"""Fine-tuning BERT, ELECTRA, RoBERTa and ALBERT to classify: framing, losses, metrics, export."""

from __future__ import annotations

import json

import numpy as np
import polymodal
import pytest
import torch
import transformers
from polymodal.pipelines.model.export import export_system
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text.classify import ClassifyExample, ClassifyObjective
from polymodal.text.encoder_task import shortened
from polymodal.text.tasks import ClassifierOutput, SequenceClassifier

WORDS = ["red", "green", "blue", "cat", "dog", "house", "tree", "runs", "sleeps", "and", "the", "small", "large", "old", "new"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 40}
LABELS = ("no", "maybe", "yes")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([" ".join(WORDS) + "."] * 20, "wordpiece", 79)


def built(name, tokenizer, **overrides):
    torch.manual_seed(0)
    return polymodal.system(name, size="tiny", task="classify", tokenizer=tokenizer, classes=LABELS, **{**SMALL, **overrides})


def sample(text, label, pair=None):
    return Sample("k", {"txt": text.encode(), "cls": str(label).encode(), **({} if pair is None else {"pair.txt": pair.encode()})})


def batch_of(system, rows):
    objective = system.objective
    return objective.collate([e for row in rows for e in objective.example(sample(*row), np.random.default_rng(0))])


ROWS = [("red cat", 0), ("the small dog runs and sleeps", 2, "the house"), ("blue", 1), ("old tree", 2, "new tree and old house")]


def test_a_text_and_a_pair_are_framed(tokenizer):
    objective = ClassifyObjective(tokenizer, LABELS, 40)
    ids, types = objective.frame("red cat", "the dog")
    assert [tokenizer.id_to_token(int(i)) for i in ids] == ["[CLS]", "red", "cat", "[SEP]", "the", "dog", "[SEP]"]
    assert types.tolist() == [0, 0, 0, 0, 1, 1, 1]
    ids, types = objective.frame("red cat")
    assert [tokenizer.id_to_token(int(i)) for i in ids] == ["[CLS]", "red", "cat", "[SEP]"] and not types.any()
    assert not ClassifyObjective(tokenizer, LABELS, 40, token_types=1).frame("red", "cat")[1].any()
    assert len(ClassifyObjective(tokenizer, LABELS, 8).frame("red cat " * 9, "the dog " * 9)[0]) == 8


def test_a_pair_that_is_too_long_loses_the_longer_ends_one_by_one():
    for first in range(9):
        for second in range(9):
            for room in range(2, 13):
                a, b = list(range(first)), list(range(10, 10 + second))
                while len(a) + len(b) > room:  # google-research/bert's _truncate_seq_pair
                    (a if len(a) > len(b) else b).pop()
                assert shortened(list(range(first)), list(range(10, 10 + second)), room) == (a, b)


@pytest.mark.parametrize("name", ["bert", "electra", "roberta", "albert"])
def test_loss_and_accuracy_are_those_of_each_text_alone(name, tokenizer):
    system = built(name, tokenizer).eval()
    step = system(batch_of(system, ROWS))
    alone = [system(batch_of(system, [row])) for row in ROWS]
    assert step.terms["classification"].total.item() == pytest.approx(sum(s.terms["classification"].total.item() for s in alone), rel=1e-5)
    assert step.metrics["accuracy"][0] == sum(s.metrics["accuracy"][0] for s in alone)
    assert batch_of(system, ROWS).counts == {"texts": 4}


class Guess(SequenceClassifier):
    """Guesses every class now and then."""

    def forward(self, input_ids, attention_mask, token_type_ids, position_ids, lengths):
        sums = torch.stack([ids.sum() % 3 for ids in input_ids[0].split(lengths)])
        return ClassifierOutput(torch.nn.functional.one_hot(sums, 3).float())


def test_macro_f1_adds_up_over_batches(tokenizer):
    """Against precision and recall counted by hand."""
    system = built("bert", tokenizer).eval()
    rng = np.random.default_rng(0)
    rows = [(" ".join(rng.choice(WORDS, size=4)), int(rng.integers(3))) for _ in range(40)]
    system.net = Guess()
    sums = {}
    for part in (rows[:7], rows[7:]):
        for key, (total, count) in system(batch_of(system, part)).metrics.items():
            old = sums.get(key, (0, 0))
            sums[key] = (old[0] + float(total), old[1] + float(count))
    means = {key: total / count if count else 0.0 for key, (total, count) in sums.items()}
    guesses = system.logits(batch_of(system, rows)).argmax(-1).tolist()
    truth = [row[1] for row in rows]
    scores = []
    for c in range(3):
        right = sum(g == t == c for g, t in zip(guesses, truth))
        precision, recall = right / max(1, guesses.count(c)), right / max(1, truth.count(c))
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
        assert means[f"f1/{LABELS[c]}"] == pytest.approx(scores[-1])
    assert len(set(guesses)) == 3
    assert system.derive(means)["macro_f1"] == pytest.approx(sum(scores) / 3)
    assert "f1/yes" not in system.train()(batch_of(system, rows)).metrics


@pytest.mark.parametrize(("name", "reference"), [
    ("bert", "BertForSequenceClassification"), ("electra", "ElectraForSequenceClassification"),
    ("roberta", "RobertaForSequenceClassification"), ("albert", "AlbertForSequenceClassification")])
def test_the_export_loads_in_transformers_with_the_same_logits_and_names(name, reference, tokenizer, tmp_path):
    system = built(name, tokenizer).eval()
    export_system(system, tmp_path / "out", tokenizer)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [reference] and config["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    theirs, report = getattr(transformers, reference).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert theirs.config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    packed = batch_of(system, ROWS)
    ids = torch.nn.utils.rnn.pad_sequence(packed.input_ids[0].split(packed.lengths), batch_first=True)
    types = torch.nn.utils.rnn.pad_sequence(packed.token_type_ids[0].split(packed.lengths), batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor(packed.lengths)[:, None]
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids, attention_mask=mask.long(), token_type_ids=types).logits
        torch.testing.assert_close(system.logits(packed), expected, atol=1e-5, rtol=1e-5)
    again = polymodal.load(tmp_path / "out")
    assert again.config.labels == LABELS and type(again) is type(system.net)


def test_what_cannot_be_classified_is_refused(tokenizer):
    system = built("bert", tokenizer)
    with pytest.raises(BadSample, match="class 3, the model has 3"):
        list(system.objective.example(sample("red", 3), np.random.default_rng(0)))
    with pytest.raises(BadSample, match="no whole number as class"):
        list(system.objective.example(Sample("k", {"txt": b"red"}), np.random.default_rng(0)))
    with pytest.raises(UserError, match="max_length is 99, the model has 40 positions"):
        polymodal.system("bert", size="tiny", task="classify", tokenizer=tokenizer, classes=LABELS, objective={"max_length": 99}, **SMALL)
    with pytest.raises(UserError, match="task is 'classfy'; bert is pretrained with an empty task, and its tasks are classify"):
        polymodal.system("bert", task="classfy")
    with pytest.raises(UserError, match="has no cls and no sep token"):
        ClassifyObjective(Tokenizer.train(["a b c"], "byte-bpe", 257), LABELS, 40)


def test_inspect_and_previews_show_text_and_class(tokenizer):
    system = built("bert", tokenizer).eval()
    example = ClassifyExample(*system.objective.frame("red cat"), 1)
    assert system.objective.describe(example).rows == (("input", "[CLS] red cat [SEP]"), ("class", "maybe"))
    (first, second) = system.preview(batch_of(system, ROWS), limit=2)
    assert dict(first.rows)["text"] == "red cat" and dict(first.rows)["truth"] == "no"
    assert dict(second.rows)["text"] == "the small dog runs and sleeps the house"
    assert {part.split()[0] for part in dict(first.rows)["class"].split(", ")} == set(LABELS)
