"""`polymodal caption`: what pictures show, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..base.options import Detector, Device, Json, LengthPenalty, ModelTokenizer, RegionCount, Tower

ORDER = 58


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("caption")(caption)


def caption(
    inputs: Annotated[list[str], typer.Argument(
        metavar="[IMAGE|FOLDER|-]...", show_default=False,
        help="Pictures (JPEG, PNG, WebP, GIF, TIFF, BMP), folders of them, or - for stdin: one picture, or paths, one a line.")],
    model: Annotated[str, typer.Option(
        metavar="MODEL", help="Model directory, run, checkpoint, or hub id: a UNIMO, pretrained or tuned for captions.")],
    tokenizer: ModelTokenizer = None,
    detector: Detector = "grid", tower: Tower = None, regions: RegionCount = 36,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a caption, at most.")] = 60,
    min_new_tokens: Annotated[int, typer.Option(min=0, help="Tokens of a caption, at least.")] = 0,
    num_beams: Annotated[int, typer.Option(min=1, help="1 takes the most probable word each time.")] = 5,
    length_penalty: LengthPenalty = None,
    out: Annotated[Path | None, typer.Option(help="Also write the captions into this .jsonl file, one picture a line.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that run together.")] = 16,
    device: Device = None,
    json: Json = False,
) -> None:
    """Write what pictures show.

    \b
    polymodal caption photos --model UNIMO --tower CLIP
    """
    from ...shared.errors import UserError
    from ..base.console import Console
    from ..base.files import json_lines, write_atomic
    from ..inference.generated import check_out
    from ..inference.pictures import pictures
    from ..model.open import open_text_model
    from ..regions.captions import captioned
    from ..regions.regions import open_detector

    console = Console(json=json)
    if out is not None:
        check_out(out)
    found = pictures(inputs, console.warn)
    loaded, vocabulary = open_text_model(model, tokenizer, device)
    finder = open_detector(detector, tower, regions, device)
    options: Any = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "num_beams": num_beams}
    if length_penalty is not None or num_beams > 1:
        options["length_penalty"] = 0.6 if length_penalty is None else length_penalty
    with console.progress("captions", len(found)) as bar:
        told = list(captioned(loaded, found, vocabulary, finder, batch_size=batch_size, advance=bar.advance, **options))
    bad = [one for one in told if one.reason]
    for one in bad:
        console.warn(f"{one.image}: {one.reason}")
    if len(bad) == len(told):
        raise UserError(f"none of {len(told)} pictures could be read")
    results = [{"image": one.image, "caption": one.caption} for one in told if not one.reason]
    if out is not None:
        write_atomic(out, json_lines(results).encode())
    console.finish({"model": model, "pictures": len(told), "results": results,
                    "bad": [{"image": one.image, "reason": one.reason} for one in bad]},
                   "\n".join(f"{one['image']}: {one['caption']}" for one in results))
