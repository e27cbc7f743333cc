"""Whole-word masking: what a word is for each kind of vocabulary, budgets, and the statistics of the choice."""

import numpy as np
import polymodal
import pytest
from polymodal.shared.corrupt import prediction_count
from polymodal.shared.errors import UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text.words import choose_words, word_bounds

KINDS = {"bert": ("wordpiece", 60), "electra": ("wordpiece", 60), "roberta": ("byte-bpe", 285)}
WORDS = [a + b + c for a in ("ka", "mo", "ti") for b in ("ren", "sol") for c in ("o", "an", "es", "ul")]
Z = 3.89
"""Two-sided normal test at 0.0001."""


def rng(*key):
    return np.random.default_rng(key)


def bounds_of(sizes, start=1):
    edges = np.cumsum([start, *sizes])
    return np.stack([edges[:-1], edges[1:]], axis=1)


def test_bounds_leave_special_tokens_out():
    starts = np.array([1, 1, 0, 0, 1, 1, 1, 0, 1], bool)
    maskable = np.array([0, 1, 1, 1, 1, 0, 1, 1, 0], bool)
    assert word_bounds(starts, maskable).tolist() == [[1, 4], [4, 5], [6, 8]]
    assert word_bounds(np.ones(2, bool), np.zeros(2, bool)).shape == (0, 2)


def test_words_are_taken_whole_until_the_budget_and_what_does_not_fit_is_skipped():
    bounds = bounds_of([3, 1, 2, 5, 1, 1, 4])
    starts = dict(bounds.tolist())
    short = 0
    for seed in range(300):
        for count in (1, 2, 3, 7):
            places = choose_words(bounds, count, rng(seed))
            assert len(places) <= count and (np.diff(places) > 0).all()
            inside = set(places.tolist())
            for begin, end in starts.items():
                assert set(range(begin, end)) <= inside or not set(range(begin, end)) & inside
            free = count - len(places)
            assert not any(end - begin <= free and begin not in inside for begin, end in starts.items()), "a word that fits was left out"
            short += free > 0
    assert short, "now and then what is left is too little for any word"
    assert len(choose_words(bounds_of([4, 9]), 3, rng(0))) == 0 and len(choose_words(bounds[:0], 3, rng(0))) == 0


@pytest.mark.slow
def test_every_word_of_one_size_is_as_likely():
    """Binomial, 10^5 draws: 25,000 sequences of 40 words of two tokens, 4 of them chosen."""
    bounds, rounds, source = bounds_of([2] * 40), 25_000, rng(0)
    counts = np.zeros(80)
    for _ in range(rounds):
        counts[choose_words(bounds, 9, source) - 1] += 1
    assert counts.sum() == rounds * 8, "the ninth token is half a word"
    assert (counts[::2] == counts[1::2]).all()
    assert (np.abs(counts / rounds - 0.1) < Z * np.sqrt(0.1 * 0.9 / rounds)).all()


SHARES = {"albert": (6 / 11, 3 / 11, 2 / 11), "macbert": (0.4, 0.3, 0.2, 0.1)}


class FirstWord:
    """A generator whose random order of words is cut to the first one: what that word alone brings."""

    def __init__(self, source):
        self.source, self.random = source, source.random

    def permutation(self, count):
        return self.source.permutation(count)[:1]


@pytest.mark.parametrize("name", ["albert", pytest.param("macbert", marks=pytest.mark.slow)])
def test_n_follows_the_shares(name):
    """10^5 draws among words of one token, where no budget binds; near the end, the shares of those n that are possible."""
    shares, source = np.array(SHARES[name]), FirstWord(rng(3))
    longest, found, bounds = len(shares), np.zeros((31, 6)), bounds_of([1] * 30)
    for _ in range(110_000):
        places = choose_words(bounds, 30, source, shares)
        found[places[0], len(places)] += 1
    inside = found[1:32 - longest].sum(0)
    assert inside.sum() > 95_000
    for words in range(1, longest + 1):
        rows = [(inside, shares[words - 1])] if words == longest else [
            (inside, shares[words - 1]), (found[29], np.array([*shares[:2] / shares[:2].sum(), 0, 0])[words - 1])]
        for counts, share in rows:
            total = counts.sum()
            assert abs(counts[words] / total - share) <= Z * np.sqrt(share * (1 - share) / total)
    assert found[30, 1] == found[30].sum()


def test_n_grams_do_not_touch_are_shortened_to_the_budget_and_end_at_a_gap():
    left, right = bounds_of([1] * 6), bounds_of([1] * 6, start=8)  # a separator at 7
    bounds = np.concatenate([left, right])
    lengths = []
    for seed in range(2000):
        places = choose_words(bounds, 4, rng(seed), (0.0, 0.0, 1.0))
        assert 7 not in places.tolist()
        lengths.append(len(places))
    assert set(lengths) == {4}, "three and one of another three, or two where the text ends and two more"
    one = [choose_words(bounds_of([2, 2, 2]), 5, rng(seed), (0.0, 0.0, 1.0)).tolist() for seed in range(60)]
    assert {tuple(p) for p in one} == {(1, 2, 3, 4), (3, 4, 5, 6), (1, 2, 5, 6)}


# ------------------------------------------------------------------------------------------- in objectives


@pytest.fixture(scope="module")
def tokenizers():
    made = {}
    for name, (kind, size) in KINDS.items():
        made[name] = Tokenizer.train([" ".join(WORDS) + "."] * 20, kind, size, style=STYLES["roberta" if kind == "byte-bpe" else "bert"])
    return made


def text(seed, words=40):
    return " ".join(rng(seed).choice(WORDS, words)) + "."


def examples(name, tokenizers, count, **settings):
    objective = polymodal.system(name, size="tiny", tokenizer=tokenizers[name], objective=settings).objective
    made = []
    for seed in range(count):
        one = Sample(str(seed), {"txt": text(seed).encode()}, seed)
        one.pair_with(lambda seed=seed: Sample("b", {"txt": text(seed + 9999).encode()}, seed + 9999))
        made += list(objective.example(one, rng(1, seed)))
    return objective, made


@pytest.mark.parametrize("name", KINDS)
def test_whole_words_is_a_setting_of_every_masked_family(name, tokenizers):
    """Every word is predicted whole or not at all, near the budget; without the setting words are cut."""
    tok = tokenizers[name]
    for whole in (True, False):
        objective, made = examples(name, tokenizers, 25, whole_words=whole)
        cut = places = budget = 0
        for e in made:
            ids = e.input_ids.copy()
            ids[e.positions] = e.targets
            starts = tok.whole_words(ids)
            number = np.cumsum(starts)
            touched = np.isin(number, number[e.positions])
            cut += int(touched.sum()) - len(e.positions)
            places, budget = places + len(e.positions), budget + prediction_count(len(ids), 0.15, None)
            assert not set(e.targets.tolist()) & {objective.cls_id, objective.sep_id}
        assert (cut == 0) == whole
        assert places == budget if not whole else 0.8 * budget < places <= budget


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_replacement_is_drawn_for_each_token(name, tokenizers):
    """As in the reference: 80/10/10 for every piece, so a word may be masked in part."""
    objective, made = examples(name, tokenizers, 150, whole_words=True)
    now, then = np.concatenate([e.input_ids[e.positions] for e in made]), np.concatenate([e.targets for e in made])
    masked = (now == objective.mask_id).mean()
    spread = np.sqrt(0.8 * 0.2 / len(now))
    assert len(now) > 1500 and abs(masked - 0.8) < Z * spread + 0.1 / objective.tokenizer.vocab_size
    assert abs((now == then).mean() - 0.1) < Z * np.sqrt(0.09 / len(now)) + 0.1 / 20


def test_a_sequence_without_a_word_that_fits_predicts_nothing_and_trains_all_the_same():
    tok = Tokenizer.train(["abcdefgh"] * 9, "wordpiece", 21)
    system = polymodal.system("bert", size="tiny", tokenizer=tok, objective={"nsp": False, "whole_words": True})
    (example,) = system.objective.example(Sample("x", {"txt": b"abcdefgh"}, 0), rng(0))
    assert len(example.input_ids) == 9 and not len(example.positions)
    batch = system.objective.collate([example])
    step = system(batch)
    assert batch.counts == {"masked": 0} and step.terms["mlm"].total.item() == 0
    step.terms["mlm"].total.backward()
    assert system.eval()(batch).metrics["mlm_accuracy"][1] == 0
    assert polymodal.system("bert", size="tiny", tokenizer=tok).objective.settings.whole_words is False


def test_a_wrong_value_is_named():
    with pytest.raises(UserError, match="whole_words is 'yes'"):
        polymodal.system("bert", size="tiny", objective={"whole_words": "yes"})
