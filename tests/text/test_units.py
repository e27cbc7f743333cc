"""Where words and entities begin, from the data to the masks."""

import numpy as np
import polymodal
import pytest
from polymodal.shared.documents import KNOWN, apart, documents, text_ids, token_units
from polymodal.shared.errors import BadSample
from polymodal.shared.sample import ENTITY, WORD, Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text.sentences import sentence_documents
from polymodal.text.words import choose_units, single_characters, unit_starts, units_of, word_bounds

TEXT = "我爱北京天安门。他在上海。"
WORDS = ["我", "爱", "北京", "天安门", "。", "他", "在", "上海", "。"]
Z = 3.89
"""Two-sided normal test at 0.0001."""


def units_for(words, entities=()):
    """The field `units.u8` of words without spaces between them."""
    units = np.zeros(sum(map(len, words)), dtype=np.uint8)
    units[np.cumsum([0, *map(len, words[:-1])])] = WORD
    if entities:
        units[[at for at, word in zip(np.cumsum([0, *map(len, words[:-1])]), words) if word not in entities]] |= ENTITY
    return units


def text_sample(text=TEXT, units=None, number=0):
    fields = {"txt": text.encode()} | ({} if units is None else {"units.u8": units.tobytes()})
    return Sample(str(number), fields, number, "here")


def row_sample(ids, lengths, units=None):
    fields = {"tokens.u16": np.array(ids, "<u2").tobytes(), "lengths.u32": np.array(lengths, "<u4").tobytes()}
    return Sample("row", fields | ({} if units is None else {"units.u8": np.array(units, np.uint8).tobytes()}), 0, "here")


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([TEXT + " hello world"] * 9, "wordpiece", 37)


def rng(*key):
    return np.random.default_rng(key)


# ------------------------------------------------------------------------------------- characters to tokens


def test_a_unit_begins_with_the_token_of_its_first_character(tok):
    ids, units = token_units(tok, TEXT, units_for(WORDS))
    assert ids.tolist() == tok.encode(TEXT, add_special_tokens=False) and len(ids) == len(TEXT)
    assert [i for i, u in enumerate(units) if u & WORD] == [0, 1, 2, 4, 7, 8, 9, 10, 12]
    mixed = "我爱hello world"
    ids, units = token_units(tok, mixed, units_for(["我爱", "hello", " ", "world"]))
    starts = [tok.id_to_token(i)[0] for i, u in zip(ids.tolist(), units) if u & WORD]
    assert starts == ["我", "h", "w"], "a space is no token, and the word behind it begins once"


@pytest.mark.parametrize("kind", ["bpe", "byte-bpe"])
def test_tokens_of_more_and_of_less_than_a_word(kind):
    """A token over a border is the beginning of the second word; bytes of one character are one unit."""
    size, style = (24, "albert") if kind == "bpe" else (262, "roberta")
    trained = Tokenizer.train([TEXT] * 50, kind, size, style=STYLES[style])
    ids, units = token_units(trained, TEXT, units_for(WORDS))
    _, places = trained.offsets(TEXT)
    starts = set(np.cumsum([0, *map(len, WORDS[:-1])]).tolist())
    first_of = {next(t for t, (_, end) in enumerate(places) if end > start) for start in starts}
    assert {t for t, u in enumerate(units) if u & WORD} == first_of and len(ids) == len(units)


def test_documents_keep_their_units_wherever_they_are_cut(tok):
    sample = text_sample(units=units_for(WORDS, entities=("天安门",)))
    (document,) = documents(sample, tok, units=True)
    ids, units = apart(document)
    (plain,) = documents(sample, tok)
    assert ids.dtype == plain.dtype == np.int64 and (ids == plain).all() and (apart(plain)[1] == 0).all()
    assert (units & KNOWN).all() and (units & WORD > 0).sum() == 9 and (units & ENTITY > 0).sum() == 8
    first, second = sentence_documents(sample, tok, 100, units=True)[0]
    assert np.concatenate([first, second]).tolist() == document.tolist() and len(first) == 8
    parts = text_ids(sample, tok, [TEXT[2:4], TEXT[-3:-1]], units=True)
    assert [part.tolist() for part in parts] == [document[2:4].tolist(), document[-3:-1].tolist()]


def test_rows_keep_their_units_without_those_of_the_frame(tok):
    ids = tok.encode(TEXT)
    known = token_units(tok, TEXT, units_for(WORDS))[1].tolist()
    row = row_sample([*ids, *ids[:5]], [len(ids), 5], [0, *known, 0, 0, *known[:4]])
    (whole,) = documents(text_sample(units=units_for(WORDS)), tok, units=True)
    found = documents(row, tok, units=True)
    assert [d.tolist() for d in found] == [whole.tolist(), whole[:4].tolist()]
    assert [d.tolist() for d in documents(row, tok)] == [apart(d)[0].tolist() for d in found]


@pytest.mark.parametrize("sample", [text_sample(units=units_for(WORDS)[:-1]), row_sample([5, 6, 7], [3], [1, 1])])
def test_a_field_of_another_length_is_bad(sample, tok):
    with pytest.raises(BadSample, match=r"units.u8.*expected one for each of the (13 characters|3 tokens)"):
        documents(sample, tok, units=True)
    assert documents(sample, tok)


def test_units_begin_as_the_data_says_and_elsewhere_as_the_tokenizer_does():
    maskable = np.array([0, 1, 1, 1, 0, 1, 1, 0], bool)
    units = np.array([0, KNOWN, KNOWN | WORD, KNOWN, 0, 0, 0, 0], np.uint8)
    words = np.array([1, 1, 1, 1, 1, 0, 1, 1], bool)
    starts = unit_starts(units, WORD, words, maskable)
    assert word_bounds(starts, maskable).tolist() == [[1, 2], [2, 4], [5, 6], [6, 7]]
    assert word_bounds(unit_starts(units, ENTITY, words, maskable), maskable).tolist() == [[1, 4], [5, 6], [6, 7]]


def test_which_tokens_are_one_chinese_character(tok):
    single = single_characters(tok)
    assert single[tok.encode("我爱北京", add_special_tokens=False)].all() and single.sum() == 11
    assert not single[tok.encode("hello。", add_special_tokens=False)].any() and not single[sorted(tok.special_ids)].any()


# --------------------------------------------------------------------------------------------- whole words


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "albert", "spanbert"])
def test_every_masked_family_takes_the_words_of_the_data(name, tok):
    """Each character of a word is predicted with the others; by the vocabulary, every character is a word."""
    settings = {"whole_words": True} | ({"max_ngram": 1} if name == "albert" else {"max_span_length": 1} if name == "spanbert" else {})
    sizes = {"max_position_embeddings": 130} if name == "roberta" else {}
    objective = polymodal.system(name, size="tiny", tokenizer=tok, objective=settings, **sizes).objective
    text = "".join(rng(1).choice(["我", "北京", "天安门", "上海。"], 120))
    words, at = [], 0
    while at < len(text):
        size = 3 if text[at] in "天上" else 2 if text[at] == "北" else 1
        words.append(text[at:at + size])
        at += size
    together = {}
    for known in (True, False):
        sample = text_sample(text, units_for(words) if known else None)
        sample.pair_with(lambda known=known: text_sample(text, units_for(words) if known else None, 1))
        found = []
        for seed in range(40):
            for e in objective.example(sample, rng(seed)):
                ids = e.input_ids.copy()
                ids[e.positions] = e.targets
                chosen = set(e.positions.tolist())
                # both characters of 北京, where a sequence has both
                pairs = [i for i in range(len(ids) - 1) if tok.id_to_token(ids[i]) == "北" and tok.id_to_token(ids[i + 1]) == "京"]
                found += [(i in chosen) == (i + 1 in chosen) for i in pairs if i in chosen or i + 1 in chosen]
        assert len(found) > 30
        together[known] = np.mean(found)
    # SpanBERT's last span may be cut within a word
    assert together[True] == 1 if name != "spanbert" else together[True] > 0.9
    assert together[False] < 0.7


# ------------------------------------------------------------------------------------------------- choosing


def test_a_share_of_the_units_is_chosen_and_each_is_whole():
    bounds = np.array([[1, 3], [3, 4], [5, 9], [9, 10]])
    for seed in range(50):
        places = choose_units(bounds, 0.5, rng(seed))
        numbers = units_of(bounds, places)
        whole = [places[numbers == n].tolist() for n in range(numbers.max() + 1)]
        assert len(whole) == 2 and all([w[0], w[-1] + 1] in bounds.tolist() for w in whole) and (np.diff(places) > 0).all()
        assert len(choose_units(bounds, 0.5, rng(seed), most=3)) <= 3
    assert len(choose_units(bounds, 0.01, rng(0))) in (1, 2, 4), "at least one"
    assert choose_units(bounds[:0], 0.5, rng(0)).tolist() == [] and units_of(bounds, np.zeros(0, dtype=np.int64)).tolist() == []


@pytest.mark.slow
def test_every_unit_is_as_likely():
    """Binomial, 10^5 draws and more: 6 of 40 units of one to three tokens, 25,000 times."""
    sizes = np.tile([1, 2, 3, 1], 10)
    edges = np.cumsum([1, *sizes])
    bounds, rounds, source, counts = np.stack([edges[:-1], edges[1:]], 1), 25_000, rng(3), np.zeros(40)
    for _ in range(rounds):
        counts[np.isin(bounds[:, 0], choose_units(bounds, 0.15, source))] += 1
    assert counts.sum() == rounds * 6
    assert (np.abs(counts / rounds - 0.15) < Z * np.sqrt(0.15 * 0.85 / rounds)).all()
