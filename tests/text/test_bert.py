"""BERT's data side against the published procedure, and its losses."""

from itertools import pairwise

import numpy as np
import polymodal
import pytest
import torch
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text.bert import BertObjective, BertSettings
from polymodal.text.sentences import IS_NEXT, IS_RANDOM, pairs, sentences

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "omicron", "pi",
         "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega"]


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" ".join(WORDS) + "."] * 20, "wordpiece", 100)


def text(seed, sentences=12):
    rng = np.random.default_rng(seed)
    return " ".join(" ".join(rng.choice(WORDS, rng.integers(3, 9))) + "." for _ in range(sentences))


def sample(seed, **fields):
    return Sample(str(seed), fields or {"txt": text(seed).encode()}, seed)


def paired(seed, other):
    one = sample(seed)
    one.pair_with(lambda: sample(other))
    return one


def rng(*key):
    return np.random.default_rng(key)


def objective(tok, max_length=32, **settings):
    return BertObjective(tok, BertSettings(**settings), max_length)


def original(example):
    ids = example.input_ids.copy()
    ids[example.positions] = example.targets
    return ids


def test_sentences():
    assert sentences('He left. "Why?" she asked!\n\nNew line\n  3.5 kg (net.) done.') == [
        "He left.", '"Why?"', "she asked!", "New line", "3.5 kg (net.)", "done."]
    assert sentences("今天下雨。我們走！") == ["今天下雨。", "我們走！"]


# --------------------------------------------------------------------------------- the pair procedure


def segments(lengths, start=0):
    """Sentences whose ids number all tokens, so that every id says where it came from."""
    edges = np.cumsum([0, *lengths]) + start
    return [np.arange(a, b) for a, b in pairwise(edges)]


@pytest.mark.parametrize("lengths", [[5] * 20, [14, 3, 14, 1, 14, 14, 14], [1] * 61, [9]], ids=["even", "uneven", "tokens", "single"])
def test_pairs_cover_the_document_once_and_fit(lengths):
    """What a random second segment replaces comes again: each token is in one pair, and no sentence is cut."""
    document, other = segments(lengths), segments([5] * 9, start=1000)
    edges = {*np.cumsum([0, *lengths]).tolist(), *range(1005, 1046, 5)}
    for seed in range(100):
        seen = []
        for a, b, label in pairs(document, other, 29, 0.1, rng(seed)):
            assert len(a) >= 1 and len(b) >= 1 and len(a) + len(b) <= 29
            assert (np.diff(a) == 1).all() and (np.diff(b) == 1).all()
            assert {int(a[0]), int(a[-1]) + 1, int(b[0])} <= edges
            assert label == IS_RANDOM or int(b[-1]) + 1 in edges, "only a random one that no sentence fits is cut"
            if label == IS_NEXT:
                assert b[0] == a[-1] + 1
            else:
                assert b.min() >= 1000
            seen += [i for i in (*a, *b) if i < 1000]
        assert seen == list(range(sum(lengths)))


def test_half_are_random_and_a_short_target_happens_one_time_in_ten():
    document, other = segments([4] * 60), segments([4] * 60, start=1000)
    rounds = 1000
    # only first pairs: the rest of a document may be one sentence, and a single sentence is always paired at random
    labels = [next(pairs(document, other, 60, 0.0, rng(seed)))[2] for seed in range(rounds)]
    assert abs(np.mean(labels) - 0.5) < 5 * 0.5 / np.sqrt(rounds)
    short = sum(not any(len(a) + len(b) >= 57 for a, b, _ in pairs(document, other, 60, 0.1, rng(seed))) for seed in range(rounds))
    # of the targets 2 ... 60 drawn one time in ten, nearly all stay below 57
    assert abs(short / rounds - 0.1 * 54 / 59) < 5 * np.sqrt(0.09 / rounds)


def test_a_single_sentence_always_gets_a_random_partner():
    for seed in range(50):
        ((a, b, label),) = pairs(segments([10]), segments([3, 4, 5], 1000), 40, 0.0, rng(seed))
        assert label == IS_RANDOM and len(a) == 10 and b.min() >= 1000


def test_a_second_segment_is_no_longer_than_what_is_left_of_either_document():
    starts = set()
    for seed in range(200):
        for a, b, label in pairs(segments([6] * 4), segments([6] * 5, 1000), 200, 0.0, rng(seed)):
            if label == IS_RANDOM:
                starts.add(int(b[0]))
                assert len(b) <= max(6, 23 - a[-1]) or a[-1] == 23, "the last sentence of the document gets one as long as can be"
            else:
                assert len(b) <= 24
    assert starts == {1006, 1012, 1018, 1024}, "a sentence that is not the first"


def told(values, labels):
    """How often the label is guessed right by the value of something: the more frequent one, learnt on even pairs, tried on odd ones."""
    values, labels = np.asarray(values), np.asarray(labels)
    known = {v: labels[::2][values[::2] == v].mean() for v in np.unique(values[::2])}
    return np.mean([(known.get(v, 0.0) > 0.5) == label for v, label in zip(values[1::2].tolist(), labels[1::2])])


@pytest.mark.parametrize("kind", ["rows of a document", "rows of documents", "texts", "texts without sentences"])
def test_nothing_but_the_words_tells_whether_a_segment_follows(tok, kind):
    """Words are random, so every guess is one by lengths or by edges. Documents begin with alpha and end with omega."""
    words = np.array(tok.encode(" ".join(WORDS[1:-1]), add_special_tokens=False))
    (alpha,), (omega,) = tok.encode("alpha", add_special_tokens=False), tok.encode("omega", add_special_tokens=False)

    def made(seed):
        draw = rng(7, seed)
        if kind.startswith("rows"):
            sizes = [62] if kind == "rows of a document" else draw.multinomial(54, [0.2, 0.5, 0.3]) + 3
            parts = [np.array([tok.cls_id, alpha, *draw.choice(words, n - 2), omega, tok.sep_id]) for n in sizes]
            return sample(seed, **{"tokens.u16": np.concatenate(parts).astype("<u2").tobytes(),
                                   "lengths.u32": np.array([len(d) for d in parts], "<u4").tobytes()})
        inside = [draw.choice(WORDS[1:-1], draw.integers(3, 20)) for _ in range(draw.integers(2, 25))]
        mark = " " if kind == "texts without sentences" else ". "
        return sample(seed, txt=f"alpha {mark.join(' '.join(s) for s in inside)} omega{mark}".encode())

    o = objective(tok, 64)
    found = []
    for seed in range(800):
        one = made(seed)
        one.pair_with(lambda seed=seed: made(seed + 10_000))
        for e in o.example(one, rng(seed)):
            ids = original(e)
            a, b = ids[1:-1][e.token_type_ids[1:-1] == 0][:-1], ids[:-1][e.token_type_ids[:-1] == 1]
            found.append((len(a), len(b), len(a) + len(b), a[0], a[-1], b[0], b[-1], e.next_sentence))
    *features, labels = np.array(found).T
    odd = labels[1::2]
    assert len(labels) > 2000
    for name, values in zip(("first length", "second length", "both", "first of a", "last of a", "first of b", "last of b"), features):
        chance = max(odd.mean(), 1 - odd.mean())
        assert told(values, labels) < chance + 3.89 * 0.5 / np.sqrt(len(odd)), f"the {name} tells the label"


# ------------------------------------------------------------------------------------- from samples


def test_raw_text_with_pairs(tok):
    o = objective(tok)
    labels = []
    for seed in range(60):
        for e in o.example(paired(seed, 99), rng(seed)):
            ids = original(e)
            assert len(ids) <= 32
            ends = np.flatnonzero(ids == tok.sep_id)
            assert ids[0] == tok.cls_id and len(ends) == 2 and ends[1] == len(ids) - 1
            assert (e.token_type_ids == (np.arange(len(ids)) > ends[0])).all()
            assert not set(e.positions) & {0, *ends}
            assert len(e.positions) == max(1, round(0.15 * len(ids)))
            labels.append(e.next_sentence)
    assert 0.4 < np.mean(labels) < 0.65


def test_the_random_segment_comes_from_the_partner_and_without_one_from_the_document(tok):
    o = objective(tok)
    own = Sample("a", {"txt": b"alpha beta. gamma delta. alpha gamma. beta delta. " * 3})
    strange = Sample("b", {"txt": b"omega psi. chi phi. " * 5})
    mine, theirs = set(tok.encode("alpha beta gamma delta.")), set(tok.encode("omega psi chi phi."))
    found = 0
    for seed in range(40):
        own.pair_with(lambda: strange)
        for e in o.example(own, rng(seed)):
            b = original(e)[e.token_type_ids == 1]
            assert set(b.tolist()) <= (theirs if e.next_sentence == IS_RANDOM else mine)
            found += e.next_sentence
        own.pair_with(lambda: Sample("bad", {"txt": b"\xff\xfe"}))
        for e in o.example(own, rng(seed)):
            assert set(original(e).tolist()) <= mine
    assert found


def test_without_pairs_a_document_is_cut_into_consecutive_stretches(tok):
    o = objective(tok, nsp=False, short_prob=0.0)
    assert not o.needs_partner
    document = sample(3)
    expected = [i for s in tok.encode_batch(sentences(document.text()), add_special_tokens=False) for i in s]
    made = list(o.example(document, rng(0)))
    got = [i for e in made for i in original(e)[1:-1].tolist()]
    assert got == expected
    assert {len(e.input_ids) for e in made[:-1]} == {32} and all(e.next_sentence is None for e in made)


@pytest.mark.parametrize("framed", [False, True])
def test_rows_of_documents(tok, framed):
    documents = [np.array(tok.encode(text(s, 4), add_special_tokens=False)) for s in range(3)]
    packed = [np.array([tok.cls_id, *d, tok.sep_id]) if framed else d for d in documents]
    row = sample(0, tokens=b"", **{"tokens.u16": np.concatenate(packed).astype("<u2").tobytes(),
                                   "lengths.u32": np.array([len(d) for d in packed], "<u4").tobytes()})
    single = list(objective(tok, 64, nsp=False, short_prob=0.0).example(row, rng(0)))
    assert [original(e)[1:-1].tolist() for e in single] == [d.tolist() for d in documents]
    for seed in range(20):
        row.pair_with(lambda: row)
        for e in objective(tok, 64).example(row, rng(seed)):
            assert e.next_sentence in (IS_NEXT, IS_RANDOM) and len(e.input_ids) <= 64


def test_samples_that_cannot_be_used(tok):
    for fields in ({"txt": b"\xff"}, {"txt": b"  \n"}, {"jpg": b"x"}, {"tokens.u16": np.array([tok.cls_id, tok.sep_id], "<u2").tobytes()}):
        with pytest.raises(BadSample):
            list(objective(tok).example(Sample("x", fields), rng(0)))


# ------------------------------------------------------------------------------------------ the system


@pytest.mark.parametrize("nsp", [True, False])
def test_losses_are_sums_over_what_the_counts_say(tok, nsp):
    torch.manual_seed(0)
    system = polymodal.system("bert", size="tiny", tokenizer=tok, objective={"nsp": nsp, "max_length": 40}, hidden_dropout_prob=0.0,
                              attention_probs_dropout_prob=0.0)
    examples = [e for s in range(4) for e in system.objective.example(paired(s, s + 10), rng(s))]
    batch = system.objective.collate(examples)
    assert batch.tokens == sum(batch.lengths) == batch.input_ids.shape[1]
    assert batch.counts == {"masked": sum(len(e.positions) for e in examples)} | ({"pairs": len(examples)} if nsp else {})
    step = system(batch)
    # one by one, as padded input of the published network would be
    total = torch.zeros(2)
    for e in examples:
        out = system.net(torch.from_numpy(e.input_ids)[None], token_type_ids=torch.from_numpy(e.token_type_ids)[None])
        logits = out.prediction_logits if nsp else out.logits
        total[0] += torch.nn.functional.cross_entropy(logits[0, e.positions], torch.from_numpy(e.targets), reduction="sum")
        if nsp:
            total[1] += torch.nn.functional.cross_entropy(out.seq_relationship_logits, torch.tensor([e.next_sentence]), reduction="sum")
    assert step.terms.keys() == ({"mlm", "nsp"} if nsp else {"mlm"})
    torch.testing.assert_close(step.terms["mlm"].total, total[0], rtol=1e-5, atol=0)
    if nsp:
        torch.testing.assert_close(step.terms["nsp"].total, total[1], rtol=1e-5, atol=0)
    sum(t.total for t in step.terms.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in system.parameters())
    system.eval()
    evaluated = system(batch)
    torch.testing.assert_close(evaluated.terms["mlm"].total, step.terms["mlm"].total, rtol=1e-5, atol=0)
    assert evaluated.metrics["mlm_accuracy"][1] == batch.counts["masked"]
    previews = system.preview(batch, limit=2)
    assert len(previews) == 2 and "[MASK]" in previews[0].rows[0][1] + previews[1].rows[0][1]
    assert system.objective.describe(examples[0]).rows[0][0] == "input"
    assert system.derive({"mlm": 2.0})["mlm_perplexity"] == pytest.approx(np.exp(2))


@pytest.mark.parametrize(("settings", "config", "message"), [
    ({"max_length": 500}, {}, "max_length is 500, the model has 128 positions"),
    ({"mask_prob": 1.5}, {}, "mask_prob"), ({"max_lenght": 3}, {}, "did you mean max_length"),
    ({}, {"type_vocab_size": 1}, "token types"), ({}, {"hidden_size": 100, "num_attention_heads": 3}, "num_attention_heads")])
def test_impossible_settings_are_refused(tok, settings, config, message):
    with pytest.raises(UserError, match=message):
        polymodal.system("bert", size="tiny", tokenizer=tok, objective=settings, **config)


def test_a_tokenizer_without_masks_is_refused():
    with pytest.raises(UserError, match="no cls and no sep and no mask token: train one with --style bert or roberta"):
        polymodal.system("bert", size="tiny", tokenizer=Tokenizer.train(["some text"] * 5, "byte-bpe", 260))
