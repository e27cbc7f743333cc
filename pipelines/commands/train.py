"""`polymodal pretrain`, `polymodal finetune`, `polymodal distill` and `polymodal export`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..base.options import ContinueFrom, DataSets, EvalData, Json, MaxTime, MaxTokens, MaxUpdates, RecipeName, RunSeed, RunTokenizer, Set

ORDER = 40


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("pretrain")(pretrain)
    app.command("finetune")(finetune)
    app.command("distill")(distill)
    app.command("export")(export)


Out = Annotated[Path, typer.Option(help="The run's directory: new, empty, or a run to continue.")]
MaxSeconds = Annotated[float | None, typer.Option(help="End cleanly after this time; the schedule does not follow.")]
Devices = Annotated[int | None, typer.Option(help="Processes on this machine; more than one trains with DDP.")]
Resume = Annotated[str, typer.Option(metavar="auto|never|CHECKPOINT", help="Where to continue.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would happen, write nothing.")]
Profile = Annotated[bool, typer.Option("--profile", help="Write a trace of three updates, after five others, into the run.")]


def pretrain(
    recipe: RecipeName, data: DataSets, out: Out,
    model: Annotated[str | None, typer.Option(
        metavar="MODEL", help="Go on from these weights: model directory, run, checkpoint or hub id.")] = None,
    continue_from: ContinueFrom = None,
    eval_data: EvalData = None, tokenizer: RunTokenizer = None, max_updates: MaxUpdates = None,
    max_tokens: MaxTokens = None, max_time: MaxTime = None, max_seconds: MaxSeconds = None,
    seed: RunSeed = None, devices: Devices = None, resume: Resume = "auto", set_: Set = None, dry_run: DryRun = False,
    profile: Profile = False, json: Json = False,
) -> None:
    """Pretrain a system. A run that was stopped or killed continues when the same command is given again."""
    train(recipe, data, out, model=model, continue_from=continue_from, eval_data=eval_data, tokenizer=tokenizer, max_tokens=max_tokens,
          max_time=max_time, max_seconds=max_seconds, resume=resume, dry_run=dry_run, profile=profile, json=json,
          overrides=list(set_ or []), keys={"seed": seed, "devices": devices, "max_updates": max_updates})


def finetune(
    recipe: RecipeName, data: DataSets, out: Out,
    model: Annotated[str, typer.Option(metavar="MODEL", help="The weights to start from: model directory, run, checkpoint or hub id.")],
    eval_data: EvalData = None, tokenizer: RunTokenizer = None, max_updates: MaxUpdates = None,
    max_tokens: MaxTokens = None, max_time: MaxTime = None, max_seconds: MaxSeconds = None,
    seed: RunSeed = None, devices: Devices = None, resume: Resume = "auto", set_: Set = None, dry_run: DryRun = False,
    profile: Profile = False, json: Json = False,
) -> None:
    """Fine-tune a trained network (bert-classify, t5-text2text ...). The same command again continues a run that was stopped."""
    train(recipe, data, out, model=model, eval_data=eval_data, tokenizer=tokenizer, max_tokens=max_tokens, max_time=max_time,
          max_seconds=max_seconds, resume=resume, dry_run=dry_run, profile=profile, json=json, overrides=list(set_ or []),
          keys={"seed": seed, "devices": devices, "max_updates": max_updates})


def distill(
    recipe: RecipeName, data: DataSets, out: Out,
    teacher: Annotated[str, typer.Option(metavar="MODEL", help="The trained network to learn from: model directory, run, checkpoint or hub "
                                                               "id. It reads with the student's tokenizer.")],
    model: Annotated[str | None, typer.Option(
        metavar="MODEL", help="The weights that the student begins with; some layers of a deeper teacher (distilbert).")] = None,
    cache: Annotated[Path | None, typer.Option(
        metavar="DIR", help="Keep the teacher's largest logits here, so that it reads each masked text once (distilbert with "
                            "objective.alpha_cos=0).")] = None,
    continue_from: ContinueFrom = None,
    eval_data: EvalData = None, tokenizer: RunTokenizer = None, max_updates: MaxUpdates = None,
    max_tokens: MaxTokens = None, max_time: MaxTime = None, max_seconds: MaxSeconds = None,
    seed: RunSeed = None, devices: Devices = None, resume: Resume = "auto", set_: Set = None, dry_run: DryRun = False,
    profile: Profile = False, json: Json = False,
) -> None:
    """Train a student beside its teacher (distilbert ...). The same command again continues a run that was stopped."""
    from dataclasses import fields
    from json import dumps

    from ...registry import families, family
    from ...shared.errors import UserError
    from ..run.recipe import recipe as resolve

    overrides = list(set_ or [])
    chosen = resolve(recipe, overrides)
    task = family(chosen.system).task(chosen.task)
    if "teacher" not in task.companions:
        students = [" ".join(filter(None, (entry.name, task.name))) for entry in families().values()
                    for task in (entry.pretraining, *entry.tasks) if "teacher" in task.companions]
        raise UserError(f"recipe {recipe} trains {chosen.system} {chosen.task or 'from data alone'}, which has no teacher: choose a recipe "
                        f"of {', '.join(students)}, or train it with `polymodal {'finetune' if chosen.task else 'pretrain'}`")
    overrides.append(f"companions.teacher={dumps(teacher)}")
    if cache is not None:
        if not any(field.name == "cache" for field in fields(task.settings)):
            raise UserError(f"recipe {recipe} reads its teacher's states, and a cache keeps predictions: leave --cache out")
        overrides.append(f"objective.cache={dumps(str(cache.absolute()))}")
    train(recipe, data, out, model=model, continue_from=continue_from, eval_data=eval_data, tokenizer=tokenizer, max_tokens=max_tokens,
          max_time=max_time, max_seconds=max_seconds, resume=resume, dry_run=dry_run, profile=profile, json=json, overrides=overrides,
          keys={"seed": seed, "devices": devices, "max_updates": max_updates})


def train(recipe: str, data: list[str], out: Path, *, overrides: list[str], keys: dict[str, int | None], json: bool,
          **options: Any) -> None:
    """Resolve the recipe and run it; `keys` are shorthands for the recipe's own and win over `overrides`."""
    from ...shared.errors import UserError
    from ..base.console import Console
    from ..base.endings import code_of_a_stop
    from ..base.values import parse_duration, parse_mixture
    from ..run.recipe import recipe as resolve
    from ..train.loop import pretrain as run

    console = Console(json=json)
    lengths = {"--max-updates": keys["max_updates"], "--max-tokens": options["max_tokens"], "--max-time": options["max_time"]}
    if len(given := [name for name, value in lengths.items() if value is not None]) > 1:
        raise UserError(f"{' and '.join(given)} all say how long the run is: give one of them")
    if options["max_time"] is not None:
        options["max_time"] = parse_duration(options["max_time"], "--max-time")
    elif given:
        overrides = [*overrides, "max_time=null"]
    overrides = overrides + [f"{key}={value}" for key, value in keys.items() if value is not None]
    result = run(resolve(recipe, overrides), parse_mixture(data), out, console=console, **options)
    if result["rank"] == 0:
        console.finish(result)
    if result.get("ending") == "asked to stop" and (result["rank"] == 0 or "TORCHELASTIC_RUN_ID" in os.environ):
        # without torchrun the other ranks are rank 0's children: it speaks for them, and their 75 would be a failure to it
        raise typer.Exit(code_of_a_stop())


def export(
    source: Annotated[Path, typer.Argument(help="A run, or one of its checkpoints (RUN/checkpoints/update-...).")],
    out: Annotated[Path, typer.Option(help="New directory.")],
    format: Annotated[str | None, typer.Option(
        metavar="transformers|open_clip|timm|gensim|glove", help="Layout. Default: the family's own.")] = None,
    json: Json = False,
) -> None:
    """Write a run's network as a directory that the reference library loads."""
    from ..base.console import Console
    from ..model.export import export as run

    console = Console(json=json)
    written = run(source, out, format)
    console.finish({"out": str(written), "files": sorted(p.name for p in written.iterdir())}, text=f"wrote {written}")
