"""`polymodal search`: what is like a text or a picture, among those that `polymodal embed` made vectors of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..base.options import Device, Json, ModelTokenizer

ORDER = 51


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("search")(search)


def search(
    vectors: Annotated[Path, typer.Argument(metavar="VECTORS.npy", help="What `polymodal embed --out` wrote.")],
    queries: Annotated[list[str] | None, typer.Argument(
        metavar="[TEXT|IMAGE|FILE|FOLDER|-]...", show_default=False,
        help="Texts, files with one a line, tables with a field text, or - for stdin; or pictures, or folders of them.")] = None,
    model: Annotated[str | None, typer.Option(
        metavar="MODEL", help="The model that made the vectors. Default: where it was then.")] = None,
    tokenizer: ModelTokenizer = None,
    top: Annotated[int, typer.Option(min=1, help="How many are found for each query.")] = 10,
    method: Annotated[str, typer.Option(metavar="exact|hnsw", help="exact compares with every vector. hnsw, for millions, follows a graph "
                                        "that is built once, kept beside the vectors, and may miss some (needs faiss).")] = "exact",
    batch_size: Annotated[int, typer.Option(min=1, help="Queries that run through the model together.")] = 32,
    device: Device = None,
    json: Json = False,
) -> None:
    """Find the texts or pictures that are most like each query. With a CLIP, texts find pictures, and pictures texts.

    \b
    polymodal embed photos/ --model CLIP --out photos.npy
    polymodal search photos.npy "a dog in the snow"
    polymodal search photos.npy other/dog.jpg --top 3 --json
    """
    from ..base.console import Console
    from ..base.inputs import documents, picture_files
    from ..inference.search import search as run
    from ..model.frontdoor import tokenizer as find_tokenizer
    from ..model.open import choose_device

    console = Console(json=json)
    pictures = picture_files(queries or [], console.warn)
    texts = [] if pictures else [d.text for d in documents(queries, lines=True, warn=console.warn)]
    found = run(vectors, pictures or texts, model=model, tokenizer=None if tokenizer is None else find_tokenizer(tokenizer), top=top,
                method=method, batch_size=batch_size, device=choose_device(device), say=console.say)  # type: ignore[arg-type]
    kind, names = ("image", list(map(str, pictures))) if pictures else ("text", texts)
    for name, nearest in zip(names, found, strict=True):
        if len(names) > 1:
            console.say(f"{' '.join(name.split())[:100]}:")
        for one in nearest:
            console.say(f"{one['cosine']:.4f}  {_shown(one)}")
    console.finish({"vectors": str(vectors), "method": method, "count": len(names),
                    "results": [{kind: name, "nearest": nearest} for name, nearest in zip(names, found, strict=True)]})


def _shown(found: dict[str, Any]) -> str:
    """A line for people: the text, the picture's path, or the key of a sample."""
    return " ".join(str(next(found[name] for name in ("text", "image", "key") if name in found)).split())
