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
    namespace: Annotated[str | None, typer.Option(metavar="NAME", help="Namespace (kubernetes).")] = None,
    volume: Annotated[list[str] | None, typer.Option(metavar="CLAIM:/PATH", help="PersistentVolumeClaim and where it is mounted "
                                                                              "(kubernetes); repeatable.")] = None,
    secret: Annotated[str | None, typer.Option(
        metavar="NAME", help="Name of a secret whose keys become environment variables (kubernetes).")] = None,
    kind: Annotated[str | None, typer.Option(metavar="job|pytorchjob|trainjob", help="Plain Job, or Kubeflow's (kubernetes).")] = None,
    gpu_type: Annotated[str | None, typer.Option(
        metavar="GPU", help="GPU: h100 (slurm, ray, skypilot), a node's LABEL=VALUE (kubernetes).")] = None,
    cpus: Annotated[int | None, typer.Option(help="Processor cores on each machine (slurm, kubernetes, ray, skypilot).")] = None,
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
    options = JobOptions(time, partition, account, image, namespace, None if volume is None else tuple(volume), secret, gpu_type, cpus,
                      rendezvous, kind, setup, logs)
    job = Job(job_name(name or resolved.name), resolved, recipe, tuple(arguments), nodes_of(nodes), gpus, max_restarts, grace, options)
    console = Console(json=json)
    console.finish(run(job, on, write=write, dry_run=dry_run, submit=submit, console=console))
