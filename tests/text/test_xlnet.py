"""XLNet's data side against the paper: spans, orders, halves; what a place that is predicted sees, and what it does not."""

import pickle

import numpy as np
import polymodal
import pytest
import torch
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.sample import WORD, Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text.permutation import UNSEEN, PermutationObjective, PermutationSettings, choose_spans, random_order

WORDS = [a + b + c for a in ("ka", "mo", "ti") for b in ("ren", "sol") for c in ("o", "an", "es", "ul")]
Z = 3.29
"""Two-sided normal test at 0.001."""


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" ".join(WORDS)] * 9, "word", 33, style=STYLES["xlnet"])


def rng(*key):
    return np.random.default_rng(key)


def rows(tok, count=3, length=64, ends=(), known=False):
    """Rows of tokens that follow each other, as `pack --in-order` writes them; documents end at the places `ends` of each row.

    With `known`, the data says that tokens with an even number begin words.
    """
    made = []
    for n in range(count):
        ids = rng(n).choice([tok.token_to_id(w) for w in tok.vocabulary() if tok.token_to_id(w) not in tok.special_ids], length)
        for end in ends:
            ids[end], ids[end + 1] = tok.sep_id, tok.cls_id
        units = {"units.u8": ((ids % 2 == 0) * WORD).astype(np.uint8).tobytes()} if known else {}
        made.append(Sample(str(n), {"tokens.u16": ids.astype("<u2").tobytes(), **units}, n))
    for n, sample in enumerate(made):
        sample.followed_by(lambda n=n: made[n + 1] if n + 1 < count else None)
        sample.pair_with(lambda n=n: made[n - 1])
    return made


def objective(tok, **settings):
    return PermutationObjective(tok, PermutationSettings(**settings))


def one(o, sample, *key):
    (made,) = o.example(sample, rng(*key))
    return made


# ------------------------------------------------------------------------------------------------ spans


def chi_square(counts, shares):
    total = counts.sum()
    return float(((counts - total * shares) ** 2 / (total * shares)).sum())


def test_spans_are_the_papers():
    """n tokens with probability proportional to 1 / n, anywhere in a stretch of 7 n: 10^5 spans of one long row."""
    words = np.ones(1_700_000, dtype=bool)
    chosen = choose_spans(words, words, 225_000, 5, rng(1))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(np.int8), [0]])))
    begins, spans = edges[::2], (edges[1::2] - edges[::2])[:-1]  # the last one is cut to the number
    shares = 1 / np.arange(1, 6)
    shares /= shares.sum()
    assert chosen.sum() == 225_000 and len(spans) > 100_000
    assert chi_square(np.bincount(spans, minlength=6)[1:], shares) < 18.47  # 4 degrees of freedom
    assert 225_000 / begins[-1] == pytest.approx(1 / 7, rel=0.01)
    # between two single tokens lie 1 to 6 of the first one's stretch and 0 to 5 of the second one's
    gaps = (begins[1:] - edges[1:-1:2])[:len(spans) - 1]
    both = gaps[(spans[:-1] == 1) & (spans[1:] == 1)]
    assert chi_square(np.bincount(both, minlength=12)[1:12], np.convolve(np.full(6, 1 / 6), np.full(6, 1 / 6))) < 29.59  # 10


def test_spans_of_whole_words_have_the_same_shares():
    """n words with probability proportional to 1 / n, one word of seven: 10^5 spans. None is predicted in part."""
    sizes = rng(5).integers(1, 4, 1_700_000)
    starts = np.zeros(sizes.sum(), dtype=bool)
    starts[np.cumsum(sizes) - sizes] = True
    chosen = choose_spans(starts, np.ones_like(starts), 450_000, 5, rng(1), whole=True)
    per_word = np.add.reduceat(chosen, np.flatnonzero(starts), dtype=np.int64)
    assert chosen.sum() == 450_000 and np.isin(per_word[per_word != sizes], (0,)).all()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (per_word > 0).astype(np.int8), [0]])))
    begins, spans = edges[::2], (edges[1::2] - edges[::2])[:-1]
    shares = 1 / np.arange(1, 6)
    assert len(spans) > 95_000 and chi_square(np.bincount(spans, minlength=6)[1:], shares / shares.sum()) < 18.47  # 4 degrees of freedom
    assert (per_word > 0).sum() / begins[-1] == pytest.approx(1 / 7, rel=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_the_number_is_exact_with_whole_words_too(seed):
    """Tokens out of a word make it up where no word fits: here all words have five tokens, but one."""
    generator = rng(6, seed)
    starts, allowed = np.arange(60) % 5 == 0, np.arange(60) != 59
    for _ in range(100):
        chosen = choose_spans(starts, allowed, 12, 5, generator, whole=True)
        per_word = chosen.reshape(12, 5).sum(1)
        assert chosen.sum() == 12 and not chosen[59] and sorted(per_word[per_word > 0])[-2:] in ([5, 5], [4, 5])
        assert ((per_word > 0) & (per_word < allowed.reshape(12, 5).sum(1))).sum() <= 3


@pytest.mark.parametrize("seed", range(3))
def test_spans_begin_at_words_and_the_number_is_exact(seed):
    generator = rng(3, seed)
    for _ in range(100):
        starts, allowed = generator.random(256) < 0.6, generator.random(256) > 0.05
        chosen = choose_spans(starts, allowed, 43, 5, generator)
        assert chosen.sum() == 43 and not (chosen & ~allowed).any()
    whole = choose_spans(np.arange(4000) % 10 == 0, np.ones(4000, dtype=bool), 300, 5, generator)
    begins = np.flatnonzero(np.diff(whole.astype(np.int8)) == 1) + 1
    assert (begins % 10 == 0).all(), "nothing but starts of words while there is room"


def test_orders_are_uniform():
    """The rank of one token in 10^5 orders, and which of two comes first."""
    predicted, functional = np.arange(8) < 6, np.arange(8) == 6
    generator = rng(4)
    ranks = np.array([random_order(predicted, functional, 5, generator) for _ in range(100_000)])
    assert (ranks[:, 7] == 5).all() and ranks[:, :7].min() == 6 and ranks.max() == 13
    assert chi_square(np.bincount(ranks[:, 0] - 6, minlength=8), np.full(8, 1 / 8)) < 24.32  # 7 degrees of freedom
    assert abs((ranks[:, 1] < ranks[:, 6]).mean() - 0.5) < Z * 0.5 / 100_000**0.5


# ---------------------------------------------------------------------------------------------- examples


def test_eighty_five_of_512_tokens_43_and_42(tok):
    for n in range(20):
        made = one(objective(tok), rows(tok, 2, 256)[0], n)
        assert len(made.ids) == 512 and made.reused == 256
        assert len(made.places) == 85 and (made.places < 256).sum() == 43
        assert not set(made.ids[made.places].tolist()) & {tok.sep_id, tok.cls_id}


def test_a_sequence_is_a_row_and_two_segments_of_what_follows(tok):
    """B goes on from A in half of the sequences, else it is a piece of the partner."""
    first, second, last = rows(tok, 3, 32)
    follows = second.tokens()[0][:29].tolist()
    kinds = np.zeros(2)
    for n in range(1500):
        made = one(objective(tok), first, n)
        assert made.ids[:32].tolist() == first.tokens()[0].tolist() and len(made.ids) == 64
        inside = made.ids[32:].tolist()
        a = inside.index(tok.sep_id)
        b = inside[a + 1:-2]
        assert inside[-2:] == [tok.sep_id, tok.cls_id] and inside[:a] == follows[:a] and 1 <= a < 29 and len(b) == 29 - a
        assert made.token_type_ids.tolist() == [0] * (32 + a + 1) + [1] * (len(b) + 1) + [2]
        goes_on = b == follows[a:]
        text = last.tokens()[0].tolist()
        assert goes_on or any(text[i:i + len(b)] == b for i in range(32))
        kinds[int(goes_on)] += len(b) > 4  # short ones may be both
    assert abs(kinds[1] / kinds.sum() - 0.5) < Z * 0.5 / kinds.sum()**0.5


def test_where_nothing_follows_there_is_no_second_half(tok):
    made = one(objective(tok), rows(tok, 1)[0])
    assert len(made.ids) == made.reused == 64 and len(made.places) == 10 and not made.token_type_ids.any()


def test_a_document_ends_with_eod(tok):
    """Of the framing that `pack` gives each document nothing else is left; the last row holds nothing but that."""
    first, _ = rows(tok, 2, 64, ends=(10, 40))
    made = one(objective(tok), first)
    eod = tok.token_to_id("<eod>")
    assert made.reused == 62 and np.flatnonzero(made.ids[:62] == eod).tolist() == [10, 39]
    assert not np.isin(made.ids[:62], (tok.sep_id, tok.cls_id)).any()
    empty = Sample("0", {"tokens.u16": np.array([tok.cls_id] * 3, "<u2").tobytes()})
    with pytest.raises(BadSample, match="special tokens only"):
        one(objective(tok), empty)


def test_words_are_what_the_data_says(tok):
    """To the vocabulary, every token is a word."""
    plain, known = rows(tok, 3, 64, ends=(20,)), rows(tok, 3, 64, ends=(20,), known=True)
    eod, special = tok.token_to_id("<eod>"), (tok.sep_id, tok.cls_id)
    whole = {None: [], True: [], False: []}
    begins = []
    for seed in range(40):
        for setting, found in whole.items():
            made = one(objective(tok, whole_words=setting), known[0], seed)
            starts, allowed = (made.ids % 2 == 0) | np.isin(made.ids, (eod, *special)), ~np.isin(made.ids, special)
            starts[[0, made.reused]] = True
            chosen = np.zeros(len(made.ids), dtype=bool)
            chosen[made.places] = True
            words = np.flatnonzero(starts)
            sizes, taken = (np.add.reduceat(x, words, dtype=np.int64) for x in (allowed, chosen))
            found.append(((taken == 0) | (taken == sizes)).all())
            assert len(made.places) == len(made.ids) // 6
            if setting is False:
                begins += starts[chosen & ~np.concatenate([[False], chosen[:-1]])].tolist()
        same = [one(objective(tok, whole_words=w), plain[0], seed).places.tolist() for w in (None, False)]
        assert same[0] == same[1], "the data says nothing of words"
    assert all(whole[None]) and all(whole[True]) and not all(whole[False])
    assert np.mean(begins) > 0.7, "tokens from the start of a word on, but for the last ones; 0.5 of all tokens begin one"


def test_examples_follow_from_the_generator(tok):
    o = pickle.loads(pickle.dumps(objective(tok)))
    sample = rows(tok)[0]
    first, again, other = (one(o, sample, epoch) for epoch in (0, 0, 1))
    assert first.places.tolist() == again.places.tolist() and (first.ranks == again.ranks).all()
    assert first.places.tolist() != other.places.tolist()


# -------------------------------------------------------------------------------------------------- sight


def test_who_sees_whom(tok):
    """The published code's rules, written out pair by pair."""
    made = one(objective(tok), rows(tok, 2, 24)[0], 5)
    hidden = objective(tok).collate([made]).hidden()[0].numpy()
    target = np.zeros(48, dtype=bool)
    target[made.places] = True
    functional = np.isin(made.ids, (tok.sep_id, tok.cls_id))
    for i in range(48):
        for j in range(48):
            if i < 24 <= j:
                sees = False
            elif j < 24 <= i or not (target[j] or functional[j]):
                sees = True
            elif not (target[i] or functional[i]):
                sees = False
            else:
                sees = made.ranks[i] > made.ranks[j] or (i == j and functional[i])
            assert hidden[i, j] == (not sees), (i, j)


def test_a_place_does_not_know_what_comes_later(tok):
    """Other ids at the place itself, and at all of its rank or more, leave its logits as they are; one that it sees moves them."""
    torch.manual_seed(0)
    system = polymodal.system("xlnet", size="tiny", tokenizer=tok, d_model=32, d_inner=48, n_layer=3, dropout=0.0, initializer_range=0.2)
    system = system.double().eval()
    first, _ = rows(tok, 2, 24)
    batch = system.objective.collate([one(system.objective, first, 3)])
    with torch.no_grad():
        before = system.read(batch).last_hidden_state[0]
        for number, place in enumerate(batch.target_rows[0].tolist()):
            later = batch.ranks >= batch.ranks[0, place]
            changed = (batch.ids + 1 + torch.arange(48) % 5) % tok.vocab_size
            batch.ids, kept = torch.where(later, changed, batch.ids), batch.ids
            assert torch.allclose(system.read(batch).last_hidden_state[0, number], before[number], rtol=1e-12, atol=1e-13)
            batch.ids = torch.where(later, kept, changed)
            assert not torch.allclose(system.read(batch).last_hidden_state[0, number], before[number], rtol=1e-3)
            batch.ids = kept


def test_padding_is_not_seen(tok):
    o = objective(tok)
    long, short = (one(o, s) for s in (rows(tok, 2, 24)[0], rows(tok, 1, 16)[0]))
    batch = o.collate([long, short])
    assert batch.hidden()[1, :16, 16:].all() and (batch.ranks[1, 16:] == UNSEEN).all()
    assert batch.counts == {"targets": len(long.places) + len(short.places)} and (batch.targets >= 0).sum() == batch.counts["targets"]
    assert batch.reuse.tolist() == [24, 16] and batch.tokens == 64


# ------------------------------------------------------------------------------------------------ messages


def test_what_cannot_be_used_is_told(tok):
    with pytest.raises(UserError, match="--in-order"):
        one(objective(tok), Sample("a", {"txt": b"karen"}))
    with pytest.raises(UserError, match=r"has 64 tokens and objective\.max_length is 32"):
        one(objective(tok, max_length=32), rows(tok)[0])
    with pytest.raises(UserError, match="--style xlnet"):
        objective(Tokenizer.train(["karen"], "word", 12, style=STYLES["bert"]))
    for settings, message in (({"one_in": 0.5}, "one_in"), ({"max_span": 0}, "max_span"), ({"max_length": 4}, "max_length")):
        with pytest.raises(UserError, match=message):
            PermutationSettings(**settings)
