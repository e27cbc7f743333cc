"""A job: a run and where it shall work, and what every target knows about it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from ...shared.errors import UserError
from ..base.values import parse_size
from ..run.recipe import Recipe, recipes

MARK = "Written by `polymodal launch`"
ENVIRONMENT: Mapping[str, str] = {
    # agents that share torch's store keep the addresses of ranks that are gone, and the ranks that come back cannot connect
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "OMP_NUM_THREADS": "1",
}
"""What every target sets; beside it only what the user asks for."""
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
"""The name of an environment variable."""
_OURS = r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|PET_.*|TORCHELASTIC_.*|TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
_SECRET = r"(.*_)?(PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|(ACCESS|SECRET|PRIVATE)_KEY)"


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
    """`CLAIM:/PATH` or `CLAIM:/PATH:ro` each: a PersistentVolumeClaim and where it is mounted."""
    secret: tuple[str, ...] | None = None
    """Name of a Kubernetes secret whose keys become environment variables, or `VARIABLE=SECRET/KEY`, each."""
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
    memory: str | None = None
    """Memory of each machine, such as 64G, in binary units."""
    env: tuple[str, ...] | None = None
    """`NAME=VALUE` each: environment variables of the ranks."""
    toleration: tuple[str, ...] | None = None
    """`KEY[=VALUE][:EFFECT]` each: taints of machines that do not keep the pods away."""
    node_selector: tuple[str, ...] | None = None
    """`LABEL=VALUE` each, of the machines."""
    pull_secret: tuple[str, ...] | None = None
    """Names of the secrets by which the image is pulled."""
    service_account: str | None = None
    priority_class: str | None = None
    label: tuple[str, ...] | None = None
    """`NAME=VALUE` each: labels of the job and its pods."""
    cache_volume: str | None = None
    """What holds caches: a PersistentVolumeClaim, or a size on the machine's own disk."""
    shm: str | None = None
    """Limit of the shared memory, such as 16G."""
    pod_patch: str | None = None
    """A YAML file that is merged into the pod template."""


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
        return {**ENVIRONMENT, "PET_SHUTDOWN_TIMEOUT": str(max(1, self.grace - 10)), **variables_of(self.options)}

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


def pairs(texts: Sequence[str] | None, option: str, expected: str, names: str, values: str) -> dict[str, str]:
    """NAME=VALUE each; `names` and `values` are the patterns that both must match, and `expected` says so to people."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (equals and re.fullmatch(names, name) and re.fullmatch(values, value, re.DOTALL)):
            raise UserError(f"{option} is {text!r}, expected {expected}")
        if name in found:
            raise UserError(f"{option} says {name} twice: leave one of them out")
        found[name] = value
    return found


def variables_of(options: JobOptions) -> dict[str, str]:
    """What `--env` says.

    Raises:
        UserError: for what is no variable, for torchrun's own, and for a value that must not stand in a file.
    """
    found = pairs(options.env, "--env", "NAME=VALUE; nothing is taken from this machine's environment", VARIABLE, ".*")
    for name, value in found.items():
        if re.fullmatch(_OURS, name):
            raise UserError(f"--env sets {name}, which torchrun or this command sets itself: leave it out")
        if value and not value.startswith("/") and re.fullmatch(_SECRET, name.upper()):
            raise UserError(f"--env would write the value of {name} into a file: on Kubernetes use --secret {name}=SECRET/KEY, elsewhere "
                            "the environment of the ranks or the provider's own file")
    return found


def memory_of(options: JobOptions) -> int | None:
    """Bytes of memory on each machine, where the user says so."""
    if options.memory is None:
        return None
    size = parse_size(options.memory, "--memory")
    if size < 64 << 20:
        raise UserError(f"--memory is {options.memory!r}, expected the memory of each machine, such as 64G")
    return size


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
