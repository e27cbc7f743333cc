"""How often each token stands in a data set: counted by pack, read by objectives, the same when a run goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from packs import contents
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings
from polymodal.pipelines.run import directory
from polymodal.pipelines.run.directory import open_run
from polymodal.pipelines.run.recipe import Recipe, recipe
from polymodal.pipelines.train import begin, loop
from polymodal.pipelines.train.inputs import read_context
from polymodal.pipelines.train.loop import pretrain
from polymodal.registry import family
from polymodal.shared.errors import UserError
from polymodal.shared.family import Context, NoData, Task
from polymodal.shared.tokenizer import Tokenizer

WORDS = [f"w{a}{b}" for a in "abcdefgh" for b in "klmnopqr"]
COUNTING = Task("", object, lambda config, settings, context: ..., reads_counts=True)  # type: ignore[arg-type,return-value]
TINY = ["data.global_batch=4", "precision=32", "accelerator=cpu", "log.tensorboard=false", "checkpoint.every=1", "model.hidden_size=32",
        "model.num_hidden_layers=1", "model.intermediate_size=32", "model.max_position_embeddings=40", "objective.max_length=32"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("counts")
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(WORDS, int(n), p=np.arange(64, 0, -1) / 2080)) for n in rng.integers(1, 80, 300)]
    (path / "a.txt").write_text("\n\n".join(documents))
    Tokenizer.train(documents, "wordpiece", 90).save(path / "tokenizer")
    pack(path / "a.txt", path / "data", PackSettings(shard_bytes=20_000, tokenizer=path / "tokenizer", block=32, holdout=0.2,
                                                     holdout_out=path / "held"), workers=Workers(1))
    return path


def counted_again(folder, size):
    data = DataSet.open(folder)
    return np.bincount(np.concatenate([data.read(i).tokens()[0] for i in range(len(data))]), minlength=size)


def test_pack_counts_every_token_of_every_row(rows):
    tok = Tokenizer.load(rows / "tokenizer")
    for folder in ("data", "held"):
        data = DataSet.open(rows / folder)
        counts = data.counts()
        np.testing.assert_array_equal(counts, counted_again(rows / folder, tok.vocab_size))
        assert counts.sum() == data.index.schema["tokens"] and counts[tok.sep_id] > 0
        assert data.index.schema["counts"] == hashlib.sha256((rows / folder / "counts.u64").read_bytes()).hexdigest()
    assert len(DataSet.open(rows / "data").index.shards) > 1


def test_counts_do_not_depend_on_workers_or_shards(rows, tmp_path):
    for name, size, workers in (("1", 20_000, 1), ("2", 20_000, 2), ("large", 1 << 20, 1)):
        pack(rows / "a.txt", tmp_path / name, PackSettings(shard_bytes=size, tokenizer=rows / "tokenizer", block=32),
             workers=Workers(workers))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    # in other shards, other documents are cut; nothing is lost
    np.testing.assert_array_equal(*(DataSet.open(tmp_path / name).counts() for name in ("1", "large")))


def test_texts_have_no_counts_and_damaged_ones_are_an_error(rows, tmp_path):
    pack(rows / "a.txt", tmp_path / "texts", PackSettings(), workers=Workers(1))
    assert DataSet.open(tmp_path / "texts").counts() is None and not (tmp_path / "texts" / "counts.u64").exists()
    pack(rows / "a.txt", tmp_path / "rows", PackSettings(tokenizer=rows / "tokenizer", block=32), workers=Workers(1))
    place = tmp_path / "rows" / "counts.u64"
    place.write_bytes(place.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match=r"counts\.u64 changed after the data was packed"):
        DataSet.open(tmp_path / "rows").counts()
    place.unlink()
    with pytest.raises(UserError, match="restore it, or pack the data again"):
        DataSet.open(tmp_path / "rows").counts()


def test_a_context_has_the_sum_of_the_training_data_where_the_task_asks(rows, tmp_path):
    data, held = DataSet.open(rows / "data"), DataSet.open(rows / "held")
    assert read_context([data], (held,), None).counts is None
    np.testing.assert_array_equal(read_context([data], (held,), None, COUNTING).counts, data.counts())
    np.testing.assert_array_equal(read_context([data, held], (), None, COUNTING).counts, data.counts() + held.counts())
    pack(rows / "a.txt", tmp_path / "texts", PackSettings(), workers=Workers(1))
    without = read_context([data, DataSet.open(tmp_path / "texts")], (), None, COUNTING)
    with pytest.raises(UserError, match=r"it needs to know how often .* --tokenize"):
        without.counted("it", lambda tokenizer, counts: NoData("it"))
    assert isinstance(Context(without.tokenizer, net_only=True).counted("it", pytest.fail), NoData)
    with pytest.raises(UserError, match="counts are of 3 tokens, the tokenizer has"):
        Context(without.tokenizer, counts=np.ones(3, dtype=np.int64)).counted("it", pytest.fail)


def test_a_run_keeps_the_counts_and_goes_on_with_the_same_alone(rows, tmp_path, monkeypatch):
    """BERT, which then asks for them."""
    bert, seen = family("bert"), []

    def create(config, settings, context):
        seen.append(context.counted("bert", lambda tokenizer, counts: counts))
        return bert.pretraining.create(config, settings, context)

    asking = dataclasses.replace(bert, pretraining=dataclasses.replace(bert.pretraining, create=create, reads_counts=True))
    for module in (loop, directory):
        monkeypatch.setattr(module, "family", lambda name: asking)
    build = Recipe.build
    monkeypatch.setattr(Recipe, "build", lambda self, entry, *rest: build(self, asking, *rest))
    run, quiet = tmp_path / "run", Console(quiet=True)
    pretrain(recipe("bert-tiny", TINY), rows / "data", run, max_updates=1, console=quiet)
    counts = DataSet.open(rows / "data").counts()
    np.testing.assert_array_equal(open_run(run).counts(), counts)
    pretrain(recipe("bert-tiny", TINY), rows / "data", run, max_updates=2, console=quiet)
    open_run(run).system()
    assert len(seen) >= 3 and all(np.array_equal(found, counts) for found in seen)

    gather = begin.dist.gather_json
    monkeypatch.setattr(begin.dist, "gather_json", lambda value: [*gather(value), {"the counts of tokens": "other"}]
                        if "the counts of tokens" in value else gather(value))
    with pytest.raises(UserError, match=r"the ranks read different files beside the data .the counts of tokens"):
        pretrain(recipe("bert-tiny", TINY), rows / "data", run, max_updates=3, console=quiet)
    monkeypatch.setattr(begin.dist, "gather_json", gather)

    described = json.loads((run / "system.json").read_text())
    other = (counts + 1).astype("<u8").tobytes()
    (run / "counts.u64").write_bytes(other)
    with pytest.raises(UserError, match=r"counts\.u64 is missing or damaged"):
        open_run(run).system()
    (run / "system.json").write_text(json.dumps({**described, "counts": hashlib.sha256(other).hexdigest()}))
    with pytest.raises(UserError, match="tokens of its data are counted otherwise"):
        pretrain(recipe("bert-tiny", TINY), rows / "data", run, max_updates=3, console=quiet)
