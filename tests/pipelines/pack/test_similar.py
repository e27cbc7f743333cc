"""The table of similar words: from a corpus with words, from word vectors, and wrong input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from polymodal.pipelines import cli
from polymodal.pipelines.pack.settings import Reading
from polymodal.pipelines.pack.similar import SimilarSettings, corpus_vectors, similar_words
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text.similar import read_similar

KINDS = {"红": ["苹果", "樱桃", "草莓"], "快": ["汽车", "火车", "飞机"], "软": ["枕头", "被子", "床垫"]}
"""Words that are used alike: each with its own words around it."""


def corpus(path, count=400, columns="words"):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        words = []
        for _ in range(4):
            mark = str(rng.choice(list(KINDS)))
            words += [mark, str(rng.choice(KINDS[mark])), mark + mark, "。"]
        rows.append({"words": words} if columns == "words" else {"text": "".join(words)})
    file = path / f"{columns}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(*arguments):
    return cli.run(["similar-words", *map(str, arguments)])


def test_words_that_are_used_alike_are_similar(tmp_path):
    settings = SimilarSettings(window=1, dimensions=6, top=2, min_count=3)
    words, vectors = corpus_vectors([corpus(tmp_path)], Reading("words"), settings)
    assert len(words) == 15 and vectors.shape == (15, 6) and "。" not in words
    found = dict(similar_words(words, vectors, settings))
    for alike in KINDS.values():
        for word in alike:
            assert set(found[word]) == set(alike) - {word}
    again = corpus_vectors([tmp_path / "words.jsonl"], Reading("words"), settings)
    assert again[0] == words and np.allclose(again[1], vectors), "the same again"


def test_counts_in_pieces_are_the_same(tmp_path, monkeypatch):
    settings = SimilarSettings(window=3, dimensions=6, min_count=3)
    file = corpus(tmp_path)
    whole = corpus_vectors([file], Reading("words"), settings)
    monkeypatch.setattr("polymodal.pipelines.pack.similar._CHUNK", 50)
    assert np.allclose(corpus_vectors([file], Reading("words"), settings)[1], whole[1])
    monkeypatch.setattr("polymodal.pipelines.pack.similar._MOST_WORDS", 20)
    assert corpus_vectors([file], Reading("words"), settings)[0] == whole[0]


def test_the_command_makes_a_table_that_macbert_reads(tmp_path, capsys):
    out = tmp_path / "similar.tsv"
    assert run(corpus(tmp_path), "--kind", "words", "--window", 1, "--dimensions", 6, "--top", 2, "--out", out, "--json") == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    table, _ = read_similar(out)
    assert set(table["苹果"]) == {"樱桃", "草莓"} and said["words"] == 15 and said["entries"] == len(table)


def test_vectors_in_word2vecs_format_and_words_of_as_many_tokens(tmp_path):
    (tmp_path / "v.txt").write_text("4 2\n红 1 0\n红色 0.9 0.1\n赤 0.8 0.3\n软 0 1\n")
    assert run("--vectors", tmp_path / "v.txt", "--out", tmp_path / "all.tsv") == 0
    assert read_similar(tmp_path / "all.tsv")[0] == {"红": ["红色", "赤"], "红色": ["红", "赤"], "赤": ["红色", "红", "软"], "软": ["赤"]}
    Tokenizer.train(["红色赤软 ab"] * 9, "wordpiece", 13).save(tmp_path / "tok")
    assert run("--vectors", tmp_path / "v.txt", "--tokenizer", tmp_path / "tok", "--out", tmp_path / "same.tsv", "--least", 0.5) == 0
    assert read_similar(tmp_path / "same.tsv")[0] == {"红": ["赤"], "赤": ["红"]}


@pytest.mark.parametrize(("content", "message"), [
    ("2 2\n红 1 0\n", "has 1 words, and its first line says 2"), ("红 1 x\n", "is not GloVe's text format"),
    ("1 2\n红 1\n", "is not word2vec's text format: line 2"), ("2 2\n红 1 0\n红 1 0\n", "'红' stands there twice"),
    (None, "cannot be read"),
    ("1 1\n红 1\n软 1\n", "has 2 words, and its first line says 1"), ("2 2\n红 1 0\n软 0 1\n", "none of the 2 words has a similar one"),
])
def test_vectors_that_are_none_are_refused(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "v.txt").write_text(content)
    assert run("--vectors", tmp_path / "v.txt", "--out", tmp_path / "out.tsv") == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error and not (tmp_path / "out.tsv").exists()


def test_options_of_texts_are_refused_with_vectors(tmp_path, capsys):
    (tmp_path / "v.txt").write_text("2 2\na 1 1\nb 1 1\n")
    assert run("--vectors", tmp_path / "v.txt", "--out", tmp_path / "t.tsv", "--min-count", 1) == 2
    assert "--min-count is about texts and has no effect with --vectors" in capsys.readouterr().err
    assert run("--vectors", tmp_path / "v.txt", "--out", tmp_path / "t.tsv") == 0


def test_wrong_input_is_told_in_one_line(tmp_path, capsys):
    plain = corpus(tmp_path, 5, columns="text")
    for arguments, message in (
        ((), "give texts, or word vectors with --vectors, one of them"), ((plain,), "give --segment jieba, or words with --kind words"),
        ((plain, "--kind", "images"), "expected text or words"), ((plain, "--segment", "x"), "--segment 'x' is unknown"),
        ((corpus(tmp_path, 2), "--kind", "words", "--min-count", 99), "0 words that occur 99 times"),
        ((tmp_path / "no.txt",), "does not exist"),
    ):
        assert run(*arguments, "--out", tmp_path / "out.tsv") == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error and not (tmp_path / "out.tsv").exists()
    assert run(plain, "--segment", "jieba", "--out", tmp_path) == 2 and "no file that can be written" in capsys.readouterr().err
