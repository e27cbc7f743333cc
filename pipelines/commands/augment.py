"""`polymodal augment`: copies of labelled texts with other words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..base.options import Device, Json, ModelTokenizer

ORDER = 32


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("augment")(augment)


def augment(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A table of labelled texts: jsonl, csv, tsv or parquet.")],
    model: Annotated[str, typer.Option(
        metavar="MODEL", help="Predicts masked words: model directory, run, checkpoint or hub id of a BERT, RoBERTa ...")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .jsonl file to write: each row, and its copies behind it.")],
    vectors: Annotated[str | None, typer.Option(
        metavar="VECTORS", help="Word vectors for words of several tokens, which stay without: a run of word2vec, glove or nnlm, or "
                                "a file of word2vec or GloVe.")] = None,
    text_field: Annotated[list[str] | None, typer.Option(
        metavar="COLUMN", help="A column with texts; may be repeated. Default: text, and text_pair where it is there.")] = None,
    copies: Annotated[int, typer.Option(min=1, help="Copies of each text, less those that are the same.")] = 20,
    probability: Annotated[float, typer.Option(help="With which a word of a copy is replaced.")] = 0.4,
    candidates: Annotated[int, typer.Option(min=1, help="Words that may stand for a word.")] = 15,
    keep: Annotated[Path | None, typer.Option(metavar="FILE", help="Words that are never replaced, one a line.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    tokenizer: ModelTokenizer = None, device: Device = None, json: Json = False,
) -> None:
    """Make copies of labelled texts with some words replaced (TinyBERT's data augmentation), for the second stage of a distillation."""
    import time

    from ..base.console import Console
    from ..base.tables import rows
    from ..inference.augment import Augmenter, AugmentSettings, augment_table, check_files, words_to_keep
    from ..inference.vectors import open_vectors
    from ..model.open import open_text_model

    console = Console(json=json)
    began = time.perf_counter()
    check_files(source, out)
    settings = AugmentSettings(copies, probability, candidates, words_to_keep(keep), seed)
    net, tok = open_text_model(model, tokenizer, device)
    by = Augmenter(net, tok, None if vectors is None else open_vectors(vectors), settings)
    with console.progress("augmenting", total=sum(1 for _ in rows(source))) as bar:
        made = augment_table(source, out, by, text_field or (), bar.advance)
    seconds = round(time.perf_counter() - began, 3)
    met = {f"words_{name}": by.told[name] for name in ("model", "vectors", "without")}
    if by.told["without"]:
        console.warn(f"{by.told['without']} of {by.told.total()} words have several tokens and no vector: they stay")
    console.finish({"out": str(out), **made, **met, "seconds": seconds},
                   f"{out}: {made['written']} rows of {made['rows']} ({seconds:.1f} s); {by.told['model']} words have candidates of the "
                   f"model, {by.told['vectors']} of the vectors")
