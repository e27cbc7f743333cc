"""The same work on a Ray cluster of this machine: the same bytes, also where a worker is killed; and what stands in the way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polymodal
import pytest
import torch
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew import ray as crew_ray
from polymodal.pipelines.crew.crew import crew, do_all
from polymodal.pipelines.crew.pieces import Lost, Piece, Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.inference.bulk import run_over
from polymodal.pipelines.inference.runners import VECTOR, Classify, Embed
from polymodal.pipelines.pack import pack as packing
from polymodal.pipelines.pack import sources
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of two cores on this machine; its secret dies with it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16),
                            "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        import ray

        here = ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False, logging_level="ERROR",
                        configure_logging=False, _node_ip_address="127.0.0.1", _temp_dir=str(tmp_path_factory.mktemp("ray")))
        # workers get the pieces of this file as they are here, and do not import it with all that it imports
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield here.address_info["gcs_address"]
        ray.shutdown()


def contents(folder):
    """Every file of a folder with its hash."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


class Warnings(Console):
    """Keeps what a person would have been told."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def warn(self, line):
        self.lines.append(line)


@dataclass(frozen=True)
class Touch:
    """A piece that writes its number's file, or fails."""

    folder: str
    number: int
    bad: tuple[int, ...] = ()

    def __call__(self):
        if self.number in self.bad:
            time.sleep(0.2 if self.number == min(self.bad) else 0)  # the first is the slowest
            raise UserError(f"piece {self.number} is bad")
        Path(self.folder, str(self.number)).write_text(str(os.getpid()))


def hands():
    """The processes of workers whose cluster this process has started."""
    parents, found = {}, []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if (folder / "cmdline").read_bytes().startswith(b"ray::Hand"):
                    found.append(int(folder.name))

    def ours(pid):
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid in found if ours(pid)]


@contextlib.contextmanager
def a_kill(folder, pattern, finished):
    """Kill a worker's process as soon as `finished` files match `pattern`."""
    killed, stop, before = [], threading.Event(), set(hands())  # some may still be leaving from what was done before

    def watch():
        while not stop.wait(0.002):
            if len(list(folder.glob(pattern))) >= finished and (pids := [pid for pid in hands() if pid not in before]):
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])
                return

    thread = threading.Thread(target=watch)
    thread.start()
    yield killed
    stop.set()
    thread.join()


def test_packing_on_ray_gives_the_same_bytes(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_UNIT_BYTES", 20_000)
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i} " + "x" * (i % 97) for i in range(2000)))
    for on in ("local", "ray"):
        pack(tmp_path / "a.txt", tmp_path / on / "train",
             PackSettings(shard_bytes=150_000, holdout=0.1, holdout_out=tmp_path / on / "eval"), workers=Workers(on=on))
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")


def test_a_killed_worker_changes_nothing_when_packing(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_UNIT_BYTES", 2_000)  # so many pieces that the kill meets one on a busy machine too
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i} " + "x" * (i % 97) for i in range(20_000)))
    pack(tmp_path / "a.txt", tmp_path / "local", PackSettings(shard_bytes=2_000_000))
    console = Warnings()
    with a_kill(tmp_path / "ray", ".pack/units/*.json", 4) as killed:
        pack(tmp_path / "a.txt", tmp_path / "ray", PackSettings(shard_bytes=2_000_000), workers=Workers(on="ray"), console=console)
    assert killed and "a worker died over" in console.lines[0]
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_goes_on_elsewhere(cluster, tmp_path, monkeypatch, how):
    """What a run on the cluster has finished, a run on this machine takes over."""
    (tmp_path / "in").mkdir()
    for i in range(60):
        (tmp_path / "in" / f"{i}.txt").write_text("\n\n".join(f"text {i} {j}" for j in range(200)))
    monkeypatch.chdir(tmp_path)
    pack("in", "whole", PackSettings(shard_bytes=2_000_000))
    out = tmp_path / "out"
    run = subprocess.Popen([sys.executable, "-m", "polymodal", "pack", "in", "--out", "out", "--shard-bytes", "2000000", "--on", "ray",
                            "--ray-address", cluster], stderr=subprocess.PIPE, text=True)
    while run.poll() is None and len(list(out.glob(".pack/units/*.json"))) < 5:
        time.sleep(0.002)
    assert run.poll() is None, run.stderr.read()
    run.send_signal(how)
    run.communicate()
    assert run.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[how]
    until = time.monotonic() + 30
    while hands() and time.monotonic() < until:  # Ray ends them when their command is gone
        time.sleep(0.1)
    assert not hands()
    done = len(list(out.glob(".pack/units/*.json")))
    again, read = [], packing._read
    monkeypatch.setattr(packing, "_read", lambda unit, *rest: (again.append(unit), read(unit, *rest)))
    pack("in", "out", PackSettings(shard_bytes=2_000_000))
    assert done >= 5 and len(again) == 60 - done
    assert contents(out) == contents(tmp_path / "whole")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A data set of 700 texts and tiny models for them."""
    folder = tmp_path_factory.mktemp("texts")
    words = ["red", "green", "blue", "cat", "dog", "house", "tree", "river"]
    rng = np.random.default_rng(0)
    (folder / "a.txt").write_text("\n\n".join(" ".join(rng.choice(words, int(n))) for n in rng.integers(1, 30, 700)))
    pack(folder / "a.txt", folder / "data", PackSettings(shuffle=None))
    tok = Tokenizer.train([" ".join(words)] * 3, "wordpiece", 40)
    for task in ("", "classify"):
        torch.manual_seed(0)
        system = polymodal.system("bert", size="tiny", task=task, tokenizer=tok, classes=["good", "bad"] if task else None, hidden_size=16,
                                  num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32)
        polymodal.save(system.net, folder / f"model{task}", tokenizer=tok)
    return folder


def test_vectors_and_classes_on_ray_are_those_of_this_machine_though_a_worker_is_killed(cluster, texts, tmp_path):
    data = DataSet.open(texts / "data")
    for name, work, array in (("v.npy", Embed(str(texts / "model"), "text", batch_size=1), VECTOR),
                              ("c.jsonl", Classify(str(texts / "modelclassify"), batch_size=1), None)):
        console = Warnings()
        for workers in (Workers(1), Workers(2, "ray")):
            (tmp_path / workers.on).mkdir(exist_ok=True)
            with a_kill(tmp_path / "ray", f".{name}.parts/*.safetensors", 1) as killed:
                done = run_over(data, str(texts / "data"), work, tmp_path / workers.on / name, array=array, workers=workers,
                                console=console)
            assert done.count == 700
        assert killed and "a worker died over samples" in console.lines[0]
    assert contents(tmp_path / "local") == contents(tmp_path / "ray") and len(contents(tmp_path / "ray")) == 4


def test_errors_on_ray_are_those_of_a_run_in_order(cluster, tmp_path):
    with crew(Workers(2, "ray"), most=8, folder=tmp_path) as those:
        for bad in ((5, 6), (0, 1), (7,)):
            with pytest.raises(UserError, match=f"^piece {min(bad)} is bad$"):
                do_all(those, [Piece(Touch(str(tmp_path), i, bad), 1, str(i)) for i in range(8)], lambda size: None)
    assert not list(tmp_path.glob(".*")), "no mark stays"


def test_a_piece_that_kills_its_workers_ends_the_run(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(crew_ray, "TRIES", 2)
    console = Warnings()
    with crew(Workers(2, "ray"), most=2, folder=tmp_path, warn=console.warn) as those, pytest.raises(Lost, match="deadly: 2 workers died"):
        do_all(those, [Piece(partial(os._exit, 1), 1, "deadly")], lambda size: None)
    assert len(console.lines) == 1


def test_a_cluster_without_room_is_told(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(crew_ray, "_START", 0.0)
    lines = []

    def warn(line):
        lines.append(line)
        raise KeyboardInterrupt  # what a person may do then

    with crew(Workers(on="ray"), most=1, folder=tmp_path, gpus=True, warn=warn) as those, pytest.raises(KeyboardInterrupt):
        do_all(those, [Piece(Touch(str(tmp_path), 0), 1, "0")], lambda size: None)
    assert len(lines) == 1 and "each needs a core and a GPU; of 0 GPUs of the cluster 0 are free" in lines[0]


def test_a_machine_without_the_storage_is_named(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(crew_ray, "_PATIENCE", 0.0)
    (tmp_path / "a").write_text("12345")
    for reads, message in (([(str(tmp_path / "b"), 5)], "cannot read .*/b'"), ([(str(tmp_path / "a"), 4)], "has 5 bytes on .* and 4 here")):
        with crew(Workers(on="ray"), most=1, folder=tmp_path, reads=reads) as those, pytest.raises(UserError, match=message):
            do_all(those, [Piece(Touch(str(tmp_path), 0), 1, "0")], lambda size: None)


@pytest.mark.timeout(600)
def test_the_launch_script_trains_on_two_ranks(cluster, texts, tmp_path, monkeypatch):
    """`launch --on ray` writes it and Ray Train starts it; the losses are those of one process."""
    shape = [word for size in ("n_embd=16", "n_layer=1", "n_head=2", "n_positions=32") for word in ("--set", f"model.{size}")]
    common = ["gpt2-tiny", "--data", str(texts / "data"), "--tokenizer", str(tmp_path / "tok"), "--max-updates", "3", "--set",
              "accelerator=cpu", "--set", "precision=32", "--set", "data.global_batch=8", "--set", "log.every=1", *shape]
    Tokenizer.train(["red green blue cat dog house tree river"] * 3, "byte-bpe", 270).save(tmp_path / "tok")
    monkeypatch.chdir(tmp_path)
    assert cli.run(["launch", "--on", "ray", "--gpus", "2", "--max-restarts", "0", "--out", str(tmp_path / "two"), *common]) == 0
    done = subprocess.run([sys.executable, "gpt2-tiny-ray.py"], env={**os.environ, "RAY_ADDRESS": cluster, "HOME": str(tmp_path)},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert cli.run(["pretrain", "--out", str(tmp_path / "one"), *common]) == 0
    one, two = ([json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()] for run in ("one", "two"))
    assert [r["update"] for r in two] == [1, 2, 3] and [r["samples"] for r in two] == [8, 16, 24]
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-5)
