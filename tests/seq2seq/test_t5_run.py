"""A small pretraining run of T5 through the real pipeline: packed text, stream, loop, export."""

import json

import numpy as np
import polymodal
import pytest
import torch
import transformers
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.loop import pretrain
from polymodal.seq2seq.spans import SpanObjective, SpanSettings
from polymodal.shared.tokenizer import STYLES, Tokenizer

COUNT = [f"word{i}" for i in range(24)]


def documents(count: int) -> list[str]:
    """Counting texts: each word tells the next one."""
    rng = np.random.default_rng(0)
    return [" ".join(COUNT[(start + i) % 24] for i in range(length)) for start, length in rng.integers((0, 20), (24, 60), size=(count, 2))]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("t5")
    texts = documents(300)
    (root / "corpus.txt").write_text("\n".join(texts))
    tokenizer = Tokenizer.train(texts, "word", 127, style=STYLES["t5"])
    tokenizer.save(root / "tokenizer")
    for name, extra in (("rows", {"tokenizer": root / "tokenizer", "block": 35}), ("raw", {})):
        settings = PackSettings(Reading(split="line"), holdout=0.1, holdout_out=root / f"{name}-eval", **extra)
        pack(root / "corpus.txt", root / name, settings, workers=Workers(1))
    return root


def unigram_entropy(directory, tokenizer) -> float:
    """Entropy in nats of the targets' tokens."""
    made = SpanObjective(tokenizer, SpanSettings(max_length=32), 0)
    data = DataSet.open(directory)
    targets = np.concatenate([e.labels for i in range(len(data)) for e in made.example(data.read(i), np.random.default_rng(i))])
    p = np.bincount(targets) / len(targets)
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rows", "raw"])
def test_a_tiny_run_beats_the_unigram_entropy_and_exports(packed, tmp_path, kind):
    chosen = recipe("t5-tiny", [
        "model.d_model=48", "model.d_kv=16", "model.d_ff=96", "model.num_layers=1", "objective.max_length=32", "data.global_batch=16",
        "schedule.warmup=10", "max_updates=60", "log.every=20", "evaluate.every=30", "evaluate.previews=2", "checkpoint.every=0",
    ])
    result = pretrain(chosen, packed / kind, tmp_path / "run", eval_data=packed / f"{kind}-eval", tokenizer=packed / "tokenizer")
    tokenizer = Tokenizer.load(packed / "tokenizer")
    baseline = unigram_entropy(packed / f"{kind}-eval", tokenizer)
    assert result["eval"]["lm"] < 0.7 * baseline, (result["eval"], baseline)
    assert result["eval"]["perplexity"] == pytest.approx(np.exp(result["eval"]["lm"]))
    previews = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {caption for p in previews for caption, _ in p["rows"]} == {"text", "cut out", "guess"}

    ours = polymodal.load(tmp_path / "run")
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "run" / "export").eval()
    ids = torch.tensor([tokenizer.encode("word3 word4 <extra_id_0> word7 word8")])
    assert ids[0].tolist().count(tokenizer.token_to_id("<extra_id_0>")) == 1
    with torch.no_grad():
        labels = torch.tensor([[5, 6, 7, 1]])
        a, b = ours(ids, labels=labels).logits, theirs(input_ids=ids, labels=labels).logits
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    expected = theirs.generate(input_ids=ids, max_new_tokens=10, do_sample=False)
    assert polymodal.generate(ours, ids, max_new_tokens=10).tolist() == expected.tolist()
