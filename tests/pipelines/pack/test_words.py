"""Packing of texts with their words: from tables and CoNLL files, by a segmenter, as texts and as rows of tokens."""

from __future__ import annotations

import builtins
import json
from collections import Counter

import numpy as np
import pytest
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.pack import settings as pack_settings
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.segment import joined, words_of
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.shared.documents import apart, documents
from polymodal.shared.errors import UserError
from polymodal.shared.sample import ENTITY, WORD
from polymodal.shared.tokenizer import Tokenizer

ROWS = [
    {"words": ["张三", "在", "北京", "大学", "。"], "tags": ["B-PER", "O", "B-ORG", "I-ORG", "O"]},
    {"words": ["Anna", "Lee", "flew", "to", "北京", "."], "tags": ["B-PER", "E-PER", "O", "O", "S-LOC", "O"]},
]


def packed(path, rows, *, ending="jsonl", kind="words", on_bad="raise", out="data", more=None, **reading):
    file = path / f"{out}.{ending}"
    file.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    pack(file, path / out, PackSettings(Reading(kind, **reading), on_bad=on_bad, shuffle=None, **(more or {})), workers=Workers(1))
    data = DataSet.open(path / out)
    return data, data.read_many(range(len(data)))


def refused(path, rows, match, **more):
    with pytest.raises(UserError, match=match) as found:
        packed(path, rows, out="bad", **more)
    assert "\n" not in str(found.value) and not (path / "bad").exists()


def starts(sample, bit=WORD):
    return np.flatnonzero(sample.units() & bit).tolist()


def test_words_become_a_text_that_knows_them_and_its_entities(tmp_path):
    data, (first, second) = packed(tmp_path, ROWS)
    assert data.index.kind == "words" and set(data.index.fields) == {"txt", "units.u8"}
    assert (first.text(), second.text()) == ("张三在北京大学。", "Anna Lee flew to北京.")
    assert (starts(first), starts(first, ENTITY)) == ([0, 2, 3, 5, 7], [0, 2, 3, 7])
    assert (starts(second), starts(second, ENTITY)) == ([0, 5, 9, 14, 16, 18], [0, 9, 14, 16, 18])
    assert list(words_of(second.text(), second.units())) == ROWS[1]["words"]


@pytest.mark.parametrize("rows", [[{"words": ["a", "b"]}], [{"tokens": "a b"}], "a\nb\n\n"])
def test_words_alone_have_no_entities(tmp_path, rows):
    _, (sample,) = packed(tmp_path, rows, ending="conll" if isinstance(rows, str) else "jsonl")
    assert sample.text() == "a b" and starts(sample) == [0, 2] and starts(sample, ENTITY) == []


def test_conll_files_and_named_columns(tmp_path):
    _, (sample,) = packed(tmp_path, "北京\tNN\tB-LOC\n大学\tNN\tI-LOC\n。\tPU\tO\n\n", ending="conll")
    assert sample.text() == "北京大学。" and starts(sample, ENTITY) == [0, 4]
    _, (sample,) = packed(tmp_path, [{"w": ["北京", "。"], "ner": ["B-LOC", "O"], "tags": ["NN", "PU"]}], out="named", text_field="w",
                          label_field="ner")
    assert starts(sample, ENTITY) == [0, 2]


def test_korean_has_spaces_and_japanese_has_none():
    assert joined(["한국", "사람"], None)[0] == "한국 사람" and joined(["日本", "の", "テレビ"], None)[0] == "日本のテレビ"


@pytest.mark.parametrize(("rows", "message"), [
    ([{"words": ["a", "b"], "tags": ["O"]}], r"line 1: 2 words and 1 tags"),
    ([{"words": ["a", "b"], "tags": ["O", "I-PER"]}], r"line 1: I-PER of word 2 continues nothing"),
    ([{"words": ["a", "b"], "tags": ["NN", "VB"]}], r"line 1: the tag 'NN' marks no entity, expected O and tags such as B-PER"),
    ([{"words": ["a", " "]}], r"line 1: no list of words, none of them blank"), ([{"text": "a b"}], r"no words in 'words' or 'tokens'"),
])
def test_words_that_do_not_fit_are_refused(tmp_path, rows, message):
    refused(tmp_path, rows, message)


def test_bad_files_and_options(tmp_path):
    refused(tmp_path, "a O\nb\n\n", "line 2: a word and no tag", ending="conll")
    refused(tmp_path, "a\nb O\n\n", "line 2: a word with a tag, and the words before have none", ending="conll")
    refused(tmp_path, ROWS, "--segment finds the words of texts, and these sources are packed as words", segment="jieba")
    refused(tmp_path, [{"words": ["a"]}], "no tags in 'ner'", label_field="ner")
    with pytest.raises(UserError, match="--segment 'x' is unknown, expected jieba"):
        Reading(segment="x")
    data, samples = packed(tmp_path, [*ROWS, {"words": []}], on_bad="skip", out="skipped")
    assert len(samples) == 2 and data.index.schema["skipped"] == 1


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(["张三在北京大学上海天气很好。anna lee flew to ."] * 9, "wordpiece", 43, lowercase=True)


@pytest.mark.parametrize("in_order", [False, True])
def test_rows_of_tokens_say_what_their_texts_say(tmp_path, tok, in_order):
    rows = [row for n in range(40) for row in ([ROWS[n % 2]] if n % 3 else [{**ROWS[0], "words": ["上海", "天气", "很", "好", str(n)]}])]
    _, texts = packed(tmp_path, rows, out="texts")
    data, found = packed(tmp_path, rows, out="rows", more={"tokenizer": tok, "block": 24, "in_order": in_order})
    assert data.index.kind == "tokens" and len(found) > 4 and all(len(s.units()) == len(s.tokens()[0]) for s in found)

    def told(samples):
        return [[tuple(part.tolist()) for part in apart(d)] for s in samples for d in documents(s, tok, units=True)]

    wanted = told(texts)
    if in_order:  # documents are cut at the end of a row
        flat = [[x for d in part for x in d] for part in zip(*told(found), strict=True)]
        assert flat == [[x for d in part for x in d] for part in zip(*wanted, strict=True)]
    else:  # some documents are cut to fill rows
        pairs = [Counter(x for ids, units in those for x in zip(ids, units, strict=True)) for those in (told(found), wanted)]
        assert pairs[0] == pairs[1] and sum(d in wanted for d in told(found)) > 25


def test_jieba_finds_the_words_of_texts(tmp_path, tok):
    text = "我来到北京清华大学。\n今天 天气很好。"
    data, (sample,) = packed(tmp_path, text, ending="txt", kind=None, segment="jieba")
    assert sample.text() == text and data.index.kind == "text" and data.index.schema["segmenter"].startswith("jieba 0.")
    assert list(words_of(text, sample.units())) == ["我", "来到", "北京", "清华大学", "。", "今天", "天气", "很", "好", "。"]
    assert starts(sample, ENTITY) == []
    data, (row,) = packed(tmp_path, text, ending="txt", out="rows", segment="jieba", kind="text", more={"tokenizer": tok, "block": 64})
    (document,) = documents(row, tok, units=True)
    assert (apart(document)[1] & WORD > 0).sum() == 10
    assert main_refuses(["pack", str(tmp_path / "data.txt"), "--segment", "jieba", "--kind", "tar", "--out", str(tmp_path / "no")])


def main_refuses(arguments):
    from polymodal.pipelines import cli

    return cli.run(arguments) == 2


def test_a_segmenter_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_settings, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--segment jieba needs the package jieba: pip install 'jieba>=[0-9.]+'"):
        Reading(segment="jieba")


def test_the_dictionary_is_read_from_its_package_alone(tmp_path, monkeypatch):
    """jieba's own way leaves a file in the common temporary folder, and trusts one that is there."""
    from polymodal.pipelines.pack import segment

    segment.segmenter.cache_clear()
    opened, plain = [], builtins.open
    monkeypatch.setattr(builtins, "open", lambda path, *a, **k: (opened.append(str(path)), plain(path, *a, **k))[1])
    assert segment.segmenter("jieba")("天气很好") == ["天气", "很", "好"]
    assert not [path for path in opened if "jieba.cache" in path]


