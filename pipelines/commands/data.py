"""`polymodal pack | index | regions`: make data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ..base.options import Device, Json, RayAddress

ORDER = 20


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("pack")(pack)
    app.command("index")(index)
    app.command("regions")(regions)
    app.command("relate")(relate)


def pack(
    sources: Annotated[list[Path], typer.Argument(help="Files and folders: txt, md, jsonl, csv, tsv, parquet, pictures, tars.")],
    out: Annotated[Path, typer.Option(help="Folder of the new data set; must not hold anything.")],
    kind: Annotated[str | None, typer.Option(
        metavar="KIND", help="text, pairs, images, tar (guessed by default), regions, words, labels, score, tag, choice, span.")] = None,
    shard_bytes: Annotated[str, typer.Option(metavar="SIZE", help="Largest size of a shard.")] = "256M",
    tokenize: Annotated[str | None, typer.Option(metavar="TOKENIZER", help="Tokenise, and pack into rows of --block tokens.")] = None,
    block: Annotated[int, typer.Option(help="Tokens of a row.")] = 1024,
    in_order: Annotated[bool, typer.Option("--in-order", help="Fill rows of tokens in the order of the text (for systems with a memory).")
                        ] = False,
    split: Annotated[str, typer.Option(metavar="SPLIT",
                                       help="Where a plain text is cut into documents: blank (lines), line, file, or lines equal to this.")
                     ] = "blank",
    text_field: Annotated[str, typer.Option(metavar="COLUMN", help="Column or JSON field with the text.")] = "text",
    image_field: Annotated[str, typer.Option(metavar="COLUMN", help="Column with the path of a picture, relative to the table.")] = "image",
    caption_field: Annotated[str, typer.Option(metavar="COLUMN", help="Column with the caption.")] = "caption",
    label_field: Annotated[str | None, typer.Option(
        metavar="COLUMN", help="Column with the class of a text: a name or a number; labels, tags.")] = None,
    label_separator: Annotated[str | None, typer.Option(
        metavar="TEXT", help="What stands between several labels in a cell, with --kind labels.")] = None,
    pair_field: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column with the second text of a pair.")] = None,
    target_field: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column with the text to be written for a text.")] = None,
    segment: Annotated[str | None, typer.Option(metavar="jieba", help="Find the words of Chinese texts, for masking by words (jieba).")
                       ] = None,
    classes: Annotated[str | None, typer.Option(metavar="FILE|A,B,C", help="All classes in the order of their numbers, for data sets "
                                                "packed one by one. Default: those that occur, sorted.")] = None,
    shuffle: Annotated[int, typer.Option(help="Seed of the order of the samples.")] = 0,
    keep_order: Annotated[bool, typer.Option("--keep-order", help="Keep the order of the input instead.")] = False,
    holdout: Annotated[float, typer.Option(help="Hold samples out: a fraction below 1, or their number.")] = 0.0,
    holdout_out: Annotated[Path | None, typer.Option(help="Folder of the held-out data set.")] = None,
    on_bad: Annotated[str, typer.Option(
        metavar="raise|skip", help="raise: stop at what cannot be used; skip: leave it out and count it.")] = "raise",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, or workers of the cluster. Default: one for each core.")] = None,
    on: Annotated[str, typer.Option(metavar="local|ray", help="Where the work is done: processes here, or a Ray cluster.")] = "local",
    ray_address: RayAddress = None,
    json: Json = False,
) -> None:
    """Write WebDataset shards and their index from text, tables, pictures or tars. A killed run continues when it is run again."""
    import time

    from ..base.console import Console
    from ..base.values import parse_size, read_names
    from ..crew.pieces import Workers
    from ..pack.pack import pack as run
    from ..pack.settings import PackSettings, Reading

    console = Console(json=json)
    began = time.perf_counter()
    names = None if classes is None else tuple(read_names(classes, "--classes"))
    reading = Reading(kind, split, text_field, image_field, caption_field, label_field, pair_field, target_field, names,
                      label_separator, segment)
    settings = PackSettings(reading, parse_size(shard_bytes, "--shard-bytes"), tokenize, block, in_order, None if keep_order else shuffle,
                            holdout, holdout_out, cast("Any", on_bad))
    made = run(sources, out, settings, workers=Workers(workers, on, ray_address), console=console)
    seconds = round(time.perf_counter() - began, 3)
    console.finish({"out": str(out), "kind": made.kind, "samples": made.samples, "shards": len(made.shards),
                    "bytes": sum(s.size for s in made.shards), "schema": dict(made.schema), "seconds": seconds})


def index(
    directory: Annotated[Path, typer.Argument(help="Folder with WebDataset tars that were made elsewhere.")],
    force: Annotated[bool, typer.Option("--force", help="Make the index again.")] = False,
    json: Json = False,
) -> None:
    """Index tars made elsewhere, so that any sample can be found and checked."""
    from ..base.console import Console
    from ..data.index import build_index

    console = Console(json=json)
    total = sum(p.stat().st_size for p in directory.glob("*.tar")) if directory.is_dir() else 0
    with console.progress("indexing", total) as bar:
        made = build_index(directory, force=force, advance=bar.advance, warn=console.warn)
    console.finish({"directory": str(directory), "samples": made.samples, "shards": len(made.shards), "fields": list(made.fields)},
                   f"{directory}: {made.samples} samples in {len(made.shards)} shards, fields {', '.join(made.fields)}")


def regions(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Data set (directory or URL) of pictures, mostly with captions.")],
    detector: Annotated[str, typer.Option(metavar="grid|torchvision:NAME|DIR", help="What finds regions: cells over a tower's patches, a "
                                          "Faster R-CNN whose weights are here, or a folder with KEY.npz for each sample.")],
    out: Annotated[Path, typer.Option(help="Folder of the new data set; must not hold anything.")],
    tower: Annotated[str | None, typer.Option(metavar="MODEL", help="Of grid: the CLIP, ViT or MAE whose patches are read.")] = None,
    count: Annotated[int, typer.Option("--regions", help="Regions of a picture, at most; of grid exactly, a square number.")] = 36,
    classes: Annotated[int, typer.Option(help="Of grid: classes of the codebook that is made of the regions; 0 for none.")] = 64,
    codebook: Annotated[str | None, typer.Option(metavar="FILE|DIR", help="Of grid: the codebook of another data set, such as the training "
                                                 "data's for held-out data.")] = None,
    on_bad: Annotated[str, typer.Option(
        metavar="raise|skip", help="raise: stop at what cannot be used; skip: leave it out and count it.")] = "raise",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that run together.")] = 32,
    device: Device = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with the detector.")] = 1,
    json: Json = False,
) -> None:
    """Add regions to pictures: features, boxes, class probabilities. A killed run continues when it is run again.

    \b
    polymodal regions pairs --detector grid --tower CLIP --out pairs-regions
    polymodal regions held --detector grid --tower CLIP --codebook pairs-regions --out held-regions
    """
    import time

    from ..base.console import Console
    from ..crew.pieces import Workers
    from ..regions.regions import RegionSettings, add_regions

    console = Console(json=json)
    began = time.perf_counter()
    settings = RegionSettings(detector, tower, count, classes, codebook, batch_size, on_bad)
    made = add_regions(data, out, settings, device=device, workers=Workers(workers), console=console)
    found = made.schema["regions"]
    console.finish({"out": str(out), "samples": made.samples, "shards": len(made.shards), "schema": dict(made.schema),
                    "seconds": round(time.perf_counter() - began, 3)},
                   f"{out}: {made.samples} samples in {len(made.shards)} shards, features of width {found['features']}, "
                   f"{found['classes']} classes")


def relate(
    pairs: Annotated[str, typer.Argument(metavar="PAIRS", help="Data set (directory or URL) of pictures with captions and regions.")],
    out: Annotated[Path, typer.Option(help="Folder of the new data set; must not hold anything.")],
    texts: Annotated[list[str] | None, typer.Option(metavar="DATA", help="Texts to retrieve sentences from; repeatable.")] = None,
    pictures: Annotated[list[str] | None, typer.Option(metavar="DATA", help="Pictures with regions to retrieve from; repeatable.")] = None,
    rewrites: Annotated[int, typer.Option(help="Rewritten captions of a pair, at most.")] = 4,
    texts_each: Annotated[int, typer.Option(help="Retrieved sentences of a pair, at most.")] = 4,
    pictures_each: Annotated[int, typer.Option(help="Retrieved pictures of a pair, at most; their regions are copied.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the rewrites.")] = 0,
    json: Json = False,
) -> None:
    """Add to pairs what UNIMO compares them with: rewritten captions, and like texts and pictures.

    \b
    polymodal relate pairs-regions --texts texts --pictures pictures-regions --out pairs-related
    """
    from ..base.console import Console
    from ..pack.relate import RelateSettings
    from ..pack.relate import relate as run

    console = Console(json=json)
    made = run(pairs, out, RelateSettings(rewrites, texts_each, pictures_each, seed), texts=texts or (), pictures=pictures or (),
               console=console)
    console.finish({"out": str(out), "samples": made.samples, "shards": len(made.shards), "schema": dict(made.schema)},
                   f"{out}: {made.samples} samples in {len(made.shards)} shards")
