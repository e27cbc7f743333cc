"""BART's noise: each of the five alone against the paper's numbers, and all together in the reference's order."""

import math

import numpy as np
import polymodal
import pytest
from polymodal.seq2seq.denoising import DenoisingObjective, DenoisingSettings, permute_sentences, sentence_ends, span_lengths
from polymodal.shared.errors import UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer

QUIET = {"infill_ratio": 0.0, "permute_sentence_ratio": 0.0}


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["The river ran to the sea. The old stone bridge was cold, and dark! Was it? Rain fell on the quiet field."] * 4
    return Tokenizer.train(texts, "byte-bpe", 315, style=STYLES["roberta"])


def objective(tokenizer, max_length=512, **settings):
    return DenoisingObjective(tokenizer, DenoisingSettings(**settings), max_length, 2)


def words(tokenizer, count):
    """A text of words of one and of two tokens."""
    one, two = (tokenizer.encode(w, add_special_tokens=False) for w in (" the", " quietfield"))
    assert len(one) == 1 and len(two) > 1
    return np.array([i for n in range(count) for i in (two if n % 3 == 0 else one)])


def test_spans_have_poisson_lengths_and_meet_the_budget():
    rng = np.random.default_rng(0)
    drawn = [span_lengths(100, 3.0, rng) for _ in range(4000)]
    assert all(lengths.sum() == 100 for lengths in drawn)
    inner = np.concatenate([lengths[:-1] for lengths in drawn])
    assert len(inner) > 100_000
    # a walk that is stopped at its budget sees long steps a little less often: within 3 %
    for k in range(8):
        expected = math.exp(-3) * 3**k / math.factorial(k)
        assert abs((inner == k).mean() - expected) < 0.03 * expected + 4 * math.sqrt(expected / len(inner)), k
    assert span_lengths(0, 3.0, rng).tolist() == [] or span_lengths(0, 3.0, rng).sum() == 0


@pytest.mark.parametrize(("share", "count", "lost"), [(0.3, 200, 0.17), (0.02, 4000, 0.02)])
def test_infilling_hides_its_share_of_the_words_behind_a_mask_token_for_three(tokenizer, share, count, lost):
    """Where spans meet, less is hidden, and the later span's token is lost, as in the reference; with few spans that is rare."""
    made = objective(tokenizer, 8192, permute_sentence_ratio=0.0, infill_ratio=share)
    ids, rng = words(tokenizer, count), np.random.default_rng(1)
    total = tokenizer.whole_words(ids).sum()
    budget, rounds, hidden, masks = math.ceil(share * total), 400, 0, 0
    for _ in range(rounds):
        noisy = made.corrupt(ids, rng)
        kept = noisy[noisy != made.mask_id]
        hidden += total - tokenizer.whole_words(kept).sum()
        masks += (noisy == made.mask_id).sum()
        order = iter(ids.tolist())
        assert all(token in order for token in kept.tolist())  # what is kept stands in its old order
    assert rounds * total > 50_000 and 1 - lost <= hidden / (rounds * budget) <= 1
    assert 1 - lost <= masks / (rounds * budget / 3) <= 1 + 3 / budget + 0.02
    assert made.corrupt(ids, np.random.default_rng(5)).tolist() == made.corrupt(ids, np.random.default_rng(5)).tolist()


def test_only_whole_words_are_hidden(tokenizer):
    made = objective(tokenizer, permute_sentence_ratio=0.0, poisson_lambda=1.0)
    ids = words(tokenizer, 90)
    pieces = {tuple(word) for word in np.split(ids, np.flatnonzero(tokenizer.whole_words(ids))[1:])}
    for seed in range(200):
        noisy = made.corrupt(ids, np.random.default_rng(seed))
        kept = noisy[noisy != made.mask_id]
        assert {tuple(w) for w in np.split(kept, np.flatnonzero(tokenizer.whole_words(kept))[1:])} <= pieces


@pytest.mark.parametrize(("name", "share"), [("mask_ratio", 0.15), ("delete_ratio", 0.15)])
def test_masked_and_deleted_tokens_are_a_share_of_all(tokenizer, name, share):
    made = objective(tokenizer, **QUIET, **{name: share})
    ids, rng, count = words(tokenizer, 37), np.random.default_rng(2), 3000
    hit = 0
    for _ in range(count):
        noisy = made.corrupt(ids, rng)
        if name == "mask_ratio":
            assert len(noisy) == len(ids) and (noisy[noisy != made.mask_id] == ids[noisy != made.mask_id]).all()
            hit += (noisy == made.mask_id).sum()
        else:
            hit += len(ids) - len(noisy)
            assert made.mask_id not in noisy
    trials = count * len(ids)
    assert trials > 100_000 and abs(hit / trials - share) < 4 * math.sqrt(share * (1 - share) / trials)


def test_a_share_of_the_mask_tokens_are_random_tokens(tokenizer):
    made = objective(tokenizer, **QUIET, mask_ratio=1.0, random_ratio=0.1)
    ids = words(tokenizer, 3000)
    noisy = np.concatenate([made.corrupt(ids, np.random.default_rng(s)) for s in range(25)])
    assert abs((noisy != made.mask_id).mean() - 0.1) < 4 * math.sqrt(0.09 / len(noisy)) and len(noisy) > 100_000
    assert not set(noisy.tolist()) & (tokenizer.special_ids - {made.mask_id})


def test_rotation_begins_anywhere_and_loses_nothing(tokenizer):
    made = objective(tokenizer, **QUIET, rotate_prob=0.5)
    ids = np.arange(10, 30)
    rng = np.random.default_rng(3)
    first = np.array([made.corrupt(ids, rng)[0] for _ in range(100_000)])
    counts = np.bincount(first - 10, minlength=20) / len(first)
    assert abs(counts[0] - (0.5 + 0.5 / 20)) < 4 * math.sqrt(0.25 / 1e5)
    assert np.abs(counts[1:] - 0.5 / 20).max() < 4 * math.sqrt(0.025 / 1e5)
    assert sorted(made.corrupt(ids, rng)) == sorted(ids)


def test_sentences_end_at_full_stops_and_change_places(tokenizer):
    stops = objective(tokenizer).full_stops
    text = "The sea. The old bridge... Was it dark? Rain fell"
    ids = np.array(tokenizer.encode(text, add_special_tokens=False))
    ends = sentence_ends(ids, stops)
    assert [tokenizer.decode(s).strip() for s in np.split(ids, ends[:-1])] == ["The sea.", "The old bridge...", "Was it dark? Rain fell"]
    ids, ends = np.arange(5), np.arange(1, 6)
    seen = {tuple(permute_sentences(ids, ends, 1.0, np.random.default_rng(s))) for s in range(3000)}
    assert len(seen) == math.factorial(5)
    few = [permute_sentences(ids, ends, 0.4, np.random.default_rng(s)) for s in range(300)]
    assert {int((p != ids).sum()) for p in few} == {0, 2}  # two of five are drawn, and may stay
    assert permute_sentences(ids, np.array([5]), 1.0, np.random.default_rng(0)).tolist() == ids.tolist()


def test_all_together_the_target_is_the_text_and_everything_fits(tokenizer):
    made = objective(tokenizer, max_length=24, mask_ratio=0.1, delete_ratio=0.1, rotate_prob=0.5, poisson_lambda=0.2, infill_ratio=0.5)
    text = "The river ran to the sea. Rain fell. The old stone bridge was cold. " * 6
    ids = tokenizer.encode(text, add_special_tokens=False)
    for seed in range(60):
        examples = list(made.example(Sample("a", {"txt": text.encode()}), np.random.default_rng(seed)))
        assert [i for e in examples for i in e.labels[1:-1].tolist()] == ids
        for e in examples:
            for row in (e.input_ids, e.labels):
                assert 3 <= len(row) <= 24 and row[0] == tokenizer.cls_id and row[-1] == tokenizer.eos_id
    shown = dict(made.describe(examples[0]).rows)
    assert "<mask>" in shown["input"] and "<mask>" not in shown["target"]


def test_texts_that_fill_the_positions_are_shown_too(tokenizer):
    system = polymodal.system("bart", size="tiny", tokenizer=tokenizer, max_position_embeddings=16).eval()
    examples = list(system.objective.example(Sample("a", {"txt": b"The old stone bridge was cold. " * 9}), np.random.default_rng(0)))
    assert max(len(e.labels) for e in examples) == 16
    assert len(system.preview(system.objective.collate(examples[:2]))) == 2


def test_a_text_of_one_token_survives(tokenizer):
    made = objective(tokenizer, delete_ratio=0.9, mask_ratio=0.5, rotate_prob=1.0)
    for seed in range(50):
        assert len(made.corrupt(np.array([20]), np.random.default_rng(seed))) >= 1


@pytest.mark.parametrize(("settings", "said"), [
    ({"infill_ratio": 1.5}, "infill_ratio is 1.5"), ({"delete_ratio": 1.0}, "leaves nothing"), ({"poisson_lambda": 0.0}, "poisson_lambda"),
    ({"max_length": 4}, "max_length is 4"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        DenoisingSettings(**settings)


def test_what_bart_cannot_read_is_refused(tokenizer):
    with pytest.raises(UserError, match="128 positions"):
        polymodal.system("bart", size="tiny", tokenizer=tokenizer, objective={"max_length": 200})
    with pytest.raises(UserError, match="mask"):
        polymodal.system("bart", size="tiny", tokenizer=Tokenizer.train(["a b"], "unigram", 106, style=STYLES["t5"]))
