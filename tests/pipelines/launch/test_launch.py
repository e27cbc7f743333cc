"""`polymodal launch`: what each target writes, read back by the parser or the schema of whoever will read it."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import processes
import pytest
import typer
import yaml
from jobs import KUBE, ODD, job, only_file, pretrain_arguments, torchrun_arguments
from polymodal.pipelines import cli
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.commands import launch as commands
from polymodal.pipelines.launch import agent
from polymodal.pipelines.launch import launch as launching
from polymodal.pipelines.launch import ray as skypilot
from polymodal.pipelines.launch.job import seconds_of, words
from polymodal.pipelines.launch.launch import check, job_name, launch, nodes_of
from polymodal.shared.errors import UserError


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: bert-tiny\noptim: {lr: 0.00123}\n")
    return str(tmp_path / "mine.yaml")


# --- torchrun and this machine


def test_torchrun_reads_its_command(monkeypatch):
    for work, nnodes, place in ((job(rendezvous="head:29400"), "2", "head:29400"), (job((1, 1)), "1", "localhost:0"),
                                (job((1, 2), 4, rendezvous="head:1"), "1:2", "head:1")):
        command = check(work, "torchrun").command(work)
        found = torchrun_arguments(command)
        assert (found.nnodes, found.nproc_per_node, found.max_restarts, found.rdzv_backend) == (nnodes, str(work.gpus), 3, "c10d")
        assert (found.rdzv_endpoint, found.module, found.training_script) == (place, True, "polymodal")
        params = pretrain_arguments(command)
        assert params["data"] == [ODD] and params["set_"] == ["data.global_batch=256"] and params["recipe"] == "bert-base"
    # what a torchrun of this release understands by the name in the environment
    monkeypatch.setenv("PET_SHUTDOWN_TIMEOUT", job().environment["PET_SHUTDOWN_TIMEOUT"])
    assert torchrun_arguments(check(job((1, 1)), "torchrun").command(job((1, 1)))).shutdown_timeout == 110


def test_a_job_here_takes_over_the_process(monkeypatch):
    seen = []
    monkeypatch.setattr(os, "execvpe", lambda *a: seen.append(a))
    monkeypatch.setattr(launching, "_write", lambda *a: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(Path, "mkdir", lambda *a, **k: None)
    launch(job((1, 1), 2), "local", console=Console(quiet=True))
    program, command, environment = seen[0]
    assert program == sys.executable and pretrain_arguments(command)["devices"] == 2
    assert environment["OMP_NUM_THREADS"] == "7", "what the user has set wins"
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


# --- Slurm


def sbatch_options(script):
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH ")]
    return dict((*line.split("=", 1), "")[:2] for line in lines)


def test_the_sbatch_script():
    work = job(time="1-12:00:00", partition="gpu", account="me", gpu_type="h100", cpus=64, setup="source venv/bin/activate")
    name, script = only_file(work, "slurm")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert name == "bert-base.sbatch" and script.startswith("#!/bin/bash\n")
    assert sbatch_options(script) == {
        "job-name": "bert-base", "nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "h100:8", "cpus-per-task": "64",
        "time": "1-12:00:00", "partition": "gpu", "account": "me", "signal": "B:USR1@120", "requeue": "", "open-mode": "append",
        "output": "logs/%x-%j.out"}
    # sbatch stops reading its options at the first command
    body = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert script.index("#SBATCH --output") < script.index(body[0])
    options = sbatch_options(only_file(job(overrides=["accelerator=cpu", "data.workers=3"]), "slurm")[1])
    assert "gpus-per-node" not in options
    assert options["cpus-per-task"] == "32", "a core for each of 8 ranks and its 3 workers"
    name, script = only_file(job(memory="1.5G", env=("A=it's $HOME", "OMP_NUM_THREADS=4")), "slurm")
    assert sbatch_options(script)["mem"] == "1536M" and "mem" not in options
    exports = "\n".join(line for line in script.splitlines() if line.startswith("export"))
    said = subprocess.run(["bash", "-c", f'{exports}\necho "$A $OMP_NUM_THREADS"'], text=True, capture_output=True, check=True,
                          env={"HOME": "/wrong"}).stdout
    assert said == "it's $HOME 4\n"
    # srun does not take them over
    assert "srun --cpus-per-task=64 " in only_file(work, "slurm")[1]


STUBS = {
    "scontrol": 'echo "$@" >> "$LOG"; if [ "$1" = show ]; then printf "host-a\\nhost-b\\n"; fi',
    "scancel": 'echo "scancel $@" >> "$LOG"; kill -TERM "$(cat "$LOG.pid")"',
    "srun": 'shift 2; exec "$@"',
    "python": 'printf "%s\\n" "$@" > "$LOG.words"; echo $$ > "$LOG.pid"; trap "sleep 0.3; echo saved >> $LOG; exit 75" TERM; '
              'if [ -n "${CODE:-}" ]; then exit $CODE; fi; for i in $(seq 100); do sleep 0.1; done',
}


@pytest.fixture
def cluster(tmp_path):
    """Slurm and torchrun as small programs that write down what is asked of them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STUBS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return tmp_path / "log", {"PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "SLURM_JOB_ID": "123456",
                              "SLURM_JOB_NODELIST": "host-[a-b]"}


def test_the_script_saves_before_its_time_is_up_and_queues_itself(cluster, tmp_path):
    log, environment = cluster
    (tmp_path / "job.sbatch").write_text(only_file(job(), "slurm")[1])
    process = subprocess.Popen(["bash", str(tmp_path / "job.sbatch")], env=environment)
    while not (tmp_path / "log.pid").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 0
    said = log.read_text().splitlines()
    # it waits for the last checkpoint
    assert said == ["show hostnames host-[a-b]", "scancel --signal=TERM 123456", "saved", "requeue 123456"]
    command = (tmp_path / "log.words").read_text().splitlines()
    assert torchrun_arguments(command).rdzv_endpoint == f"host-a:{20000 + 123456 % 10000}"
    assert pretrain_arguments(command)["data"] == [ODD], "the shell took nothing apart"


@pytest.mark.parametrize(("code", "ends", "queued"), [("0", 0, False), ("1", 1, False), ("2", 2, False), ("75", 0, True)])
def test_only_a_run_that_was_stopped_is_queued_again(cluster, tmp_path, code, ends, queued):
    log, environment = cluster
    (tmp_path / "job.sbatch").write_text(only_file(job(), "slurm")[1])
    done = subprocess.run(["bash", str(tmp_path / "job.sbatch")], env=environment | {"CODE": code}, check=False)
    assert done.returncode == ends and ("requeue 123456" in log.read_text()) == queued


# --- the agent


@pytest.mark.parametrize(("work", "code", "said"), [
    ("pass", 0, ""),
    ("from polymodal.pipelines.base.endings import code_of_a_stop; import sys; sys.exit(code_of_a_stop())", 75, ""),
    ("from polymodal.pipelines.base.endings import code_of_a_stop, leave_sign; code_of_a_stop(); leave_sign('failed')", 1, ""),
    ("import sys; sys.exit(2)", 2, "rank 0 ended with code 2, and its own lines say why"),
    ("import os; os.kill(os.getpid(), 9)", 1, "rank 0 ended with code -9"),
    # told to stop, and the rank does not even say that it saved: the same command goes on
    ("import os, time; os.kill(os.getppid(), 15); time.sleep(60)", 75, ""),
])
def test_the_agents_exit_codes(tmp_path, work, code, said):
    (tmp_path / "rank.py").write_text(work)
    child = processes.call(_agent, tmp_path / "rank.py")
    assert child.wait() == code, child.err
    assert said in child.err and "ChildFailedError" not in child.err and "Traceback" not in child.err, child.err


def _agent(script, endpoint="localhost:0", ranks=1, *more):
    sys.exit(agent.main(["--nnodes=1", f"--nproc-per-node={ranks}", "--max-restarts=0", "--rdzv-backend=c10d",
                         f"--rdzv-endpoint={endpoint}", *more, str(script)]))


RANK = """
import os, pathlib, signal, sys, time
from polymodal.pipelines.base.endings import code_of_a_stop, done, leave_sign
signal.signal(signal.SIGTERM, lambda *_: sys.exit({term}))
{work}
pathlib.Path({folder!r}, os.environ["RANK"]).touch()
time.sleep(100)
"""


@pytest.mark.parametrize(("work", "term", "code", "said"), [
    # they are done, and have not ended yet: the interpreter takes its time
    ("leave_sign(done())", "0", 0, "were done"),
    # one of them is not
    ("os.environ['RANK'] == '0' and leave_sign(done())", "0", 1, "had to end, and the same command goes on from the newest checkpoint"),
    ("", "code_of_a_stop()", 75, "were stopped"),
    ("", "leave_sign('failed') or code_of_a_stop()", 1, "were stopped"),
])
def test_an_agent_that_loses_the_meeting_place_goes_by_its_own_ranks(tmp_path, work, term, code, said):
    """The store ends while the ranks are there, as where the agent that keeps it ends first."""
    (tmp_path / "ready").mkdir()
    (tmp_path / "rank.py").write_text(RANK.format(work=work, term=term, folder=str(tmp_path / "ready")))
    store = processes.call(_meeting_place, tmp_path / "port")
    wait_for((tmp_path / "port").exists, store)
    child = processes.call(_agent, tmp_path / "rank.py", f"localhost:{(tmp_path / 'port').read_text()}", 2, "--rdzv-conf=is_host=0")
    wait_for(lambda: len(list((tmp_path / "ready").iterdir())) == 2, child)
    store.kill()
    assert child.wait() == code, child.err
    (line,) = [line for line in child.err.splitlines() if line.startswith("the other agents are lost (RendezvousConnectionError at ")]
    assert line.endswith(said) and "Traceback" not in child.err, child.err


def _meeting_place(path):
    from torch.distributed import TCPStore

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    path.with_suffix(".new").write_text(str(store.port))
    path.with_suffix(".new").rename(path)
    time.sleep(200)


def wait_for(condition, child):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end and child.poll() is None, child.err
        time.sleep(0.02)


def test_a_rank_says_that_it_is_done_and_takes_it_back_when_it_is_started_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("POLYMODAL_ENDINGS", str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert cli.run(["--help"]) == 0 and [p.name for p in tmp_path.iterdir()] == ["done-3"]
    assert cli.run(["inspect", str(tmp_path / "nothing")]) == 2 and [p.name for p in tmp_path.iterdir()] == ["failed"]


# --- what people are told


@pytest.mark.parametrize(("on", "options", "said"), [
    ("slurm", {}, "queues itself again"), ("kubernetes", KUBE, "has 120 s.*the Job makes a new one that does not count as a failure"),
    ("kubernetes", {"kind": "pytorchjob", **KUBE}, "operator makes a new one"), ("ray", {}, "at most 3 times"),
    ("skypilot", {"gpu_type": "H100"}, "--out must lie on a mounted store"),
])  # fmt: skip
def test_what_happens_on_preemption_is_said(on, options, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Slurm's folder for logs
    result = launch(job(**options), on, write=tmp_path)
    told = capsys.readouterr().out
    assert re.search(f"when it is preempted: .*{said}", told), told
    assert result["preempted"] in told


# --- Ray and SkyPilot


def test_the_ray_script_compiles_and_says_the_same(mine):
    work = job(source=mine, gpu_type="H100", cpus=64)
    name, script = only_file(work, "ray")
    tree = ast.parse(script)
    compile(tree, name, "exec")
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)}
    assert values["PROGRAM"] == work.program() and yaml.safe_load(values["RECIPE"])["optim"]["lr"] == 0.00123
    calls = {ast.unparse(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    scaling = ast.literal_eval(calls["ray.train.ScalingConfig"].keywords[0].value)
    assert scaling == {"num_workers": 16, "use_gpu": True, "accelerator_type": "H100", "resources_per_worker": {"CPU": 8, "GPU": 1}}
    assert "{'OMP_NUM_THREADS': '1', 'A': 'b'}" in only_file(job(env=("A=b",)), "ray")[1]
    assert "'gloo'" in only_file(job(overrides=["accelerator=cpu"]), "ray")[1]


def test_the_skypilot_task(mine):
    task = yaml.safe_load(only_file(job(source=mine, gpu_type="H100", image="i:1"), "skypilot")[1])
    assert set(task) <= {"name", "resources", "num_nodes", "envs", "setup", "run"}
    assert task["resources"] == {"accelerators": "H100:8", "image_id": "docker:i:1"} and task["num_nodes"] == 2
    assert "setup" not in task and "workdir" not in task, "polymodal is in the image"
    subprocess.run(["bash", "-n"], input=task["run"], text=True, check=True)
    script = task["run"].replace("torchrun", "printf '%s\\n' torchrun")
    done = subprocess.run(["bash", "-c", script], env={"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "PATH": os.environ["PATH"]}, text=True,
                          capture_output=True, check=True, cwd=Path(mine).parent)
    assert torchrun_arguments(done.stdout.splitlines()).rdzv_endpoint == "10.0.0.1:29400"
    assert pretrain_arguments(done.stdout.splitlines())["data"] == [ODD]
    assert yaml.safe_load((Path(mine).parent / "recipe.yaml").read_text())["optim"]["lr"] == 0.00123


def test_skypilots_machines_install_the_clone(tmp_path, monkeypatch):
    """The lines are run, with programs in place of those that would need a network."""
    places = ("--data", "s3://bucket/x", "--eval-data", "gs://b/y", "--out", "/r")
    work = job(gpu_type="H100", memory="100G", env=("A=b",), arguments=places)
    task = yaml.safe_load(only_file(work, "skypilot")[1])
    assert task["resources"]["memory"] == "100+" and task["envs"]["A"] == "b"
    assert (Path(task["workdir"]) / "pyproject.toml").is_file()
    (tmp_path / "python3").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    said = subprocess.run(["bash", "-c", task["setup"]], env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": "/home/me"}, text=True,
                          capture_output=True, check=True).stdout.splitlines()
    assert said == ["-m pip install --quiet uv", "-m uv venv --python 3.12 /home/me/polymodal-env",
                    "-m uv pip install --python /home/me/polymodal-env/bin/python -e .[gcs,s3]"]
    project = tomllib.loads((Path(task["workdir"]) / "pyproject.toml").read_text())["project"]
    assert {"gcs", "s3"} <= set(project["optional-dependencies"])
    assert task["run"].startswith(". ~/polymodal-env/bin/activate\n")
    mine = yaml.safe_load(only_file(job(gpu_type="H100", setup="module load x"), "skypilot")[1])
    assert mine["setup"] == "module load x" and "workdir" not in mine and "polymodal-env" not in mine["run"]
    monkeypatch.setattr(skypilot, "clone", lambda: None)
    with pytest.raises(UserError, match="the machines begin without polymodal"):
        check(job(gpu_type="H100"), "skypilot")
    check(job(gpu_type="H100", image="i:1"), "skypilot")


# --- all of them


@pytest.mark.parametrize("on", ["slurm", "kubernetes", "ray", "skypilot"])
def test_no_secret_of_this_machine_is_written(on, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-value")
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t-value")
    more = {"kubernetes": KUBE, "skypilot": {"gpu_type": "H100"}}.get(on, {})
    assert "s3cr3t" not in only_file(job(**more), on)[1]
    for address in ("s3://user:s3cr3t@bucket/data", "https://host/data?X-Amz-Signature=s3cr3t", "https://host/d?token=s3cr3t=2"):
        with pytest.raises(UserError, match="holds a password or token") as error:
            check(job(arguments=("--data", address, "--out", "/mnt/run"), **more), on)
        assert "s3cr3t" not in str(error.value)
    check(job(arguments=("--data", "https://host/data?version=2", "--out", "/mnt/run"), **more), on)


def test_all_problems_at_once():
    with pytest.raises(UserError) as error:
        check(job((3, 2), 0, max_restarts=-1, image="an image", partition="p", time="soon"), "kubernetes")
    for part in ("--nodes is 3:2", "--gpus is 0", "--max-restarts is -1", "--image is 'an image'", "--partition means nothing",
                 "it is for slurm", "--time is 'soon'", "would lie in a container"):
        assert part in str(error.value), part
    with pytest.raises(UserError, match="not a multiple of the 24 ranks: use 240 or 264"):
        check(job((3, 3)), "slurm")
    for on, work, said in (("local", job(), "this machine"), ("torchrun", job(), "--rendezvous"), ("slurm", job((1, 2)), "fixed number"),
                           ("kubernetes", job((1, 2), **KUBE), "pytorchjob"), ("skypilot", job(), "--gpu-type is missing"),
                           ("mars", job(), "expected one of: local, torchrun"), ("slurm", job(account="a\n#SBATCH --x"), "--account is"),
                           ("kubernetes", job(kind="pod", **KUBE), "--kind is 'pod'")):
        with pytest.raises(UserError, match=said):
            check(work, on)


def test_small_readers():
    assert nodes_of("4") == (4, 4) and nodes_of("1:2") == (1, 2)
    with pytest.raises(UserError, match="--nodes is 'many'"):
        nodes_of("many")
    assert [seconds_of(t) for t in ("90", "10:30", "1:00:00", "1-0", "2-12:00", "1-1:1:1", "x", "1:2:3:4")] == [
        5400, 630, 3600, 86400, 216000, 90061, None, None]
    assert job_name("My Recipe_1!") == "my-recipe-1" and len(job_name("x" * 90)) == 50
    arguments = ["torchrun", "--a=b", "-m", "polymodal", "--data", "it's", "--set", "x=$y"]
    assert shlex.split(words(arguments).replace("\\\n", " ")) == arguments


def run(*arguments):
    app = typer.Typer()
    commands.register(app)
    app(list(arguments), standalone_mode=False)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["bert-base", "--data", "D", "--out", "R", "--nodes", "2", "--gpus", "4", "--seed", "3", "--write", "jobs"]
    run(*given, "--on", "slurm", "--dry-run")
    assert "#SBATCH --nodes=2" in capsys.readouterr().out and not list(tmp_path.iterdir())
    run(*given, "--on", "slurm", "--json")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["command"] == ["sbatch", "jobs/bert-base.sbatch"]
    script = (tmp_path / "jobs/bert-base.sbatch").read_text()
    assert script == result["files"]["bert-base.sbatch"] and "--set seed=3" in script
    assert (tmp_path / "logs").is_dir(), "Slurm makes no folder for the output"
    run(*given, "--on", "slurm")  # our own file is written anew
    (tmp_path / "jobs/bert-base.sbatch").write_text("mine")
    with pytest.raises(UserError, match="was not written by this command"):
        run(*given, "--on", "slurm")
    assert (tmp_path / "jobs/bert-base.sbatch").read_text() == "mine"
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="sbatch is not installed here"):
        run(*given, "--on", "slurm", "--name", "other", "--submit")
    with pytest.raises(UserError, match="did you mean bert-base"):
        run("bert-bas", *given[1:], "--on", "slurm")


def test_launched_runs_get_every_held_out_data_set(tmp_path, capsys):
    words = ["launch", "gpt2-tiny", "--on", "torchrun", "--data", "a", "--eval-data", "b", "--eval-data", "c", "--out",
             str(tmp_path / "run"), "--dry-run"]
    assert cli.run(words) == 0
    assert "--eval-data b --eval-data c" in capsys.readouterr().out.replace("\\\n", "").replace("  ", " ")
