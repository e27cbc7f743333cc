"""The example that measures ELECTRA's discriminator runs on a run, and its numbers mean what they say."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.loop import pretrain
from polymodal.shared.tokenizer import Tokenizer

FILE = Path(__file__).resolve().parents[2] / "examples" / "replaced_tokens.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("replaced_tokens", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_measures_a_run(example, tmp_path, capsys):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["one", "two", "three", "four", "five"], 20)) + "." for _ in range(40)]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))
    Tokenizer.train(texts, "wordpiece", 40).save(tmp_path / "tok")
    pack([tmp_path / "texts.txt"], tmp_path / "data", PackSettings(holdout=0.3, holdout_out=tmp_path / "held"), workers=Workers(1))
    short = replace(recipe("electra-tiny", ["max_updates=2", "precision=32", "log.tensorboard=false"]), accelerator="cpu")
    result = pretrain(short, tmp_path / "data", tmp_path / "run", eval_data=tmp_path / "held", tokenizer=tmp_path / "tok",
                      console=Console(quiet=True))
    capsys.readouterr()
    example.main(str(tmp_path / "run"), str(tmp_path / "held"))
    numbers = [float(n) for n in re.findall(r"\d\.\d{4}", capsys.readouterr().out)]
    share, found, rarity, best, loss, unigram = numbers
    assert share == pytest.approx(result["eval"]["replaced"], abs=1e-4)
    assert (loss, unigram) == pytest.approx((result["eval"]["mlm"], result["eval"]["mlm_chance"]), abs=1e-3)
    assert 0 <= found <= 1 and best >= max(rarity, 1 - rarity, 0.5)


def test_auc_over_all_tokens(example):
    assert example.auc(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, False, False])) == 1.0
