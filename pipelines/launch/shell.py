"""Targets that are a command on a machine: this one, torchrun on each of several, Slurm."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from .job import MARK, Job, ShellText, memory_of, words

_HERE = "asked to stop, it saves and ends with code 75; the same command goes on from there, and nothing gives it by itself"


class ThisMachine:
    """The run's own way to start ranks, on this machine."""

    takes: frozenset[str] = frozenset()
    here = True

    def problems(self, job: Job) -> Iterator[str]:
        """One machine only."""
        if job.nodes != (1, 1):
            yield f"--nodes is {job.nnodes}, and local means this machine: use --on torchrun, or a scheduler"

    def files(self, job: Job) -> dict[str, str]:
        """None."""
        return {}

    def command(self, job: Job, folder: Path = Path()) -> list[str]:
        """`polymodal pretrain` with one process for each GPU."""
        return [sys.executable, "-m", "polymodal", *job.program(), "--devices", str(job.gpus)]

    def preempted(self, job: Job) -> str:
        """Nobody starts it again."""
        return _HERE


class Torchrun:
    """torchrun: ranks that fail are started again; the same command on each machine makes one run."""

    takes = frozenset({"rendezvous"})
    here = True

    def problems(self, job: Job) -> Iterator[str]:
        """Several machines must know where to meet."""
        if job.nodes != (1, 1) and job.options.rendezvous is None:
            yield "several machines must know where to meet: give --rendezvous HOST:PORT, one of them, the same on all"

    def files(self, job: Job) -> dict[str, str]:
        """None."""
        return {}

    def command(self, job: Job, folder: Path = Path()) -> list[str]:
        """Agents that meet at an address of one of them."""
        # "localhost:0" takes a free port
        place = ["--rdzv-backend=c10d", f"--rdzv-endpoint={job.options.rendezvous or 'localhost:0'}", f"--rdzv-id={job.name}"]
        return job.agent(*place, python=sys.executable)

    def preempted(self, job: Job) -> str:
        """Nobody starts it again."""
        return _HERE


class Slurm:
    """An sbatch script: requeued when it is preempted or its time is up, and told early enough to save."""

    takes = frozenset({"time", "partition", "account", "gpu_type", "cpus", "setup", "logs", "memory", "env"})
    here = False

    def problems(self, job: Job) -> Iterator[str]:
        """Slurm gives a fixed number of machines."""
        if job.nodes[0] != job.nodes[1]:
            yield f"--nodes is {job.nnodes}, and Slurm gives a fixed number: use {job.nodes[1]}"

    def files(self, job: Job) -> dict[str, str]:
        """The script."""
        o = job.options
        gpus = f"{o.gpu_type}:{job.gpus}" if o.gpu_type else str(job.gpus)
        memory = memory_of(o)
        settings = {
            "job-name": job.name, "nodes": str(job.nodes[1]), "ntasks-per-node": "1", "gpus-per-node": gpus if job.with_gpus else None,
            "cpus-per-task": str(job.cores), "mem": None if memory is None else f"{memory >> 20}M", "time": o.time,
            "partition": o.partition, "account": o.account,
            # the batch shell hears of the time limit, and nobody else: it decides what is told to the ranks
            "signal": f"B:USR1@{job.grace}", "requeue": "", "open-mode": "append", "output": f"{o.logs or 'logs'}/%x-%j.out",
        }
        lines = [f"#SBATCH --{name}{f'={value}' if value else ''}" for name, value in settings.items() if value is not None]
        exports = [f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()]
        place = ["--rdzv-backend=c10d", ShellText('--rdzv-endpoint="$head:$port"'), ShellText('--rdzv-id="$SLURM_JOB_ID"')]
        script = _SCRIPT.format(mark=MARK, settings="\n".join(lines), exports="\n".join(exports), setup=o.setup or "# no --setup",
                                cores=job.cores, command=words(job.agent(*place)))
        return {f"{job.name}.sbatch": script}

    def command(self, job: Job, folder: Path = Path()) -> list[str]:
        """Submit with sbatch."""
        return ["sbatch", str(folder / f"{job.name}.sbatch")]

    def preempted(self, job: Job) -> str:
        """Slurm queues it again."""
        return "the ranks save if Slurm tells them (GraceTime), the job queues itself again, and goes on from its newest checkpoint"


_SCRIPT = """\
#!/bin/bash
# {mark}
{settings}

set -eo pipefail
{exports}
{setup}
set -u  # not before: scripts that activate an environment read variables that may be unset

# Before the time limit this shell gets USR1 and asks the ranks to stop; of a preemption with a grace time Slurm tells them itself. They
# save after their update and end with code 75, and the job is queued again. Where Slurm kills a job (no grace time, a lost machine),
# --requeue does that. A user's scancel ends this shell, too: nothing is queued again.
asked=
stop() {{
    asked=1
    scancel --signal=TERM "$SLURM_JOB_ID"
}}
trap stop USR1

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((20000 + SLURM_JOB_ID % 10000))
# srun does not take the cores over from sbatch; --wait: when one machine has ended, the others get a minute to leave
srun --cpus-per-task={cores} --wait=60 {command} &
step=$!
code=0
wait "$step" || code=$?
while kill -0 "$step" 2> /dev/null; do  # a signal ends `wait` before the step has ended
    code=0
    wait "$step" || code=$?
done
if [ "$code" -eq 75 ] || {{ [ -n "$asked" ] && [ "$code" -ne 0 ]; }}; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
"""
