"""`polymodal tag`: names, places and parts of speech in texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..base.options import Device, Json, Model, ModelTokenizer

if TYPE_CHECKING:
    from ...text.tasks import TokenClassification

ORDER = 56


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tag")(tag)


def tag(
    inputs: Annotated[list[str] | None, typer.Argument(
        metavar="[TEXT|FILE|FOLDER|-]...", show_default=False,
        help="Texts, files with one a line, tables (jsonl, csv, tsv, parquet) with a field text, folders of them, or - for stdin.")] = None,
    model: Model = ...,  # type: ignore[assignment]
    tokenizer: ModelTokenizer = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts that run together.")] = 32,
    device: Device = None,
    json: Json = False,
) -> None:
    """Tag the words of texts with a network that was fine-tuned for it, and list the entities.

    \b
    polymodal tag --model RUN "Anna Lee flew to Paris." articles.txt
    """
    import torch

    from ...text.tag import Tagger
    from ...text.tasks import reads_alone
    from ..base.console import Console
    from ..base.inputs import documents
    from ..inference.trained import trained
    from ..inference.words import tag_texts
    from ..model.frontdoor import load
    from ..model.frontdoor import tokenizer as find_tokenizer

    console = Console(json=json)
    texts = [d.text for d in documents(inputs, lines=True, warn=console.warn)]
    loaded = load(model, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    Tagger.check(loaded, model)
    by = Tagger(cast("TokenClassification", loaded), None if reads_alone(loaded) else find_tokenizer(tokenizer or model),
                trained(loaded).max_length)
    results = tag_texts(by, texts, batch_size=batch_size, console=console)
    lines = [" ".join(f"{word}/{name}" for word, name in zip(row["words"], row["tags"], strict=True)) for row in results]
    console.finish({"model": model, "texts": len(texts), "results": results}, "\n".join(lines))
