"""Framing of texts and pairs, by the tokenizer's template."""

import pytest
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text.framing import Frame


def tokenizer(style, kind="word"):
    return Tokenizer.train(["alpha beta gamma"], kind, 30 if kind == "word" else 257, style=STYLES[style])


@pytest.mark.parametrize(("style", "summary", "alone", "types"), [
    ("bert", "first", [0] * 4, [0, 0, 0, 0, 1, 1]), ("roberta", "first", [0] * 4, [0] * 7),
    ("albert", "first", [0] * 4, [0, 0, 0, 0, 1, 1]), ("xlnet", "last", [0, 0, 0, 2], [0, 0, 0, 1, 1, 2])])
def test_a_text_and_a_pair_are_framed_as_the_tokenizer_frames_them(style, summary, alone, types):
    tok = tokenizer(style)
    frame = Frame(tok, "a test", summary)
    a, b = (tok.encode(t, add_special_tokens=False) for t in ("alpha beta", "gamma"))
    ids, single = frame(a)
    assert ids.tolist() == tok.encode("alpha beta") and single.tolist() == alone and ids.dtype == single.dtype == "int64"
    ids, both = frame(a, b)
    assert ids.tolist() == tok.encode("alpha beta", pair="gamma") and both.tolist() == types
    assert (frame.room(20, pair=False), frame.room(20, pair=True)) == (18, 20 - len(ids) + 3)
    ids, _ = frame([], [])
    assert ids.tolist() == tok.encode("", pair="")


@pytest.mark.parametrize(("style", "summary", "message"), [
    ("gpt2", "first", "no cls and no sep token"), ("xlnet", "first", "reads the first token of a text.*--style bert or roberta"),
    ("bert", "last", "reads the last token of a text.*--style xlnet")])
def test_a_tokenizer_whose_classification_token_stands_elsewhere_is_refused(style, summary, message):
    with pytest.raises(UserError, match=message):
        Frame(tokenizer(style, "byte-bpe" if style == "gpt2" else "word"), "a test", summary)
