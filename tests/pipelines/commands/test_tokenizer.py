"""`polymodal tokenizer`: from files to a directory, and one line for every mistake."""

import json
from dataclasses import asdict
from pydoc_data.topics import topics

import polymodal
import pytest
import webdataset
from polymodal.pipelines import cli
from polymodal.pipelines.pack.corpus import iterate_texts
from polymodal.registry import families
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import STYLES, Tokenizer

TEXTS = [t.strip() for t in list(topics.values())[:12]]


@pytest.fixture(scope="module", autouse=True)
def commands():
    if not any(group.name == "tokenizer" for group in cli.app.registered_groups):
        cli._register()


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS), encoding="utf-8")
    return path


def train(corpus, out, *more):
    return cli.run(["tokenizer", "train", str(corpus), "--out", str(out), *more])


def test_train_and_show(corpus, tmp_path, capsys):
    out = tmp_path / "tok"
    assert train(corpus, out, "--kind", "wordpiece", "--size", "1200", "--lowercase", "--max-length", "128", "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    tok = Tokenizer.load(out)
    assert tok.fingerprint == result["fingerprint"] == Tokenizer.train(TEXTS, "wordpiece", 1200, lowercase=True).fingerprint
    assert (result["vocab_size"], result["texts"], result["characters"]) == (1200, len(TEXTS), sum(map(len, TEXTS)))
    assert tok.max_length == 128
    assert cli.run(["tokenizer", "show", str(out), "Class 你", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["ids"] == tok.encode("Class 你")
    assert [(t["text"], t["word"]) for t in shown["tokens"]] == [("Class", True), ("你", True)]
    assert shown["roles"]["mask"] == tok.mask_id
    assert cli.run(["tokenizer", "show", str(out), "Class"]) == 0
    assert "class" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "style"), [("byte-bpe", "roberta"), ("unigram", "t5"), ("word", None), ("char", None)])
def test_kinds(corpus, tmp_path, kind, style, capsys):
    size = {"byte-bpe": 500, "unigram": 500, "word": 300, "char": 60}[kind]
    more = ["--style", style] if style else []
    assert train(corpus, tmp_path / "tok", "--kind", kind, "--size", str(size), "--coverage", "0.999", *more) == 0
    assert Tokenizer.load(tmp_path / "tok").vocab_size == size
    assert f"{kind} vocabulary of {size} tokens" in capsys.readouterr().out


def test_sources_are_equivalent(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree", encoding="utf-8")
    (tmp_path / "b.csv").write_text('id,text\n1,"one\ntwo"\n2,three\n', encoding="utf-8")
    (tmp_path / "shards").mkdir()
    with webdataset.TarWriter(str(tmp_path / "shards" / "000000.tar")) as tar:
        tar.write({"__key__": "0", "txt": "one\ntwo"})
        tar.write({"__key__": "1", "json": {"text": "three"}})
    for name in ("a.txt", "b.csv", "shards", "shards/000000.tar"):
        assert list(iterate_texts([tmp_path / name])) == ["one\ntwo", "three"], name
    assert list(iterate_texts([tmp_path / "a.txt", tmp_path / "b.csv"])) == ["one\ntwo", "three"] * 2
    assert list(iterate_texts([tmp_path / "a.txt"], split="line")) == ["one", "two", "three"]


@pytest.mark.parametrize(("content", "words"), [
    (None, "does not exist"), (b"", "empty"), (b"\xff\xfe\xfa", "not UTF-8"), (b"\n \n", "no text")])
def test_bad_corpus(tmp_path, content, words, capsys):
    path = tmp_path / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    assert train(path, tmp_path / "tok", "--kind", "unigram", "--size", "300") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert "packed" not in captured.err
    assert [p.name for p in tmp_path.iterdir()] == (["corpus.txt"] if content is not None else [])
    with pytest.raises(UserError):
        Tokenizer.train(iterate_texts([path]), "word", 100)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--kind", "wordpice", "--size", "1000"], "did you mean wordpiece"), (["--kind", "byte-bpe", "--size", "1000000"], "too large"),
    (["--kind", "wordpiece", "--size", "40"], "too small"), (["--kind", "byte-bpe", "--size", "0"], "greater than"),
    (["--kind", "byte-bpe", "--size", "500", "--style", "brt"], "did you mean bert")])
def test_bad_arguments(corpus, tmp_path, arguments, words, capsys):
    assert train(corpus, tmp_path / "tok", *arguments) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "tok").exists()


def test_out_must_be_writable_and_free(corpus, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("x")
    for out, words in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "tok", "cannot write"), (tmp_path / "full", "not empty")):
        assert train(corpus, out, "--kind", "byte-bpe", "--size", "500") == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "full" / "kept").read_text() == "x"
    assert cli.run(["tokenizer", "show", str(tmp_path / "full"), "a"]) == 2
    assert "no tokenizer in" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, entry in families().items() if entry.vocabulary])
def test_a_vocabulary_for_a_system(corpus, tmp_path, name, capsys):
    """`--for` learns what the family declares, and its system takes it; options win."""
    own = families()[name].vocabulary
    more = [] if own.kind == "word" else ["--coverage", "0.99"]
    assert train(corpus, tmp_path / "tok", "--for", name, "--size", "900", *more, "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {key: result[key] for key in asdict(own)} == asdict(own)
    tok, style = Tokenizer.load(tmp_path / "tok"), STYLES[own.style]
    assert tok.framing.roles == dict(style.roles) and len(tok.framing.single.parts) == len(style.single.split())
    assert (tok.encode("CLASS") == tok.encode("class")) is own.lowercase
    assert polymodal.system(name, size="tiny", tokenizer=tok).objective is not None
    if own.lowercase:
        assert train(corpus, tmp_path / "cased", "--for", name, "--size", "900", *more, "--cased") == 0
        assert Tokenizer.load(tmp_path / "cased").encode("CLASS") != Tokenizer.load(tmp_path / "cased").encode("class")


def test_systems_say_their_vocabulary():
    told = {s.name: s.to_dict()["vocabulary"] for s in polymodal.systems()}
    by_others = ["features"]  # whose words another network reads
    assert [name for name, own in told.items() if own is None] == by_others + [s.name for s in polymodal.systems() if s.folder == "vision"]
    assert told["t5"] == {"kind": "unigram", "style": "t5", "lowercase": False, "strip_accents": None}


def test_no_system_and_no_kind(corpus, tmp_path, capsys):
    for more, words in (((), "which kind of vocabulary"), (("--for", "vit"), "vit reads no text"), (("--for", "brt"), "did you mean bert")):
        assert train(corpus, tmp_path / "tok", "--size", "900", *more) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "tok").exists()
