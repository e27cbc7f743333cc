"""The example that counts trigrams: probabilities add up to one, and repeated text is predicted."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
from processes import polymodal

FILE = Path(__file__).resolve().parents[2] / "examples" / "count_trigrams.py"


@pytest.fixture(scope="module")
def counting():
    spec = importlib.util.spec_from_file_location("count_trigrams", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_behind_any_context_add_up_to_one(counting, order):
    texts = [[0, 1, 2, 3, 1, 2, 4], [1, 2, 3], [5], [2, 3, 1]]
    model = counting.KneserNey(iter(texts), order)
    for context in ((), (1,), (0, 1), (1, 2), (9, 9), (9, 2)):
        assert math.fsum(model.probability(context, word, 7) for word in range(7)) == pytest.approx(1)


def test_what_follows_is_counted_by_what_stands_before(counting):
    """Kneser and Ney's own case: a word behind one other word only is improbable behind others, however frequent it is."""
    model = counting.KneserNey(iter([[0, 1]] * 20 + [[2, 3], [4, 3], [5, 3]]), 2)
    assert model.probability((9,), 3, 10) > model.probability((9,), 1, 10)
    assert model.probability((0,), 1, 10) > 0.9


def test_data_sets_of_pack(counting, tmp_path, monkeypatch, capsys):
    lines = "".join(json.dumps({"text": f"a b c d {i % 7}"}) + "\n" for i in range(60))
    (tmp_path / "texts.jsonl").write_text(lines)
    monkeypatch.chdir(tmp_path)
    for words in ("tokenizer train texts.jsonl --kind word --size 30 --out tok", "pack texts.jsonl --tokenize tok --block 64 --out data"):
        assert polymodal(*words.split(), cwd=tmp_path).wait() == 0
    found = []
    for order in ("1", "3"):
        monkeypatch.setattr("sys.argv", ["count_trigrams.py", "data", "data", "--order", order])
        counting.main()
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["tokens"] == found[1]["tokens"] >= 300 and found[1]["perplexity"] < found[0]["perplexity"]
