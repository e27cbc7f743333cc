"""The sbatch script on a real Slurm of one node, which this file starts and stops: preempted, at its time limit, cancelled."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import processes
import pytest
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.launch.job import Job, JobOptions
from polymodal.pipelines.launch.launch import launch
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.recipe import recipe
from polymodal.shared.tokenizer import Tokenizer

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
OVERRIDES = ("model.n_embd=16", "model.n_layer=1", "model.n_head=2", "model.n_positions=32", "model.resid_pdrop=0.1", "data.global_batch=8",
             "data.window=16", "max_updates=1000000", "schedule.name=constant", "schedule.warmup=0", "log.every=20",
             "log.tensorboard=false", "checkpoint.every=0", "precision=32", "accelerator=cpu")
CPUS = 4
QUIET = Console(quiet=True)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"NOT TESTED on a real Slurm: {', '.join(MISSING)} not installed "
                                                                         "(Debian: apt-get install slurm-wlm munge)")]

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=40
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=2
"""


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture(scope="module")
def slurm():
    """A cluster of this machine alone, with daemons, key and directories of its own; everything ends with the tests."""
    root = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path must be short
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool", "munge"):
        (root / name).mkdir(mode=0o755)
    key = root / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    (root / "slurm.conf").write_text(CONFIG.format(host=host, root=root, user=getpass.getuser(), ports=free_ports(2), cpus=CPUS))
    environment = os.environ | {"SLURM_CONF": str(root / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    started = []

    def start(*command):
        with (root / f"{command[0]}.out").open("w") as file:
            started.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True))

    def ask(*command):
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    def ready():
        done = subprocess.run(["sinfo", "-h", "-o", "%T", "-p", "low"], env=environment, capture_output=True, text=True)
        return done.stdout.strip() == "idle"

    cluster = SimpleNamespace(root=root, environment=environment, ask=ask)
    try:
        start("munged", "--foreground", "--force", f"--socket={root}/munge/socket", f"--key-file={key}", f"--pid-file={root}/munge/pid",
              f"--log-file={root}/munge/log", f"--seed-file={root}/munge/seed")
        wait_for((root / "munge" / "socket").exists, 20)
        start("slurmctld", "-D", "-i")
        start("slurmd", "-D", "-N", host)
        wait_for(ready, 60, lambda: (root / "slurmctld.log").read_text()[-2000:])
        yield cluster
        subprocess.run(["scancel", "--full", "-u", getpass.getuser()], env=environment, check=False)
        time.sleep(1)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            process.wait(timeout=30)
        shutil.rmtree(root, ignore_errors=True)


def wait_for(condition, seconds=240, story=lambda: ""):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"it took too long: {story()}"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdef"), size=rng.integers(1, 5))) for _ in range(40)]
    lines = [" ".join(rng.choice(words, size=rng.integers(3, 12))) for _ in range(90)]
    (root / "train.txt").write_text("\n".join(lines))
    Tokenizer.train(lines, "byte-bpe", 300).save(root / "tok")
    pack([root / "train.txt"], root / "train", PackSettings(Reading(split="line")), workers=Workers(1), console=QUIET)
    return SimpleNamespace(train=str(root / "train"), tok=str(root / "tok"))


def submitted(slurm, data, out, monkeypatch, tmp_path, grace=120, **options):
    """The number of a job that `launch` has submitted; two ranks."""
    arguments = ("--data", data.train, "--tokenizer", data.tok, "--out", str(out), *(part for o in OVERRIDES for part in ("--set", o)))
    setup = f"export PATH={Path(sys.executable).parent}:$PATH"
    job = Job("tiny", recipe("gpt2-tiny", OVERRIDES), "gpt2-tiny", arguments, (1, 1), 2, grace=grace,
              options=JobOptions(partition="low", setup=setup, logs=str(tmp_path / "logs"), **options))
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    launch(job, "slurm", write=tmp_path, submit=True, console=QUIET)
    return next(line.split()[0] for line in slurm.ask("squeue", "-h", "-o", "%i %j").splitlines() if line.endswith("tiny"))


def facts(slurm, job):
    return dict(re.findall(r"(\w+)=(\S*)", slurm.ask("scontrol", "show", "job", job)))


def updates(out):
    return [row["update"] for row in Run(out).metrics("train")]


def test_a_preempted_job_saves_and_comes_back_as_the_same_run(slurm, data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    job = submitted(slurm, data, out, monkeypatch, tmp_path)
    log = tmp_path / "logs" / f"tiny-{job}.out"
    story = lambda: f"{facts(slurm, job)}\n{log.read_text()[-3000:] if log.exists() else ''}"  # noqa: E731
    wait_for(lambda: len(updates(out)) > 3, story=story)
    assert facts(slurm, job)["NumCPUs"] == "2", "a core for each rank, though nobody said --cpus"
    assert re.search(rf"StepId={job}\.0 .*?CPUs=2 ", slurm.ask("scontrol", "show", "step", f"{job}.0"), re.S), "and the step has them all"

    slurm.ask("sbatch", "-p", "high", "-n", str(CPUS), "-o", str(tmp_path / "high.out"), "--wrap", "echo it ran; sleep 2")
    wait_for(lambda: facts(slurm, job)["Restarts"] == "1", story=story)
    stopped = updates(out)[-1]
    wait_for(lambda: updates(out)[-1] > stopped + 40, story=story)
    assert (tmp_path / "high.out").read_text() == "it ran\n"
    said = log.read_text()
    assert "stopped after update" in said and "resuming after update" in said and "Traceback" not in said, said
    slurm.ask("scancel", job)
    wait_for(lambda: facts(slurm, job)["JobState"] == "CANCELLED", story=story)

    # what two ranks compute that nobody disturbed
    count = stopped + 40
    overrides = [part for o in (*OVERRIDES, f"max_updates={count}") for part in ("--set", o)]
    whole = ("--data", data.train, "--tokenizer", data.tok, "--out", tmp_path / "whole")
    processes.together(processes.ranks(2, "pretrain", "gpt2-tiny", *whole, *overrides))
    expected = {row["update"]: row["loss"] for row in Run(tmp_path / "whole").metrics("train")}
    assert updates(out)[: len(expected)] == list(expected), "each line once"
    assert {row["update"]: row["loss"] for row in Run(out).metrics("train") if row["update"] <= count} == pytest.approx(expected, rel=1e-5)


def test_a_job_at_its_time_limit_comes_back_and_one_that_is_cancelled_does_not(slurm, data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    job = submitted(slurm, data, out, monkeypatch, tmp_path, grace=30, time="2")  # minutes are Slurm's grain: it is told after 90 seconds
    log = tmp_path / "logs" / f"tiny-{job}.out"
    story = lambda: f"{facts(slurm, job)}\n{log.read_text()[-3000:] if log.exists() else ''}"  # noqa: E731
    wait_for(lambda: len(updates(out)) > 3, story=story)
    wait_for(lambda: facts(slurm, job)["Restarts"] == "1", story=story)
    stopped = updates(out)[-1]
    wait_for(lambda: updates(out)[-1] > stopped, story=story)
    slurm.ask("scancel", job)
    wait_for(lambda: facts(slurm, job)["JobState"] == "CANCELLED")
    time.sleep(5)
    assert facts(slurm, job)["JobState"] == "CANCELLED", "who cancels a job does not get it back"


def test_a_run_that_fails_fails_the_job_and_is_not_queued_again(slurm, data, tmp_path, monkeypatch):
    broken = SimpleNamespace(train=str(tmp_path / "nothing"), tok=data.tok)
    job = submitted(slurm, broken, tmp_path / "run", monkeypatch, tmp_path)
    ended = wait_for(lambda: (found := facts(slurm, job))["JobState"] not in ("PENDING", "RUNNING", "COMPLETING") and found)
    said = (tmp_path / "logs" / f"tiny-{job}.out").read_text()
    assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("FAILED", "0", "2:0"), said
    assert "error: " in said and "its own lines say why" in said and "ChildFailedError" not in said, said
