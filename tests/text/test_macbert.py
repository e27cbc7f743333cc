"""MacBERT's data side against the paper: similar words, n-grams, the order of segments, no [MASK]; and its table."""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import polymodal
import pytest
import torch
from polymodal.registry import family
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.meta import without_weights
from polymodal.shared.sample import WORD, Sample
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text.macbert import MacBertObjective, MacBertSettings
from polymodal.text.similar import by_tokens, read_similar

LETTERS = "天地人山水火木金土石田日月云雨风雪花草鱼"
TWO = [LETTERS[i] + LETTERS[i + 1] for i in range(0, 20, 2)]
"""Ten words of two characters; each has similar ones, but the last two."""
Z = 3.89
"""Two-sided normal test at 0.0001."""


def rng(*key):
    return np.random.default_rng(key)


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([LETTERS + "。 ab"] * 9, "wordpiece", 30)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Of each of eight words the next three; one of them is longer, and is not taken."""
    path = tmp_path_factory.mktemp("similar") / "similar.tsv"
    path.write_text("".join("\t".join([TWO[i], *(TWO[(i + k) % 8] for k in (1, 2, 3)), LETTERS[:3]]) + "\n" for i in range(8)))
    return str(path)


def sample(number, words=40, known=True):
    chosen = [str(w) for w in rng(number).choice(TWO, words)]
    pieces = [piece for i, word in enumerate(chosen) for piece in ([word, "。"] if i % 7 == 6 else [word])]
    units = np.zeros(sum(map(len, pieces)), dtype=np.uint8)
    units[np.cumsum([0, *map(len, pieces[:-1])])] = WORD
    made = Sample(str(number), {"txt": "".join(pieces).encode(), **({"units.u8": units.tobytes()} if known else {})}, number, "here")
    made.pair_with(lambda: sample(number + 10_000, words, known))
    return made


def objective(tok, table=None, max_length=64, **settings):
    return MacBertObjective(tok, MacBertSettings(similar=table, **settings), max_length)


def restored(example):
    ids = example.input_ids.copy()
    ids[example.positions] = example.targets
    return ids


# ----------------------------------------------------------------------------------------------- the noise


def test_words_become_similar_words_random_words_or_stay(tok, table):
    """Binomial, 10^5 words: 80/10/10, each similar word as likely; a word without similar ones becomes a random one."""
    o = objective(tok, table)
    framed, _ = o.frame(tok.encode("".join(TWO * 10), add_special_tokens=False))
    bounds = np.stack([np.arange(1, 201, 2), np.arange(3, 203, 2)], 1)
    positions, source, rounds = np.arange(1, 201), rng(5), 1100
    originals = framed[1:201].reshape(100, 2)
    similar, kept, other, third = np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(3)
    for _ in range(rounds):
        noisy = o.replace(framed, positions, bounds, source)
        assert (noisy.targets == framed[positions]).all() and (noisy.ids[[0, 201]] == framed[[0, 201]]).all()
        now = noisy.ids[1:201].reshape(100, 2)
        for n in range(100):
            known = n % 10 < 8
            candidates = o.similar.get(tuple(originals[n].tolist()))
            assert (candidates is not None) == known and (not known or candidates.shape == (3, 2))
            hits = (candidates == now[n]).all(1) if known else np.zeros(3, bool)
            third += hits
            similar[int(known)] += hits.any()
            kept[int(known)] += (now[n] == originals[n]).all()
            other[int(known)] += not hits.any() and not (now[n] == originals[n]).all()
    v = len(o.plain)  # a random word is the original, or a similar one, now and then
    for known, total in ((1, 80 * rounds), (0, 20 * rounds)):
        random = 0.1 if known else 0.9
        for found, share in ((kept[known], 0.1 + random / v**2), (similar[known], known * (0.8 + random * 3 / v**2))):
            assert abs(found / total - share) <= Z * np.sqrt(share * (1 - share) / total) + 1e-12
        assert kept[known] + similar[known] + other[known] == total
    assert (similar + kept + other).sum() == 110_000
    assert (np.abs(third / third.sum() - 1 / 3) < Z * np.sqrt(2 / 9 / third.sum())).all()


def test_no_mask_whole_words_fifteen_percent_and_both_orders(tok, table):
    o = objective(tok, table)
    assert o.ngrams == (0.4, 0.3, 0.2, 0.1)
    places = tokens = swapped = pairs = 0
    for number in range(60):
        one = sample(number)
        for e in o.example(one, rng(1, number)):
            ids = restored(e)
            assert not set(e.input_ids.tolist()) & {tok.mask_id} and not set(e.input_ids[e.positions].tolist()) & tok.special_ids
            chosen, text = set(e.positions.tolist()), [tok.id_to_token(i) for i in ids]
            for i in range(len(ids) - 1):
                if text[i] + text[i + 1] in TWO and text[i] in LETTERS[::2]:
                    assert (i in chosen) == (i + 1 in chosen), "a word was cut"
            places, tokens = places + len(chosen), tokens + len(ids)
            swapped, pairs = swapped + e.next_sentence, pairs + 1
    assert 0.13 < places / tokens <= 0.155 and pairs > 100
    assert abs(swapped / pairs - 0.5) < Z * 0.5 / np.sqrt(pairs) + 0.05  # a single sentence gets a random second one


def test_n_grams_are_of_one_to_four_words(tok, table):
    o, found = objective(tok, table, 512), np.zeros(40)
    for number in range(300):
        for e in o.example(sample(number, 120), rng(2, number)):
            runs = np.split(e.positions, np.flatnonzero(np.diff(e.positions) > 1) + 1)
            for run in runs:
                found[len(run) // 2] += 1
    assert found[:5].sum() > 0.95 * found.sum() and (found[1:5] > 50).all()


def test_without_a_table_similar_words_are_random_words_and_that_is_told(tok):
    o = objective(tok)
    assert o.inputs == {} and "random words stand in" in o.notes[0]
    ids, _ = o.frame(tok.encode("".join(TWO), add_special_tokens=False))
    bounds = np.stack([np.arange(1, 21, 2), np.arange(3, 23, 2)], 1)
    kept = [(o.replace(ids, np.arange(1, 21), bounds, rng(n)).ids[1:21] == ids[1:21]).reshape(10, 2).all(1).mean() for n in range(500)]
    assert abs(np.mean(kept) - 0.1) < Z * np.sqrt(0.09 / 5000) + 0.01


def test_chinese_without_words_is_refused_and_other_text_is_not(tok, table):
    with pytest.raises(BadSample, match=r"sample '3' of here: MacBERT needs to know where the words .* --segment jieba, or") as found:
        list(objective(tok, table).example(sample(3, known=False), rng(0)))
    assert "\n" not in str(found.value)
    english = Tokenizer.train(["red green blue cat dog. " * 9], "wordpiece", 40)
    text = Sample("e", {"txt": b"red green. blue cat dog. red cat."}, 0)
    text.pair_with(lambda: text)
    assert list(objective(english).example(text, rng(0)))


def test_it_travels_to_workers_with_its_table(tok, table):
    o = objective(tok, table)
    again = pickle.loads(pickle.dumps(o))
    a, b = (list(x.example(sample(1), rng(4))) for x in (o, again))
    assert len(a) == len(b) and all((x.input_ids == y.input_ids).all() for x, y in zip(a, b)) and again.inputs == o.inputs


# ----------------------------------------------------------------------------------------------- the table


def test_a_table_keeps_words_of_as_many_tokens(tok, table):
    read, sha256 = read_similar(table)
    assert len(read) == 8 and len(sha256) == 64
    found = by_tokens({**read, "天X": ["地人"], "地人": ["天X", "地人", "人"]}, tok)
    assert len(found) == 8 and all(rows.shape == (3, 2) for rows in found.values()), "no unknown tokens, not itself, none shorter"
    first = found[tuple(tok.encode(TWO[0], add_special_tokens=False))]
    assert [tok.decode(row.tolist()).replace(" ", "") for row in first] == TWO[1:4], "in the order of the table"


@pytest.mark.parametrize(("content", "message"), [
    ("天地\t人山\n水火\n", "line 2: '水火' is no entry, expected a word, a tab"), ("天地\t\t人山\n", "line 1"), ("\n\n", "is empty"),
    ("天地\t人山\n天地\t水火\n", "line 2: the word '天地' for the second time"), (b"\xff\xfe", "is not UTF-8"), (None, "cannot be read"),
    ("天地\t人\n", "no word of .* has a similar word with as many tokens"),
])
def test_a_table_that_is_none_is_refused_in_one_line(tok, tmp_path, content, message):
    path = tmp_path / "table.tsv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as found:
        objective(tok, str(path))
    assert "\n" not in str(found.value)


def test_whole_words_cannot_be_left_out():
    with pytest.raises(UserError, match="MacBERT replaces whole words"):
        MacBertSettings(whole_words=False)


# --------------------------------------------------------------------------------------------- the network


def test_it_is_bert_with_the_published_number_of_parameters():
    nets = {net.architecture: net for net in family("macbert").nets}
    with without_weights():
        net = nets["BertForMaskedLM"].build(polymodal.system("macbert").net.config)
    assert net.config.vocab_size == 21128 and sum(p.numel() for p in net.parameters()) == 102_290_312


def test_the_order_is_trained_where_it_is_wanted(tok, table):
    for sop in (True, False):
        system = polymodal.system("macbert", size="tiny", tokenizer=tok, objective={"similar": table, "sop": sop})
        examples = [e for n in range(3) for e in system.objective.example(sample(n), rng(n))]
        step = system(system.objective.collate(examples))
        assert step.terms.keys() == ({"mlm", "sop"} if sop else {"mlm"})


@pytest.mark.parametrize("sop", [True, False])
def test_the_example_tells_what_the_model_would_write_otherwise(tok, tmp_path, sop):
    spec = importlib.util.spec_from_file_location("correct_words", Path(__file__).resolve().parents[2] / "examples" / "correct_words.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    net = polymodal.system("macbert", size="tiny", tokenizer=tok, objective={"sop": sop}).net
    with torch.no_grad():
        net.head.bias[tok.token_to_id("天")] = 50.0
    polymodal.save(net, tmp_path, tokenizer=tok)
    assert [(old, new, round(chance, 3)) for old, new, chance in example.corrections(str(tmp_path), "天地天人")] == [
        ("地", "天", 1.0), ("人", "天", 1.0)]
    assert example.corrections(str(tmp_path), "天天") == [] == example.corrections(str(tmp_path), "天地", least=1.1)
