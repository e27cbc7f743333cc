"""Where sentences end, and where a full stop ends none."""

from itertools import pairwise

import pytest
from polymodal.pipelines.inference.sentences import sentences


@pytest.mark.parametrize(("text", "found"), [
    ("He met Dr. Li. They talked.", ["He met Dr. Li.", "They talked."]),
    ("It is 3.5 m long. In 1990. Then e.g. this, i.e. that.", ["It is 3.5 m long.", "In 1990.", "Then e.g. this, i.e. that."]),
    ("1. First thing. 2. Second.", ["1. First thing.", "2. Second."]),
    ('"Really?" she said. “Yes!” He left (at once.) OK', ['"Really?" she said.', "“Yes!”", "He left (at once.)", "OK"]),
    ("A heading\n\nA text\nof lines. End", ["A heading", "A text\nof lines.", "End"]),
    ("J. R. Smith wrote it... Then? no idea.", ["J. R. Smith wrote it...", "Then? no idea."]),
    ("He said no. Then I. And Ünal.", ["He said no.", "Then I.", "And Ünal."]),
    ("日本語。これは文です！はい", ["日本語。", "これは文です！", "はい"]),
    ("Ends. `code` too. - a point", ["Ends.", "`code` too.", "- a point"]),
    ("see www.example.org or v1.2. Fine", ["see www.example.org or v1.2.", "Fine"]),
    ("", []), (" \n\n ", []), ("...", ["..."])])
def test_spans(text, found):
    assert [text[a:b] for a, b in sentences(text)] == found


def test_spans_are_in_order_and_lose_only_space():
    text = "One. Two? (Three!)\n\n  Four... Five 5.5. " * 20
    spans = sentences(text)
    assert all(a < b <= c for (a, b), (c, _) in pairwise(spans))
    assert "".join(text[a:b] for a, b in spans).replace(" ", "") == "".join(text.split())
