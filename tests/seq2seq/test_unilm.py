"""UniLM's tasks: segments, what a token sees, which tokens are hidden; texts and targets of fine-tuning; mistakes of a user."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polymodal
import pytest
import torch
from polymodal.registry import family
from polymodal.seq2seq.cloze import TASKS, ClozeSettings
from polymodal.shared.errors import UserError
from polymodal.shared.family import Context
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer

WORDS = [a + b + c for a in ("ka", "mo", "ti") for b in ("ren", "sol") for c in ("o", "an", "es", "ul")]
SEGMENTS = {"bidirectional": {0, 1}, "left_to_right": {2}, "right_to_left": {3}, "seq2seq": {4, 5}}
Z = 3.29
"""Two-sided normal test at 0.001."""


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" ".join(WORDS) + "."] * 20, "wordpiece", 60)


def sample(seed, sentences=12, **more):
    rng = np.random.default_rng(seed)
    text = " ".join(" ".join(rng.choice(WORDS, rng.integers(3, 9))) + "." for _ in range(sentences))
    made = Sample(str(seed), {"txt": text.encode(), **more}, seed)
    if seed < 10_000:
        made.pair_with(lambda: sample(seed + 10_000, sentences))
    return made


@pytest.fixture(scope="module")
def system(tok):
    torch.manual_seed(0)
    return polymodal.system("unilm", size="tiny", tokenizer=tok)


@pytest.fixture(scope="module")
def made(system):
    """Examples of each task."""
    return {task: [e for n in range(60) for e in o.example(sample(n), np.random.default_rng((1, n)))]
            for task, o in system.objective.by_turn().items()}


def test_tasks_take_turns_as_in_the_paper(system):
    assert dict(system.objective.turns) == {"bidirectional": 2, "seq2seq": 2, "left_to_right": 1, "right_to_left": 1}
    assert {task: o.needs_partner for task, o in system.objective.by_turn().items()} == {
        "bidirectional": True, "seq2seq": False, "left_to_right": False, "right_to_left": False}


@pytest.mark.parametrize("task", TASKS)
def test_sequences_have_the_segments_of_their_task(task, made, tok):
    pairs = 0
    for e in made[task]:
        whole = e.input_ids.copy()
        whole[e.positions] = e.targets
        first, second = (min(SEGMENTS[task]), max(SEGMENTS[task]))
        assert set(e.token_type_ids.tolist()) <= SEGMENTS[task] and (np.diff(e.token_type_ids) >= 0).all()
        seps = np.flatnonzero(whole == tok.sep_id)
        assert whole[0] == tok.cls_id and seps[-1] == len(whole) - 1 and len(seps) == (2 if first != second else 1)
        if first != second:
            assert seps[0] + 1 == (e.token_type_ids == first).sum()
            pairs += 1
        assert (e.next_sentence is not None) == (task == "bidirectional")
    assert not pairs or pairs == len(made[task]) > 60


def seen(task, kinds):
    """What a token of one sequence sees, by the table of the paper and not by our masks: bool [S, S]."""
    places = np.arange(len(kinds))
    query, key = places[:, None], places[None]
    return {"bidirectional": key >= 0, "left_to_right": key <= query, "right_to_left": key >= query,
            "seq2seq": (kinds[None] == 4) | (key <= query)}[task] & (query >= 0)


@pytest.mark.parametrize("task", TASKS)
def test_a_token_sees_what_its_task_lets_it_see(task, system, made):
    chosen = made[task][:5]
    batch = system.objective.by_turn()[task].collate(chosen)
    total = sum(batch.lengths)
    expected, start = np.zeros((total, total), dtype=bool), 0
    for e in chosen:
        end = start + len(e.input_ids)
        expected[start:end, start:end] = seen(task, e.token_type_ids)
        start = end
    assert np.array_equal(batch.mask.dense(1, total, total, torch.device("cpu"))[0, 0].numpy(), expected)
    assert batch.counts == {"masked": sum(len(e.positions) for e in chosen), **({"pairs": 5} if task == "bidirectional" else {})}


@pytest.mark.parametrize("task", TASKS)
def test_what_a_token_must_not_see_does_not_move_it(task, system, made):
    """In the network itself, with several sequences side by side: change one token and see whose states move."""
    chosen = made[task][:3]
    batch = system.objective.by_turn()[task].collate(chosen)
    other = replace(batch, input_ids=batch.input_ids.clone())
    length, kinds = len(chosen[1].input_ids), chosen[1].token_type_ids
    start, at = len(chosen[0].input_ids), length // 2
    other.input_ids[0, start + at] = (other.input_ids[0, start + at] + 7) % 50
    net = system.double().eval()
    with torch.no_grad():
        moved = (system.read(batch).last_hidden_state - system.read(other).last_hidden_state).abs().amax(-1)[0] > 1e-12
    system.float()
    assert net is system
    expected = np.zeros(len(moved), dtype=bool)
    expected[start:start + length] = seen(task, kinds)[:, at]
    # through two layers, a token sees what is seen by those that it sees: these masks are closed under that
    assert np.array_equal(moved.numpy(), expected)


@pytest.mark.parametrize("task", TASKS)
def test_fifteen_percent_are_hidden_one_two_or_three_at_a_time(task, made, tok):
    """80 / 10 / 10, and 20 % of the draws two or three tokens; ends of targets among them in seq2seq alone."""
    kinds, runs, ends, tokens = np.zeros(3), np.zeros(9), 0, 0
    for e in made[task]:
        now = e.input_ids[e.positions]
        masked, kept = now == tok.mask_id, now == e.targets
        kinds += [masked.sum(), (~masked & ~kept).sum(), (kept & ~masked).sum()]
        assert len(e.positions) <= max(1, round(0.15 * len(e.input_ids)))
        tokens += len(e.input_ids)
        ends += int(len(e.input_ids) - 1 in e.positions)
        assert not {tok.cls_id} & set(e.targets.tolist())
        assert (e.targets == tok.sep_id).sum() == (len(e.input_ids) - 1 in e.positions)
        if len(e.positions) >= 4:
            runs += np.bincount(np.diff(np.flatnonzero(np.diff(e.positions, prepend=-9, append=999) != 1)), minlength=9)[:9]
    v, total = tok.vocab_size, kinds.sum()
    assert total > 500 and total / tokens == pytest.approx(0.15, abs=0.015)
    shares = (0.8 + 0.1 / v, 0.1 - 0.2 / v, 0.1 + 0.1 / v)
    assert sum((n - total * p) ** 2 / (total * p) for n, p in zip(kinds, shares)) < 13.82  # 2 degrees of freedom
    # of the stretches some are two draws side by side, and the last one is shortened: not far from 80, 10 and 10 %
    assert 0.68 < runs[1] / runs.sum() < 0.85 and 0.08 < runs[2] / runs.sum() < 0.24 and 0.04 < runs[3] / runs.sum() < 0.17
    expected = 0.15 * len(made[task]) if task == "seq2seq" else 0
    assert abs(ends - expected) <= 4 * np.sqrt(expected)


def test_whole_words_are_hidden_together(tok):
    settings = ClozeSettings(whole_words=True)
    objective = polymodal.system("unilm", size="tiny", tokenizer=tok, objective={"whole_words": True}).objective.by_turn()["seq2seq"]
    assert settings.turns == dict(polymodal.system("unilm", size="tiny", tokenizer=tok).objective.turns)
    for e in (e for n in range(20) for e in objective.example(sample(n), np.random.default_rng(n))):
        whole = e.input_ids.copy()
        whole[e.positions] = e.targets
        inside = ~tok.whole_words(whole)
        inside[[0, -1]] = False
        hidden = np.isin(np.arange(len(whole)), e.positions)
        assert (hidden[1:] == hidden[:-1])[inside[1:]].all()


def test_pairs_of_seq2seq_follow_each_other_and_lose_nothing(system, tok):
    objective = system.objective.by_turn()["seq2seq"]
    for seed, sentences in ((0, 1), (1, 2), (2, 40)):
        text = sample(seed, sentences)
        read = []
        for e in objective.example(text, np.random.default_rng(seed)):
            whole = e.input_ids.copy()
            whole[e.positions] = e.targets
            read += [i for i in whole.tolist() if i not in (tok.cls_id, tok.sep_id)]
            assert len(e.input_ids) <= 128 and (e.token_type_ids == 5).sum() >= 2
        assert read == tok.encode(text.text(), add_special_tokens=False)
    alone = Sample("a", {"txt": b"."}, 0)
    (e,) = objective.example(alone, np.random.default_rng(0))
    assert e.token_type_ids.tolist() == [4, 4, 4, 5]


# ------------------------------------------------------------------------------------------ fine-tuning


@pytest.fixture(scope="module")
def answers(tok):
    torch.manual_seed(0)
    entry = family("unilm")
    task, context = entry.task("text2text"), Context(tok)
    config = entry.adapt(entry.config(**{**entry.sizes["tiny"], "hidden_dropout_prob": 0.0,
                                           "attention_probs_dropout_prob": 0.0}), context)
    return task.build(config, {"max_length": 64, "max_target_length": 16, "prefix": "ka "}, context)


def test_seventy_percent_of_a_target_are_hidden_and_nothing_of_its_text(answers, tok):
    counted = ends = 0
    for n in range(200):
        text = sample(n, 1 + n % 12, **{"target.txt": " ".join(WORDS[n % 20: n % 20 + 4]).encode()})
        (e,) = answers.objective.example(text, np.random.default_rng(n))
        whole = e.input_ids.copy()
        whole[e.positions] = e.targets
        source = whole[e.token_type_ids == 4].tolist()
        written, read = tok.encode(text.target(), add_special_tokens=False)[:15], tok.encode("ka " + text.text(), add_special_tokens=False)
        assert whole[e.token_type_ids == 5].tolist() == [*written, tok.sep_id] and len(whole) <= 64
        assert source == [tok.cls_id, *read[:64 - 3 - len(written)], tok.sep_id]
        assert len(e.positions) == max(1, round(0.7 * len(written))) and (e.token_type_ids[e.positions] == 5).all()
        counted += 1
        ends += tok.sep_id in e.targets
    share = 0.7 * 0.9  # about: of n tokens and the end, 0.7 n are drawn
    assert abs(ends / counted - share) < 0.15


def test_targets_have_at_most_half_of_the_room_and_samples_their_own_prefix(tok):
    entry = family("unilm")
    config = entry.adapt(entry.config(**entry.sizes["tiny"]), Context(tok))
    objective = entry.task("text2text").build(config, {"max_length": 20, "max_predictions": 2, "whole_words": True}, Context(tok)).objective
    text = sample(3, 9, **{"target.txt": " ".join(WORDS).encode(), "json": json.dumps({"prefix": "moreno "}).encode()})
    (e,) = objective.example(text, np.random.default_rng(0))
    assert len(e.input_ids) == 20 and (e.token_type_ids == 5).sum() == 10 and len(e.positions) <= 2
    first = tok.encode("moreno", add_special_tokens=False)
    assert e.input_ids[1:1 + len(first)].tolist() == first
    with pytest.raises(Exception, match="prefix is 5, expected text"):
        list(objective.example(Sample("a", {"txt": b"ka", "target.txt": b"mo", "json": b'{"prefix": 5}'}, 0), np.random.default_rng(0)))


def test_labels_are_smoothed_while_training(answers):
    batch = answers.objective.collate([e for n in range(4) for e in answers.objective.example(
        sample(n, 2, **{"target.txt": b"moreno tisoles"}), np.random.default_rng(n))])
    answers.eval()
    with torch.no_grad():
        plain = answers(batch)
        logits = answers.net.head(answers.read(batch).last_hidden_state[0, batch.target_rows]).log_softmax(-1)
        smoothed = answers.train()(batch).terms["mlm"].total
    assert float(plain.terms["mlm"].total) == pytest.approx(float(-logits.gather(1, batch.targets[:, None]).sum()), rel=1e-5)
    expected = 0.9 * plain.terms["mlm"].total - 0.1 * logits.mean(-1).sum()
    assert float(smoothed) == pytest.approx(float(expected), rel=1e-5)


# --------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("settings", "says"), [
    ({"seq2seq": -1}, "seq2seq is -1, expected 0 or more"),
    (dict.fromkeys(TASKS, 0), "are all 0"),
    ({"mask_prob": 2.0}, "mask_prob is 2.0"),
])
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        ClozeSettings(**settings)


def test_a_model_with_two_segments_is_refused(tok):
    with pytest.raises(UserError, match="type_vocab_size is 2, expected at least the 6 segments"):
        polymodal.system("unilm", size="tiny", tokenizer=tok, type_vocab_size=2)


def test_a_task_that_is_left_out_takes_its_head_with_it(tok):
    system = polymodal.system("unilm", size="tiny", tokenizer=tok, objective={"bidirectional": 0, "right_to_left": 0})
    assert dict(system.objective.turns) == {"seq2seq": 2, "left_to_right": 1} and not hasattr(system.net, "next_sentence")
    assert not any(name.startswith("bidirectional") or "nsp" in name for name in system.measured())
