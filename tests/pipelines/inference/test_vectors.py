"""Files of word vectors, and what commands do with them."""

from __future__ import annotations

import json

import numpy as np
import polymodal
import pytest
import torch
from polymodal.pipelines import cli
from polymodal.pipelines.evaluation.words import spearman
from polymodal.pipelines.inference.vectors import open_vectors
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text.word_vectors import read_vectors

WORDS = ["king", "queen", "man", "woman", "apple", "Käse"]
TABLE = np.array([[2, 0, 1], [2, 1, 1], [0, 0, 2], [0, 1.5, 1.5], [-3, -1, 0], [0.1, -1e-8, 3e7]], dtype=np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A word2vec with these vectors, as a directory."""
    path = tmp_path_factory.mktemp("model")
    tok = Tokenizer.train([" ".join(WORDS)] * 2, "word", 11)
    net = polymodal.system("word2vec", size="tiny", tokenizer=tok, hidden_size=3).net
    with torch.no_grad():
        for word, row in zip(WORDS, TABLE, strict=True):
            net.input.weight[tok.token_to_id(word)] = torch.from_numpy(row)
    polymodal.save(net, path, tokenizer=tok)
    return path


def run(*arguments):
    return cli.run([*map(str, arguments)])


def said(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def same_vectors(found):
    assert sorted(found.words) == sorted(WORDS)
    for word, row in zip(WORDS, TABLE, strict=True):
        np.testing.assert_array_equal(found.vectors[found.numbers[word]], row)


def test_a_model_is_written_in_every_format_and_read_again(model, tmp_path):
    same_vectors(open_vectors(model))
    net = polymodal.load(model)
    for name, files in (("gensim", ["vectors.bin", "vectors.txt"]), ("glove", ["vectors.txt"])):
        polymodal.save(net, tmp_path / name, format=name)
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == files
        same_vectors(open_vectors(tmp_path / name))
        for file in files:
            same_vectors(read_vectors(tmp_path / name / file))
    assert (tmp_path / "gensim" / "vectors.txt").read_text().splitlines()[0] == "6 3"
    assert not (tmp_path / "glove" / "vectors.txt").read_text().startswith("6 3")
    with pytest.raises(UserError, match="has no format 'timm'; it can be written as polymodal, gensim, glove"):
        polymodal.save(net, tmp_path / "no", format="timm")
    with pytest.raises(UserError, match="names words, and this Word2Vec came without its vocabulary"):
        polymodal.save(polymodal.system("word2vec", size="tiny").net, tmp_path / "no", format="gensim")
    spaced = Tokenizer.train(["a b"] * 2, "char", 9)
    with pytest.raises(UserError, match="cannot stand in a file of word vectors"):
        polymodal.save(polymodal.system("word2vec", size="tiny", tokenizer=spaced).net, tmp_path / "no", tokenizer=spaced, format="glove")
    assert not any((tmp_path / "no").iterdir()) if (tmp_path / "no").exists() else True


def test_the_binary_format_of_gensim_has_no_line_ends(tmp_path):
    (tmp_path / "v.bin").write_bytes(b"2 2\n" + b"".join(w.encode() + b" " + np.array(v, "<f4").tobytes() for w, v in (
        ("red", [1.5, -2]), ("näh", [0.1, 7]))))
    found = read_vectors(tmp_path / "v.bin")
    assert list(found.words) == ["red", "näh"] and found.vectors[1].tolist() == np.array([0.1, 7], np.float32).tolist()


def test_what_is_written_is_what_word2vecs_tool_reads(model, tmp_path):
    """By the tool's rules alone (`distance.c`), which gensim follows: a header, then a word, a space, and numbers as text or fp32."""
    net = polymodal.load(model)
    polymodal.save(net, tmp_path / "gensim", format="gensim")
    polymodal.save(net, tmp_path / "glove", format="glove")
    lines = (tmp_path / "gensim" / "vectors.txt").read_text("utf-8").split("\n")
    assert lines[0] == "6 3" and lines[-1] == "" and "\n".join(lines[1:]) == (tmp_path / "glove" / "vectors.txt").read_text("utf-8")
    header, data = (tmp_path / "gensim" / "vectors.bin").read_bytes().split(b"\n", 1)
    assert header == b"6 3"
    for line in lines[1:-1]:
        word, _, data = data.lstrip(b"\n").partition(b" ")
        numbers, data = np.frombuffer(data[:12], "<f4"), data[12:]
        name, *told = line.split(" ")
        assert name == word.decode("utf-8") and np.array_equal(np.array(told, dtype=np.float32), numbers)
        assert np.array_equal(numbers, TABLE[WORDS.index(name)])
    assert not data.strip(b"\n")


ROWS = b"red " + np.ones(2, "<f4").tobytes() + b"\n"


@pytest.mark.parametrize(("content", "message"), [
    (b"", "holds no word vectors"), (b"2 2\nred 1 1\n", "has 1 words, and its first line says 2"),
    (b"1 2\nred 1 1\nblue 1 1\n", "has 2 words, and its first line says 1"), (b"1 3\nred 1 1\n", "line 2 is b'red 1 1"),
    (b"red 1 1\nblue 1\n", "GloVe's text format: line 2"), (b"red 1 1\nred 2 2\n", "the word 'red' stands there twice"),
    (b"red 1 nan\n", "the vector of 'red' holds numbers that are not finite"), (b"r\xe9d 1 1\n", "line 1 is not UTF-8"),
    (b"2 2\n" + ROWS, "is cut, or no word2vec file: its first line says 2 words of 2 numbers, and 13 bytes follow"),
    (b"1 2\n" + ROWS[:-3], "is cut"), (b"1 2\n" + ROWS + b"more", "goes on behind the 1 words"),
    (b"2 2\n" + ROWS * 2, "stands there twice"),
    (b"3 1\na " + np.ones(1, "<f4").tobytes() + b"\nlonger-than-it-says" + b"\xff" * 9, "it ends behind 1 words"),
    (b"0 2\n", "holds no word vectors"), (b"99999999999 99999999999\n" + ROWS, "is cut, or no word2vec file"),
])
def test_files_that_are_none_are_told_in_one_line(tmp_path, capsys, content, message):
    (tmp_path / "v").write_bytes(content)
    assert run("similar", "--model", tmp_path / "v", "red") == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_similar_words_of_a_model_from_arguments_files_and_stdin(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "words.txt").write_text("king\nKING nobody\n")
    assert run("similar", "--model", model, "queen", tmp_path / "words.txt", "--top", 2, "--json") == 0
    record = said(capsys)
    assert [r["word"] for r in record["results"]] == ["queen", "king", "KING", "nobody"]
    assert record["results"][0]["nearest"][0]["word"] == "king" and len(record["results"][0]["nearest"]) == 2
    assert record["results"][2]["nearest"] == record["results"][1]["nearest"], "in lower case where that alone is known"
    assert record["unknown"] == 1 and record["results"][3] == {"word": "nobody", "known": False, "nearest": []}
    cosine = float(TABLE[0] @ TABLE[1] / np.linalg.norm(TABLE[0]) / np.linalg.norm(TABLE[1]))
    assert record["results"][0]["nearest"][0]["cosine"] == pytest.approx(cosine, rel=1e-6)
    assert run("similar", "--model", model, "nobody") == 0
    out = capsys.readouterr().out
    assert "nobody: unknown" in out and "1 of 1 words are not known" in out


def test_analogies(model, tmp_path, capsys):
    assert run("similar", "--model", model, "--analogy", "man", "king", "woman", "--top", 1) == 0
    assert capsys.readouterr().out.startswith("man king woman: queen ")
    (tmp_path / "three.txt").write_text("man king woman\nman king nobody\n")
    assert run("similar", "--model", model, "--analogy", tmp_path / "three.txt", "--json") == 0
    record = said(capsys)
    assert record["unknown"] == 1 and record["results"][1]["unknown"] == ["nobody"]
    assert {n["word"] for n in record["results"][0]["nearest"]} == {"queen", "apple", "Käse"}, "the question's own words do not answer"
    (tmp_path / "four.txt").write_text("man king woman queen\nking man\n")
    for arguments, message in (((tmp_path / "four.txt",), "the line 'man king woman queen' of"), (("a", "b"), "got 2 words")):
        assert run("similar", "--model", model, "--analogy", *arguments) == 2
        assert message in capsys.readouterr().err


def test_words_are_evaluated_with_what_is_known(model, tmp_path, capsys):
    (tmp_path / "questions.txt").write_text(": royal\nMan King Woman Queen\nman king woman apple\nman king nobody queen\n: none\na b c d\n")
    (tmp_path / "pairs.csv").write_text("Word 1,Word 2,Human\nking,queen,9\nman,woman,8.5\nking,apple,1\nking,nobody,5\n")
    out = tmp_path / "record.json"
    assert run("evaluate", "words", "--model", model, "--analogies", tmp_path / "questions.txt", "--pairs", tmp_path / "pairs.csv",
               "--out", out, "--json") == 0
    record = said(capsys)
    assert record == json.loads(out.read_text())
    found = record["analogies"]
    assert (found["asked"], found["known"], found["right"], found["accuracy"]) == (4, 2, 1, 0.5)
    assert found["sections"]["none"] == {"asked": 1, "known": 0, "right": 0, "accuracy": None}
    assert record["pairs"]["asked"] == 4 and record["pairs"]["known"] == 3 and record["pairs"]["spearman"] == pytest.approx(1.0, rel=1e-5)
    assert run("evaluate", "words", "--model", model, "--pairs", tmp_path / "pairs.csv", "--out", out) == 2
    assert "is there already" in capsys.readouterr().err
    assert run("evaluate", "words", "--model", model, "--pairs", tmp_path / "pairs.csv", "--most", 1) == 0
    assert "0 of 4 pairs known" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "content", "message"), [
    ("--analogies", "a b c\n", "line 1: 'a b c', expected four words"), ("--analogies", ": only\n", "holds no analogies"),
    ("--analogies", "", "is empty"), ("--pairs", "king queen\n", "line 1: 'king queen', expected two words and a number"),
    ("--pairs", "a b 1\nc d high\n", "line 2: 'c d high'"), ("--pairs", "a b score\n", "holds no pairs"),
    ("--pairs", "a b inf\n", "a finite"),
])
def test_files_of_questions_that_are_none_are_told(model, tmp_path, capsys, option, content, message):
    (tmp_path / "file").write_text(content)
    assert run("evaluate", "words", "--model", model, option, tmp_path / "file") == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_rank_correlation_with_equal_ranks():
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 15, 40])) == pytest.approx(0.8)
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4
    assert spearman(np.array([1.0, 2, 2, 4]), np.array([1.0, 2, 3, 4])) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert spearman(np.array([1.0, 1]), np.array([1.0, 2])) is None and spearman(np.zeros(0), np.zeros(0)) is None


def test_a_model_without_words_is_refused(tmp_path, capsys):
    polymodal.save(polymodal.system("mae", size="tiny").net, tmp_path / "mae")
    assert run("similar", "--model", tmp_path / "mae", "king") == 2
    assert "has no vectors of words" in capsys.readouterr().err


def test_texts_are_embedded_by_the_mean_of_their_words(model, capsys):
    assert run("embed", "--model", model, "king nobody apple", "--raw", "--json") == 0
    (found,) = said(capsys)["results"]
    np.testing.assert_allclose(found["embedding"], (TABLE[0] + TABLE[4]) / 2, rtol=1e-6)
