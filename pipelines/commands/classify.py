"""`polymodal classify`: which class a picture or a text is of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..base.options import DataOn, DataOnBad, DataWorkers, Detector, Device, Json, RayAddress, RegionCount, Tower

ORDER = 55


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("classify")(classify)


def classify(
    inputs: Annotated[list[str] | None, typer.Argument(
        metavar="[IMAGE|FOLDER|TEXT|FILE|-]...", show_default=False,
        help="Pictures (JPEG, PNG, WebP, GIF, TIFF, BMP), folders of them, or - for stdin: one picture, or paths, one a line. For a "
             "model of texts: texts, files with one a line, tables (jsonl, csv, tsv, parquet) with text and perhaps text_pair, folders "
             "of them, or - for stdin.")] = None,
    model: Annotated[str, typer.Option(
        metavar="MODEL", help="Model directory, run, checkpoint, or hub id: a CLIP, a ViT, a fine-tuned BERT ...")
                     ] = ...,  # type: ignore[assignment]
    data: Annotated[str | None, typer.Option(
        metavar="DATA", help="Classify a packed data set (folder or address) instead, into --out. A killed run "
                                             "continues when it is run again.")] = None,
    out: Annotated[Path | None, typer.Option(help="With --data: the .jsonl file, one sample a line.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="cat,dog|FILE", help="Class names, for CLIP and UNITER; a file has one a "
                                                                                  "line.")] = None,
    template: Annotated[list[str] | None, typer.Option(
        metavar="TEMPLATE|FILE", help='Prompt with {} for the class name, openai (80 prompts), simple (7), or a file with one a '
             'line; may be repeated. Default: "a photo of a {}."')] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to show for each picture or text.")] = 5,
    speed: Annotated[float | None, typer.Option(metavar="0...1", help="Of a FastBERT: a text leaves behind the layer whose classifier is "
                                                "no more uncertain than this. Default: each goes through all layers.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures or texts that run together.")] = 32,
    detector: Detector = "grid", tower: Tower = None, regions: RegionCount = 36,
    device: Device = None,
    on_bad: DataOnBad = "raise", workers: DataWorkers = None, on: DataOn = "local", ray_address: RayAddress = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Classify pictures by any class names (CLIP, UNITER) or texts and pictures by the classes of a model that was trained for them."""
    from ...shared.errors import UserError
    from ..base.console import Console
    from ..base.inputs import documents
    from ..base.values import read_names
    from ..crew.pieces import Workers
    from ..inference.texts import classify_texts, text_classifier
    from ..model.open import open_model

    console = Console(json=json)
    crew = Workers(workers, on, ray_address)
    names = None if labels is None else read_names(labels)
    if data is not None:
        from ..inference.bulk import full, opened, run_over, said
        from ..inference.runners import Classify

        samples, file = opened(data, inputs or (), out, (".jsonl",))
        work = Classify(full(model), None if names is None else tuple(names), tuple(template or ()), top, batch_size, speed)
        done = run_over(samples, data, work, file, array=None, device=device, on_bad=on_bad, workers=crew, console=console)
        console.finish({"model": model, "data": data, "out": str(file), **said(done, console)}, f"{done.count} samples: {file}")
        return
    if not inputs:
        raise UserError("nothing to classify: give pictures, texts, files, - for stdin, or --data")
    if out is not None or crew != Workers():
        raise UserError("--out, --workers and --on belong to --data: pack the files into a data set first, or leave these options out")
    loaded = open_model(model, device)
    by_text = text_classifier(loaded, model, names, template or (), speed)
    if by_text is not None:
        given = [(d.text, d.pair) for d in documents(inputs, lines=True, pairs=True, warn=console.warn)]
        guesses = classify_texts(by_text, given, top=top, batch_size=batch_size, console=console)
        results = [{"text": text, **({} if pair is None else {"text_pair": pair}), "predictions": _named(row)}
                   for (text, pair), row in zip(given, guesses, strict=True)]
        lines = [f"{' '.join(text.split())[:60]}: {_shown(row)}" for (text, _), row in zip(given, guesses, strict=True)]
        console.finish({"model": model, "texts": len(given), "results": results}, "\n".join(lines))
        return

    from ..inference.pictures import classifier, pictures
    from ..inference.pictures import classify as run
    from ..inference.region_pictures import by_names, reads_regions

    found = pictures(inputs, console.warn)
    if reads_regions(loaded):
        from ..regions.regions import open_detector

        by = by_names(loaded, model, open_detector(detector, tower, regions, device), names, template or ())
        result = run(by, found, top=top, batch_size=batch_size, console=console, read=by.read)
    else:
        if tower is not None or detector != "grid":
            raise UserError("--detector and --tower belong to a model that reads regions of pictures, and this one reads pixels: leave "
                            "them out")
        result = run(classifier(loaded, model, names, template or ()), found, top=top, batch_size=batch_size, console=console)
    if result.bad:
        console.warn(f"{len(result.bad)} of {len(found)} pictures could not be read")
    console.finish({
        "model": model, "pictures": len(found),
        "results": [{"image": f.image, "predictions": _named(f.predictions)} for f in result.found],
        "bad": [{"image": name, "reason": reason} for name, reason in result.bad],
    }, "\n".join(f"{f.image}: {_shown(f.predictions)}" for f in result.found))  # fmt: skip


def _named(predictions: list[tuple[str, float]]) -> list[dict[str, str | float]]:
    return [{"label": name, "score": score} for name, score in predictions]


def _shown(predictions: list[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {score:.3f}" for name, score in predictions)
