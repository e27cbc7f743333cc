"""TinyBERT's data augmentation: Algorithm 1 and its numbers, and what the command writes."""

from __future__ import annotations

import csv
import json
from collections import Counter

import numpy as np
import polymodal
import pytest
import torch
from parity import noise
from polymodal.pipelines import cli
from polymodal.pipelines.inference.augment import Augmenter, AugmentSettings, Choice
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text.word_vectors import WordVectors

WORDS = ["red", "green", "blue", "cat", "dog", "house", "tree", "runs", "sleeps", "and", "the", "small", "large", "old", "new", "sings",
         "fast"]
RARE = ["zither", "zeal", "zone"]


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" ".join([*WORDS, *"z."])] * 20, "wordpiece", 90, lowercase=True)


@pytest.fixture(scope="module")
def net(tok):
    return noise(polymodal.system("bert", size="tiny", tokenizer=tok, objective={"nsp": False}, hidden_size=32, num_hidden_layers=2,
                                  num_attention_heads=2, intermediate_size=48, max_position_embeddings=16).net).eval()


def vectors():
    rows = np.random.default_rng(0).normal(size=(len(RARE) + 20, 4)).astype(np.float32)
    return WordVectors([*RARE, *(f"other{chr(97 + n)}" for n in range(20))], rows)


def made(net, tok, given=None, **settings):
    return Augmenter(net, tok, given, AugmentSettings(**settings))


def test_what_is_one_token_is_filled_in_by_the_model_and_the_rest_by_the_vectors(net, tok):
    by = made(net, tok, vectors(), candidates=5)
    text = "The cat, zither! 12 unknownword Red"
    (choices,) = by.choices([text])
    assert [text[c.start:c.end] for c in choices] == ["The", "cat", "zither", "Red"] and {len(c.words) for c in choices} == {5}
    assert dict(by.told) == {"model": 3, "vectors": 1, "without": 1}
    row = vectors().find("zither")
    assert list(choices[2].words) == [w for w, _ in vectors().nearest([row], top=5)]
    ids = tok.encode(text)
    places = [n for n, i in enumerate(ids) if i == tok.token_to_id("cat")]
    ids[places[0]] = tok.mask_id
    with torch.no_grad():
        logits = net(torch.tensor([ids])).logits[0, places[0]]
    best = [tok.decode([i]) for i in logits.argsort(descending=True).tolist() if i not in tok.special_ids]
    assert list(choices[1].words) == [w for w in best if w.isalpha()][:5]
    assert all(w[0].isupper() for c in (choices[0], choices[3]) for w in c.words), "a word keeps its capital"


def test_texts_read_together_have_the_candidates_of_each_alone_and_long_ones_are_read_in_parts(net, tok, monkeypatch):
    from polymodal.pipelines.inference import augment

    texts = ["red cat", " ".join(WORDS * 2), "the old tree"]
    monkeypatch.setattr(augment, "_TOKENS", 40)
    together = made(net, tok, candidates=3).choices(texts)
    assert [len(c) for c in together] == [2, 2 * len(WORDS), 3]
    assert together == [made(net, tok, candidates=3).choices([text])[0] for text in texts]


def test_the_numbers_are_algorithm_ones(net, tok):
    """Each word of a copy is replaced with p_t = 0.4, by any of K = 15 candidates alike, in N_a = 20 copies."""
    settings = AugmentSettings()
    assert (settings.copies, settings.probability, settings.candidates) == (20, 0.4, 15)
    by, text = made(net, tok), " ".join(f"w{n}" for n in range(30))
    choices = [Choice(m, m + len(w), [f"c{k}" for k in range(15)]) for w, m in zip(text.split(), _begins(text), strict=True)]
    rng = np.random.default_rng(0)
    copies = [copy.split() for _ in range(50) for copy in by.copies(text, choices, rng)]
    assert len(copies) == 50 * 20, "30 words hardly ever come twice"
    replaced = [word for copy in copies for word in copy if word[0] == "c"]
    total = len(copies) * 30
    assert abs(len(replaced) / total - 0.4) < 4 * (0.24 / total) ** 0.5
    counts = Counter(replaced)
    expected = len(replaced) / 15
    assert set(counts) == {f"c{k}" for k in range(15)}
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 36, "chi-square of 14 degrees, 1 in 1000"


def _begins(text):
    return [n for n in range(len(text)) if text[n] == "w"]


def test_a_copy_keeps_what_is_no_word_and_none_comes_twice(net, tok):
    by = made(net, tok, copies=200, probability=1.0, candidates=2)
    text = '"Cat"  (dog)\t3.5!'
    choices = by.choices([text])[0]
    copies = by.copies(text, choices, np.random.default_rng(1))
    assert len(copies) == len(set(copies)) <= 4 and text not in copies
    for copy in copies:
        assert copy.startswith('"') and copy.endswith(")\t3.5!") and '"  (' in copy


# -------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def root(tmp_path_factory, net, tok):
    path = tmp_path_factory.mktemp("augment")
    polymodal.save(net, path / "bert", tokenizer=tok)
    given = vectors()
    (path / "vectors.txt").write_text("".join(" ".join([w, *map(str, row)]) + "\n" for w, row in zip(given.words, given.vectors.tolist())))
    rows = [{"text": "the small cat sleeps", "label": "pet"}, {"text": "An old house, a zither", "label": "thing"}]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "text_pair", "label"], ["red tree", "a dog runs", "1"]])
    return path


def command(root, *words, out):
    return cli.run([*map(str, ("augment", *words, "--model", root / "bert", "--out", out))])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_row_stands_before_its_copies_with_its_label(root, tmp_path, capsys):
    for out in ("one.jsonl", "two.jsonl"):
        assert command(root, root / "rows.jsonl", "--vectors", root / "vectors.txt", "--copies", 6, "--json", out=tmp_path / out) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = lines(tmp_path / "one.jsonl")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes(), "the same seed, the same file"
    assert told["rows"] == 2 and told["written"] == len(found) <= 14 and told["words_vectors"] == 1
    assert found[0]["text"] == "the small cat sleeps" and {tuple(row) for row in found} == {("text", "label")}
    names = [row["label"] for row in found]
    assert names == sorted(names) and len({row["text"] for row in found}) == len(found)
    assert command(root, root / "rows.jsonl", "--copies", 6, "--seed", 1, out=tmp_path / "other.jsonl") == 0
    assert (tmp_path / "other.jsonl").read_bytes() != (tmp_path / "one.jsonl").read_bytes()


def test_of_a_pair_one_text_changes_at_a_time_and_words_may_stay(root, tmp_path):
    (tmp_path / "keep.txt").write_text("Red\nruns\n")
    assert command(root, root / "pairs.csv", "--copies", 30, "--keep", tmp_path / "keep.txt", out=tmp_path / "out.jsonl") == 0
    found = lines(tmp_path / "out.jsonl")
    assert found[0] == {"text": "red tree", "text_pair": "a dog runs", "label": "1"}
    assert all((row["text"] == "red tree") != (row["text_pair"] == "a dog runs") for row in found[1:])
    assert all(row["text"].startswith("red ") and row["text_pair"].endswith(" runs") for row in found)


def test_mistakes_are_told_in_a_line_and_leave_no_file(root, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"text": "red cat"}\n{"other": 1}\n')
    (tmp_path / "empty.jsonl").write_text("")
    polymodal.save(polymodal.system("gpt2", size="tiny", vocab_size=90).net, tmp_path / "gpt2", tokenizer=Tokenizer.load(root / "bert"))
    out = tmp_path / "out.jsonl"
    for words, told in (((tmp_path / "bad.jsonl",), "line 2: no text in 'text'"), ((tmp_path / "empty.jsonl",), "has no rows"),
                        ((tmp_path / "nowhere.jsonl",), "is no table"), ((root / "rows.jsonl", "--text-field", "x"), "no text in 'x'"),
                        ((root / "rows.jsonl", "--probability", 0), "probability is 0"),
                        ((root / "rows.jsonl", "--candidates", 999), "whole words, expected at least candidates=999"),
                        ((root / "rows.jsonl", "--keep", tmp_path / "none"), "--keep"),
                        ((root / "rows.jsonl", "--model", tmp_path / "gpt2"), "does not predict masked words")):
        arguments = ["augment", *words, *(() if "--model" in words else ("--model", root / "bert")), "--out", out]
        assert cli.run([*map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert told in said and said.count("error") == 1, said
    assert command(root, root / "rows.jsonl", out=tmp_path / "out.csv") == 2 and "ends in .jsonl" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "empty.jsonl", "gpt2"]
    with pytest.raises(UserError, match="copies is 0"):
        AugmentSettings(copies=0)
