"""Ray Train, and SkyPilot."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..base.install import clone
from .job import MARK, Job, ShellText, memory_of, variables_of, words


class Ray:
    """A script for `ray job submit`: Ray starts the ranks, polymodal does the rest."""

    takes = frozenset({"cpus", "gpu_type", "env"})
    here = False

    def problems(self, job: Job) -> Iterator[str]:
        """Ray starts all ranks or none."""
        if job.nodes[0] != job.nodes[1]:
            yield f"--nodes is {job.nnodes}, and Ray starts a fixed number of ranks: use {job.nodes[1]}"

    def files(self, job: Job) -> dict[str, str]:
        """The script."""
        ranks = job.nodes[1] * job.gpus
        scaling: dict[str, Any] = {"num_workers": ranks, "use_gpu": job.with_gpus}
        if job.options.gpu_type:
            scaling["accelerator_type"] = job.options.gpu_type
        if job.options.cpus:
            each = {"CPU": max(1, job.options.cpus // job.gpus)}
            scaling["resources_per_worker"] = each | ({"GPU": 1} if job.with_gpus else {})
        backend = "cpu:gloo,cuda:nccl" if job.with_gpus else "gloo"
        script = _SCRIPT.format(mark=MARK, ranks=ranks, program=_python(job.program()), recipe=_python(job.recipe_file),
                                scaling=_python(scaling), backend=_python(backend), name=_python(job.name), failures=job.max_restarts,
                                environment=_python({"OMP_NUM_THREADS": "1", **variables_of(job.options)}))
        return {f"{job.name}-ray.py": script}

    def command(self, job: Job, folder: Path = Path()) -> list[str]:
        """`ray job submit`."""
        return ["ray", "job", "submit", "--working-dir", str(folder), "--", "python", f"{job.name}-ray.py"]

    def preempted(self, job: Job) -> str:
        """Ray starts all ranks again."""
        return (f"Ray starts all ranks again when the machines are there, at most {job.max_restarts} times (--max-restarts), from the "
                "newest checkpoint; what was computed since then is lost (not tested on a cluster)")


def _python(value: Any) -> str:
    """A plain value as Python source."""
    json.dumps(value)  # nothing else has a literal
    return repr(value)


_SCRIPT = '''\
"""{mark}: {ranks} ranks under Ray Train."""

import os
import tempfile

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

PROGRAM = {program}
RECIPE = {recipe}


def train() -> None:
    """One rank. A run that is started again continues from its newest checkpoint."""
    context = ray.train.get_context()
    os.environ.update({environment})
    # the ranks stand as torchrun would have started them; Ray has set RANK, WORLD_SIZE, MASTER_ADDR and the others
    os.environ.update(TORCHELASTIC_RUN_ID="ray", GROUP_RANK=str(context.get_node_rank()), RANK=str(context.get_world_rank()),
                      LOCAL_RANK=str(context.get_local_rank()), WORLD_SIZE=str(context.get_world_size()),
                      LOCAL_WORLD_SIZE=str(context.get_local_world_size()))
    from polymodal.pipelines.cli import invoke

    program = list(PROGRAM)
    if RECIPE is not None:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False, encoding="utf-8") as file:
            file.write(RECIPE)
        program[1] = file.name
    code = invoke(program)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    TorchTrainer(
        train,
        torch_config=TorchConfig(backend={backend}),
        scaling_config=ray.train.ScalingConfig(**{scaling}),
        run_config=ray.train.RunConfig(name={name}, failure_config=ray.train.FailureConfig(max_failures={failures})),
    ).fit()
'''


class SkyPilot:
    """A task for `sky jobs launch`, which starts it again elsewhere when its machines are taken away."""

    takes = frozenset({"image", "gpu_type", "cpus", "setup", "memory", "env"})
    here = False

    def problems(self, job: Job) -> Iterator[str]:
        """SkyPilot chooses machines by their GPU, and they begin without polymodal."""
        if job.with_gpus and job.options.gpu_type is None:
            yield "--gpu-type is missing: SkyPilot chooses machines by it, such as H100"
        if job.nodes[0] != job.nodes[1]:
            yield f"--nodes is {job.nnodes}, and SkyPilot starts a fixed number of machines: use {job.nodes[1]}"
        if job.options.setup is None and job.options.image is None and clone() is None:
            yield ("the machines begin without polymodal, and it runs here without the clone that could be sent to them: give --image with "
                   "polymodal in it, or --setup with the lines that install it")

    def files(self, job: Job) -> dict[str, str]:
        """The task. Without an image and without lines of the user's, it sends the clone and installs it."""
        o = job.options
        resources: dict[str, Any] = {"accelerators": f"{o.gpu_type}:{job.gpus}"} if job.with_gpus else {}
        resources |= {"cpus": f"{o.cpus}+"} if o.cpus else {}
        memory = memory_of(o)
        resources |= {"memory": f"{-(-memory // (1 << 30))}+"} if memory is not None else {}
        resources |= {"image_id": f"docker:{o.image}"} if o.image else {}
        place = ["--rdzv-backend=c10d", ShellText('--rdzv-endpoint="$head:29400"'), f"--rdzv-id={job.name}"]
        recipe = None if job.recipe_file is None else "recipe.yaml"
        run = 'head=$(echo "$SKYPILOT_NODE_IPS" | sed -n 1p)\n'
        if job.recipe_file is not None:
            run += f"printf %s {shlex.quote(job.recipe_file)} > recipe.yaml\n"
        run += words(job.torchrun(*place, recipe=recipe)) + "\n"
        task: dict[str, Any] = {"name": job.name, "resources": resources, "num_nodes": job.nodes[1], "envs": job.environment}
        if o.setup is not None:
            task["setup"] = o.setup
        elif o.image is None:
            task |= {"workdir": str(clone()), "setup": _install(job)}
            run = f". {_PLACE}/bin/activate\n{run}"
        task["run"] = run
        return {f"{job.name}-sky.yaml": f"# {MARK}\n{yaml.safe_dump(task, sort_keys=False, allow_unicode=True, width=140)}"}

    def command(self, job: Job, folder: Path = Path()) -> list[str]:
        """`sky jobs launch`."""
        return ["sky", "jobs", "launch", "--yes", str(folder / f"{job.name}-sky.yaml")]

    def preempted(self, job: Job) -> str:
        """SkyPilot runs the task again."""
        return ("SkyPilot runs the task again on other machines, from the newest checkpoint, so --out must lie on a mounted store that "
                "outlives them; what was computed since then is lost, as plain torchrun is killed with its machine (not tested)")


_PLACE = "~/polymodal-env"


def _install(job: Job) -> str:
    """The clone, in an environment of its own: the machine's Python may be too old."""
    kinds = {value.partition("://")[0] for value in job.arguments if "://" in value}
    extras = sorted({{"s3": "s3", "gs": "gcs", "gcs": "gcs"}[kind] for kind in kinds & {"s3", "gs", "gcs"}})
    what = f".[{','.join(extras)}]" if extras else "."
    return (f"python3 -m pip install --quiet uv\npython3 -m uv venv --python 3.12 {_PLACE}\n"
            f"python3 -m uv pip install --python {_PLACE}/bin/python -e '{what}'\n")
