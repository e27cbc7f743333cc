"""An update of a run, shown and made again."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import processes
import pytest
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.account import describe_update
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.layout import BatchLayout
from polymodal.pipelines.data.order import draw_seed, generator
from polymodal.pipelines.data.stream import Stream
from polymodal.pipelines.inspection.past import Past, show
from polymodal.pipelines.inspection.replay import replay
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings
from polymodal.pipelines.run.directory import Run, open_run
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train import loop
from polymodal.shared.errors import UserError
from polymodal.shared.system import Objective
from polymodal.shared.tokenizer import Tokenizer

LOOP = ["data.global_batch=8", "data.micro_batch=4", "log.every=5", "log.tensorboard=false", "checkpoint.every=7", "checkpoint.keep_last=9",
        "precision=32", "accelerator=cpu", "schedule.warmup=2", "max_updates=14"]
BERT = ["model.hidden_size=16", "model.intermediate_size=32", "model.num_attention_heads=2", "model.num_hidden_layers=2", *LOOP]
XL = ["model.d_model=16", "model.d_embed=16", "model.n_layer=2", "model.n_head=2", "model.d_head=8", "model.d_inner=32", "model.mem_len=20",
      "model.dropout=0.2", *LOOP]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdef"), size=rng.integers(1, 5))) for _ in range(40)]
    texts = [" ".join(rng.choice(words, size=rng.integers(6, 30))) for _ in range(90)]
    Tokenizer.train(texts, "wordpiece", 60).save(root / "tok")
    Tokenizer.train(texts, "byte-bpe", 280).save(root / "bpe")
    for name, part in (("a", texts[:60]), ("b", texts[60:80]), ("c", texts[80:])):
        (root / f"{name}.txt").write_text("\n\n".join(part))
        pack(root / f"{name}.txt", root / name, workers=Workers(1))
    pack(root / "a.txt", root / "rows", PackSettings(tokenizer=root / "bpe", block=12, in_order=True), workers=Workers(1))
    return SimpleNamespace(root=root, a=root / "a", b=root / "b", c=root / "c", rows=root / "rows", tok=root / "tok")


def go(name, overrides, source, out, *more, **options):
    return loop.pretrain(recipe(name, [*overrides, *more]), source, out, console=Console(quiet=True), **options)


@pytest.fixture(scope="module")
def mixed(data, tmp_path_factory):
    """BERT with dropout on a mixture."""
    out = tmp_path_factory.mktemp("runs") / "mixed"
    go("bert-tiny", BERT, [(data.a, 3.0), (data.b, 1.0)], out, tokenizer=data.tok)
    return out


@pytest.fixture(scope="module")
def memory(data, tmp_path_factory):
    """Transformer-XL with dropout, whose updates continue each other."""
    out = tmp_path_factory.mktemp("runs") / "memory"
    go("transformer-xl-tiny", XL, data.rows, out)
    return out


def past(run, update):
    return Past(open_run(run), update)


def content(run):
    return {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("update", "begins", "row"), [(3, 0, 5), (7, 0, 10), (8, 7, 10), (14, 7, 14)])
def test_a_line_of_the_log_comes_out_again_bit_for_bit(mixed, update, begins, row):
    before = content(mixed)
    found = replay(past(mixed, update))
    assert (found["from"], found["row"]["update"], found["verdict"]) == (begins, row, "bitwise"), found["compared"]
    assert {"loss", "mlm", "grad_norm", "lr", "tokens", "mlm_perplexity"} <= found["compared"].keys()
    assert found["trouble"] is None and content(mixed) == before


def test_the_update_itself_is_what_a_run_that_logs_every_update_says(data, mixed, tmp_path):
    go("bert-tiny", BERT, [(data.a, 3.0), (data.b, 1.0)], tmp_path / "run", "log.every=1", tokenizer=data.tok)
    logged = {row["update"]: row for row in Run(tmp_path / "run").metrics("train")}
    for update in (6, 9):
        own = replay(past(mixed, update), losses=False)["update"]
        assert own == pytest.approx({name: logged[update][name] for name in own}, rel=1e-12) and own["grad_norm"] > 0


def test_a_memory_is_carried_on(memory):
    assert {replay(past(memory, update), losses=False)["verdict"] for update in (4, 9)} == {"bitwise"}


def test_updates_before_and_after_a_change_of_the_batch(data, tmp_path):
    for batch, until in ((8, 5), (12, 8), (4, 12)):
        go("bert-tiny", BERT, data.a, tmp_path / "run", f"data.global_batch={batch}", f"max_updates={until}", "log.every=3",
           "checkpoint.every=4", tokenizer=data.tok)
    for update, samples in ((2, 8), (5, 8), (6, 12), (9, 4), (11, 4)):
        made = past(tmp_path / "run", update)
        assert len(describe_update(made.stream(), made.index)) == samples
        assert replay(made, losses=False)["verdict"] == "bitwise"


def test_micro_batches_and_samples_add_up_to_the_update(data, tmp_path):
    """Two micro-batches, made again as one, and sample by sample; nothing is drawn by torch here."""
    out = tmp_path / "run"
    go("transformer-xl-tiny", XL, data.rows, out, "model.dropout=0", "model.dropatt=0", "max_updates=8")
    found = replay(past(out, 8))
    assert found["verdict"] == "bitwise" and len(found["samples"]) == 8
    assert sum(entry["share"] for entry in found["samples"]) == pytest.approx(found["update"]["loss"], rel=1e-5)
    assert [entry["loss"] for entry in found["samples"]] == sorted((entry["loss"] for entry in found["samples"]), reverse=True)
    known = json.loads((out / "environment.json").read_text())
    known["starts"][0]["micro_batch"] = 8
    (out / "environment.json").write_text(json.dumps(known))
    again = replay(past(out, 8))
    assert again["verdict"] in ("bitwise", "close")
    assert [e["loss"] for e in again["samples"]] == pytest.approx([e["loss"] for e in found["samples"]], rel=1e-5)
    norms = [entry["gradient"] for entry in again["samples"]]
    assert max(norms) < again["update"]["grad_norm"] <= sum(norms) * (1 + 1e-5)  # they add up to the whole


def test_the_micro_batches_of_all_ranks_are_made_by_one(data):
    class Texts(Objective):
        def example(self, sample, rng):
            yield sample.text(), rng.random()

        def collate(self, examples):
            return SimpleNamespace(examples=examples)

    def stream(**layout):
        return Stream(DataSet.open(data.a), Texts(), BatchLayout(12, 2, **layout), seed=3, lanes=6)

    one = stream(replays=3)
    whose = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert one.layout.accumulate == 6 and [one.layout.rank_and_part(4, part) for part in range(6)] == whose
    reads = describe_update(one, 4)
    for part, (rank, number) in enumerate(whose):
        theirs = stream(rank=rank, world=3)
        assert one[4 * 6 + part].examples == theirs[4 * 2 + number].examples
        assert [r.position for r in reads if (r.rank, r.part) == (rank, number)] == list(one.layout.positions(4, part))
    assert reads == describe_update(stream(rank=1, world=3), 4)


def test_a_run_that_was_continued_otherwise_is_made_again_across_the_border(data, tmp_path):
    out = tmp_path / "run"
    go("transformer-xl-tiny", XL, data.rows, out, "max_updates=7")
    go("transformer-xl-tiny", XL, data.rows, out, "data.micro_batch=2", "optim.lr=0.002")
    assert [s["update"] for s in Run(out).starts()] == [0, 7]
    assert replay(past(out, 9), losses=False)["verdict"] == "bitwise"
    shutil.rmtree(out / "checkpoints" / "update-00000007")
    found = replay(past(out, 9), losses=False)
    assert (found["from"], found["verdict"]) == (0, "bitwise")
    # a run of its own that goes on from another one's checkpoint
    go("transformer-xl-tiny", XL, data.rows, tmp_path / "branch", resume=str(out / "checkpoints" / "update-00000014"), max_updates=20)
    assert replay(past(tmp_path / "branch", 16), losses=False)["verdict"] == "bitwise"
    with pytest.raises(UserError, match=r"went on from .*nothing to replay from"):
        replay(past(tmp_path / "branch", 3))


def test_a_line_that_was_tampered_with_is_found(mixed, tmp_path):
    shutil.copytree(mixed, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for name, factor, verdict in (("loss", 1 + 1e-7, "close"), ("grad_norm", 1.001, "different"), ("tokens", None, "different")):
        changed = [dict(line) for line in lines]
        changed[1][name] = lines[1][name] * factor if factor else lines[1][name] + 1
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
        found = replay(past(tmp_path / "run", 8), losses=False)
        assert found["verdict"] == verdict and [n for n, (_, _, off) in found["compared"].items() if off] == [name]
        assert replay(past(tmp_path / "run", 3), losses=False)["verdict"] == "bitwise"  # another line


def test_what_is_shown_is_what_was_trained_on(mixed):
    stream = past(mixed, 9).stream()
    facts = show(stream, 8).facts
    batches = [stream[16], stream[17]]
    assert facts["sample_ids"] == batches[0].sample_ids + batches[1].sample_ids == [s["sample"] for s in facts["samples"]]
    assert [m["torch_seed"] for m in facts["micro_batches"]] == [draw_seed(0, 8, 0, part) for part in (0, 1)]
    assert [m["counts"] for m in facts["micro_batches"]] == [b.counts for b in batches]
    assert [m["rows"]["lengths"] for m in facts["micro_batches"]] == [list(b.lengths) for b in batches]
    first = facts["samples"][0]
    draw = generator(0, first["epoch"], first["sample"], "example").bit_generator.random_raw()
    assert facts["examples"][0]["first_draw"] == f"{draw:016x}" and facts["examples"][0]["fields"]["txt"]
    assert {s["data"].rsplit("/", 1)[-1] for s in facts["samples"]} == {"a", "b"}  # a mixture
    masked = sum(row[1].count("[MASK]") for e in facts["examples"] for rows in e["examples"] for row in rows)
    assert 0 < masked <= sum(b.counts["masked"] for b in batches)
    with pytest.raises(UserError, match="not in this update"):
        show(stream, 8, chosen=[next(i for i in range(80) if i not in facts["sample_ids"])])


def test_data_that_moved_changed_or_went_away(data, mixed, tmp_path):
    for name in ("a", "b", "tok"):
        shutil.copytree(data.root / name, tmp_path / name)
    out = tmp_path / "run"
    go("bert-tiny", BERT, [(tmp_path / "a", 3.0), (tmp_path / "b", 1.0)], out, tokenizer=tmp_path / "tok")
    (tmp_path / "a").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"cannot be opened: .*give it with --data"):
        replay(past(out, 2))
    found = replay(past(out, 2), [str(tmp_path / "moved")], losses=False)  # the other one is where it was
    assert found["verdict"] == "bitwise"
    assert found["compared"]["loss"] == replay(past(mixed, 2), losses=False)["compared"]["loss"]  # the names of folders do not matter
    with pytest.raises(UserError, match=r"trained on .*60 samples.*give that data set as it was"):
        replay(past(out, 2), [str(data.c)])
    shutil.copytree(data.c, tmp_path / "a")
    with pytest.raises(UserError, match="has changed since"):
        replay(past(out, 2))


def test_an_address_is_kept_without_its_secrets(data, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments): ...

        def do_GET(self):
            allowed = "/b/" in self.path or ("sig=topsecret" in self.path and self.headers["Authorization"])
            super().do_GET() if allowed else self.send_error(403)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(data.root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        secret = f"http://me:hunter2@127.0.0.1:{server.server_port}/a?sig=topsecret"
        for name, address in (("secret", secret), ("plain", f"http://127.0.0.1:{server.server_port}/b")):
            go("bert-tiny", BERT, address, tmp_path / name, "max_updates=3", tokenizer=data.tok)
        assert not [p for p, text in content(tmp_path / "secret").items() if b"hunter2" in text or b"topsecret" in text]
        with pytest.raises(UserError, match=r"cannot be opened: .*403.*with --data .*signature of its address"):
            replay(past(tmp_path / "secret", 2))
        assert replay(past(tmp_path / "secret", 2), [secret], losses=False)["verdict"] == "bitwise"
        assert replay(past(tmp_path / "plain", 2), losses=False)["verdict"] == "bitwise"
    finally:
        server.shutdown()
        server.server_close()


def test_an_update_that_ended_the_run_can_be_looked_at(data, tmp_path):
    """The weights are too large after update 1, so that update 2 has no gradient: the run writes no line of it."""
    out = tmp_path / "run"
    with pytest.raises(UserError, match="update 2 is not finite"):
        go("bert-tiny", BERT, data.a, out, "optim.lr=1e30", "schedule.warmup=0", "optim.clip=null", tokenizer=data.tok)
    found = replay(past(out, 2))
    assert "not finite" in found["trouble"] and found["verdict"] is None and len(found["samples"]) == 8
    assert not np.isfinite(found["samples"][0]["loss"])
    assert replay(past(out, 1), losses=False)["trouble"] is None
    with pytest.raises(UserError, match="has not come to update 6"):
        replay(past(out, 6))


def test_an_update_that_was_left_out_is_left_out_again(data, tmp_path):
    out = tmp_path / "run"
    go("bert-tiny", BERT, data.a, out, "max_updates=5", "health.leave_out=[[3,3]]", tokenizer=data.tok)
    found = replay(past(out, 3), losses=False)
    assert found["verdict"] == "bitwise" and found["update"] is None


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_what_the_health_of_a_run_decided_is_decided_again(data, tmp_path, policy):
    out = tmp_path / "run"
    go("bert-tiny", BERT, data.a, out, "health.spike=1.02", "health.window=3", f"health.policy={policy}", "health.max_skips=99",
       "health.max_rewinds=99", "checkpoint.every=3", tokenizer=data.tok)
    events = Run(out).events()
    assert {event["event"] for event in events} == {policy}
    update = events[-1]["update"]
    found = replay(past(out, update), losses=False)
    assert found["verdict"] == "bitwise" and found["update"] is None
    assert ("more than" in found["trouble"]) if policy == "skip" else found["trouble"] is None
    assert replay(past(out, 14), losses=False)["verdict"] == "bitwise"


def test_a_run_of_long_ago_needs_to_be_told_of_its_data(mixed, data, tmp_path):
    shutil.copytree(mixed, tmp_path / "run")
    known = json.loads((tmp_path / "run" / "environment.json").read_text())
    for start in known["starts"]:
        for name in ("update", "checkpoint", "micro_batch", "device", "precision", "data", "eval_data", "recipe"):
            del start[name]
    (tmp_path / "run" / "environment.json").write_text(json.dumps(known))
    with pytest.raises(UserError, match="needs --data: the run does not say where 60 samples"):
        replay(past(tmp_path / "run", 9))
    assert replay(past(tmp_path / "run", 9), [str(data.b), str(data.a)], losses=False)["verdict"] == "bitwise"  # in any order
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="for one data set, not for a mixture"):
        replay(past(tmp_path / "run", 9), [str(data.b), str(data.a)])


def test_a_damaged_checkpoint_is_passed_over_and_what_cannot_be_is_said(mixed, tmp_path):
    shutil.copytree(mixed, tmp_path / "run")
    shard = next((tmp_path / "run" / "checkpoints" / "update-00000007").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    found = replay(past(tmp_path / "run", 9), losses=False)
    assert (found["from"], found["verdict"]) == (0, "bitwise")
    for update in (0, 15):
        with pytest.raises(UserError, match="updates 1 to 14"):
            past(mixed, update)
    (tmp_path / "run" / "environment.json").write_text("{")
    with pytest.raises(UserError, match=r"environment\.json is damaged"):
        replay(past(tmp_path / "run", 9))


def test_a_run_begins_again_from_the_model_that_it_began_with(data, mixed, tmp_path):
    out = tmp_path / "run"
    go("bert-tiny", LOOP, data.a, out, "max_updates=4", model=mixed)
    assert replay(past(out, 2), losses=False)["verdict"] == "bitwise"


def test_the_command_shows_and_replays(mixed, tmp_path, capsys):
    shutil.copytree(mixed, tmp_path / "run")
    run = str(tmp_path / "run")
    assert cli.run(["inspect", run, "--update", "9", "--replay", "--samples", "1"]) == 0
    shown = capsys.readouterr().out
    for words in ("equal bit for bit", "updates 6 to 10 of metrics.jsonl", "samples with the highest loss", "update 9 itself: loss",
                  "dropout is drawn from torch seed", "attention masks", "[MASK]"):
        assert words in shown, words
    assert cli.run(["inspect", run, "--update", "9", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(facts["update"]["examples"]) == 8 and facts["update"]["row"]["update"] == 10 and facts["checkpoints"]
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss": ', '"loss": 1'))
    assert cli.run(["inspect", run, "--update", "9", "--replay", "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["replay"]["verdict"] == "different"
    for arguments, message in ((["--update", "15"], "updates 1 to 14"), (["--replay"], "say which with --update"),
                               (["--update", "9", "--recipe", "bert-tiny"], "a run has a recipe")):
        assert cli.run(["inspect", run, *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "memory"])
def test_a_run_of_two_ranks_is_replayed_by_one(data, tmp_path, name):
    """With dropout: each micro-batch is drawn for as on its rank."""
    kind, sets, source = ("bert-tiny", BERT, data.a) if name == "bert" else ("transformer-xl-tiny", XL, data.rows)
    command = ["pretrain", kind, "--data", str(source), "--out", str(tmp_path / "run"), "--devices", "2",
               *(["--tokenizer", str(data.tok)] if name == "bert" else []), *(f"--set={s}" for s in [*sets, "data.micro_batch=2"])]
    processes.together(processes.ranks(2, *command))
    for update, begins in ((3, 0), (9, 7)):
        found = replay(past(tmp_path / "run", update))
        assert found["verdict"] in ("bitwise", "close") and found["from"] == begins and len(found["samples"]) == 8, found["compared"]
