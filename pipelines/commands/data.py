"""`polymodal pack | index | inspect`: make data sets, look at them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ...shared.tokenizer import Tokenizer
    from ..console import Console
    from ..shards import DataSet

ORDER = 20
_LISTED = 12
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("pack")(pack)
    app.command("index")(index)
    app.command("inspect")(inspect)


def _size(text: str) -> int:
    from ...shared.errors import UserError

    number, unit = text.upper().removesuffix("IB").removesuffix("B"), ""
    if number and number[-1] in "KMG":
        number, unit = number[:-1], number[-1]
    if not number.isdigit():
        raise UserError(f"--shard-bytes {text!r} is not a size: expected a number such as 256M or 1G")
    return int(number) * _UNITS[unit]


def pack(
    sources: Annotated[list[Path], typer.Argument(help="Files and folders: txt, md, jsonl, csv, tsv, parquet, pictures, tars.")],
    out: Annotated[Path, typer.Option(help="Folder of the new data set; must not hold anything.")],
    kind: Annotated[str | None, typer.Option(help="text, pairs, images or tar. Default: guessed from the files.")] = None,
    shard_bytes: Annotated[str, typer.Option(help="Largest size of a shard.")] = "256M",
    tokenize: Annotated[str | None, typer.Option(metavar="TOKENIZER", help="Tokenise, and pack into rows of --block tokens.")] = None,
    block: Annotated[int, typer.Option(help="Tokens of a row.")] = 1024,
    in_order: Annotated[bool, typer.Option("--in-order", help="Fill rows of tokens in the order of the text (for systems with a memory).")
                        ] = False,
    split: Annotated[str, typer.Option(help="Where a plain text is cut into documents: blank (lines), line, file, or lines equal to this.")
                     ] = "blank",
    text_field: Annotated[str, typer.Option(help="Column or JSON field with the text.")] = "text",
    image_field: Annotated[str, typer.Option(help="Column with the path of a picture, relative to the table.")] = "image",
    caption_field: Annotated[str, typer.Option(help="Column with the caption.")] = "caption",
    label_field: Annotated[str | None, typer.Option(help="Column with the class of a text: a name or a whole number.")] = None,
    pair_field: Annotated[str | None, typer.Option(help="Column with the second text of a pair.")] = None,
    target_field: Annotated[str | None, typer.Option(help="Column with the text to be written for a text.")] = None,
    classes: Annotated[str | None, typer.Option(metavar="FILE|A,B,C", help="All classes in the order of their numbers, for data sets "
                                                "packed one by one. Default: those that occur, sorted.")] = None,
    shuffle: Annotated[int, typer.Option(help="Seed of the order of the samples.")] = 0,
    keep_order: Annotated[bool, typer.Option("--keep-order", help="Keep the order of the input instead.")] = False,
    holdout: Annotated[float, typer.Option(help="Hold samples out: a fraction below 1, or their number.")] = 0.0,
    holdout_out: Annotated[Path | None, typer.Option(help="Folder of the held-out data set.")] = None,
    on_bad: Annotated[str, typer.Option(help="raise: stop at what cannot be used; skip: leave it out and count it.")] = "raise",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, or workers of the cluster. Default: one for each core.")] = None,
    on: Annotated[str, typer.Option(metavar="local|ray", help="Where the work is done: processes here, or a Ray cluster.")] = "local",
    ray_address: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The cluster's head. Default: the cluster of this machine.")
                           ] = None,
    json: Annotated[bool, typer.Option("--json", help="Last line on stdout is one JSON object.")] = False,
) -> None:
    """Write WebDataset shards and their index from text, tables, pictures or tars. A killed run continues when it is run again."""
    import time

    from ..console import Console
    from ..names import read_names
    from ..pack import pack as run

    console = Console(json=json)
    began = time.perf_counter()
    made = run(sources, out, kind=kind, shard_bytes=_size(shard_bytes), tokenizer=tokenize, block=block, split=split,
               text_field=text_field, image_field=image_field, caption_field=caption_field, label_field=label_field,
               pair_field=pair_field, target_field=target_field, classes=None if classes is None else read_names(classes, "--classes"),
               in_order=in_order, shuffle=None if keep_order else shuffle,
               holdout=holdout, holdout_out=holdout_out, on_bad=on_bad, workers=workers, on=on, ray_address=ray_address,
               console=console)
    seconds = round(time.perf_counter() - began, 3)
    console.finish({"out": str(out), "kind": made.kind, "samples": made.samples, "shards": len(made.shards),
                    "bytes": sum(s.size for s in made.shards), "schema": dict(made.schema), "seconds": seconds})


def index(
    directory: Annotated[Path, typer.Argument(help="Folder with WebDataset tars that were made elsewhere.")],
    force: Annotated[bool, typer.Option("--force", help="Make the index again.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Last line on stdout is one JSON object.")] = False,
) -> None:
    """Index tars made elsewhere, so that any sample can be found and checked."""
    from ..console import Console
    from ..shards import build_index

    console = Console(json=json)
    total = sum(p.stat().st_size for p in directory.glob("*.tar")) if directory.is_dir() else 0
    with console.progress("indexing", total) as bar:
        made = build_index(directory, force=force, advance=bar.advance)
    console.finish({"directory": str(directory), "samples": made.samples, "shards": len(made.shards), "fields": list(made.fields)},
                   f"{directory}: {made.samples} samples in {len(made.shards)} shards, fields {', '.join(made.fields)}")


def inspect(
    target: Annotated[str, typer.Argument(metavar="DATA|RUN", help="Data set (folder or address), or the directory of a run.")],
    samples: Annotated[int, typer.Option(min=0, help="Show this many samples, spread over the data set.")] = 3,
    sample: Annotated[list[int] | None, typer.Option(help="Show the sample of this number (can be repeated).")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Write a picture grid (PNG) of the samples, or of 32.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every shard and compare it with the index.")] = False,
    update: Annotated[int | None, typer.Option(min=0, help="Show the samples of this update, what the recipe's objective makes of them.")
                      ] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe whose order and objective --update shows: a name or a YAML file.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set that the RUN trains on, for --update.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer. Default: the data set's or the run's own.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: a.b=c.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Last line on stdout is one JSON object.")] = False,
) -> None:
    """Show what a data set holds (shards, fields, samples, pictures, the samples of any update), or how far a run is."""
    from ...shared.errors import UserError
    from ..console import Console
    from ..shards import DataSet

    console = Console(json=json)
    facts: dict[str, Any]
    config: Any = None
    if (Path(target) / "recipe.yaml").is_file():
        from ..runs import open_run

        facts = _show_run(target, console)
        config = open_run(target).config()  # of a run that began with a model, the recipe does not say the size
        recipe = str(Path(target) / "recipe.yaml")
        own = Path(target) / "tokenizer"
        tokenizer = tokenizer or (str(own) if own.is_dir() else None)
        if update is not None and data is None:
            raise UserError("--update of a run needs --data: the data set that it trains on")
        opened = DataSet.open(data) if update is not None and data is not None else None
    else:
        opened = DataSet.open(target)
        tok = _tokenizer(opened, tokenizer)
        facts = _show_data(opened, list(sample or []), samples, pictures, verify, tok, console)
    if update is not None and opened is not None:
        facts["update"] = _show_update(opened, update, recipe, overrides or [], _tokenizer(opened, tokenizer), console, config)
    console.finish(facts)


def _show_run(target: str, console: Console) -> dict[str, Any]:
    from ..inspect import run_lines, run_summary
    from ..runs import open_run

    facts = run_summary(open_run(target))
    for line in run_lines(facts):
        console.say(line)
    return facts


def _show_data(data: DataSet, chosen: list[int], samples: int, pictures: Path | None, verify: bool, tok: Tokenizer | None,
               console: Console) -> dict[str, Any]:
    """Say what a data set is and what some of its samples are."""
    from ...shared.errors import UserError
    from ..inspect import pictures as draw
    from ..inspect import sample_rows, spread, summary, summary_lines
    from ..shards import verify as check

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
        facts["pictures"] = draw([s for s in found if not isinstance(s, Exception)], pictures, classes)
        console.say(f"{facts['pictures']} pictures: {pictures}")
    return facts


def _tokenizer(data: DataSet, source: str | None) -> Tokenizer | None:
    from ...shared.tokenizer import Tokenizer

    place = source or data.tokenizer_dir
    return None if place is None else Tokenizer.load(place)


def _show_update(data: DataSet, update: int, recipe: str | None, overrides: list[str], tok: Tokenizer | None,
                 console: Console, config: Any) -> dict[str, Any]:
    """Say which samples an update trains on, and what the objective makes of the first ones."""
    from ...registry import family
    from ...shared.errors import UserError
    from ...shared.system import Context
    from ..inspect import made
    from ..recipe import recipe as resolve
    from ..stream import Layout, Stream, describe_update

    if recipe is None:
        raise UserError("--update needs --recipe: its batch, seed, lanes and window determine the order (a run's recipe.yaml will do)")
    chosen = resolve(recipe, overrides)
    classes = data.index.schema.get("classes")
    system = chosen.build(family(chosen.system), Context(tok, tuple(classes) if classes else None), config)
    stream = Stream(data, system.objective, Layout(chosen.data.global_batch), seed=chosen.seed, lanes=chosen.data.lanes,
                    window=chosen.data.window, on_bad=chosen.data.on_bad, max_bad=chosen.data.max_bad)
    reads = describe_update(stream, update)
    console.say(f"update {update} of {chosen.name} (epoch {stream.epoch(update):.3f}) trains on {len(reads)} samples:")
    for read in reads[:_LISTED]:
        console.say(f"  {read.sample_id:>9}  {read.key}  {read.shard}")
    if len(reads) > _LISTED:
        console.say(f"  ... {len(reads) - _LISTED} more (all with --json)")
    examples: list[dict[str, Any]] = []
    for sample_id, key, previews in made(stream, update):
        console.say(f"the objective makes of {key}:" if previews else f"BAD: {key}")
        for preview in previews:
            for name, value in preview.rows:
                console.say(f"  {name}: {value}")
        examples.append({"sample": sample_id, "key": key, "examples": [[list(r) for r in p.rows] for p in previews]})
    return {"update": update, "epoch": stream.epoch(update), "sample_ids": [r.sample_id for r in reads], "keys": [r.key for r in reads],
            "examples": examples}
