"""`polymodal launch`: one recipe, started here, by torchrun, or handed to a cluster's scheduler.

A target renders files (an sbatch script, a manifest, a Ray script) and the one command that starts or submits them. All of them start
the same program, `polymodal pretrain`, whose run continues from its newest checkpoint whenever it is started again; so a target
only has to start it again. No environment variable of this machine and no secret goes into a file: containers get theirs by the
name of a Kubernetes secret, and an address that holds a password is refused.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ...shared.errors import UserError, raise_problems
from ..base.console import Console
from ..data.layout import BatchLayout
from .job import MARK, Job, Target, memory_of, seconds_of, variables_of
from .kubernetes import Kubernetes
from .ray import Ray, SkyPilot
from .shell import Slurm, ThisMachine, Torchrun


def targets() -> Mapping[str, Target]:
    """Every target by its name on the command line."""
    return {"local": ThisMachine(), "torchrun": Torchrun(), "slurm": Slurm(),
            "kubernetes": Kubernetes(), "ray": Ray(), "skypilot": SkyPilot()}


def check(job: Job, on: str) -> Target:
    """The target called `on`, once everything about the job is possible there.

    Raises:
        UserError: with every problem.
    """
    known = targets()
    if on not in known:
        raise UserError(f"--on is {on!r}, expected one of: {', '.join(known)}")
    raise_problems(dict.fromkeys(_problems(job, on, known)), f"the job cannot be launched on {on}")
    return known[on]


def launch(job: Job, on: str, *, write: Path = Path(), dry_run: bool = False, submit: bool = False,
           console: Console | None = None) -> dict[str, Any]:
    """Start a job, or write what its cluster needs.

    Args:
        job: what, and on how many ranks.
        on: the target's name.
        write: the folder for its files.
        dry_run: print files and command; run and write nothing.
        submit: hand the files to the cluster too.
        console: where lines go.

    Returns:
        `files` (name -> content), `command`, `environment`. A job that works on this machine does not return: its program takes over.
    """
    console = console or Console()
    target = check(job, on)
    files, command = target.files(job), target.command(job, write)
    result: dict[str, Any] = {"on": on, "name": job.name, "files": files, "command": command,
                              "environment": job.environment if target.here else {}, "preempted": target.preempted(job)}
    if dry_run:
        for name, content in files.items():
            console.say(f"# {name}\n{content.rstrip()}\n")
        console.say(shlex.join([*(f"{k}={v}" for k, v in result["environment"].items()), *command]))
        return result
    if target.here:
        console.say(shlex.join(command))
        os.execvpe(command[0], command, {**job.environment, **os.environ})  # a signal to us is a signal to the run
    _write(write, files)
    if job.options.logs is not None or on == "slurm":
        Path(job.options.logs or "logs").mkdir(parents=True, exist_ok=True)
    console.say(f"wrote {', '.join(str(write / name) for name in files)}")
    console.say(f"when it is preempted: {result['preempted']}")
    if not submit:
        console.say(f"to start it: {shlex.join(command)}")
        return result
    try:
        done = subprocess.run(command, check=False)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not installed here: copy {', '.join(files)} to where it is, and run "
                        f"{shlex.join(command)} there") from None
    if done.returncode:
        raise UserError(f"{shlex.join(command)} failed with exit code {done.returncode}; its message stands above")
    return result


def job_name(text: str) -> str:
    """`text` as a name that every scheduler takes: lower case, digits and dashes, at most 50 of them."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:50].strip("-") or "run"


def nodes_of(text: str) -> tuple[int, int]:
    """`4`, or `2:4` for from two to four machines."""
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
    if found is None:
        raise UserError(f"--nodes is {text!r}, expected a number such as 4, or MIN:MAX such as 2:4")
    return int(found[1]), int(found[2] or found[1])


_PLAIN = re.compile(r"[\w.,:@%/+=-]+")
_LOCAL_SECRETS = re.compile(r"(password|passwd|secret|token|api[-_]?key|signature|credential)", re.IGNORECASE)


def _problems(job: Job, on: str, known: Mapping[str, Target]) -> Iterator[str]:
    least, most = job.nodes
    if not 1 <= least <= most:
        yield f"--nodes is {least}:{most}, expected at least 1, and the smaller number first"
    for name, value, lowest in (("gpus", job.gpus, 1), ("max-restarts", job.max_restarts, 0), ("grace", job.grace, 15),
                                ("cpus", job.options.cpus, 1)):
        if value is not None and value < lowest:
            yield f"--{name} is {value}, expected at least {lowest}"
    given = {name: value for name, value in vars(job.options).items() if value is not None}
    for name in given:
        if name not in known[on].takes:
            where = [other for other, target in known.items() if name in target.takes]
            yield f"--{name.replace('_', '-')} means nothing to {on}: leave it out (it is for {', '.join(where)})"
    for name in ("time", "partition", "account", "image", "gpu_type", "rendezvous", "logs"):
        if isinstance(value := given.get(name), str) and not _PLAIN.fullmatch(value):
            yield f"--{name.replace('_', '-')} is {value!r}: expected letters, digits and . , : @ % / + = _ - only"
    if job.options.time is not None and not seconds_of(job.options.time):
        yield f"--time is {job.options.time!r}, expected a limit such as 24:00:00 or 2-12:00:00"
    if 1 <= least <= most and job.gpus >= 1:
        for nodes in range(least, most + 1):
            try:
                BatchLayout(job.recipe.data.global_batch, job.recipe.data.micro_batch, 0, nodes * job.gpus, ramp=job.recipe.data.ramp)
            except UserError as error:
                yield str(error)
    for read in (variables_of, memory_of):
        try:
            read(job.options)
        except UserError as error:
            yield str(error)
    yield from (problem for word in (*job.arguments, *(job.options.env or ())) for problem in _exposed(word))
    yield from known[on].problems(job)


def _exposed(word: str) -> Iterator[str]:
    """Secrets in an address: they would stand in files, process lists and logs."""
    for text in (word, word.partition("=")[2]):
        try:
            parts = urlsplit(text)
            secret = parts.password is not None or any(_LOCAL_SECRETS.search(key) for key, _ in parse_qsl(parts.query))
        except ValueError:
            continue
        if parts.scheme and parts.netloc and secret:
            yield (f"the address on {parts.hostname} holds a password or token, which would be written down: leave it out and give the "
                   "credentials by the environment or the provider's own file")
            return


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Write files that are new or ours; refuse before anything is written."""
    foreign = [str(folder / name) for name in files if (folder / name).exists() and MARK not in (folder / name).read_text(errors="replace")]
    if foreign:
        raise UserError(f"{', '.join(foreign)} is there and was not written by this command: move it, or name another folder with --write")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
