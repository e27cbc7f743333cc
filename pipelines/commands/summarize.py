"""`polymodal summarize`: summaries of texts of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..base.options import Device, IgnoreGenerationConfig, Json, LengthPenalty, ModelTokenizer, Pieces, Quantize, ReadAtOnce

ORDER = 51


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("summarize")(summarize)


def summarize(
    inputs: Annotated[list[str] | None, typer.Argument(
        metavar="[FILE|FOLDER|TEXT|-]...", show_default=False,
        help="Documents: files (one each; of a table, jsonl, csv, tsv or parquet, the field text of each row), folders of them, texts, "
             "or - for stdin.")] = None,
    model: Annotated[str, typer.Option(metavar="MODEL",
                                       help="Model directory, run, checkpoint, or hub id: a fine-tuned T5, or a GPT-2.")] = ...,  # type: ignore[assignment]
    tokenizer: ModelTokenizer = None,
    lines: Annotated[bool, typer.Option("--lines", help="Every line of a file is a document.")] = False,
    prefix: Annotated[str | None, typer.Option(
        help='What an encoder-decoder reads before each text, such as "summarize: ". Default: what it was trained with.')] = None,
    max_length: ReadAtOnce = None,
    max_new_tokens: Annotated[int | None, typer.Option(
        min=1, help="The longest summary. Default: as trained, or 128; for a decoder 100.")] = None,
    min_new_tokens: Annotated[int, typer.Option(min=0, help="The shortest summary of a piece.")] = 0,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Default: 4; a decoder draws among the 2 best tokens instead.")] = None,
    no_repeat_ngram_size: Annotated[int | None, typer.Option(
        min=0, help="No N tokens in a row occur twice. Default: 3; for a decoder no limit.")] = None,
    length_penalty: LengthPenalty = None,
    ignore_generation_config: IgnoreGenerationConfig = False,
    reference: Annotated[Path | None, typer.Option(
        help="A file with the right summary of each document, one a line; of one document, all of it. Scores: ROUGE, BLEU, chrF.")] = None,
    batch_size: Pieces = 16,
    device: Device = None,
    quantize: Quantize = None,
    json: Json = False,
) -> None:
    """Summarize texts; long ones are cut at sentences and the summaries merged."""
    from ...seq2seq.generation.options import GenerationOptions
    from ..base.console import Console
    from ..base.inputs import documents
    from ..evaluation.scores import read_references, text_scores
    from ..inference.summarize import summaries
    from ..model.open import open_text_model

    console = Console(json=json)
    found = documents(inputs, lines=lines, warn=console.warn)
    wanted = None if reference is None else read_references(reference, len(found))
    chosen = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens or None, "num_beams": num_beams,
              "no_repeat_ngram_size": no_repeat_ngram_size, "length_penalty": length_penalty}
    options: GenerationOptions = {name: value for name, value in chosen.items() if value is not None}  # type: ignore[assignment]
    loaded, vocabulary = open_text_model(model, tokenizer, device, quantize, prepack=True)
    written = summaries(loaded, [d.text for d in found], vocabulary, prefix=prefix, max_length=max_length, batch_size=batch_size,
                        progress=console.progress, ignore_generation_config=ignore_generation_config, **options)
    if empty := sum(not w.text for w in written):
        console.warn(f"{empty} of {len(written)} summaries are empty: was the model fine-tuned to write summaries, and with this prefix?")
    scores = {} if wanted is None else text_scores([w.text for w in written], wanted)
    results: list[dict[str, Any]] = [
        {"source": d.source, "summary": w.text, "rounds": len(w.rounds),
         "pieces": [{"text": p.text, "summary": p.summary} for p in w.rounds[0]]}
        for d, w in zip(found, written)]
    told = [w.text for w in written]
    if scores:
        told.append("  ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    console.finish({"model": model, "results": results} | ({"scores": scores} if scores else {}), "\n\n".join(told))
