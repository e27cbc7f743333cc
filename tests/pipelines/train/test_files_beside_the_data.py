"""What an objective reads beside the data (MacBERT's similar words): the same for all ranks, and when a run goes on. ERNIE's stages."""

from __future__ import annotations

import json

import numpy as np
import pytest
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.directory import open_run
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train import begin
from polymodal.pipelines.train.loop import pretrain
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer

WORDS = ["天地", "人山", "水火", "金木", "土石", "田"]
TINY = ["data.global_batch=4", "precision=32", "accelerator=cpu", "log.tensorboard=false", "log.every=1", "checkpoint.every=1",
        "model.hidden_size=32", "model.num_hidden_layers=1", "model.intermediate_size=32", "model.max_position_embeddings=40",
        "objective.max_length=32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("words")
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(12):
        words = [str(word) for word in rng.choice(WORDS, 12)]
        words[5] = words[11] = "。"
        rows.append({"words": words, "tags": ["B-X" if word == "田" else "O" for word in words]})
    (path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Tokenizer.train(["".join(WORDS) + "。 ab"] * 9, "wordpiece", 21).save(path / "tokenizer")
    pack(path / "words.jsonl", path / "data", PackSettings(Reading("words"), tokenizer=path / "tokenizer", block=32), workers=Workers(1))
    (path / "plain.txt").write_text("\n\n".join("".join(row["words"]) for row in rows))
    pack(path / "plain.txt", path / "plain", PackSettings(), workers=Workers(1))
    return path


def train(name, data, out, *overrides, source="data", lines=None, **options):
    console = Console(quiet=True)
    if lines is not None:
        console.say = lines.append
    return pretrain(recipe(name, [*TINY, *overrides]), data / source, out, console=console, **options)


def table(path, shift=1):
    path.write_text("".join(f"{word}\t{WORDS[(i + shift) % 5]}\n" for i, word in enumerate(WORDS[:5])))
    return f"objective.similar={path}"


def test_a_run_goes_on_with_the_same_table_alone(data, tmp_path):
    lines = []
    similar = table(tmp_path / "similar.tsv")
    train("macbert-tiny", data, tmp_path / "run", similar, "max_updates=2", lines=lines)
    inputs = open_run(tmp_path / "run").described()["inputs"]
    assert list(inputs) == ["objective.similar"] and any(inputs["objective.similar"][:12] in line for line in lines)
    whole = (tmp_path / "similar.tsv").read_bytes()

    table(tmp_path / "similar.tsv", 2)
    with pytest.raises(UserError, match=r"objective.similar names a file with sha256 .* put that one back") as found:
        train("macbert-tiny", data, tmp_path / "run", similar, "max_updates=3")
    assert "\n" not in str(found.value)
    with pytest.raises(UserError, match="put that one back"):
        open_run(tmp_path / "run").system()
    (tmp_path / "similar.tsv").unlink()
    with pytest.raises(UserError, match=r"similar\.tsv' cannot be read"):
        train("macbert-tiny", data, tmp_path / "run", similar, "max_updates=3")

    (tmp_path / "similar.tsv").write_bytes(whole)
    assert train("macbert-tiny", data, tmp_path / "run", similar, "max_updates=3")["updates"] == 3
    assert open_run(tmp_path / "run").system().objective.similar


def test_ranks_with_different_tables_are_refused(data, tmp_path, monkeypatch):
    gather = begin.dist.gather_json
    monkeypatch.setattr(begin.dist, "gather_json", lambda value: [*gather(value), {"objective.similar": "other"}]
                        if "objective.similar" in value else gather(value))
    with pytest.raises(UserError, match=r"the ranks read different files beside the data \(objective.similar\)"):
        train("macbert-tiny", data, tmp_path / "run", table(tmp_path / "similar.tsv"), "max_updates=1")


def test_macbert_begins_with_berts_weights_and_says_that_it_has_no_table(data, tmp_path):
    train("bert-tiny", data, tmp_path / "bert", "objective.nsp=true", "max_updates=1")
    lines = []
    train("macbert-tiny", data, tmp_path / "run", "max_updates=1", model=tmp_path / "bert", lines=lines)
    assert any("note: no table of similar words" in line for line in lines)
    assert any("loaded" in line and "tensors" in line for line in lines) and not any("randomly initialized" in line for line in lines)
    with pytest.raises(UserError, match=r"holds a BertForPreTraining \(bert\), recipe ernie-tiny trains ernie"):
        train("ernie-tiny", data, tmp_path / "no", "max_updates=1", model=tmp_path / "bert")


def test_chinese_text_without_words_ends_a_run_with_the_way_out(data, tmp_path):
    with pytest.raises(UserError, match=r"MacBERT needs to know where the words .* --segment jieba") as found:
        train("macbert-tiny", data, tmp_path / "run", "max_updates=1", source="plain", tokenizer=data / "tokenizer")
    assert "\n" not in str(found.value)


def test_ernies_stages_go_on_from_each_other(data, tmp_path):
    train("ernie-tiny", data, tmp_path / "character", "max_updates=1")
    before = tmp_path / "character"
    for stage in ("phrase", "entity"):
        result = train("ernie-tiny", data, tmp_path / stage, f"objective.stage={stage}", "max_updates=1", continue_from=before)
        before = tmp_path / stage
        assert result["updates"] == 1 and open_run(before).recipe().objective["stage"] == stage
