"""`polymodal similar-words`: the table of similar words that MacBERT reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..base.options import Json

ORDER = 31
OF_TEXTS = ("segment", "kind", "size", "min_count", "window", "dimensions", "split", "text_field")
"""Options that say how texts are read and counted."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("similar-words")(similar_words)


def similar_words(
    context: typer.Context,
    sources: Annotated[list[Path] | None, typer.Argument(
        show_default=False, help="Text, jsonl, csv, tsv or parquet files, folders of them, WebDataset directories.")] = None,
    out: Annotated[Path, typer.Option(
        metavar="FILE", help="The file to write: a word and its similar words a line, with tabs between them.")] = ...,  # type: ignore[assignment]
    vectors: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Word vectors of word2vec (text or binary) or GloVe, instead of texts.")] = None,
    segment: Annotated[str | None, typer.Option(metavar="jieba", help="Find the words of Chinese texts.")] = None,
    kind: Annotated[str | None, typer.Option(
        metavar="text|words", help="text, or words: tables and CoNLL files with lists of words. Default: text.")] = None,
    tokenizer: Annotated[str | None, typer.Option(
        metavar="TOKENIZER", help="List only words with as many tokens in this tokenizer.")] = None,
    size: Annotated[int, typer.Option(min=3, help="Words of the vocabulary.")] = 20_000,
    min_count: Annotated[int, typer.Option(min=1, help="Leave rarer words out.")] = 5,
    window: Annotated[int, typer.Option(min=1, help="Words to each side that belong to a word's context.")] = 5,
    dimensions: Annotated[int, typer.Option(min=1, help="Numbers of a vector.")] = 100,
    top: Annotated[int, typer.Option(min=1, help="Similar words of a word.")] = 10,
    least: Annotated[float, typer.Option(min=-1, max=1, help="The smallest cosine of similar words.")] = 0.3,
    split: Annotated[str, typer.Option(
        metavar="blank|line|file", help="Where a plain text is cut into documents: blank (lines), line, file.")] = "blank",
    text_field: Annotated[str, typer.Option(metavar="COLUMN", help="Column or JSON field with the text.")] = "text",
    json: Json = False,
) -> None:
    """Find words that are used alike in a corpus, for MacBERT's objective.similar.

    \b
    polymodal similar-words texts.jsonl --segment jieba --tokenizer TOKENIZER --out similar.tsv
    polymodal similar-words --vectors vectors.txt --out similar.tsv
    """
    import time

    from ...shared.errors import BadSample, UserError
    from ...shared.tokenizer import Tokenizer
    from ...text.word_vectors import read_vectors
    from ..base.console import Console
    from ..base.files import write_atomic
    from ..pack.settings import Reading
    from ..pack.similar import SimilarSettings, corpus_vectors
    from ..pack.similar import similar_words as find

    console = Console(json=json)
    began = time.perf_counter()
    if bool(sources) == (vectors is not None):
        raise UserError("give texts, or word vectors with --vectors, one of them")
    for name in OF_TEXTS if vectors is not None else ():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(f"--{name.replace('_', '-')} is about texts and has no effect with --vectors: leave it out")
    if kind not in (None, "text", "words"):
        raise UserError(f"--kind {kind!r} is unknown here, expected text or words")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"--out {out} is no file that can be written: name one in a folder that is there")
    settings = SimilarSettings(size, min_count, window, dimensions, top, least)
    tok = None if tokenizer is None else Tokenizer.load(tokenizer)
    try:
        if vectors is not None:
            given = read_vectors(vectors)
            words, found = list(given.words), given.vectors
        else:
            words, found = corpus_vectors(sources or [], Reading(kind, split, text_field, segment=segment), settings, console.warn)
    except BadSample as error:
        raise UserError(str(error)) from None
    lines = ["\t".join([word, *others]) for word, others in find(words, found, settings, tok)]
    if not lines:
        raise UserError(f"none of the {len(words)} words has a similar one: lower --least, or give more text")
    write_atomic(out, "".join(f"{line}\n" for line in lines).encode("utf-8"))
    seconds = round(time.perf_counter() - began, 3)
    console.finish({"out": str(out), "words": len(words), "entries": len(lines), "seconds": seconds},
                   f"{out}: {len(lines)} of {len(words)} words have similar ones ({seconds:.1f} s)")
