"""What tokenizers say about mistakes."""

import json
import os

import pytest
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import KINDS, STYLES, Tokenizer
from vocabularies import CORPUS, TEXTS


@pytest.mark.parametrize("kind", KINDS)
def test_corpus_errors(kind):
    for texts, words in (([], "no text"), (["  ", "\n"], "no text"), ("abc", "one string"), ([1], "strings")):
        with pytest.raises(UserError, match=words):
            Tokenizer.train(texts, kind, 300)

    def broken():
        yield "some text"
        raise UserError("line 2 is broken")

    with pytest.raises(UserError, match=r"^line 2 is broken$"):
        Tokenizer.train(broken(), kind, 300)


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe", "unigram", "bpe"])
def test_size_errors_name_a_size_that_works(kind):
    texts = CORPUS[:3]
    with pytest.raises(UserError, match="too small") as small:
        Tokenizer.train(texts, kind, 12)
    least = int(str(small.value).split("use at least ")[1].split(",")[0])
    assert Tokenizer.train(texts, kind, least).vocab_size == least
    with pytest.raises(UserError, match="too large") as large:
        Tokenizer.train(texts, kind, 100_000)
    most = int(str(large.value).split("use size ")[1].split()[0])
    assert Tokenizer.train(texts, kind, most).vocab_size == most


def test_a_vocabulary_of_single_characters_has_one_size():
    """Chinese characters are words, so there is nothing to merge."""
    texts = ["红快软苹果汽车枕头"] * 3
    with pytest.raises(UserError, match="use size 14 or less"):
        Tokenizer.train(texts, "wordpiece", 15)
    tokenizer = Tokenizer.train(texts, "wordpiece", 14)
    assert tokenizer.decode(tokenizer.encode("苹果", add_special_tokens=False)) == "苹 果"
    with pytest.raises(UserError, match="alone take 14"):
        Tokenizer.train(texts, "wordpiece", 13)


def test_argument_errors(trained):
    with pytest.raises(UserError, match="did you mean wordpiece"):
        Tokenizer.train(CORPUS, "wordpice", 300)
    with pytest.raises(UserError, match="special tokens"):
        Tokenizer.train(CORPUS, "word", 4)
    with pytest.raises(UserError, match="unknown token"):
        Tokenizer.train(CORPUS, "unigram", 300, style=STYLES["gpt2"])
    with pytest.raises(UserError, match="coverage"):
        Tokenizer.train(CORPUS, "unigram", 300, coverage=1.5)
    tok = trained("wordpiece")
    for call, words in ((lambda: tok.encode("a", max_length=1), "at least 2"), (lambda: tok.encode_batch("abc"), "use encode"),
                        (lambda: tok.encode_batch(["a"], ["b", "c"]), "as many"),
                        (lambda: tok(["a", "b c d"], padding=False), "padding=True"),
                        (lambda: tok("a", padding="max_length"), "max_length"), (lambda: tok.decode([-100]), "-100"),
                        (lambda: tok.encode(None), "takes strings")):
        with pytest.raises(UserError, match=words):
            call()


@pytest.mark.parametrize(("name", "content", "words"), [
    ("tokenizer.json", b"{", "not a tokenizer"), ("tokenizer.json", b"\xff\xfe", "not UTF-8"), ("tokenizer.json", b"", "not a tokenizer"),
    ("tokenizer.json", b"{}", "not a tokenizer"), ("vocab.txt", b"a\nb\n", "not a BERT vocabulary"), ("vocab.txt", b"\xff", "not UTF-8"),
    ("vocab.json", b"{}", "merges.txt is missing"), ("spiece.model", b"nonsense", "not a SentencePiece model"),
    ("spiece.model", b"", "not a SentencePiece model"), ("open_clip_config.json", b"[]", "JSON object")])
def test_damaged_files(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        Tokenizer.load(tmp_path)


def test_files_that_do_not_belong_together(trained, tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("x y\n")
    with pytest.raises(UserError, match="do not belong together"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match=r"no tokenizer at '\./nowhere'"):
        Tokenizer.load("./nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected one of"):
        Tokenizer.load(tmp_path / "empty")
    trained("wordpiece").save(tmp_path / "tok")
    (tmp_path / "tok" / "tokenizer_config.json").write_text("nonsense")
    with pytest.raises(UserError, match="not JSON"):
        Tokenizer.load(tmp_path / "tok")


def test_run_directory(trained, tmp_path):
    trained("wordpiece").save(tmp_path / "run" / "tokenizer")
    assert Tokenizer.load(tmp_path / "run").fingerprint == trained("wordpiece").fingerprint


def test_a_failed_save_leaves_nothing_behind(trained, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    trained("word").save(tmp_path / "old")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()}
    monkeypatch.setattr(os, "fsync", full)
    for target in ("new", "old"):
        with pytest.raises(OSError, match="No space"):
            trained("char").save(tmp_path / target)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before
    with pytest.raises(UserError, match="is a file"):
        trained("char").save(tmp_path / "old" / "tokenizer.json")


def test_nothing_in_a_directory_is_executed(trained, tmp_path):
    trained("wordpiece").save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    assert Tokenizer.load(tmp_path).fingerprint == trained("wordpiece").fingerprint
    assert not (tmp_path / "ran").exists()


def test_dropout_of_a_loaded_vocabulary_is_off(trained, tmp_path):
    trained("byte-bpe").save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["dropout"] = 0.5
    path.write_text(json.dumps(content), encoding="utf-8")
    assert Tokenizer.load(tmp_path).encode_batch(TEXTS) == trained("byte-bpe").encode_batch(TEXTS)
