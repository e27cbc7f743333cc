"""ROUGE and BLEU against values worked out by hand."""

import math
import sys

import processes
import pytest
from polymodal.pipelines.evaluation.scores import NAMES, text_scores
from polymodal.shared.errors import UserError


def f(precision, recall):
    return 2 * precision * recall / (precision + recall)


def test_one_pair_by_hand():
    """5 of 6 words; pairs "the cat", "on the", "the mat" of 5 and 5; the longest common subsequence is "the cat on the mat"."""
    found = text_scores(["The cat sat on the mat"], ["the cat was on the mat."])
    assert tuple(found) == NAMES
    assert found["rouge1"] == pytest.approx(5 / 6)
    assert found["rouge2"] == pytest.approx(3 / 5)
    assert found["rougeL"] == pytest.approx(5 / 6)
    assert found["bleu"] == 0.0, "no four words in common"


def test_lengths_and_order_count():
    """"a b c d e" for "a b c d": words 4/5 and 4/4, pairs 3/4 and 3/3; reversed, the subsequence is one word."""
    found = text_scores(["a b c d e"], ["a b c d"])
    assert found["rouge1"] == pytest.approx(f(4 / 5, 1)) == pytest.approx(found["rougeL"])
    assert found["rouge2"] == pytest.approx(f(3 / 4, 1))
    assert found["bleu"] == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)  # longer than the reference: no penalty
    turned = text_scores(["d c b a"], ["a b c d"])
    assert (turned["rouge1"], turned["rouge2"], turned["rougeL"]) == pytest.approx((1, 0, f(1 / 4, 1 / 4)))


def test_rouge_is_the_mean_of_pairs_and_bleu_that_of_the_corpus():
    """Counts add up over the corpus: 4 + 5 words of 4 + 5, and the texts are one word shorter than the references."""
    found = text_scores(["a b c d", "k l m n o"], ["a b c d e", "k l m n o"])
    assert found["rouge1"] == pytest.approx((f(1, 4 / 5) + 1) / 2)
    assert found["rouge2"] == pytest.approx((f(1, 3 / 4) + 1) / 2)
    assert found["bleu"] == pytest.approx(math.exp(1 - 10 / 9))
    assert text_scores(["a full stop ."], ["a full stop."])["bleu"] == pytest.approx(1), "a full stop is a word of its own"


def test_same_nothing_and_empty():
    assert text_scores(["one two three four"], ["One two three four"])["rougeL"] == 1
    assert text_scores(["one two three four"] * 2, ["one two three four"] * 2) == pytest.approx(dict.fromkeys(NAMES, 1))
    assert text_scores(["one"], ["six"]) == text_scores([""], ["six"]) == text_scores(["?!"], ["six"]) == dict.fromkeys(NAMES, 0)


def test_mistakes():
    with pytest.raises(UserError, match="2 texts and 1 references"):
        text_scores(["a", "b"], ["a"])
    with pytest.raises(UserError, match="no texts"):
        text_scores([], [])
    with pytest.raises(UserError, match="one string"):
        text_scores("a", "a")


def score_without_nltk():
    sys.modules["nltk"] = None  # type: ignore[assignment]
    assert "torchmetrics" not in sys.modules
    assert text_scores(["a b"], ["a b"])["rougeL"] == 1


@pytest.mark.slow
def test_nltk_is_not_needed():
    processes.call(score_without_nltk).check()
