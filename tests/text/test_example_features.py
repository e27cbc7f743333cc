"""The examples about features: a tagger beside language models, and the nearest uses of a word by ELMo's layers."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import polymodal
import pytest
import torch
from polymodal.shared.tokenizer import STYLES, Tokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_nearest_uses_of_a_word(tmp_path, monkeypatch, capsys):
    texts = ["let the weary rest here", "the rest of the bread", "so the rest of the wine", "here let all rest", "no such word"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tok = Tokenizer.train(texts, "word", 40, style=STYLES["plain"])
    torch.manual_seed(0)
    for name in ("elmo", "word2vec"):
        polymodal.save(polymodal.system(name, size="tiny", tokenizer=tok).net, tmp_path / name, tokenizer=tok)
    module = example("nearest_uses")
    found = module.uses(tmp_path / "texts.jsonl", "rest", 9)
    assert [place for _, place in found] == [3, 1, 2, 3]
    net = polymodal.load(tmp_path / "elmo").eval()
    vectors = module.layers(net.trunk, found)
    words, place = found[2]
    alone = net(torch.from_numpy(net.trunk.characters(words)).long()[None]).hidden_states
    for layer, state in zip(vectors, alone, strict=True):
        torch.testing.assert_close(layer[2], torch.nn.functional.normalize(state[0, place], dim=-1))
    monkeypatch.setattr(sys, "argv", ["", *(str(tmp_path / name) for name in ("elmo", "word2vec", "texts.jsonl")), "rest", "unheard"])
    module.main()
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("**rest**, 4 uses. Static vector: ") and rows[2] == "| use | nearest by layer 1 | nearest by layer 2 |"
    assert rows[4].startswith("| let the weary **rest** here | ") and len([row for row in rows if "**rest**" in row]) == 5
    assert rows[-2] == "unheard: 0 uses, no static vector: not enough to compare"


@pytest.mark.slow
def test_a_tagger_beside_language_models_and_alone(tmp_path, monkeypatch, capsys):
    known = (("John", "B-PER"), ("Mary", "B-PER"), ("went", "O"), ("to", "O"), ("Paris", "B-LOC"))
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("held", 8)):
        rows = [[known[i] for i in rng.integers(len(known), size=8)] for _ in range(count)]
        lines = [json.dumps({"words": [w for w, _ in row], "tags": [t for _, t in row]}) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    arguments = [str(tmp_path / "train.jsonl"), str(tmp_path / "held.jsonl"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["", *arguments, "--labelled", "32", "--updates", "2", "--lm-updates", "2", "--seeds", "0", "1"])
    example("tag_beside_language_models").main()
    told = capsys.readouterr().out
    assert "seeds 0, 1; 32 labelled sentences, 2 updates" in told and told.count("mean ") == 6
    systems = {place.name: json.loads((place / "system.json").read_text()) for place in (tmp_path / "out").iterdir() if place.is_dir()
               and (place / "system.json").is_file()}
    assert {"elmo", "alone-0", "alone-1", "beside-0", "beside-1"} == set(systems)
