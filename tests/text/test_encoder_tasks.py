"""The tasks of encoders: losses and outputs as transformers has them, answers, measures, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import polymodal
import pytest
import torch
import transformers
from polymodal.pipelines.model.export import export_system
from polymodal.registry import families
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.sample import Answer, Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text.encoder_tasks import TASKS, USES
from polymodal.text.entities import are_entities, breaks_off, counts, entities
from polymodal.text.span import WINDOW, AnswerSettings, Found, exact, f1

WORDS = ["red", "green", "blue", "cat", "dog", "house", "tree", "runs", "sleeps", "and", "the", "small", "large", "old", "new"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 42,
         "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


SIZES = {"xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48, "dropout": 0.0, "summary_last_dropout": 0.0},
         "gpt": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 42, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0},
         "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 42, "dropout": 0.0,
                        "attention_dropout": 0.0, "qa_dropout": 0.0, "seq_classif_dropout": 0.0},
         "bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
                  "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_position_embeddings": 42, "dropout": 0.0},
         "bigbird": {**SMALL, "random_layout": "transformers"},
         "reformer": {"hidden_size": 32, "num_attention_heads": 2, "attention_head_size": 16, "feed_forward_size": 48,
                      "attn_layers": ("local", "local"), "axial_pos_shape": (6, 8), "axial_pos_embds_dim": (12, 20), "num_hashes": 1,
                      "max_position_embeddings": 48,
                      "hidden_dropout_prob": 0.0, "lsh_attention_probs_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0}}
"""Of families whose fields have other names, or that have more."""


@pytest.fixture(scope="module")
def tokenizers():
    return {"bert": Tokenizer.train([" ".join(WORDS) + "."] * 20, "wordpiece", 79),
            **{style: Tokenizer.train([" ".join(WORDS)] * 9, "byte-bpe", 290, style=STYLES[style]) for style in ("roberta", "xlnet")}}


def built(name: str, task: str, tokenizers, **options: Any):
    tokenizer = tokenizers.get({"bart": "roberta", "longformer": "roberta"}.get(name, name), tokenizers["bert"])
    torch.manual_seed(0)
    system = polymodal.system(name, size="tiny", task=task, tokenizer=tokenizer, **{**SIZES.get(name, SMALL), **options})
    with torch.no_grad():  # every parameter random, so that a swapped or lost tensor shows
        for p in system.net.parameters():
            p.copy_(torch.randn(p.shape) * 0.2 + (0.5 if p.dim() == 1 else 0.0))
    return system.eval()


def sample(text: str | None = None, pair: str | None = None, **annotations: Any) -> Sample:
    fields = {name: value.encode() for name, value in (("txt", text), ("pair.txt", pair)) if value is not None}
    return Sample("k", {**fields, "json": json.dumps(annotations).encode()}, source="here")


def batch_of(system, samples):
    return system.objective.collate([e for s in samples for e in system.objective.example(s, np.random.default_rng(0))])


def padded(batch, side: str) -> dict[str, torch.Tensor]:
    """The packed texts as rows."""
    ids, types, mask = (torch.nn.utils.rnn.pad_sequence(row[0].split(batch.lengths), batch_first=True, padding_side=side)
                        for row in (batch.input_ids, batch.token_type_ids, torch.ones_like(batch.input_ids)))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


@dataclass
class Probe:
    """Samples of a task, and their labels as transformers' network takes them beside `padded`."""

    samples: list[Sample]
    arguments: Any
    options: dict[str, Any]
    alone: bool = False
    """Whether transformers reads each row by itself: its loss of spans counts padding, too."""


PROBES = {
    "score": Probe([sample("red cat", score=1), sample("the small dog runs", "the house", score=4.5), sample("blue", score=-2)],
                   lambda batch, inputs: {**inputs, "labels": batch.scores}, {}),
    "tag": Probe([sample(words=["red", "cat", "catdog"], tags=["O", "B-X", "I-X"]), sample(words=["the"] * 50, tags=["B-X"] * 50),
                  sample(words=["blue"], tags=["O"])],
                 lambda batch, inputs: {**inputs, "labels": tag_labels(batch, inputs["attention_mask"])}, {"classes": ("B-X", "I-X", "O")}),
    "choice": Probe([sample("red cat", choices=["the house", "old"], label=1), sample("the dog", choices=["runs", "sleeps"], label=0)],
                    lambda batch, inputs: {**{k: v.view(2, 2, -1) for k, v in inputs.items()}, "labels": batch.labels}, {}),
    "span": Probe([sample("the red cat sleeps", question="who", answers=[{"text": "red cat", "answer_start": 4}]),
                   sample("the dog runs " * 9, question="who", answers=[{"text": "dog", "answer_start": 4}]),
                   sample("blue", question="who", answers=[])],
                  lambda batch, inputs: {**inputs, "start_positions": batch.starts, "end_positions": batch.ends}, {}, alone=True),
}
"""What is padded has equal numbers of choices."""


def tag_labels(batch, mask):
    """Labels of a padded batch."""
    row = torch.full((batch.tokens,), -100)
    row[batch.word_rows] = batch.labels
    return torch.full(mask.shape, -100).masked_scatter(mask.bool(), row)


def test_every_task_of_a_network_in_use_is_probed():
    assert set(PROBES) == set(USES)


def in_transformers(family, task):
    """Whether transformers has the network of a task."""
    return any(f.name == "transformers" for net in family.nets if net.architecture == task.architecture for f in net.formats)


@pytest.mark.parametrize(("name", "task"), [(f.name, t.name) for f in families().values() for t in f.tasks
                                            if t.name in PROBES and in_transformers(f, t)
                                            and t.architecture != "OpenAIGPTDoubleHeadsModel"])  # see test_gpt_tasks
def test_the_export_has_the_same_loss_in_transformers(name, task, tokenizers, tmp_path):
    """The loss of transformers' network on padded rows is ours on packed ones, and so are the outputs."""
    probe = PROBES[task]
    system = built(name, task, tokenizers, **probe.options)
    export_system(system, tmp_path / "out", system.objective.tokenizer)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (architecture,) = config["architectures"]
    theirs, report = getattr(transformers, architecture).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    batch = batch_of(system, probe.samples)
    with torch.no_grad():
        step = system(batch)
    loss = sum(t.weight * t.total / batch.counts[t.count] for n, t in step.terms.items() if n != "lm")  # GPT's, which only we have
    inputs = padded(batch, system.objective.tokenizer.padding_side)
    if name == "roberta":  # positions follow the padding there
        inputs["input_ids"][inputs["attention_mask"] == 0] = system.objective.tokenizer.pad_id
    arguments = probe.arguments(batch, inputs)
    if name in ("bart", "gpt", "distilbert"):
        arguments.pop("token_type_ids")
    rows = [arguments]
    if probe.alone or name == "bart":  # there, rows together must have as many ends of texts
        left = system.objective.tokenizer.padding_side == "left"
        rows = [{k: (v[n:n + 1, -length:] if left else v[n:n + 1, :length]) if v.dim() == 2 else v[n:n + 1] for k, v in arguments.items()}
                for n, length in enumerate(batch.lengths)]
    with torch.no_grad():
        losses = [theirs.eval()(**row).loss for row in rows]
    expected = torch.stack(losses).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    loaded = polymodal.load(tmp_path / "out")
    assert loaded.config == system.net.config and USES[task].fits(loaded)


# ------------------------------------------------------------------------------------------------- score


def test_scores_are_those_of_each_text_alone(tokenizers):
    system = built("bert", "score", tokenizers)
    use = USES["score"](system.net, system.objective.tokenizer)
    texts = [("red cat", None), ("the small dog", "runs"), ("blue", None)]
    assert use.answer(texts) == pytest.approx([use.answer([text])[0] for text in texts], rel=1e-5)
    assert use.answer(texts) == pytest.approx(system.guesses(batch_of(system, [sample(*t, score=0) for t in texts])).tolist(), rel=1e-5)


def test_correlations_have_their_known_values(tokenizers):
    system = built("bert", "score", tokenizers)
    use = USES["score"](system.net, system.objective.tokenizer)
    truth, guess = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 3, 7])
    found = use.measures(np.stack([truth, guess], 1))
    # by hand: covariance 12/5, variances 2 and 21.2/5; ranks 2 1 4 3 5, sum of squared differences 4
    assert found["pearson"] == pytest.approx(12 / (10 * 21.2) ** 0.5) and found["spearman"] == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert found["rmse"] == pytest.approx((8 / 5) ** 0.5)
    means = {f"mean/{n}": float(v.mean()) for n, v in (("score", truth), ("guess", guess), ("score_squared", truth**2),
                                                      ("guess_squared", guess**2), ("score_guess", truth * guess))}
    derived = system.derive(means)
    assert derived["pearson"] == pytest.approx(found["pearson"]) and derived["regression_chance"] == pytest.approx(2)
    assert system.derive({"loss": 1.0}) == {}
    constant = use.measures(np.array([[1.0, 3.0], [2.0, 3.0]]))
    assert np.isnan(constant["pearson"]) and np.isnan(constant["spearman"])


@pytest.mark.parametrize("value", ["3", None, True, 1e40, [1]])
def test_a_sample_without_a_score_is_bad(value, tokenizers):
    with pytest.raises(BadSample, match="sample 'k' of here: no number as 'score' in field 'json'"):
        sample("red", score=value).score()


def test_a_network_of_another_task_is_refused(tokenizers):
    classifier = polymodal.system("bert", size="tiny", task="classify", classes=("a", "b"), **SMALL).net
    with pytest.raises(UserError, match="MODEL holds a SequenceClassification, expected a network that was fine-tuned for the task score"):
        USES["score"].check(classifier, "MODEL")


def test_classifying_again_forgets_that_the_output_was_a_number(tokenizers):
    entry = families()["bert"]
    scored = built("bert", "score", tokenizers).net.config
    assert scored.problem_type == "regression" and scored.labels == ("score",)
    context = polymodal.shared.family.Context(classes=("a", "b"), net_only=True)
    config = entry.task("classify").adapt(scored, context)
    assert config.problem_type is None and config.labels == ("a", "b") and entry.task("classify").build(config, {}, context)


def test_tasks_are_told_by_name():
    assert len({t.name for t in TASKS}) == len(TASKS)
    with pytest.raises(UserError, match="task is 'scores'; bert is pretrained with an empty task, and its tasks are classify, score, tag"):
        families()["bert"].task("scores")


# --------------------------------------------------------------------------------------------------- tag


def test_entities_are_those_of_conlleval():
    """Whole sequences of both schemes, and broken ones as conlleval.pl reads them."""
    def found(tags):
        return entities(tags.split())

    assert found("B-PER I-PER O B-LOC") == [("PER", 0, 2), ("LOC", 3, 4)]
    assert found("B-PER B-PER I-PER I-LOC") == [("PER", 0, 1), ("PER", 1, 3), ("LOC", 3, 4)]
    assert found("O I-PER I-PER O") == [("PER", 1, 3)] and found("I-PER B-PER") == [("PER", 0, 1), ("PER", 1, 2)]
    assert found("B-A I-A E-A S-B O S-B S-B") == [("A", 0, 3), ("B", 3, 4), ("B", 5, 6), ("B", 6, 7)]
    assert found("E-A E-A I-A S-A I-A") == [("A", 0, 1), ("A", 1, 2), ("A", 2, 3), ("A", 3, 4), ("A", 4, 5)]
    assert found("O O") == [] and entities([]) == []
    assert are_entities(["O", "B-X"]) and not are_entities(["O"]) and not are_entities(["NN", "O", "B-X"])
    assert counts(["B-A", "I-A", "O", "B-B"], ["B-A", "I-A", "B-B", "B-B"]) == (2, 3, 2)


def test_the_score_of_a_known_sample_of_conlleval(tokenizers):
    """11 of 13 words right; 3 entities are there, 4 found, 2 of them right: precision 0.5, recall 0.667, F1 0.571."""
    system = built("bert", "tag", tokenizers, classes=("B-A", "I-A", "B-B", "O"))
    use = USES["tag"](system.net, system.objective.tokenizer)
    truth = [["B-A", "I-A", "O", "O", "B-B", "O", "O"], ["O", "O", "B-A", "O", "O", "O"]]
    guess = [["B-A", "I-A", "O", "B-A", "B-B", "O", "O"], ["O", "O", "B-B", "O", "O", "O"]]
    found = use.measures(np.array([use.tally(*pair) for pair in zip(truth, guess)], float))
    assert found == pytest.approx({"entity_precision": 2 / 4, "entity_recall": 2 / 3, "entity_f1": 4 / 7, "accuracy": 11 / 13})


@pytest.mark.parametrize(("tags", "problem"), [
    ("O I-A", "I-A of word 2 continues nothing: expected B-A before it"), ("B-A I-B", "I-B of word 2 continues nothing"),
    ("B-A I-A E-A B-A O", "B-A of word 4 is not ended: expected E-A after it, or S-A in its place"),
    ("S-A I-A", "I-A of word 2 continues nothing"), ("B-A E-A B-A", "B-A of word 3 is not ended"),
    ("B-A I-A O B-A", None), ("B-A E-A S-B O", None), ("NN I-A VB", None), ("O O", None)])
def test_where_a_sequence_breaks_off(tags, problem):
    found = breaks_off(tags.split())
    assert found is None if problem is None else found is not None and found.startswith(problem)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_long_sentence_is_cut_between_words_and_each_word_has_one_tag(name, tokenizers):
    system = built(name, "tag", tokenizers, classes=("B-X", "I-X", "O"))
    use = USES["tag"](system.net, system.objective.tokenizer)
    words = ["catdog", "the", "housetree"] * 20
    parts = list(system.objective.parts(words, [n % 3 for n in range(60)]))
    assert len(parts) > 1 and max(len(p.input_ids) for p in parts) <= {"bert": 42, "roberta": 40}[name]
    assert [n for p in parts for n in p.labels[p.labels >= 0]] == [n % 3 for n in range(60)]
    first = parts[0]
    places = (first.labels >= 0).nonzero()[0]
    theirs = system.objective.tokenizer.encode_batch([f" {w}" for w in words], add_special_tokens=False)
    assert [first.input_ids[p] for p in places] == [row[0] for row in theirs[:len(places)]]
    inputs = [words, ["red"], ["small", "large"]]
    assert use.answer(inputs) == [use.answer([w])[0] for w in inputs] and [len(a) for a in use.answer(inputs)] == [60, 1, 2]


def test_a_word_that_is_longer_than_the_network_is_cut_and_one_without_tokens_is_unknown(tokenizers):
    objective = built("bert", "tag", tokenizers, classes=("O",)).objective
    (part,) = objective.parts(["small" + "l" * 70], [0])
    assert len(part.input_ids) == 42 and (part.labels >= 0).sum() == 1
    (part,) = objective.parts(["\u200b", "cat"], [0, 0])
    assert objective.tokenizer.show(part.input_ids) == "[CLS] [UNK] cat [SEP]" and part.labels.tolist() == [-100, 0, 0, -100]


@pytest.mark.parametrize(("annotations", "problem"), [
    ({"words": ["a"], "tags": ["O", "O"]}, "1 words and 2 tags: each word needs one"), ({"words": [], "tags": []}, "no list of words"),
    ({"words": ["a", " "], "tags": ["O", "O"]}, "no list of words, none of them blank"), ({"words": ["a"]}, "no list of names or numbers"),
    ({"words": ["a"], "tags": ["B-Z"]}, "the tag 'B-Z'; the model has B-X, O"), ({"words": ["a"], "tags": [2]}, "the tag 2; the model")])
def test_what_cannot_be_tagged(annotations, problem, tokenizers):
    objective = built("bert", "tag", tokenizers, classes=("B-X", "O")).objective
    with pytest.raises(BadSample, match=problem):
        list(objective.example(sample(**annotations), np.random.default_rng(0)))


# ------------------------------------------------------------------------------------------------ choice


def test_samples_with_different_numbers_of_choices_share_a_batch(tokenizers):
    system = built("bert", "choice", tokenizers)
    use = USES["choice"](system.net, system.objective.tokenizer)
    questions = [("red cat", ["the house", "old", "new tree"]), ("the dog", ["runs", "sleeps and runs"])]
    together = use.answer(questions)
    assert [len(row) for row in together] == [3, 2] and [sum(row) for row in together] == pytest.approx([1, 1])
    for row, question in zip(together, questions):
        assert row == pytest.approx(use.answer([question])[0], rel=1e-4)
    assert use.tally(1, [0.2, 0.7, 0.1]) == (1, pytest.approx(1 / 3)) and use.tally(0, [0.2, 0.8])[0] == 0
    assert use.measures(np.array([[1, 0.5], [0, 0.25]])) == {"accuracy": 0.5, "chance": 0.375}


@pytest.mark.parametrize(("annotations", "problem"), [
    ({"choices": ["a"], "label": 0}, "no list of two or more texts"), ({"choices": ["a", ""], "label": 0}, "none of them blank"),
    ({"choices": ["a", "b"], "label": 2}, "choice 2, there are 2, counted from 0"), ({"choices": ["a", "b"]}, "no whole number as class")])
def test_what_cannot_be_chosen(annotations, problem, tokenizers):
    objective = built("bert", "choice", tokenizers).objective
    with pytest.raises(BadSample, match=problem):
        list(objective.example(sample("red", **annotations), np.random.default_rng(0)))


# -------------------------------------------------------------------------------------------------- span


def reader(tokenizers, name="bert", **settings):
    system = built(name, "span", tokenizers)
    return USES["span"](system.net, system.objective.tokenizer, AnswerSettings(**settings)), system


@pytest.mark.parametrize(("guess", "truth", "match", "score"), [
    ("The Cat!", "cat", True, 1.0), ("a cat sat", "the cat sat down", False, 0.8), ("", "", True, 1.0), ("", "cat", False, 0.0),
    ("the", "a", True, 1.0), ("new  york-city", "New York", False, 0.5), ("new new york", "new york new jersey", False, 6 / 7)])
def test_answers_are_compared_as_by_the_official_script(guess, truth, match, score):
    assert exact(guess, truth) is match and f1(guess, truth) == pytest.approx(score)


def test_measures_over_all_true_answers_and_without_any(tokenizers):
    use, _ = reader(tokenizers)
    yes, no = [Answer("red cat", 4), Answer("cat", 8)], list[Answer]()

    def found(text):
        return [Found(text, 0, 0.0, 1.0)]

    rows = [use.tally(yes, found("the cat")), use.tally(yes, found("red")), use.tally(no, found("")), use.tally(no, found("cat"))]
    assert rows == [(1, 1, 1), (0, pytest.approx(2 / 3), 1), (1, 1, 0), (0, 0, 0)]
    assert use.measures(np.array(rows)) == pytest.approx({
        "exact_match": 0.5, "f1": (1 + 2 / 3 + 1) / 4, "exact_match/answerable": 0.5, "f1/answerable": 5 / 6,
        "exact_match/unanswerable": 0.5, "f1/unanswerable": 0.5})
    assert set(use.measures(np.array(rows[:2]))) == {"exact_match", "f1"}


@pytest.mark.parametrize("name", ["bert", "roberta", "xlnet"])
def test_windows_hold_every_token_and_the_answer_where_it_is_whole(name, tokenizers):
    system = built(name, "span", tokenizers, objective={"max_length": 40} if name == "xlnet" else None)
    objective = system.objective
    text = "the small dog runs and the red cat sleeps " * 6
    answer = Answer("red cat", text.index("red cat", 100))
    windows = list(objective.windows("who sleeps", text, answer))
    assert len(windows) > 2 and all(len(w.input_ids) <= {"bert": 42, "roberta": 40, "xlnet": 40}[name] for w in windows)
    assert {place for w in windows for place in w.places} == set(objective.tokenizer.offsets(text)[1])
    holding = [w for w in windows if w.end != w.cls]
    assert holding
    for w in windows:
        assert w.input_ids[w.cls] == objective.tokenizer.cls_id and (w.start == w.cls) == (w.end == w.cls)
        first, last = w.places[0][0], w.places[-1][1]
        assert (w.end != w.cls) == (first <= answer.start and answer.start + 7 <= last)
        if w.end != w.cls:
            a, b = w.places[w.start - w.begin][0], w.places[w.end - w.begin][1]
            assert text[a:b].strip() == "red cat"


def test_xlnet_has_the_text_before_the_question(tokenizers):
    """A <sep> B <sep> <cls>: a question without an answer points at the last token."""
    objective = built("xlnet", "span", tokenizers).objective
    (window,) = objective.windows("who sleeps", "the red cat", Answer("cat", 8))
    (none,) = objective.windows("who sleeps", "the red cat")
    show = objective.tokenizer.show
    assert window.begin == 0 and show(window.input_ids[window.start:window.end + 1]).strip() == "cat"
    assert none.start == none.end == none.cls == len(none.input_ids) - 1
    assert dict(objective.describe(none).rows)["answer"] == "none in this window"
    sep = (none.input_ids == objective.tokenizer.sep_id).nonzero()[0].tolist()
    assert none.token_type_ids.tolist() == [0] * (sep[0] + 1) + [1] * (sep[1] - sep[0]) + [2] and len(sep) == 2


def test_a_text_of_any_length_is_read_in_windows_where_there_are_no_positions(tokenizers):
    use, _ = reader(tokenizers, "xlnet")
    windows = list(use._objective.windows("who", "the red cat " * 400))
    assert max(len(w.input_ids) for w in windows) == WINDOW and len(windows) > 2


def test_the_best_span_is_the_best_of_all_pairs(tokenizers):
    """Against a search over every pair of every window."""
    use, system = reader(tokenizers, n_best=100, max_answer_length=4)
    question, text = "who", "the small dog runs and the red cat sleeps " * 4
    (found,) = use.answer([(question, text)])
    best = (-np.inf, "")
    for w in system.objective.windows(question, text):
        with torch.no_grad():
            out = system.net(torch.tensor(w.input_ids)[None], None, torch.tensor(w.token_type_ids)[None])
        for a in range(len(w.places)):
            for b in range(a, min(a + 4, len(w.places))):
                score = float(out.start_logits[0, w.begin + a] + out.end_logits[0, w.begin + b])
                best = max(best, (score, text[w.places[a][0]:w.places[b][1]]))
    assert (found[0].score, found[0].text) == (pytest.approx(best[0], rel=1e-4), best[1])
    assert text[found[0].start:].startswith(found[0].text) and sum(f.probability for f in found) == pytest.approx(1)
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)


@pytest.mark.parametrize("name", ["bert", "xlnet"])
def test_inputs_of_all_lengths_are_answered_as_alone(name, tokenizers):
    use, _ = reader(tokenizers, name)
    inputs = [("who", "the red cat " * 30), ("where", "the house"), ("who runs", "dog")]
    for together, given in zip(use.answer(inputs), inputs):
        (alone,) = use.answer([given])
        assert [(f.text, f.start) for f in together[:2]] == [(f.text, f.start) for f in alone[:2]]
        assert together[0].score == pytest.approx(alone[0].score, rel=1e-4)


def test_no_answer_wins_above_the_threshold_alone(tokenizers):
    always, _ = reader(tokenizers)
    ((first, *_),) = always.answer([("who", "the red cat")])
    for threshold, empty in ((-1e9, True), (1e9, False)):
        use, _ = reader(tokenizers, no_answer_threshold=threshold)
        ((best, *others),) = use.answer([("who", "the red cat")])
        assert (best.text == "") is empty and any(f.text == "" for f in (best, *others)) and first.text in (best.text, others[0].text)
    assert first.text


@pytest.mark.parametrize(("annotations", "problem"), [
    ({"answers": []}, "no text as 'question'"), ({"question": "q"}, "no list as 'answers'"),
    ({"question": "q", "answers": [{"text": "cat"}]}, "expected a mapping of 'text' and 'answer_start'"),
    ({"question": "q", "answers": [{"text": "cat", "answer_start": 0}]},
     "the answer 'cat' is not at character 0 of the text, where 'red' stands"),
    ({"question": "q", "answers": [{"text": "cat", "answer_start": 99}]}, "of the text, which has 7 characters")])
def test_what_is_no_question(annotations, problem, tokenizers):
    with pytest.raises(BadSample, match=problem):
        sample("red cat", **annotations).answers()
