"""Cleaning of decoded texts, whole and in pieces."""

from itertools import pairwise

import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from polymodal.shared.tokenizer.clean import CleanUp, clean_up

SPACED = st.text("  .?!,''nmstvrex", max_size=24)  # what the rules look for, in every order


@given(SPACED, st.lists(st.integers(0, 24), max_size=6))
@settings(max_examples=1500, deadline=None)
def test_pieces_join_to_the_whole(text, cuts):
    assert clean_up(text) == transformers.PreTrainedTokenizerBase.clean_up_tokenization(None, text)
    cleaning = CleanUp()
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    pieces = [cleaning.push(text[a:b]) for a, b in pairwise(edges)]
    assert "".join(pieces) + cleaning.finish() == clean_up(text)


def test_little_is_held_back():
    cleaning = CleanUp()
    assert [cleaning.push(piece) for piece in ("it is", " n", "ice", " ,", " '", " x", " ", ".")] == [
        "it is", "", " nice", ",", "", "'x", "", "."]
