"""The loop, on a toy system: one file of everything that it promises."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.base.files import read_json_lines
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.directory import Run, lock_run, open_run
from polymodal.pipelines.run.optim import OptimSettings
from polymodal.pipelines.run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, LogSettings, Recipe, as_resolved
from polymodal.pipelines.run.schedule import ScheduleSettings
from polymodal.pipelines.train import loop
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.family import Card, Family, Task
from polymodal.shared.system import Batch, Objective, Preview, Step, System, Term
from torch import Tensor, nn

TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")


@dataclass(kw_only=True)
class ToyBatch(Batch):
    x: Tensor
    y: Tensor


class ToyObjective(Objective):
    """A text's letters against its length; two terms with denominators of their own."""

    def __init__(self, spoiled: str) -> None:
        self.spoiled = spoiled

    def example(self, sample, rng):
        text = sample.text()
        if self.spoiled and self.spoiled in text:
            raise BadSample(f"sample {sample.key!r} is spoiled")
        yield [text.count(c) + rng.normal() * 0.01 for c in "abcde"], len(text) % 7

    def collate(self, examples):
        x = torch.tensor([e[0] for e in examples], dtype=torch.float32)
        y = torch.tensor([float(e[1]) for e in examples])
        return ToyBatch(x=x, y=y, counts={"rows": len(examples), "odd": int((y % 2).sum())}, tokens=int(y.sum()))


@dataclass(frozen=True)
class ToySettings:
    spoiled: str = ""
    dropout: float = 0.0
    memory: bool = False
    explode_at: int = -1
    interrupt_at: int = -1
    coupled: bool = False


@dataclass(frozen=True)
class ToyConfig:
    width: int = 8

    def to_dict(self):
        return {"width": self.width}

    @classmethod
    def from_dict(cls, record):
        return cls(**record)


class Toy(System):
    def __init__(self, config, settings):
        net = nn.Sequential(nn.Linear(5, config.width), nn.Tanh(), nn.Dropout(settings.dropout), nn.Linear(config.width, 2))
        net.config = config
        super().__init__(net, ToyObjective(settings.spoiled))
        self.config = config
        self.settings = settings
        self.updates = 0

    def forward(self, batch, carry=None):
        out = self.net(batch.x)
        if self.settings.memory:
            out = out + (0.0 if carry is None else carry["mean"][0])
        odd = batch.y % 2
        square, other = (out[:, 0] - batch.y) ** 2, (out[:, 1] - batch.y) ** 2 * odd
        terms = {"square": Term(square.sum(), "rows"), "odd": Term(other.sum(), "odd", 0.5)}
        if self.training and self.updates == self.settings.explode_at:
            terms["square"].total = terms["square"].total * float("nan")
        carry = {"mean": (out.detach().mean(0),)} if self.settings.memory else None
        return Step(terms, {"half": (batch.y.sum() / 2, batch.counts["rows"])}, carry)

    def after_update(self, update):
        self.updates = update + 1
        if update == self.settings.interrupt_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def derive(self, means):
        return {"root": means["square"] ** 0.5}

    def preview(self, batch, limit=4):
        return [Preview((("in", str(row.tolist())),), np.zeros((2, 2, 3), np.uint8)) for row in batch.x[:limit]]


class CoupledToy(Toy):
    coupled = True


TOY = Family(name="toy", card=Card(title="Toy", paper="", year=2026, url="", equation="", symbols="", masks={}, reference=""),
             config=ToyConfig, sizes={"tiny": {}, "base": {}},
             pretraining=Task("", ToySettings, lambda c, s, _: (CoupledToy if s.coupled else Toy)(c, s)))


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(loop, "family", lambda name: TOY)
    monkeypatch.setattr("polymodal.pipelines.run.directory.family", lambda name: TOY)
    monkeypatch.setattr("polymodal.pipelines.run.recipe.families", lambda: {"toy": TOY})

    def export(system, out, tokenizer):
        out.mkdir(exist_ok=True)
        torch.save(system.net.state_dict(), out / "net.pt")

    monkeypatch.setattr(loop, "export_system", export)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice(list("abcdefgh"), size=rng.integers(3, 30))) for _ in range(101)]
    (root / "train.txt").write_text("\n".join(lines[:80]))
    (root / "held.txt").write_text("\n".join(lines[80:]))
    for name in ("train", "held"):
        pack([root / f"{name}.txt"], root / name, PackSettings(Reading(split="line")), workers=Workers(1), console=Console(quiet=True))
    return SimpleNamespace(train=root / "train", held=root / "held")


def toy_recipe(**more):
    objective = more.pop("objective", {})
    data = DataSettings(**({"global_batch": 8, "lanes": 4, "window": 16} | more.pop("data", {})))
    return replace(Recipe(name="toy", system="toy", data=data, objective=objective, max_updates=20, precision="32", accelerator="cpu",
                          optim=OptimSettings(lr=0.02), schedule=ScheduleSettings("cosine", warmup=3),
                          log=LogSettings(every=3, tensorboard=False), evaluate=EvaluateSettings(every=10),
                          checkpoint=CheckpointSettings(every=5)), **more)


def go(recipe, data, out, **more):
    return loop.pretrain(recipe, data.train, out, **({"eval_data": data.held, "console": Console(quiet=True)} | more))


def rows(out, split=None):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(out).metrics(split)]


def weights(out):
    return torch.load(out / "export" / "net.pt", weights_only=True)


def test_a_run_from_start_to_end(tmp_path, data):
    said = []
    console = Console(quiet=True)
    console.say = said.append
    result = go(toy_recipe(), data, tmp_path / "run", console=console)
    assert (result["updates"], result["ending"]) == (20, "complete")
    run = open_run(tmp_path / "run")
    lines = run.metrics("train")
    assert [r["update"] for r in lines] == [3, 6, 9, 12, 15, 18, 20]
    assert set(lines[0]) >= {"loss", "square", "odd", "half", "root", "lr", "grad_norm", "samples", "tokens", "epoch", "bad", *TIMES[:4]}
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["square"] + 0.5 * lines[-1]["odd"])
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["samples"] == 160
    assert [r["update"] for r in run.metrics("eval")] == [10, 20]
    assert [c.update for c in checkpoint.all_checkpoints(run.checkpoints)] == [15, 20]
    assert len(run.samples()) == 8 and (run.directory / run.samples()[0]["image"]).is_file()
    assert json.loads((run.directory / "environment.json").read_text())["starts"][0]["torch"] == torch.__version__
    assert run.recipe() == toy_recipe().resolved()
    # the system read back from the checkpoint is the one that was exported
    for name, tensor in run.system().net.state_dict().items():
        assert torch.equal(tensor, weights(run.directory)[name])
    assert any(line.startswith("epoch: 80 samples = 10 updates") for line in said)


def test_the_gradient_does_not_depend_on_the_layout(tmp_path, data):
    for micro in (8, 4, 1):
        settings = {"micro_batch": micro}
        go(toy_recipe(data=settings, optim=OptimSettings(name="sgd", lr=0.01), max_updates=6), data, tmp_path / str(micro))
    whole = weights(tmp_path / "8")
    for micro in (4, 1):
        for name, tensor in weights(tmp_path / str(micro)).items():
            torch.testing.assert_close(tensor, whole[name], rtol=1e-5, atol=1e-7)
        for a, b in zip(rows(tmp_path / str(micro)), rows(tmp_path / "8"), strict=True):
            assert a.pop("split") == b.pop("split") and a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("stop_at", [4, 7, 13])
def test_a_stopped_run_continues_bit_for_bit(tmp_path, data, stop_at):
    """SIGTERM in the middle of a log window, with dropout and a carried memory, on another number of workers."""
    objective = {"dropout": 0.3, "memory": True}
    settings = {"micro_batch": 4}
    go(toy_recipe(objective=objective, data=settings), data, tmp_path / "whole")
    cut = toy_recipe(objective=objective | {"interrupt_at": stop_at - 1}, data=settings)
    result = go(cut, data, tmp_path / "cut")
    assert (result["updates"], result["ending"]) == (stop_at, "asked to stop")
    assert not (tmp_path / "cut" / "export").exists()
    # the interruption is a setting of the toy: take it out of what the checkpoint remembers
    state = tmp_path / "cut" / "checkpoints" / checkpoint.name_of(stop_at) / "state.json"
    state.write_text(state.read_text().replace(f', "interrupt_at": {stop_at - 1}', ""))
    manifest = state.with_name("manifest.json")
    content = json.loads(manifest.read_text())
    content["files"]["state.json"] = checkpoint._entry(state)
    manifest.write_text(json.dumps(content))
    result = go(toy_recipe(objective=objective, data=settings | {"workers": 1}), data, tmp_path / "cut")
    assert result["ending"] == "complete"
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(weights(tmp_path / "cut").values(), weights(tmp_path / "whole").values()))


def test_dropout_differs_between_updates_and_seeds(tmp_path, data):
    for seed in (0, 1):
        go(toy_recipe(objective={"dropout": 0.5}, seed=seed, optim=OptimSettings(lr=1e-9), log=LogSettings(every=1, tensorboard=False)),
           data, tmp_path / str(seed), max_updates=3)
    assert len({r["loss"] for s in (0, 1) for r in rows(tmp_path / str(s), "train")}) == 6


def test_a_crash_loses_only_what_came_after_the_checkpoint(tmp_path, data, monkeypatch):
    go(toy_recipe(), data, tmp_path / "whole")
    kept = loop.save

    def crash(state, logbook):
        kept(state, logbook)
        if state.update == 10:
            raise RuntimeError("the power went")

    monkeypatch.setattr(loop, "save", crash)
    with pytest.raises(RuntimeError):
        go(toy_recipe(), data, tmp_path / "run")
    monkeypatch.setattr(loop, "save", kept)
    # lines that were written after the checkpoint, the last one cut short
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "update": 12, "loss": 9}\n{"split": "tra')
    go(toy_recipe(), data, tmp_path / "run")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert len(Run(tmp_path / "run").samples()) == 8


def test_a_damaged_checkpoint_is_passed_over(tmp_path, data):
    go(toy_recipe(), data, tmp_path / "whole")
    go(toy_recipe(), data, tmp_path / "run", max_updates=20)
    newest = tmp_path / "run" / "checkpoints" / "update-00000020"
    shard = next(newest.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    warned = []
    console = Console(quiet=True)
    console.warn = warned.append
    result = go(toy_recipe(), data, tmp_path / "run", console=console)
    assert result["ending"] == "complete" and "update-00000020 is damaged" in warned[0]
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    for path in (tmp_path / "run" / "checkpoints").glob("update-*/manifest.json"):
        path.write_text("{")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        go(toy_recipe(), data, tmp_path / "run")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_continues(tmp_path, data, monkeypatch, asynchronous):
    go(toy_recipe(), data, tmp_path / "whole")
    write, updates = checkpoint.write, []
    this = toy_recipe(checkpoint=CheckpointSettings(every=5, asynchronous=asynchronous))

    def full(path, pieces):
        updates.append(path.parent.name[5:20])
        if "update-00000010" in path.parent.name:
            path.write_bytes(b"x" * 10)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, pieces)

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(UserError, match="No space left on device; earlier checkpoints are intact"):
        go(this, data, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["update-00000005"]
    assert updates == ["update-00000005", "update-00000010"]
    last = rows(tmp_path / "run", "train")[-1]["update"]
    assert last == (15 if asynchronous else 9), "at the next contact"
    monkeypatch.setattr(checkpoint, "write", write)
    assert go(this, data, tmp_path / "run")["ending"] == "complete"
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_out_of_time_ends_cleanly_and_can_go_on(tmp_path, data):
    result = go(toy_recipe(), data, tmp_path / "run", max_seconds=0.0)
    assert result["ending"] == "out of time" and result["updates"] == 0 and result["eval"]["update"] == 0
    assert (tmp_path / "run" / "export").is_dir()
    assert go(toy_recipe(), data, tmp_path / "run")["ending"] == "complete"
    go(toy_recipe(), data, tmp_path / "whole")
    assert rows(tmp_path / "run", "train") == rows(tmp_path / "whole", "train")


def test_a_finished_run_is_left_as_it_is(tmp_path, data):
    go(toy_recipe(), data, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    result = go(toy_recipe(), data, tmp_path / "run")
    assert result["updates"] == 20 and result["eval"]["update"] == 20
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_gradient_that_is_not_finite_stops_before_the_weights(tmp_path, data):
    with pytest.raises(UserError, match="the gradient of update 8 is not finite"):
        go(toy_recipe(objective={"explode_at": 7}), data, tmp_path / "run")
    assert checkpoint.newest(tmp_path / "run" / "checkpoints").update == 5
    for tensor in Run(tmp_path / "run").system().state_dict().values():
        assert tensor.isfinite().all()


def test_bad_samples_are_counted_listed_and_limited(tmp_path, data):
    spoiled = {"objective": {"spoiled": "abc"}}
    with pytest.raises(UserError, match="is spoiled"):
        go(toy_recipe(**spoiled), data, tmp_path / "raise")
    result = go(toy_recipe(**spoiled, data={"on_bad": "skip", "max_bad": 0.5}), data, tmp_path / "skip")
    listed = read_json_lines(tmp_path / "skip" / "bad.jsonl")
    assert result["train"]["bad"] == len(listed) > 0 and {"update", "index", "key", "source", "reason"} <= set(listed[0])


def test_a_coupled_system_is_never_split(tmp_path, data):
    with pytest.raises(UserError, match=r"its batch cannot be split: leave data\.micro_batch out"):
        go(toy_recipe(objective={"coupled": True}, data={"micro_batch": 4}), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert go(toy_recipe(objective={"coupled": True}), data, tmp_path / "run", max_updates=2)["updates"] == 2


def test_a_dry_run_writes_nothing(tmp_path, data):
    result = go(toy_recipe(), data, tmp_path / "run", dry_run=True)
    assert not (tmp_path / "run").exists()
    assert any(line.startswith("run: 20 updates = 160 samples = 2.00 epochs") for line in result["plan"])


def test_a_dry_run_on_a_run_says_what_would_happen(tmp_path, data):
    """What a resume would do and what it would refuse, with every setting that holds; the run stays as it is."""
    out = tmp_path / "run"
    go(toy_recipe(), data, out, max_updates=7)
    before = {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    told = go(toy_recipe(), data, out, dry_run=True)
    newest = checkpoint.newest(out / "checkpoints")
    assert told["plan"][-1] == f"would resume after update 7 from {newest.path}, with 13 updates to go"
    assert go(toy_recipe(), data, out, max_updates=7, dry_run=True)["plan"][-1].endswith("with nothing to go: max_updates is 7")
    refused = []
    for wrong, match in (({"seed": 5}, "seed was"), ({"data": {"lanes": 2}}, "data.lanes was 4 and is 2"),
                         ({"objective": {"coupled": True}}, "objective was")):
        with pytest.raises(UserError, match=match) as foreseen:
            go(toy_recipe(**wrong), data, out, dry_run=True)
        refused.append((wrong, str(foreseen.value)))
    told = go(toy_recipe(), data, tmp_path / "new", dry_run=True)
    assert told["plan"][-1] == f"would begin with update 1 in {tmp_path / 'new'}"
    assert told["recipe"]["objective"]["coupled"] is False and told["config"]
    assert {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()} == before
    for wrong, message in refused:  # the run itself says the same
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            go(toy_recipe(**wrong), data, out)
    newest.path.joinpath("state.json").write_text("{}")
    told = go(toy_recipe(), data, out, dry_run=True)
    assert "would begin with update 1" in told["plan"][-1] or newest.path.name not in told["plan"][-1]


def test_a_run_keeps_every_setting_and_older_ones_are_known(tmp_path, data):
    """A run whose recipe has only what was said (before the rest was kept, too) goes on."""
    out = tmp_path / "run"
    go(toy_recipe(), data, out, max_updates=5)
    assert json.loads((out / "system.json").read_text())["objective"]["coupled"] is False
    saved = [*out.glob("checkpoints/*/state.json")]
    assert saved
    for file in saved:
        assert json.loads(file.read_text())["recipe"]["objective"]["coupled"] is False
    newest = checkpoint.newest(out / "checkpoints")
    assert as_resolved({**newest.state()["recipe"], "objective": {}}) == newest.state()["recipe"]["objective"]
    assert as_resolved({"system": "none", "objective": {"a": 1}}) == {"a": 1}


def test_a_compiled_run_without_blocks_and_without_a_compiler(tmp_path, data, monkeypatch):
    plain = go(toy_recipe(), data, tmp_path / "plain")
    compiler, made = torch.compile, []

    def traced_only(function, **_):
        made.append(function)
        return compiler(function, backend="eager")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "compile", traced_only)
        patched.setenv("CXX", sys.executable)  # nothing is handed to it
        compiled = go(toy_recipe(compile=True), data, tmp_path / "compiled")
    assert len(made) == 4, "each part of the network"
    assert plain["updates"] == compiled["updates"] == 20
    for name, tensor in weights(tmp_path / "plain").items():
        torch.testing.assert_close(weights(tmp_path / "compiled")[name], tensor)
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and 'no-such-compiler -O3' was not found"):
        go(toy_recipe(compile=True), data, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_continued_is_named(tmp_path, data):
    go(toy_recipe(), data, tmp_path / "run", max_updates=5)
    for changed, message in ((toy_recipe(seed=4), "seed was 0 and is 4"), (toy_recipe(model={"width": 4}), "model was"),
                             (toy_recipe(data={"lanes": 2}), "data.lanes was 4 and is 2"),
                             (toy_recipe(optim=OptimSettings(name="sgd")), "optim.name was adamw and is sgd")):
        with pytest.raises(UserError, match=message):
            go(changed, data, tmp_path / "run")
    with pytest.raises(UserError, match="data set 0"):
        loop.pretrain(toy_recipe(), data.held, tmp_path / "run", console=Console(quiet=True))
    with pytest.raises(UserError, match="holds checkpoints and --resume is never"):
        go(toy_recipe(), data, tmp_path / "run", resume="never")


def test_resume_from_a_given_checkpoint(tmp_path, data):
    go(toy_recipe(checkpoint=CheckpointSettings(every=5, keep_last=9)), data, tmp_path / "whole")
    start = tmp_path / "whole" / "checkpoints" / "update-00000010"
    go(toy_recipe(), data, tmp_path / "branch", resume=str(start))
    assert rows(tmp_path / "branch", "train")[-3:] == rows(tmp_path / "whole", "train")[-3:]
    with pytest.raises(UserError, match="holds later checkpoints"):
        go(toy_recipe(), data, tmp_path / "whole", resume=str(start))
    with pytest.raises(UserError, match="is not a checkpoint"):
        go(toy_recipe(), data, tmp_path / "new", resume=str(tmp_path))


def test_directories_that_are_not_a_run(tmp_path, data):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    for out, message in (("file", "is a file"), ("full", "holds other files")):
        with pytest.raises(UserError, match=message):
            go(toy_recipe(), data, tmp_path / out)
    with pytest.raises(OSError, match="Not a directory"):  # the command line makes one line and exit code 2 of it
        go(toy_recipe(), data, tmp_path / "file" / "run")
    with pytest.raises(UserError, match="is the training data"):
        go(toy_recipe(), data, tmp_path / "new", eval_data=data.train)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]


def test_two_processes_cannot_write_one_run(tmp_path):
    import subprocess
    import sys

    code = ("import fcntl, sys, time\nf = open(sys.argv[1], 'w')\nfcntl.lockf(f, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another process is training"):
            lock_run(tmp_path)
    finally:
        other.kill()
        other.wait()
    lock_run(tmp_path).close()


def test_tensorboard_and_wandb(tmp_path, data, monkeypatch):
    logged = []
    writer = SimpleNamespace(log=lambda numbers, step: logged.append((step, numbers)), finish=lambda: None)
    fake = SimpleNamespace(init=lambda **settings: writer)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    go(toy_recipe(log=LogSettings(every=5, tensorboard=True, wandb="project")), data, tmp_path / "run", max_updates=10)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    assert [step for step, _ in logged] == [5, 10, 10] and "train/loss" in logged[0][1] and "eval/loss" in logged[-1][1]


def test_a_checkpoint_is_read_once_to_be_verified(tmp_path, data, monkeypatch):
    go(toy_recipe(), data, tmp_path / "run", max_updates=10)
    read, damage = [], checkpoint.damage

    def counted(path):
        read.append(path.name)
        return damage(path)

    monkeypatch.setattr(checkpoint, "damage", counted)
    assert go(toy_recipe(), data, tmp_path / "run")["updates"] == 20
    assert read == ["update-00000010"]


def test_what_would_train_nothing_is_refused_before_anything_is_written(tmp_path, data):
    for changed, message in (({"precision": "bf16-true"}, r"precision is bf16-true, .* so it is for evaluation only: use bf16-mixed"),
                             ({"optim": OptimSettings(layer_decay=0.9)}, r"optim\.layer_decay is 0\.9, and this network has no list")):
        with pytest.raises(UserError, match=message):
            go(toy_recipe(**changed), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
