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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from ...shared.errors import UserError, raise_problems
from ..base.console import Console
from ..data.stream import Layout
from ..run.recipe import Recipe, recipes

MARK = "Written by `polymodal launch`"
ENVIRONMENT: Mapping[str, str] = {
    # agents that share torch's store keep the addresses of ranks that are gone, and the ranks that come back cannot connect
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "OMP_NUM_THREADS": "1",
}
"""What every target sets, and nothing else."""


@dataclass(frozen=True)
class Options:
    """What the command line says about the place where the run shall work; None where it says nothing."""

    time: str | None = None
    partition: str | None = None
    account: str | None = None
    image: str | None = None
    namespace: str | None = None
    volume: tuple[str, ...] | None = None
    secret: str | None = None
    gpu_type: str | None = None
    cpus: int | None = None
    rendezvous: str | None = None
    kind: str | None = None
    setup: str | None = None
    logs: str | None = None


@dataclass(frozen=True)
class Job:
    """A run and where it shall work.

    Args:
        name: of the job: lower case, digits and dashes.
        recipe: resolved, with all overrides.
        source: the recipe as the user named it: a name or a YAML file.
        arguments: of `polymodal pretrain`, without the recipe: data, out, overrides.
        nodes: fewest and most machines; equal where the number is fixed.
        gpus: ranks on each machine, one for each GPU (for each process where the recipe says accelerator=cpu).
        max_restarts: how often ranks that fail are started again.
        grace: seconds that a run gets for its last checkpoint when it is asked to stop.
        options: about the place.
    """

    name: str
    recipe: Recipe
    source: str
    arguments: tuple[str, ...]
    nodes: tuple[int, int] = (1, 1)
    gpus: int = 1
    max_restarts: int = 3
    grace: int = 120
    options: Options = Options()

    @property
    def with_gpus(self) -> bool:
        """Whether the ranks work on GPUs."""
        return self.recipe.accelerator != "cpu"

    @property
    def nnodes(self) -> str:
        """The machines as torchrun spells them."""
        least, most = self.nodes
        return str(most) if least == most else f"{least}:{most}"

    @cached_property
    def recipe_file(self) -> str | None:
        """The recipe as YAML where the user gave a file, for machines that do not have it; None where its name is enough."""
        return None if self.source in recipes() else self.recipe.to_yaml()

    @property
    def environment(self) -> dict[str, str]:
        """What the ranks and torchrun find in their environment."""
        # torchrun kills ranks that take longer than this to stop; a release that does not know the name has 30 seconds
        return {**ENVIRONMENT, "PET_SHUTDOWN_TIMEOUT": str(max(1, self.grace - 10))}

    def program(self, recipe: str | None = None) -> list[str]:
        """`pretrain RECIPE ...` as words; `recipe` where it lies elsewhere."""
        return ["pretrain", recipe or self.source, *self.arguments]

    def torchrun(self, *rendezvous: str, recipe: str | None = None) -> list[str]:
        """The torchrun command of one machine."""
        return ["torchrun", f"--nnodes={self.nnodes}", f"--nproc-per-node={self.gpus}", f"--max-restarts={self.max_restarts}",
                *rendezvous, "-m", "polymodal", *self.program(recipe)]


class Target(Protocol):
    """One way to start a job."""

    takes: frozenset[str]
    """The options it understands."""
    here: bool
    """Whether its command runs the job on this machine; otherwise it submits, on request only."""

    def problems(self, job: Job) -> Iterator[str]:
        """What this target cannot do for the job."""
        ...

    def files(self, job: Job) -> dict[str, str]:
        """The files that it needs, by name: what a person reads before it is submitted."""
        ...

    def command(self, job: Job, folder: Path = Path()) -> list[str]:
        """What starts or submits the job, whose files lie in `folder`."""
        ...


def targets() -> Mapping[str, Target]:
    """Every target by its name on the command line."""
    from .kubernetes import Kubernetes
    from .ray import Ray, SkyPilot
    from .shell import Local, Slurm, Torchrun

    return {"local": Local(), "torchrun": Torchrun(), "slurm": Slurm(), "kubernetes": Kubernetes(), "ray": Ray(), "skypilot": SkyPilot()}


def check(job: Job, on: str) -> Target:
    """The target called `on`, once everything about the job is possible there.

    Raises:
        UserError: with every problem.
    """
    known = targets()
    if on not in known:
        raise UserError(f"--on is {on!r}, expected one of: {', '.join(known)}")
    raise_problems(_problems(job, on, known), f"the job cannot be launched on {on}")
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
                              "environment": job.environment if target.here else {}}
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


def seconds_of(time: str) -> int | None:
    """Seconds of a time limit in Slurm's spellings: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None where it is none."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if found is None:
        return None
    days, first, second, third = (int(part) if part else None for part in found.groups())
    if days is not None:
        return ((days * 24 + (first or 0)) * 60 + (second or 0)) * 60 + (third or 0)
    if third is not None:
        return ((first or 0) * 60 + (second or 0)) * 60 + third
    return (first or 0) * 60 + (second or 0)


_PLAIN = re.compile(r"[\w.,:@%/+=-]+")
_LOCAL_SECRETS = re.compile(r"(password|passwd|secret|token|api[-_]?key|signature|credential)", re.IGNORECASE)


def _problems(job: Job, on: str, known: Mapping[str, Target]) -> Iterator[str]:
    least, most = job.nodes
    if not 1 <= least <= most:
        yield f"--nodes is {least}:{most}, expected at least 1, and the smaller number first"
    for name, value, lowest in (("gpus", job.gpus, 1), ("max-restarts", job.max_restarts, 0), ("grace", job.grace, 15),
                                ("cpus", job.options.cpus or 1, 1)):
        if value < lowest:
            yield f"--{name} is {value}, expected at least {lowest}"
    given = {name: value for name, value in vars(job.options).items() if value is not None}
    for name in given:
        if name not in known[on].takes:
            where = [other for other, target in known.items() if name in target.takes]
            yield f"--{name.replace('_', '-')} means nothing to {on}: leave it out (it is for {', '.join(where)})"
    for name in ("time", "partition", "account", "image", "namespace", "secret", "gpu_type", "rendezvous", "logs"):
        if isinstance(value := given.get(name), str) and not _PLAIN.fullmatch(value):
            yield f"--{name.replace('_', '-')} is {value!r}: expected letters, digits and . , : @ % / + = _ - only"
    if job.options.time is not None and not seconds_of(job.options.time):
        yield f"--time is {job.options.time!r}, expected a limit such as 24:00:00 or 2-12:00:00"
    if 1 <= least <= most and job.gpus >= 1:
        for nodes in range(least, most + 1):
            try:
                Layout(job.recipe.data.global_batch, job.recipe.data.micro_batch, 0, nodes * job.gpus)
            except UserError as error:
                yield str(error)
    yield from (problem for word in job.arguments for problem in _exposed(word))
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


class Shell(str):
    """A word that is shell text already and must not be quoted."""


def words(arguments: Sequence[str]) -> str:
    """Words as a shell reads them, one option a line."""
    lines: list[list[str]] = [[]]
    for word in arguments:
        if word.startswith("-"):
            lines.append([])
        lines[-1].append(word if isinstance(word, Shell) else shlex.quote(word))
    return " \\\n    ".join(" ".join(line) for line in lines)
