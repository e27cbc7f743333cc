"""Texts packed into rows of tokens."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import contents, picture, polymodal, refused
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.rows import fit, in_sequence
from polymodal.pipelines.pack.settings import PackSettings
from polymodal.shared.tokenizer import Tokenizer


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=200), st.sampled_from([64, 80]))
def test_every_token_is_in_one_row_and_rows_are_full(lengths, block):
    rows = fit(np.array(lengths, dtype=np.int64), block)
    covered = {i: [] for i in range(len(lengths))}
    for row in rows:
        assert 0 < sum(p.length for p in row) <= block
        for piece in row:
            covered[piece.document].append((piece.begin, piece.end))
    for i, pieces in covered.items():
        pieces.sort()
        assert pieces[0][0] == 0 and pieces[-1][1] == lengths[i] and all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
    assert not rows or sum(lengths) > 0.99 * block * (len(rows) - 1) - block  # where few rows cannot be full, one may be short


@pytest.mark.parametrize("lengths", [np.full(3000, 600), np.random.default_rng(0).integers(500, 1024, 4000),
                                     np.clip(np.random.default_rng(1).lognormal(5.3, 1, 20000), 1, 1024).astype(int)])
def test_rows_of_a_thousand_tokens_are_99_percent_full(lengths):
    rows = fit(lengths, 1024)
    assert sum(p.length for row in rows for p in row) == lengths.sum()
    assert lengths.sum() / (1024 * len(rows)) >= 0.99


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe"])
def test_tokenised_rows_hold_the_documents(tmp_path, kind):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 5)) for _ in range(200)]
    documents = [" ".join(rng.choice(words, int(n))) for n in np.clip(rng.lognormal(2.5, 1, 600), 1, 150)]
    tok = Tokenizer.train(documents, kind, 400)
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    index = pack(tmp_path / "a.txt", tmp_path / "out", PackSettings(shard_bytes=40_000, tokenizer=tok, block=64))
    data = DataSet.open(tmp_path / "out")
    assert index.kind == "tokens" and index.schema["tokenizer"] == tok.fingerprint == Tokenizer.load(data.tokenizer_dir).fingerprint
    rows = [data.read(i).tokens() for i in range(len(data))]
    assert all(len(ids) <= 64 and lengths.sum() == len(ids) for ids, lengths in rows)
    total = sum(len(ids) for ids, _ in rows)
    assert index.schema["tokens"] == total and total / (64 * len(rows)) == pytest.approx(index.schema["fill"])
    assert len(index.shards) > 1 and total >= 0.99 * 64 * (len(rows) - len(index.shards))  # the last row of a shard may be short
    pieces = [tok.decode(part.tolist()) for ids, lengths in rows for part in np.split(ids, np.cumsum(lengths)[:-1])]
    letters = [sorted("".join(x).replace("##", "").replace(" ", "")) for x in (pieces, documents)]  # a cut may fall inside a word
    assert letters[0] == letters[1]
    short = [d for d in documents if len(tok.encode(d)) < 60]
    assert len(set(short) & {p.strip() for p in pieces}) > 0.95 * len(set(short))  # few are cut
    edges = {int(ids[0]) for ids, _ in rows}, {int(ids[-1]) for ids, _ in rows}
    assert tok.cls_id in edges[0] if kind == "wordpiece" else tok.eos_id in edges[1]


def test_tokenising_gives_the_same_bytes_whatever_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("polymodal.pipelines.pack.sources._UNIT_BYTES", 4000)
    (tmp_path / "a.txt").write_text("\n\n".join(f"some words here {i} " * (1 + i % 13) for i in range(300)))
    tok = Tokenizer.train(["some words here 0123456789"] * 9, "byte-bpe", 265)
    for w in (1, 2):
        pack(tmp_path / "a.txt", tmp_path / str(w), PackSettings(shard_bytes=40_000, tokenizer=tok, block=64), workers=Workers(w))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_tokenising_needs_text(tmp_path):
    picture(tmp_path / "in" / "a.png")
    tok = Tokenizer.train(["a b c"], "byte-bpe", 257)
    refused(tmp_path / "in", tmp_path / "no", "rows of tokens from text", tokenizer=tok)
    (tmp_path / "a.txt").write_text("a b c")
    refused(tmp_path / "a.txt", tmp_path / "no", "too short", tokenizer=tok, block=4)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60), st.integers(8, 80))
def test_rows_in_sequence_are_the_text_cut_every_block(lengths, block):
    rows = in_sequence(np.array(lengths, dtype=np.int64), block)
    tokens = [(d, t) for row in rows for p in row for d, t in ((p.document, t) for t in range(p.begin, p.end))]
    assert tokens == [(d, t) for d, n in enumerate(lengths) for t in range(n)]
    assert [sum(p.length for p in row) for row in rows[:-1]] == [block] * (len(rows) - 1) and all(p.length for row in rows for p in row)


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe"])
def test_rows_in_order_are_the_text(tmp_path, kind):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 5)) for _ in range(200)]
    documents = [" ".join(rng.choice(words, int(n))) for n in rng.integers(1, 300, 90)]
    tok = Tokenizer.train(documents, kind, 400)
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    tok.save(tmp_path / "tok")
    done = polymodal("pack", tmp_path / "a.txt", "--out", tmp_path / "out", "--tokenize", tmp_path / "tok", "--block", 64, "--in-order",
                     "--shard-bytes", "40000")
    assert done.returncode == 0, done.stderr
    data = DataSet.open(tmp_path / "out")
    ids, lengths = (np.concatenate(parts) for parts in zip(*(data.read(i).tokens() for i in range(len(data))), strict=True))
    ends = (tok.cls_id, tok.sep_id) if kind == "wordpiece" else (None, tok.eos_id)
    wanted = [t for d in documents for t in (ends[0], *tok.encode(d, add_special_tokens=False), ends[1]) if t is not None]
    assert ids.tolist() == wanted and data.index.schema["in_order"] is True
    shards = data.shard_sizes
    assert len(shards) > 2
    full = np.array([len(data.read(i).tokens()[0]) for i in range(len(data))])
    assert (full[np.setdiff1d(np.arange(len(data)), np.cumsum(shards) - 1)] == 64).all()
    borders = np.cumsum([len(tok.encode(d, add_special_tokens=False)) + (2 if ends[0] is not None else 1) for d in documents])
    assert np.cumsum(lengths).tolist() == sorted({*borders.tolist(), *np.cumsum(full).tolist()})


def test_in_order_refuses_what_contradicts_it(tmp_path):
    (tmp_path / "a.txt").write_text("a b c")
    tok = Tokenizer.train(["a b c"], "byte-bpe", 257)
    refused(tmp_path / "a.txt", tmp_path / "no", "give a tokenizer with --tokenize", in_order=True)
    refused(tmp_path / "a.txt", tmp_path / "no", "--shuffle 3 changes it", in_order=True, tokenizer=tok, shuffle=3)
