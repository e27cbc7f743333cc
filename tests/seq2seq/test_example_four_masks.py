"""The example that asks one network under four masks prints what they let it see."""

import importlib.util
import re
from pathlib import Path

import polymodal
import pytest
import torch
from polymodal.shared.tokenizer import STYLES, Tokenizer

FILE = Path(__file__).resolve().parents[2] / "examples" / "four_masks.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("four_masks", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unilm")
    tok = Tokenizer.train(["one two three four five six"] * 3, "word", 20, style=STYLES["bert"])
    torch.manual_seed(0)
    system = polymodal.system("unilm", size="tiny", tokenizer=tok, hidden_size=32, num_attention_heads=2)
    polymodal.save(system.net, folder, tokenizer=tok)
    return folder


@pytest.mark.parametrize(("text", "seen"), [
    ("one two | three [MASK] five", [7, 5, 2, 5]),  # [CLS] one two [SEP] three [MASK] five [SEP]
    ("one [MASK] | three four", [6, 2, 4, 3]),
    ("one two [MASK]", [4, 3, 1, 3]),
])
def test_each_mask_lets_the_hidden_word_see_what_is_its(example, model, capsys, text, seen):
    example.main(str(model), text)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["bidirectional", "left_to_right", "right_to_left", "seq2seq"]
    assert [int(re.search(r"sees +(\d+)", line)[1]) for line in lines] == seen
    assert all(line.count("%") == 5 for line in lines)


def test_mistakes_are_told(example, model):
    with pytest.raises(SystemExit, match=r"has 0 \[MASK\], expected one"):
        example.main(str(model), "one two")
