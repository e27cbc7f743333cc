"""Several labels for each text: losses and outputs as transformers has them, measures, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import polymodal
import pytest
import torch
import transformers
from polymodal.pipelines.model.export import export_system
from polymodal.registry import families
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.family import Context
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text.classify import TextClassifier
from polymodal.text.labels import Labeller, LabelsSystem

WORDS = ["red", "green", "blue", "cat", "dog", "house", "tree", "runs", "sleeps", "and", "the", "small", "large", "old", "new"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 42,
         "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SIZES = {"xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48, "dropout": 0.0, "summary_last_dropout": 0.0},
         "gpt": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 42, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0},
         "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 42, "dropout": 0.0,
                        "attention_dropout": 0.0, "qa_dropout": 0.0, "seq_classif_dropout": 0.0},
         "bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
                  "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_position_embeddings": 42, "dropout": 0.0},
         "reformer": {"hidden_size": 32, "num_attention_heads": 2, "attention_head_size": 16, "feed_forward_size": 48,
                      "attn_layers": ("local", "local"), "axial_pos_shape": (6, 8), "axial_pos_embds_dim": (12, 20), "num_hashes": 1,
                      "max_position_embeddings": 48,
                      "hidden_dropout_prob": 0.0, "lsh_attention_probs_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0}}
"""Of families whose fields have other names."""
LABELS = ("animal", "colour", "size")
FAMILIES = [f.name for f in families().values() if f.name not in ("tinybert", "fastbert")  # one class for each text
            and any(t.name == "classify" and t.architecture.endswith("ForSequenceClassification") for t in f.tasks)]


@pytest.fixture(scope="module")
def tokenizers():
    return {"bert": Tokenizer.train([" ".join(WORDS) + "."] * 20, "wordpiece", 79),
            **{style: Tokenizer.train([" ".join(WORDS)] * 9, "byte-bpe", 290, style=STYLES[style]) for style in ("roberta", "xlnet")}}


def built(name, tokenizers) -> LabelsSystem:
    tokenizer = tokenizers.get({"bart": "roberta"}.get(name, name), tokenizers["bert"])
    entry, context = families()[name], Context(tokenizer, LABELS, several_labels=True)
    task = entry.task("classify")
    torch.manual_seed(0)
    config = entry.adapt(entry.config(**{**entry.sizes["tiny"], **SIZES.get(name, SMALL)}), context)
    system = task.build(task.adapt(config, context), {}, context)
    assert isinstance(system, LabelsSystem)
    with torch.no_grad():
        for p in system.net.parameters():
            p.copy_(torch.randn(p.shape) * 0.2 + (0.5 if p.dim() == 1 else 0.0))
    return system.eval()


def sample(text, labels, pair=None):
    more = {} if pair is None else {"pair.txt": pair.encode()}
    return Sample("k", {"txt": text.encode(), "json": json.dumps({"labels": labels}).encode(), **more}, source="here")


SAMPLES = [sample("red cat", ["animal", "colour"]), sample("the small dog runs", ["size", "animal"], "the house"), sample("the house", []),
           sample("blue", [1])]


def batch_of(system, samples):
    return system.objective.collate([e for s in samples for e in system.objective.example(s, np.random.default_rng(0))])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_export_has_the_same_loss_in_transformers(name, tokenizers, tmp_path):
    system = built(name, tokenizers)
    export_system(system, tmp_path / "out", system.objective.tokenizer)
    (architecture,) = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"]
    theirs = getattr(transformers, architecture).from_pretrained(tmp_path / "out").eval()
    assert theirs.config.problem_type == "multi_label_classification" and theirs.config.id2label == dict(enumerate(LABELS))
    batch = batch_of(system, SAMPLES)
    assert batch.counts == {"labels": 12, "texts": 4}
    assert batch.labels.tolist() == [[True, True, False], [True, False, True], [False] * 3, [False, True, False]]
    with torch.no_grad():
        loss = float(system(batch).terms["classification"].total) / 12
        side = system.objective.tokenizer.padding_side
        ids, types, mask = (torch.nn.utils.rnn.pad_sequence(row[0].split(batch.lengths), batch_first=True, padding_side=side)
                            for row in (batch.input_ids, batch.token_type_ids, torch.ones_like(batch.input_ids)))
        if name == "roberta":  # positions follow the padding there
            ids[mask == 0] = system.objective.tokenizer.pad_id
        typed = {} if name in ("bart", "gpt", "distilbert") else {"token_type_ids": types}
        inputs = {"input_ids": ids, "attention_mask": mask, **typed, "labels": batch.labels.float()}
        # BART there wants as many ends of texts in each row
        rows = [{k: v[n:n + 1] for k, v in inputs.items()} for n in range(4)] if name == "bart" else [inputs]
        outs = [theirs(**row) for row in rows]
    assert loss == pytest.approx(float(torch.stack([out.loss for out in outs]).mean()), rel=1e-5)
    torch.testing.assert_close(system.logits(batch), torch.cat([out.logits for out in outs]), rtol=1e-4, atol=1e-5)


def test_scores_in_use_are_sigmoids_and_those_of_each_text_alone(tokenizers):
    system = built("bert", tokenizers)
    use = Labeller(system.net, system.objective.tokenizer)
    texts = [("red cat", None), ("the small dog runs", "the house"), ("blue", None)]
    found = use.answer(texts)
    np.testing.assert_allclose(found, [use.answer([text])[0] for text in texts], rtol=1e-5)
    np.testing.assert_allclose(found, system.logits(batch_of(system, [SAMPLES[0], SAMPLES[1], SAMPLES[3]])).sigmoid().detach(), rtol=1e-5)
    np.testing.assert_allclose(found, TextClassifier(system.net, system.objective.tokenizer).probabilities(texts), rtol=1e-5)


def test_measures_have_their_known_values(tokenizers):
    """By hand; micro and macro as scikit-learn counts them."""
    use = Labeller(built("bert", tokenizers).net, tokenizers["bert"])
    truth = [[1, 1, 0], [1, 0, 1], [0, 0, 0], [0, 1, 0]]
    guess = [[0.9, 0.4, 0.1], [0.8, 0.1, 0.9], [0.1, 0.2, 0.3], [0.6, 0.7, 0.1]]
    found = use.measures(np.array([use.tally(np.array(t, bool), np.array(g)) for t, g in zip(truth, guess)]))
    # given: animal, animal and size, none, animal and colour; right 4 of 5 given, 5 true
    assert found == pytest.approx({
        "micro_f1": 8 / 10, "micro_precision": 4 / 5, "micro_recall": 4 / 5, "every_label_f1": 10 / (5 + 12), "exact_match": 2 / 4,
        "macro_f1": (4 / 5 + 2 / 3 + 1) / 3})
    nothing = use.measures(np.zeros((2, 6)))
    assert nothing["exact_match"] == 1 and math.isnan(nothing["micro_f1"]) and math.isnan(nothing["macro_f1"])
    assert use.shown(np.array(truth[0], bool), np.array(guess[0])) == {
        "labels": ["animal", "colour"], "predictions": ["animal"], "scores": dict(zip(LABELS, guess[0]))}


def test_numbers_of_training_and_evaluation(tokenizers):
    system = built("bert", tokenizers)
    batch = batch_of(system, SAMPLES)
    guess = system.logits(batch) > 0
    step = system(batch)
    right, either = int((guess & batch.labels).sum()), int(guess.sum() + batch.labels.sum())
    assert [int(v) for v in step.metrics["micro_f1"]] == [2 * right, either]
    assert int(step.metrics["exact_match"][0]) == int((guess == batch.labels).all(1).sum()) and step.metrics["exact_match"][1] == 4
    assert [int(v) for v in step.metrics["frequency/animal"]] == [2, 4]
    means = {name: float(total) / float(count) for name, (total, count) in step.metrics.items()}
    derived = system.derive(means)
    entropy = -(0.5 * math.log(0.5) * 2)
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert derived["classification_chance"] == pytest.approx((2 * entropy + quarter) / 3)
    assert derived["macro_f1"] == pytest.approx(sum(means[f"f1/{name}"] for name in LABELS) / 3)
    assert "f1/animal" not in system.train()(batch).metrics and system.derive({"loss": 1.0}) == {}


@pytest.mark.parametrize(("labels", "problem"), [
    (["fish"], "the label 'fish'; the model has animal, colour, size"), ([3], "the label 3; the model has"),
    (["size", "size"], "the label 'size' stands twice"), ("size", "no list of names or numbers as 'labels'"),
    ([True], "no list of names or numbers"), (None, "no list of names or numbers")])
def test_what_has_no_labels(labels, problem, tokenizers):
    with pytest.raises(BadSample, match=f"sample 'k' of here: {problem}"):
        batch_of(built("bert", tokenizers), [sample("red", labels)])


def test_one_class_for_each_text_forgets_that_there_were_several(tokenizers):
    task = families()["bert"].task("classify")
    several = built("bert", tokenizers).net.config
    assert several.problem_type == "multi_label_classification"
    again = task.adapt(several, Context(classes=("a", "b"), net_only=True))
    assert again.problem_type is None and not isinstance(task.build(again, {}, Context(classes=("a", "b"), net_only=True)), LabelsSystem)
    assert task.adapt(several, Context(net_only=True)) is several, "a network that knows its labels keeps them"


def test_networks_of_another_kind_are_refused(tokenizers):
    single = polymodal.system("bert", size="tiny", task="classify", classes=LABELS, **SMALL).net
    assert not Labeller.fits(single) and Labeller.fits(built("bert", tokenizers).net)
    with pytest.raises(UserError, match="fine-tuned for the task classify"):
        Labeller.check(single, "MODEL")
