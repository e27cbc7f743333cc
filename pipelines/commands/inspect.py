"""`polymodal inspect`: look at data sets and at runs, at any update of a run, and make it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.options import Json

if TYPE_CHECKING:
    from ...shared.tokenizer import Tokenizer
    from ..base.console import Console
    from ..data.dataset import DataSet
    from ..data.stream import Stream

ORDER = 21


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(inspect)


def inspect(
    target: Annotated[str, typer.Argument(metavar="DATA|RUN", help="Data set (folder or address), or the directory of a run.")],
    samples: Annotated[int, typer.Option(min=0, help="Show this many samples: spread over the data set, the first of the update, or with "
                                        "--replay those with the highest loss.")] = 3,
    sample: Annotated[list[int] | None, typer.Option(help="Show the sample of this number (can be repeated).")] = None,
    pictures: Annotated[Path | None, typer.Option(metavar="FILE.png|FILE.html",
                                                  help="Write a grid of the samples' pictures, or of 32; with --update, of what the "
                                                  "objective made of them. As HTML, captions stay text, in every script.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every shard and compare it with the index.")] = False,
    update: Annotated[int | None, typer.Option(min=1, help="Show what this update reads, what the objective makes of it and what is drawn. "
                                               "Update 1 is the first, as in metrics.jsonl.")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Make --update of a run again and compare it with metrics.jsonl; writes nothing.")
                      ] = False,
    recipe: Annotated[str | None, typer.Option(metavar="RECIPE",
                                               help="Recipe whose order and objective --update of a data set shows: a name or a YAML file.")
                      ] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="DATA",
                                                   help="Where the data set of the RUN lies now, for --update; several for a mixture. "
                                                   "Default: where it lay.")] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="TOKENIZER", help="Tokenizer. Default: the data set's own.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C",
                                                        help="Override a recipe key for --update of a data set: a.b=c.")] = None,
    json: Json = False,
) -> None:
    """Show what a data set holds, or how far a run is; what any update is made of; and make an update of a run again."""
    from ...shared.errors import UserError
    from ..base.console import Console
    from ..data.dataset import DataSet

    console = Console(json=json)
    chosen = list(sample or [])
    if pictures is not None:
        from ..inspection.picture_grid import check_format

        check_format(pictures)
    if replay and update is None:
        raise UserError("--replay makes one update again: say which with --update N, numbered as in metrics.jsonl")
    if (Path(target) / "recipe.yaml").is_file():
        given = {"--recipe": recipe, "--set": overrides, "--tokenizer": tokenizer}
        if any(value for value in given.values()):
            raise UserError(f"{', '.join(name for name, value in given.items() if value)}: a run has a recipe and a tokenizer of its own, "
                            "leave it out; to look at the data as another recipe reads it, inspect the data set")
        if update is None:
            if idle := [name for name, value in {"--sample": sample, "--pictures": pictures, "--verify": verify}.items() if value]:
                raise UserError(f"{', '.join(idle)}: say with --update which update of the run to show, or inspect its data set")
            facts = _show_run(target, console)
        else:
            facts, differs = _show_past(target, update, list(data or []), None if json else samples, chosen, pictures, replay, console)
            console.finish(facts)
            if differs:
                raise typer.Exit(1)
            return
    else:
        if replay or data:
            raise UserError(f"{target} is not a run: --replay and --data are for the directory of a run")
        opened = DataSet.open(target)
        tok = _tokenizer(opened, tokenizer)
        facts = _show_data(opened, [] if update else chosen, samples if update is None else 0, None if update else pictures, verify, tok,
                           console)
        if update is not None:
            stream, title, masks = _planned(opened, recipe, overrides or [], tok)
            facts["update"] = {"update": update, **_show_update(stream, update - 1, None if json else samples, chosen, pictures,
                                                                f"update {update} of {title}", masks, console)}
    console.finish(facts)


def _show_run(target: str, console: Console) -> dict[str, Any]:
    from ..inspection.inspect import run_lines, run_summary
    from ..run.directory import open_run

    facts = run_summary(open_run(target))
    for line in run_lines(facts):
        console.say(line)
    return facts


def _show_past(target: str, update: int, data: list[str], samples: int | None, chosen: list[int], pictures: Path | None, replay: bool,
               console: Console) -> tuple[dict[str, Any], bool]:
    """Show an update of a run, and with `replay` make it again; also, whether something else came out."""
    from ...registry import family
    from ..inspection.inspect import run_summary
    from ..inspection.past import Past
    from ..run.directory import open_run

    past = Past(open_run(target), update)
    entry = family(past.recipe.system)
    facts = run_summary(past.run)
    result: dict[str, Any] | None = None
    if replay:
        from ..inspection import replay as again

        facts["replay"] = result = again.replay(past, data, losses=samples != 0, console=console)
        for line in again.lines(result, past, max(samples or 0, 5)):
            console.say(line)
        if not chosen and samples:  # what they are made of
            chosen = [entry["sample"] for entry in (result["samples"] or [])[:samples]]
    facts["update"] = {"update": update, **_show_update(past.stream(data), past.index, samples, chosen, pictures,
                                                        f"update {update} of {past.run.directory}", list(entry.card.masks), console)}
    before, row = past.window
    if row is not None:
        facts["update"]["row"] = row
    if result is None and row is not None:
        console.say(f"metrics.jsonl: updates {before + 1} to {row['update']} had a mean loss of {row['loss']:.6g} and a mean gradient norm "
                    f"of {row['grad_norm']:.6g}; --replay makes them again")
    return facts, result is not None and result["verdict"] == "different"


def _show_data(data: DataSet, chosen: list[int], samples: int, pictures: Path | None, verify: bool, tok: Tokenizer | None,
               console: Console) -> dict[str, Any]:
    """Say what a data set is and what some of its samples are."""
    from ...shared.errors import UserError
    from ..data.dataset import verify as check
    from ..inspection.inspect import pictures as draw
    from ..inspection.inspect import sample_rows, spread, summary, summary_lines

    facts = summary(data)
    for line in summary_lines(facts):
        console.say(line)
    if verify:
        problems = check(data)
        if problems:
            raise UserError(f"{data.directory} changed after it was indexed: {'; '.join(problems)}")
        console.say(f"verified: {len(data.index.shards)} shards are what the index says")
        facts["verified"] = True
    for i in chosen:
        if not 0 <= i < len(data):
            raise UserError(f"--sample {i}: the data set has the samples 0 to {len(data) - 1}")
    classes = data.index.schema.get("classes", [])
    facts["examples"] = []
    for found in data.read_many(chosen or spread(len(data), samples)):
        if isinstance(found, Exception):
            console.say(f"BAD: {found}")
            facts["examples"].append({"bad": str(found)})
            continue
        rows = sample_rows(found, classes, tok)
        facts["examples"].append({"sample": found.index, "key": found.key, "shard": found.source, "fields": dict(rows)})
        console.say(f"sample {found.index} {found.key} ({found.source})")
        for name, value in rows:
            console.say(f"  {name}: {value}")
    if pictures is not None:
        found = data.read_many(chosen or spread(len(data), 32))
        facts["pictures"] = draw([s for s in found if not isinstance(s, Exception)], pictures, classes, console.warn)
        console.say(f"{facts['pictures']} pictures: {pictures}")
    return facts


def _tokenizer(data: DataSet, source: str | None) -> Tokenizer | None:
    from ...shared.tokenizer import Tokenizer

    place = source or data.tokenizer_dir
    return None if place is None else Tokenizer.load(place)


def _planned(data: DataSet, recipe: str | None, overrides: list[str], tok: Tokenizer | None) -> tuple[Stream, str, list[str]]:
    """The stream of a data set as a recipe reads it, what to call it, and the names of its attention masks."""
    from ...registry import family
    from ...shared.errors import UserError
    from ..model.companions import with_companions
    from ..run.recipe import recipe as resolve
    from ..train.inputs import build_layout, build_stream, read_context

    if recipe is None:
        raise UserError("--update needs --recipe: its batch, seed, lanes and window determine the order")
    chosen = resolve(recipe, overrides)
    entry = family(chosen.system)
    system = chosen.build(entry, with_companions(read_context([data], (), tok, entry.task(chosen.task)), chosen, entry))
    stream = build_stream(chosen, data, system.objective, build_layout(chosen))
    return stream, chosen.name, list(entry.card.masks)


def _show_update(stream: Stream, index: int, samples: int | None, chosen: list[int], pictures: Path | None, title: str, masks: list[str],
                 console: Console) -> dict[str, Any]:
    """Say what update number `index` (counted from 0) is made of."""
    from ..inspection.inspect import draw_previews
    from ..inspection.past import lines, show

    shown = show(stream, index, samples, chosen)
    for line in lines(shown.facts, title, masks):
        console.say(line)
    if pictures is not None:
        shown.facts["pictures"] = draw_previews(shown.previews, pictures, console.warn)
        console.say(f"{shown.facts['pictures']} pictures: {pictures}")
    return shown.facts
