"""Two machines of a cluster, played by two torchrun agents on loopback: one of them is lost, and the run goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.launch.job import Job, JobOptions
from polymodal.pipelines.launch.launch import targets
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.recipe import recipe
from polymodal.shared.tokenizer import Tokenizer

TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")
OVERRIDES = ("model.n_embd=16", "model.n_layer=1", "model.n_head=2", "model.n_positions=32", "model.resid_pdrop=0.1", "data.global_batch=8",
             "data.window=16", "max_updates=120", "log.every=4", "log.tensorboard=false", "checkpoint.every=8", "precision=32",
             "accelerator=cpu")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdef"), size=rng.integers(1, 5))) for _ in range(40)]
    lines = [" ".join(rng.choice(words, size=rng.integers(3, 12))) for _ in range(90)]
    (root / "train.txt").write_text("\n".join(lines))
    Tokenizer.train(lines, "byte-bpe", 300).save(root / "tok")
    pack([root / "train.txt"], root / "train", PackSettings(Reading(split="line")), workers=Workers(1), console=Console(quiet=True))
    return SimpleNamespace(train=str(root / "train"), tok=str(root / "tok"))


def job(data, out, nodes, gpus, rendezvous=None):
    arguments = ("--data", data.train, "--tokenizer", data.tok, "--out", str(out), *(part for o in OVERRIDES for part in ("--set", o)))
    return Job("two-agents", recipe("gpt2-tiny", OVERRIDES), "gpt2-tiny", arguments, nodes, gpus, options=JobOptions(rendezvous=rendezvous))


def agent(job, log):
    """One machine: an agent in a session of its own, with its ranks."""
    command = targets()["torchrun"].command(job)
    with log.open("a") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | job.environment)


def children(process):
    try:
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def lose(process):
    """The machine is gone: the agent first, so that it cannot report, then its ranks."""
    ranks = children(process)
    for pid in (process.pid, *ranks):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def wait_for(condition, processes, seconds=150):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        assert any(p.poll() is None for p in processes), "every agent has ended"
        time.sleep(0.05)


def rows(out):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(out).metrics("train")]


@pytest.mark.timeout(600)
def test_two_agents_lose_a_rank_and_then_a_machine(data, tmp_path):
    """SIGKILL of a rank, later of an agent with its rank that a scheduler then starts anew: the losses of a run without accidents."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out, log = tmp_path / "run", tmp_path / "log"
    work = job(data, out, (2, 2), 1, f"127.0.0.1:{port}")
    agents = [agent(work, log)]
    time.sleep(1)  # the first one keeps the meeting place
    agents.append(agent(work, log))
    try:
        wait_for(lambda: last_update(out) >= 16, agents)
        os.kill(children(agents[1])[0], signal.SIGKILL)
        wait_for(lambda: log.read_text().count("resuming after update") == 1 and last_update(out) >= 48, agents)
        lose(agents[1])
        agents[1] = agent(work, log)
        for process in agents:
            assert process.wait(timeout=250) == 0, log.read_text()[-3000:]
    finally:
        for process in agents:
            if process.poll() is None:
                lose(process)
    assert log.read_text().count("resuming after update") == 2, "the test saw another number of accidents"
    # the same on two ranks of one agent, undisturbed
    process = agent(job(data, tmp_path / "whole", (1, 1), 2), tmp_path / "whole.log")
    assert process.wait(timeout=250) == 0, (tmp_path / "whole.log").read_text()[-3000:]
    assert [row["update"] for row in rows(out)] == list(range(4, 121, 4))
    assert rows(out) == rows(tmp_path / "whole"), "another loss, digit for digit, than without accidents"


def last_update(out):
    return max((row["update"] for row in Run(out).metrics("train")), default=0)
