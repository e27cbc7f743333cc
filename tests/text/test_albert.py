"""ALBERT's data side against the paper: the order of segments, n-grams of words, what is trained."""

import pickle
from itertools import pairwise

import numpy as np
import polymodal
import pytest
import torch
from polymodal.shared.errors import UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text.albert import AlbertObjective, AlbertSettings
from polymodal.text.sentences import IS_NEXT, IS_SWAPPED, pairs

WORDS = [a + b + c for a in ("ka", "mo", "ti") for b in ("ren", "sol") for c in ("o", "an", "es", "ul")]
Z = 3.89
"""Two-sided normal test at 0.0001."""


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" ".join(WORDS) + "."] * 20, "unigram", 26, style=STYLES["albert"])


def rng(*key):
    return np.random.default_rng(key)


def text(seed, sentences=12):
    source = rng(seed)
    return " ".join(" ".join(source.choice(WORDS, source.integers(3, 9))) + "." for _ in range(sentences))


def sample(seed, sentences=12):
    one = Sample(str(seed), {"txt": text(seed, sentences).encode()}, seed)
    one.pair_with(lambda: Sample("other", {"txt": b"MMMM NNNN. " * 20}, seed + 10_000))
    return one


def objective(tok, max_length=48, **settings):
    return AlbertObjective(tok, AlbertSettings(**settings), max_length)


def original(example):
    ids = example.input_ids.copy()
    ids[example.positions] = example.targets
    return ids


# ------------------------------------------------------------------------------------------ sentence order


def segments(lengths, start=0):
    """Sentences whose ids number all tokens, so that every id says where it came from."""
    edges = np.cumsum([0, *lengths]) + start
    return [np.arange(a, b) for a, b in pairwise(edges)]


@pytest.mark.parametrize("lengths", [[5] * 20, [14, 3, 14, 1, 14, 14, 14], [1] * 61, [9]],
                         ids=["even", "uneven", "tokens", "single"])
def test_segments_are_whole_neighbours_and_every_token_is_in_one_pair(lengths):
    document, other = segments(lengths), segments([5] * 9, start=1000)
    edges = set(np.cumsum([0, *lengths]).tolist())
    random = 0
    for seed in range(100):
        seen = []
        for a, b, label in pairs(document, other, 29, 0.1, rng(seed), swap=True):
            assert len(a) >= 1 and len(b) >= 1 and len(a) + len(b) <= 29
            if b[0] < 1000:
                first, second = (a, b) if label == IS_NEXT else (b, a)
                assert second[0] == first[-1] + 1
                assert {first[0], second[0], second[-1] + 1} <= edges, "a sentence was cut"
                seen += [first, second]
            else:
                assert label == IS_SWAPPED, "a random second segment is no order"
                random += 1
                seen.append(a)
        assert sorted(np.concatenate(seen).tolist()) == list(range(sum(lengths)))
    assert random == {20: 0, 61: 0, 1: 100}.get(len(lengths), random), "only a single sentence gets a random second segment"
    assert len(lengths) != 7 or 0 < random < 20, "sentences that fit with no other"


def test_half_of_the_pairs_are_swapped_and_lengths_do_not_tell():
    """Binomial, 10^5 pairs of a row of tokens; the first segment is as long in either order."""
    document, source = segments([1] * 6), rng(0)
    made = [(len(a), label) for _ in range(100_000) for a, _, label in pairs(document, document, 12, 0.0, source, swap=True)]
    lengths, labels = np.array(made).T
    assert len(labels) == 100_000 and abs(labels.mean() - 0.5) < Z * 0.5 / np.sqrt(len(labels))
    for length in range(1, 6):
        share = labels[lengths == length].mean()
        assert abs(share - 0.5) < Z * 0.5 / np.sqrt((lengths == length).sum())


def test_rows_are_cut_at_any_token(tok):
    """A row of `pack` holds no sentences: the separator between the segments stands anywhere."""
    ids = [i for n in range(4) for i in tok.encode(text(n, 9), add_special_tokens=False)][:46]
    row = Sample("row", {"tokens.u16": np.array(tok.framing.single.ids(ids), "<u2").tobytes()}, 0)
    row.pair_with(lambda: row)
    places = set()
    for seed in range(300):
        (first, *rest) = objective(tok, short_prob=0.0).example(row, rng(seed))
        # 46 tokens, and an eighth of 45 at least for the last pair
        assert len(first.input_ids) == 41 + 3 and len(rest) == 1 and len(rest[0].input_ids) == 5 + 3
        places.add(int((first.token_type_ids == 0).sum()))
    assert len(places) > 35


# ------------------------------------------------------------------------------------------------- n-grams


def test_fifteen_percent_in_n_grams_of_whole_words_eighty_ten_ten(tok):
    """10^5 n-grams of the objective: what is drawn follows 6/11, 3/11, 2/11 (`test_words.py`); what is taken, the reference's rules."""
    o = objective(tok, 128)
    assert o.ngrams == pytest.approx((6 / 11, 3 / 11, 2 / 11))
    kinds, places, budget = np.zeros(3), 0, 0
    for seed in range(60):
        for e in o.example(sample(seed, 40), rng(1, seed)):
            ids = original(e)
            starts = tok.whole_words(ids)
            number = np.cumsum(starts)
            assert np.isin(number, number[e.positions]).sum() == len(e.positions), "a word was predicted in part"
            now = e.input_ids[e.positions]
            masked, kept = now == tok.mask_id, now == e.targets
            kinds += [masked.sum(), (~masked & ~kept).sum(), kept.sum()]
            places, budget = places + len(now), budget + max(1, round(0.15 * len(ids)))
    v = tok.vocab_size
    assert places > 3000 and 0.9 * budget < places <= budget
    shares = np.array([0.8 + 0.1 / v, 0.1 - 0.2 / v, 0.1 + 0.1 / v])
    assert ((kinds - places * shares) ** 2 / (places * shares)).sum() < 13.82  # chi-square, 2 degrees of freedom, 0.001


def test_longer_n_grams_mask_longer_runs(tok):
    """Runs of predicted words: one word with `max_ngram` 1, but where two chosen ones touch; longer with 3."""

    def mean_run(**settings):
        runs = []
        for seed in range(40):
            for e in objective(tok, 128, **settings).example(sample(seed, 30), rng(2, seed)):
                word = np.unique(np.cumsum(tok.whole_words(original(e)))[e.positions])
                runs += [len(part) for part in np.split(word, np.flatnonzero(np.diff(word) > 1) + 1)]
        return np.mean(runs)

    one, three = mean_run(max_ngram=1), mean_run()
    assert one < 1.25 and three > one + 0.2


def test_pieces_can_be_masked_alone(tok):
    cut = 0
    for e in objective(tok, 64, whole_words=False).example(sample(3, 20), rng(0)):
        number = np.cumsum(tok.whole_words(original(e)))
        cut += np.isin(number, number[e.positions]).sum() - len(e.positions)
        assert len(e.positions) == max(1, round(0.15 * len(e.input_ids)))
    assert cut
    for wrong, message in (({"max_ngram": 0}, "max_ngram is 0"), ({"max_ngram": 2, "whole_words": False}, "set whole_words to true")):
        with pytest.raises(UserError, match=message):
            AlbertSettings(**wrong)


# ---------------------------------------------------------------------------------------------- the system


def test_examples_follow_from_the_generator_and_can_be_shown(tok):
    o = pickle.loads(pickle.dumps(objective(tok)))
    first, again = ([(e.input_ids.tolist(), e.next_sentence) for e in o.example(sample(1), rng(0))] for _ in range(2))
    assert first == again
    shown = {dict(o.describe(e).rows)["second segment"] for seed in range(6) for e in o.example(sample(seed), rng(seed))}
    assert shown == {"in order", "swapped or random"}


def test_without_sentence_order_sequences_are_single_and_the_network_has_no_pooler(tok):
    system = polymodal.system("albert", size="tiny", tokenizer=tok, objective={"sop": False})
    made = list(system.objective.example(sample(0), rng(0)))
    assert all(e.next_sentence is None and not e.token_type_ids.any() for e in made)
    batch = system.objective.collate(made)
    assert system(batch).terms.keys() == {"mlm"} and batch.counts.keys() == {"masked"}
    assert system.net.trunk.pooler is None
    with pytest.raises(UserError, match="needs two token types"):
        polymodal.system("albert", size="tiny", type_vocab_size=1)


def test_versions_differ_in_dropout():
    """The output of the network in training: version 2 draws nothing but before the head for the order."""
    for size, moves in (("base", False), ("base-v1", True)):
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50}
        trunk = polymodal.system("albert", size=size, **shape).net.trunk.train()
        ids = torch.arange(12)[None]
        assert torch.equal(trunk(ids).last_hidden_state, trunk(ids).last_hidden_state) != moves
