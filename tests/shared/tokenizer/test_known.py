"""Remembered words: the ids are those of the whole text, whatever stands in it."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from polymodal.shared.tokenizer import Tokenizer
from polymodal.shared.tokenizer.known import KnownWords, word_pattern
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

TEXTS = ["the cat sat on the mat", "It's the cat's mat, isn't it?", "two  spaces\n\nand lines", "été naïve 123 中文"] * 20
ODD = [*" \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2028\u202f\u3000", *"\u200b\u200d\x1c\x1f\x00\ufeff\u0300\u0301\u0600\u180e",
       *"abAZ'sñéßΣ中日1²٣!?.-_😀🏽",
       "'s", "'ll", "  ", "\n\n", "the", " cat", "<|endoftext|>", "[MASK]", "[SEP]"]


@pytest.fixture(scope="module", params=["byte-bpe", "wordpiece", "wordpiece, case kept"])
def trained(request):
    kind = request.param.split(",")[0]
    return Tokenizer.train(TEXTS, kind, 300 if kind == "byte-bpe" else 70, lowercase=request.param == "wordpiece")


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(ODD), max_size=30).map("".join), max_size=4))
def test_ids_are_those_of_the_whole_text(trained, texts):
    assert isinstance(trained._encode_many, KnownWords)
    whole = trained._pipeline.encode_batch(texts, add_special_tokens=False)
    assert trained.encode_batch(texts, add_special_tokens=False) == [e.ids for e in whole]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_ids_of_any_text(trained, text):
    assert trained.encode(text, add_special_tokens=False) == trained._pipeline.encode(text, add_special_tokens=False).ids


def test_memory_begins_anew(monkeypatch):
    monkeypatch.setattr("polymodal.shared.tokenizer.known._ROOM", 200)
    tokenizer = Tokenizer.train(TEXTS, "byte-bpe", 300)
    known = tokenizer._encode_many
    assert isinstance(known, KnownWords)
    for i in range(20):
        text = f"word{i} the cat"
        assert tokenizer.encode(text) == tokenizer._pipeline.encode(text).ids
        assert len(known._known) < 10


def _pipeline(words, normalizer=None, model=None, added=()):
    pipeline = tokenizers.Tokenizer(model or models.BPE())
    pipeline.pre_tokenizer = words
    if normalizer is not None:
        pipeline.normalizer = normalizer
    pipeline.add_tokens(list(added))
    return pipeline


@pytest.mark.parametrize("pipeline", [
    _pipeline(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    _pipeline(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    _pipeline(pre_tokenizers.Metaspace()),
    _pipeline(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFKC()),
    _pipeline(pre_tokenizers.BertPreTokenizer(), normalizers.Replace(" ", "_")),
    _pipeline(pre_tokenizers.ByteLevel(add_prefix_space=False), model=models.BPE(dropout=0.5)),
    _pipeline(pre_tokenizers.ByteLevel(add_prefix_space=False), added=[AddedToken("<x>", rstrip=True)]),
    _pipeline(pre_tokenizers.ByteLevel(add_prefix_space=False), added=[AddedToken("New York")]),
], ids=["no words", "space at the beginning", "sentencepiece", "normalised bytes", "other normalizer", "dropout", "swallows spaces",
        "holds a space"])
def test_other_pipelines_are_given_whole_texts(pipeline):
    assert word_pattern(pipeline) is None
