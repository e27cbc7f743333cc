"""A job: a run and where it shall work, and what every target knows about it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from ..run.recipe import Recipe, recipes

MARK = "Written by `polymodal launch`"
ENVIRONMENT: Mapping[str, str] = {
    # agents that share torch's store keep the addresses of ranks that are gone, and the ranks that come back cannot connect
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "OMP_NUM_THREADS": "1",
}
"""What every target sets, and nothing else."""


@dataclass(frozen=True)
class JobOptions:
    """What a target is told about its cluster; None where the command line says nothing."""

    time: str | None = None
    """Time limit, such as 24:00:00."""
    partition: str | None = None
    account: str | None = None
    image: str | None = None
    """Container image in which polymodal is installed."""
    namespace: str | None = None
    volume: tuple[str, ...] | None = None
    """`CLAIM:/PATH` each: a PersistentVolumeClaim and where it is mounted."""
    secret: str | None = None
    """Name of a Kubernetes secret whose keys become environment variables."""
    gpu_type: str | None = None
    """A GPU's name, or on Kubernetes the LABEL=VALUE of machines."""
    cpus: int | None = None
    """Processor cores on each machine."""
    rendezvous: str | None = None
    """HOST:PORT where the machines meet."""
    kind: str | None = None
    """Which Kubernetes objects to write: `job`, `pytorchjob` or `trainjob`."""
    setup: str | None = None
    """Shell lines before the run."""
    logs: str | None = None
    """Folder of the job's output."""


@dataclass(frozen=True)
class Job:
    """A run and where it shall work."""

    name: str
    """Lower case, digits and dashes."""
    recipe: Recipe
    """Resolved, with all overrides."""
    source: str
    """The recipe as the user named it: a name or a YAML file."""
    arguments: tuple[str, ...]
    """Of `polymodal pretrain`, without the recipe: data, out, overrides."""
    nodes: tuple[int, int] = (1, 1)
    """Fewest and most machines; equal where the number is fixed."""
    gpus: int = 1
    """Ranks on each machine: one for each GPU, or for each process where the recipe says accelerator=cpu."""
    max_restarts: int = 3
    """How often ranks that fail are started again."""
    grace: int = 120
    """Seconds that a run gets for its last checkpoint when it is asked to stop."""
    options: JobOptions = JobOptions()

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

    def agent(self, *rendezvous: str, python: str = "python") -> list[str]:
        """The same with exit codes that a scheduler can act on."""
        return [python, "-m", "polymodal.pipelines.launch.agent", *self.torchrun(*rendezvous)[1:]]

    @property
    def cores(self) -> int:
        """Processor cores on each machine: as the user says, or one for each rank and each of its loader's workers."""
        return self.options.cpus or self.gpus * (1 + self.recipe.data.workers)


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

    def preempted(self, job: Job) -> str:
        """What happens when the scheduler takes machines away, in a line for people."""
        ...


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


class ShellText(str):
    """A word that is shell text already and must not be quoted."""


def words(arguments: Sequence[str]) -> str:
    """Words as a shell reads them, one option a line."""
    lines: list[list[str]] = [[]]
    for word in arguments:
        if word.startswith("-"):
            lines.append([])
        lines[-1].append(word if isinstance(word, ShellText) else shlex.quote(word))
    return " \\\n    ".join(" ".join(line) for line in lines)
