"""The ids are those of transformers, sentencepiece and open_clip."""

import json

import open_clip
import pytest
import sentencepiece
import torch
import transformers
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer
from vocabularies import COMBINATIONS, TEXTS, TRICKY, random_texts


def decided(text):
    """Rounding errors decide between segmentations with equal scores, which runs of one character have."""
    return not any(c * 4 in text for c in set(text) - {" ", "x"})


def assert_same(ours, theirs, texts=TEXTS):
    assert ours.encode_batch(texts) == theirs(texts)["input_ids"]
    assert [ours.encode(t, add_special_tokens=False) for t in texts] == theirs(texts, add_special_tokens=False)["input_ids"]
    first, second = texts[:60], texts[30:90]
    assert ours.encode_batch(first, second) == theirs(first, second)["input_ids"]
    for limit in (5, 8, 9, 21):
        assert ours.encode_batch(texts, max_length=limit) == theirs(texts, truncation=True, max_length=limit)["input_ids"]
        assert ours.encode_batch(first, second, max_length=limit) == theirs(
            first, second, truncation="longest_first", max_length=limit)["input_ids"]
    if theirs.pad_token is not None:
        got = ours(first, second, max_length=12)
        want = theirs(first, second, padding=True, truncation=True, max_length=12, return_tensors="pt")
        for name in want:
            if name == "token_type_ids" and ours.framing.pad_type:  # transformers forgets XLNet's padding type unless it is its own class
                assert torch.equal(got[name] * got["attention_mask"], want[name] * want["attention_mask"])
            else:
                assert torch.equal(got[name], want[name]), name
    rows = ours.encode_batch(texts)
    wanted = [theirs.decode(row, skip_special_tokens=True) for row in rows]
    got = ours.decode_batch(rows)
    assert [g.strip() for g in got] == [w.strip() for w in wanted] if ours.framing.roles.get("bos") == "<|startoftext|>" else got == wanted


@pytest.mark.parametrize(("kind", "style"), COMBINATIONS)
def test_saved_directory_gives_transformers_the_same_ids(trained, tmp_path, kind, style):
    trained(kind, style).save(tmp_path / "tok")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tok")
    assert_same(Tokenizer.load(tmp_path / "tok"), theirs)
    ours = trained(kind, style)
    for role in ("unk", "pad", "cls", "sep", "mask", "bos", "eos"):
        assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id")
    assert len(theirs) == ours.vocab_size == len(ours)


@pytest.mark.parametrize("lowercase", [True, False])
def test_vocab_txt(trained, tmp_path, lowercase):
    (tmp_path / "vocab.txt").write_text("\n".join(trained("wordpiece", lowercase=lowercase).vocabulary()) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase, "model_max_length": 512}))
    ours = Tokenizer.load(tmp_path)
    assert_same(ours, transformers.BertTokenizer.from_pretrained(tmp_path))
    assert ours.max_length == 512
    assert Tokenizer.load(tmp_path / "vocab.txt").fingerprint == ours.fingerprint


def merges_of(tokenizer, folder):
    tokenizer.save(folder / "made")
    merges = json.loads((folder / "made" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    (folder / "vocab.json").write_text(json.dumps(tokenizer.vocabulary()), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n", encoding="utf-8")


@pytest.mark.parametrize(("style", "reference"), [("gpt2", transformers.GPT2Tokenizer), ("roberta", transformers.RobertaTokenizer)])
def test_vocab_and_merges(trained, tmp_path, style, reference):
    merges_of(trained("byte-bpe", style), tmp_path)
    # RoBERTa's authors let the mask swallow the space before it; transformers 5 does not when it reads bare files
    texts = [t for t in TEXTS if " <mask>" not in t]
    assert_same(Tokenizer.load(tmp_path), reference.from_pretrained(tmp_path), texts)


def test_roberta_mask_swallows_the_space_before_it(trained, tmp_path):
    merges_of(trained("byte-bpe", "roberta"), tmp_path)
    ours = Tokenizer.load(tmp_path)
    assert ours.encode("a <mask>") == [ours.cls_id, *ours.encode("a", add_special_tokens=False), ours.mask_id, ours.sep_id]


@pytest.mark.parametrize(("style", "reference"), [("albert", transformers.AlbertTokenizer), ("t5", transformers.T5Tokenizer),
                                                  ("xlnet", transformers.XLNetTokenizer)])
def test_spiece_model(trained, tmp_path, style, reference):
    (tmp_path / "spiece.model").write_bytes(trained("unigram", style).spiece)
    ours, theirs = Tokenizer.load(tmp_path), reference.from_pretrained(tmp_path)
    texts = [t for t in TEXTS if decided(t)]
    assert len(texts) > 150
    assert ours.encode_batch(texts) == theirs(texts)["input_ids"]
    assert ours.encode_batch(texts[:40], texts[20:60]) == theirs(texts[:40], texts[20:60])["input_ids"]
    assert ours.padding_side == theirs.padding_side
    assert ours.pad_id == theirs.pad_token_id
    if style == "xlnet":
        assert ours("a b", "c")["token_type_ids"].tolist() == [theirs("a b", "c", return_token_type_ids=True)["token_type_ids"]]
    if style == "t5":
        assert ours.token_to_id("<extra_id_0>") == ours.vocab_size - 1


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_ids_are_those_of_the_sentencepiece_library(trained, kind):
    ours = trained(kind, "t5")
    reference = sentencepiece.SentencePieceProcessor(model_proto=ours.spiece)
    texts = [t for t in TRICKY + random_texts(200, 5)[200:] if not any(mark in t for mark in "<[") and decided(t)]
    assert len(texts) > 100
    assert [ours.encode(t, add_special_tokens=False) for t in texts] == [reference.encode(t) for t in texts]
    assert (reference.pad_id(), reference.eos_id(), reference.unk_id(), reference.bos_id()) == (ours.pad_id, ours.eos_id, ours.unk_id, -1)


def test_open_clip():
    ours, theirs = Tokenizer.load("open_clip"), open_clip.SimpleTokenizer()
    texts = [*TEXTS, "&amp;lt;b&gt; ok", "ΑΣ ΟΔΟΣ İ", "Schön&nbsp;gut âœ”", "a <start_of_text> b", "a photo of " * 60]
    assert torch.equal(ours(texts, padding="max_length")["input_ids"], theirs(texts))
    assert [ours.encode(t, add_special_tokens=False) for t in texts] == [theirs.encode(t) for t in texts]
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.max_length, ours.vocab_size) == (49406, 49407, None, 77, 49408)
    row = ours.encode("a photo of a cat", max_length=5)
    assert row[-1] == ours.eos_id
    assert len(row) == 5
    assert ours.decode(ours.encode("A photo, of a Cat!")) == "a photo , of a cat !"


def test_open_clip_directory(tmp_path):
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": {"text_cfg": {"context_length": 32}}}))
    assert Tokenizer.load(tmp_path).max_length == 32
    assert Tokenizer.load(tmp_path).fingerprint == Tokenizer.load("open_clip").fingerprint
    config.write_text(json.dumps({"model_cfg": {"text_cfg": {"hf_tokenizer_name": "some/name"}}}))
    with pytest.raises(UserError, match="some/name"):
        Tokenizer.load(tmp_path)
    config.write_text(json.dumps({"model_cfg": {"text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}}}}))
    with pytest.raises(UserError, match="canonicalize"):
        Tokenizer.load(tmp_path)


def test_clip_of_transformers(tmp_path):
    bundled = Tokenizer.load("open_clip")
    bundled.save(tmp_path / "open")
    again = Tokenizer.load(tmp_path / "open")
    assert again.fingerprint == bundled.fingerprint
    assert again.encode("Schön&nbsp;gut") == bundled.encode("Schön&nbsp;gut")
    merges = json.loads((tmp_path / "open" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    (tmp_path / "vocab.json").write_text(json.dumps({names.get(t, t): i for t, i in bundled.vocabulary().items()}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges), encoding="utf-8")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    assert_same(Tokenizer.load(tmp_path / "vocab.json"), theirs)
    theirs.save_pretrained(tmp_path / "saved")
    assert_same(Tokenizer.load(tmp_path / "saved"), theirs)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "clip", "t5"])
def test_auto_tokenizer_beside_a_model_config(trained, tmp_path, model_type):
    ours = trained("byte-bpe", "roberta")
    tmp_path.joinpath("config.json").write_text(json.dumps({"model_type": model_type}))
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode_batch(TEXTS) == theirs(TEXTS)["input_ids"]
