"""Tokenizers: templates, words, offsets, padding, case, long lines."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer
from polymodal.shared.tokenizer.train import _cut
from vocabularies import CORPUS, SIZES


def test_bert_template_and_types(trained):
    tok = trained("wordpiece")
    a, b = tok.encode("class", add_special_tokens=False), tok.encode("type", add_special_tokens=False)
    assert tok.encode("class", pair="type") == [tok.cls_id, *a, tok.sep_id, *b, tok.sep_id]
    out = tok(["class", "class class"], ["type", "type"])
    assert out["token_type_ids"][0].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * len(a)
    assert out["attention_mask"].sum(1).tolist() == [len(a) + len(b) + 3, 2 * len(a) + len(b) + 3]


@pytest.mark.parametrize("text", ["half \ud83d a face", "caf\udce9", "\ude00"])
def test_half_a_character_is_a_users_mistake(trained, text):
    for tok in (trained("wordpiece"), trained("byte-bpe"), trained("unigram"), Tokenizer.load("open_clip")):
        for call in (tok.encode, tok.offsets, tok, lambda t, tok=tok: tok.encode("a", pair=t)):
            with pytest.raises(UserError, match=r"half a character \(\\ud[0-9a-f]{3} at place \d+\)"):
                call(text)


def test_chinese_characters_are_words(trained):
    tok = Tokenizer.train(CORPUS, "wordpiece", 1500, coverage=1.0)
    ids = tok.encode("你好世界abc", add_special_tokens=False)
    assert [tok.id_to_token(i) for i in ids[:4]] == ["你", "好", "世", "界"]
    assert tok.whole_words(ids).tolist()[:5] == [True] * 5
    whole = Tokenizer.train(CORPUS, "wordpiece", 1500, chinese=False, coverage=1.0)
    assert "##好" in whole.vocabulary()
    assert "##好" not in tok.vocabulary()


def spelled(tok, text, **options):
    ids = tok.encode(text, **options)
    words, current = [], []
    for i, start in zip(ids, tok.whole_words(ids), strict=True):
        if start and current:
            words.append(current)
            current = []
        current.append(i)
    return [tok.decode(w, skip_special_tokens=False).strip() for w in [*words, current]]


def test_whole_words(trained):
    text = "unbelievable tokenization, really\nyes"
    assert spelled(trained("wordpiece"), text) == ["[CLS]", "unbelievable", "tokenization", ",", "really", "yes", "[SEP]"]
    assert spelled(trained("byte-bpe"), text) == ["unbelievable", "tokenization,", "really", "", "yes"]
    assert spelled(trained("byte-bpe", "roberta"), text) == ["<s>", "unbelievable", "tokenization,", "really", "", "yes", "</s>"]
    assert spelled(trained("unigram"), text) == ["[CLS]", "unbelievable", "tokenization,", "really", "yes", "[SEP]"]
    assert spelled(trained("bpe", "t5"), text) == ["unbelievable", "tokenization,", "really", "yes", "</s>"]
    assert spelled(trained("char"), "to be") == ["to", "", "be"]
    assert trained("word").whole_words(trained("word").encode("a b c")).tolist() == [True] * 3
    clip = Tokenizer.load("open_clip")
    assert spelled(clip, "Unbelievable tokenizations!", add_special_tokens=False) == ["unbelievable", "tokenizations", "!"]
    assert spelled(clip, "hi")[0] == "<start_of_text>"
    assert trained("word").whole_words([]).tolist() == []


def test_whole_words_counts_words_of_a_text_without_marks(trained):
    text = " ".join(w for w in "\n".join(CORPUS[:5]).split() if w.isascii() and w.isalpha())
    for kind in ("wordpiece", "byte-bpe", "unigram", "bpe", "word"):
        tok = trained(kind)
        assert int(tok.whole_words(tok.encode(text, add_special_tokens=False)).sum()) == len(text.split()), kind


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_offsets_point_into_the_text(text):
    for tok in offset_tokenizers():
        ids, spans = tok.offsets(text)
        assert ids == tok.encode(text, add_special_tokens=False)
        assert len(ids) == len(spans)
        assert all(0 <= a <= b <= len(text) for a, b in spans)
        assert all(a <= c for (a, _), (c, _) in pairwise(spans))


MADE = []


def offset_tokenizers():
    if not MADE:
        MADE.extend([Tokenizer.train(CORPUS, "wordpiece", 1500, lowercase=True), Tokenizer.train(CORPUS, "byte-bpe", 900),
                     Tokenizer.train(CORPUS, "unigram", 600, coverage=0.999), Tokenizer.load("open_clip")])
    return MADE


def test_offsets_are_exact():
    wordpiece, byte, _, clip = offset_tokenizers()
    text = "Héllo 你好 classes!"
    cut = [text[a:b] for a, b in wordpiece.offsets(text)[1]]
    assert "".join(cut) == text.replace(" ", "")
    assert cut[0].startswith("H")
    assert "".join(byte.decode([i]) for i in byte.offsets(text)[0] if i) != ""
    text = "  A &amp; Photo"
    ids, spans = clip.offsets(text)
    assert [(clip.decode([i]), text[a:b]) for i, (a, b) in zip(ids, spans)] == [("a", "A"), ("&", "&"), ("photo", "Photo")]


@given(st.text(max_size=80))
@settings(max_examples=60, deadline=None)
def test_byte_bpe_loses_nothing(text):
    tok = offset_tokenizers()[1]
    ids = tok.encode(text)
    if tok.eos_id not in ids:
        assert tok.decode(ids) == text


def test_padding_sides_and_lengths(trained):
    tok = trained("unigram", "xlnet")
    out = tok(["a", "a b c d e"])
    assert out["attention_mask"][0, 0] == 0
    assert out["attention_mask"][0, -1] == 1
    assert out["input_ids"][0, 0] == tok.pad_id
    assert out["token_type_ids"][0, 0] == 3
    assert out["token_type_ids"][0, -1] == 2
    gpt = trained("byte-bpe")  # no padding token: the end of text stands in, the mask hides it
    out = gpt(["a", "a b c d e"])
    assert gpt.pad_id is None
    assert out["input_ids"][0, -1] == gpt.eos_id
    assert "token_type_ids" not in out
    assert gpt("a b c d e", max_length=3, padding="max_length")["input_ids"].shape == (1, 3)
    assert gpt(["", "a"])["attention_mask"][0].sum() == 0
    assert gpt([])["input_ids"].shape == (0, 0)


def test_styles_place_their_tokens(trained):
    assert trained("unigram", "t5").vocabulary().items() >= {"<pad>": 0, "</s>": 1, "<unk>": 2}.items()
    assert list(trained("unigram").vocabulary())[:5] == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    assert list(trained("wordpiece").vocabulary())[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    clip = trained("byte-bpe", "clip")
    assert clip.eos_id == clip.vocab_size - 1  # CLIP pools at the largest id
    for kind, size in SIZES.items():
        assert trained(kind).vocab_size <= size
    assert trained("wordpiece").vocab_size == SIZES["wordpiece"]
    assert trained("byte-bpe").vocab_size == SIZES["byte-bpe"]
    assert trained("unigram", "t5").vocab_size == SIZES["unigram"]


def test_words_are_sorted_by_frequency():
    tok = Tokenizer.train(["b b b a a c, C"], "word", 20, min_count=2)
    assert list(tok.vocabulary())[5:] == ["b", "a"]
    assert tok.encode("a x b") == [6, tok.unk_id, 5]
    tok = Tokenizer.train(["b b b a a c, C"], "word", 20, lowercase=True, split_punctuation=True)
    assert list(tok.vocabulary())[5:] == ["b", "a", "c", ","]


def test_case_and_accents():
    tok = Tokenizer.train(CORPUS, "wordpiece", 1500, lowercase=True)
    assert tok.encode("CAFÉ") == tok.encode("cafe")
    kept = Tokenizer.train(CORPUS, "wordpiece", 1500, lowercase=True, strip_accents=False)
    assert kept.encode("CAFÉ") == kept.encode("café") != kept.encode("cafe")
    folded = Tokenizer.train(CORPUS, "byte-bpe", 900, lowercase=True)
    assert folded.encode("Ångström CLASS") == folded.encode("angstrom class")


LONG = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=100_000))


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe", "unigram", "bpe"])
def test_a_long_line_without_spaces(kind):
    """It is cut for the trainers, whose time grows with the square of a word (before, this took minutes)."""
    tok = Tokenizer.train([*CORPUS[:3], LONG], kind, 700, coverage=0.999)
    assert tok.decode(tok.encode(LONG[:80])) == LONG[:80]


def test_only_long_words_are_cut():
    texts = [*CORPUS, "x" * 100, "a " * 500]
    assert list(_cut(texts, 100, r"\S")) == list(_cut(texts, 100, r"\w", r"[^\w\s]")) == texts
    (cut,) = _cut([f"one {LONG} two"], 100, r"\S")
    assert cut.replace("\n", "") == f"one {LONG} two" and max(map(len, cut.split())) == 100
    (cut,) = _cut(["=" * 250 + "ab" * 60], 100, r"\w", r"[^\w\s]")
    assert [len(w) for w in cut.split("\n")] == [100, 100, 150, 20]
