"""`polymodal launch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..base.options import ContinueFrom, EvalData, Json, MaxUpdates, RecipeName, RunSeed, RunTokenizer, Set

ORDER = 42


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("launch")(launch)


def launch(
    recipe: RecipeName,
    on: Annotated[str, typer.Option(metavar="local|torchrun|slurm|kubernetes|ray|skypilot", help="Where the run shall work.")],
    data: Annotated[list[str], typer.Option(metavar="DATA", help="Data set as the ranks see it; several make a mixture: DIR=WEIGHT each.")],
    out: Annotated[str, typer.Option(metavar="FOLDER", help="The run's directory as the ranks see it, on a disk that all of them share.")],
    model: Annotated[str | None, typer.Option(
        metavar="MODEL", help="Start from these weights: model directory, run, checkpoint or hub id.")] = None,
    continue_from: ContinueFrom = None,
    eval_data: EvalData = None,
    tokenizer: RunTokenizer = None,
    max_updates: MaxUpdates = None,
    seed: RunSeed = None,
    set_: Set = None,
    nodes: Annotated[str, typer.Option(metavar="N|MIN:MAX", help="Machines; a range where the target can do with fewer.")] = "1",
    gpus: Annotated[int, typer.Option(help="Ranks on each machine: one for each GPU, or process with --set accelerator=cpu.")] = 1,
    max_restarts: Annotated[int, typer.Option(help="How often failing ranks are started again.")] = 3,
    grace: Annotated[int, typer.Option(help="Seconds for the last checkpoint when the run is asked to stop.")] = 120,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The job's name. Default: the recipe's.")] = None,
    time: Annotated[str | None, typer.Option(metavar="H:M:S", help="Time limit such as 24:00:00 (slurm, kubernetes).")] = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="Partition (slurm).")] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", help="Account (slurm).")] = None,
    logs: Annotated[str | None, typer.Option(metavar="FOLDER", help="Folder of the job's output, by default `logs` (slurm).")] = None,
    setup: Annotated[str | None, typer.Option(metavar="LINES",
                                              help="Shell lines before the run, such as `module load cuda` (slurm, skypilot).")] = None,
    image: Annotated[str | None, typer.Option(metavar="IMAGE", help="Container image with polymodal (kubernetes, skypilot).")] = None,
    cpus: Annotated[int | None, typer.Option(help="Processor cores on each machine (slurm, kubernetes, ray, skypilot).")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory of each machine, such as 64G (slurm, kubernetes, "
                                                                    "skypilot).")] = None,
    gpu_type: Annotated[str | None, typer.Option(
        metavar="GPU", help="GPU: h100 (slurm, ray, skypilot), a node's LABEL=VALUE (kubernetes).")] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Environment variable of the ranks (slurm, kubernetes, ray, "
                                                                             "skypilot).")] = None,
    kind: Annotated[str | None, typer.Option(metavar="job|pytorchjob|trainjob", help="Plain Job, or Kubeflow's (kubernetes).")] = None,
    namespace: Annotated[str | None, typer.Option(metavar="NAME", help="Namespace (kubernetes).")] = None,
    volume: Annotated[list[str] | None, typer.Option(metavar="CLAIM:/PATH[:ro]", help="PersistentVolumeClaim and where it is mounted "
                                                                                      "(kubernetes).")] = None,
    cache_volume: Annotated[str | None, typer.Option(
        metavar="CLAIM|SIZE", help="What holds fetched shards and models: a claim, or a size on the machine's disk (kubernetes).")] = None,
    shm: Annotated[str | None, typer.Option(metavar="SIZE", help="Limit of /dev/shm, by which the loader's workers hand over batches. "
                                                                 "Default: the memory of the pod (kubernetes).")] = None,
    secret: Annotated[list[str] | None, typer.Option(
        metavar="SECRET|NAME=SECRET/KEY", help="Secret whose keys become environment variables, or a variable from one of them "
                                               "(kubernetes).")] = None,
    pull_secret: Annotated[list[str] | None, typer.Option(metavar="SECRET", help="Secret that pulls the image (kubernetes).")] = None,
    service_account: Annotated[str | None, typer.Option(metavar="NAME", help="Service account of the pods (kubernetes).")] = None,
    priority_class: Annotated[str | None, typer.Option(metavar="NAME", help="Priority class of the pods (kubernetes).")] = None,
    node_selector: Annotated[list[str] | None, typer.Option(metavar="LABEL=VALUE", help="Label of the machines (kubernetes).")] = None,
    toleration: Annotated[list[str] | None, typer.Option(
        metavar="KEY[=VALUE][:EFFECT]", help="Taint that does not keep the pods away (kubernetes).")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Label of the job and its pods (kubernetes).")] = None,
    pod_patch: Annotated[str | None, typer.Option(
        metavar="FILE", help="YAML that is merged into the pod template, for everything else (kubernetes).")] = None,
    rendezvous: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where the machines meet (torchrun).")] = None,
    write: Annotated[Path, typer.Option(help="Folder for script or manifest.")] = Path(),
    submit: Annotated[bool, typer.Option("--submit", help="Submit what was written: sbatch, kubectl, ray, sky.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print script and command; write and run nothing.")] = False,
    json: Json = False,
) -> None:
    """Start a run here or with torchrun, or write and submit what Slurm, Kubernetes, Ray or SkyPilot needs."""
    from ..base.console import Console
    from ..launch.job import Job, JobOptions
    from ..launch.launch import job_name, nodes_of
    from ..launch.launch import launch as run
    from ..run.recipe import recipe as resolve

    overrides = [*(set_ or []), *(f"{key}={value}" for key, value in (("seed", seed), ("max_updates", max_updates)) if value is not None)]
    resolved = resolve(recipe, overrides)
    if max_updates is not None and resolved.max_time is not None:
        overrides.append("max_time=null")
        resolved = resolve(recipe, overrides)
    named = [("--model", model), ("--continue-from", continue_from), *(("--eval-data", value) for value in eval_data or ()),
             ("--tokenizer", tokenizer), ("--out", out)]
    arguments = [word for value in data for word in ("--data", value)]
    arguments += [word for option, value in named if value is not None for word in (option, value)]
    arguments += [word for value in overrides for word in ("--set", value)]
    # a run on this machine speaks JSON itself
    arguments += ["--json"] if json and on in ("local", "torchrun") and not dry_run else []
    options = JobOptions(
        time=time, partition=partition, account=account, logs=logs, setup=setup, image=image, cpus=cpus, memory=memory, gpu_type=gpu_type,
        env=_some(env), kind=kind, namespace=namespace, volume=_some(volume), cache_volume=cache_volume, shm=shm, secret=_some(secret),
        pull_secret=_some(pull_secret), service_account=service_account, priority_class=priority_class, node_selector=_some(node_selector),
        toleration=_some(toleration), label=_some(label), pod_patch=pod_patch, rendezvous=rendezvous)
    job = Job(job_name(name or resolved.name), resolved, recipe, tuple(arguments), nodes_of(nodes), gpus, max_restarts, grace, options)
    console = Console(json=json)
    console.finish(run(job, on, write=write, dry_run=dry_run, submit=submit, console=console))


def _some(values: list[str] | None) -> tuple[str, ...] | None:
    return tuple(values) if values else None
