"""`polymodal classify`: which class is in a picture."""

from __future__ import annotations

from typing import Annotated

import typer

ORDER = 55


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("classify")(classify)


def classify(
    inputs: Annotated[list[str], typer.Argument(
        metavar="IMAGE|FOLDER|-...", show_default=False,
        help="Pictures (JPEG, PNG, WebP), folders of them, or - for stdin: one picture, or paths, one a line.")],
    model: Annotated[str, typer.Option(help="Model directory, run, checkpoint, or hub id: a CLIP or a ViT.")],
    labels: Annotated[str | None, typer.Option(metavar="cat,dog|FILE", help="Class names, for CLIP; a file has one a line.")] = None,
    template: Annotated[list[str] | None, typer.Option(
        help='Prompt with {} for the class name, or openai (80 prompts), or simple (7); may be repeated. '
             'Default: "a photo of a {}."')] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to show for each picture.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that run together.")] = 32,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ... Default: a GPU if there is one.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Last line on stdout is one JSON object.")] = False,
) -> None:  # fmt: skip
    """Classify pictures: by any class names with a CLIP, by its own classes with a ViT."""
    import torch

    from ..classify import classifier, pictures
    from ..classify import classify as run
    from ..console import Console
    from ..frontdoor import load
    from ..names import read_names

    console = Console(json=json)
    names = None if labels is None else read_names(labels)
    found = pictures(inputs)
    loaded = load(model, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    result = run(classifier(loaded, model, names, template or ()), found, top=top, batch_size=batch_size, console=console)
    if result.bad:
        console.warn(f"{len(result.bad)} of {len(found)} pictures could not be read")
    lines = [f"{f.image}: {', '.join(f'{label} {score:.3f}' for label, score in f.predictions)}" for f in result.found]
    console.finish({
        "model": model, "pictures": len(found),
        "results": [{"image": f.image, "predictions": [{"label": n, "score": s} for n, s in f.predictions]} for f in result.found],
        "bad": [{"image": name, "reason": reason} for name, reason in result.bad],
    }, "\n".join(lines))  # fmt: skip
