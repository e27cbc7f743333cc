"""`polymodal translate`: texts in another language."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..base.options import (
    Device,
    IgnoreGenerationConfig,
    Json,
    LengthPenalty,
    ModelTokenizer,
    Pieces,
    Quantize,
    ReadAtOnce,
    SourceLanguage,
    TargetLanguage,
)

ORDER = 52


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("translate")(translate)


def translate(
    inputs: Annotated[list[str] | None, typer.Argument(
        metavar="[FILE|FOLDER|TEXT|-]...", show_default=False,
        help="Texts: files with one a line, tables (jsonl, csv, tsv, parquet) with a field text, folders of them, texts, or - for stdin.")]
        = None,
    model: Annotated[str, typer.Option(metavar="MODEL", help="Model directory, run, checkpoint, or hub id: an encoder-decoder that was "
                                                             "fine-tuned on pairs.")] = ...,  # type: ignore[assignment]
    tokenizer: ModelTokenizer = None,
    source_language: SourceLanguage = "", target_language: TargetLanguage = "",
    whole: Annotated[bool, typer.Option("--whole", help="A file (or stdin) is one text, of all its lines.")] = False,
    prefix: Annotated[str | None, typer.Option(
        help='What the model reads before each text, such as "translate English to German: ". Default: what it was trained with.')] = None,
    max_length: ReadAtOnce = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="The longest translation of a piece. Default: as trained.")] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Beams of the search; 1 is greedy. Default: 4.")] = None,
    length_penalty: LengthPenalty = None,
    no_repeat_ngram_size: Annotated[int | None, typer.Option(min=0, help="No N tokens in a row occur twice. Default: no limit.")] = None,
    ignore_generation_config: IgnoreGenerationConfig = False,
    reference: Annotated[Path | None, typer.Option(
        help="A file with the right translation of each text, one a line. Scores with BLEU and chrF.")] = None,
    batch_size: Pieces = 16,
    device: Device = None,
    quantize: Quantize = None,
    json: Json = False,
) -> None:
    """Translate texts; long ones are cut at sentences."""
    from ...seq2seq.generation.options import GenerationOptions
    from ..base.console import Console
    from ..base.inputs import documents
    from ..evaluation.scores import read_references, text_scores
    from ..inference.translate import translations
    from ..model.open import open_text_model

    console = Console(json=json)
    found = documents(inputs, lines=not whole, warn=console.warn)
    wanted = None if reference is None else read_references(reference, len(found))
    chosen = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "length_penalty": length_penalty,
              "no_repeat_ngram_size": no_repeat_ngram_size}
    options: GenerationOptions = {name: value for name, value in chosen.items() if value is not None}  # type: ignore[assignment]
    loaded, vocabulary = open_text_model(model, tokenizer, device, quantize, prepack=True)
    written = translations(loaded, [d.text for d in found], vocabulary, source_language=source_language, target_language=target_language,
                           prefix=prefix, max_length=max_length, batch_size=batch_size, progress=console.progress,
                           ignore_generation_config=ignore_generation_config, **options)
    if empty := sum(not text for text in written):
        console.warn(f"{empty} of {len(written)} translations are empty: was the model fine-tuned on pairs, and with this prefix?")
    scores = {} if wanted is None else {name: value for name, value in text_scores(written, wanted).items() if name in ("bleu", "chrf")}
    results: list[dict[str, Any]] = [{"source": d.source, "text": d.text, "translation": text} for d, text in zip(found, written)]
    told = [*written, *(["  ".join(f"{name} {value:.4f}" for name, value in scores.items())] if scores else [])]
    console.finish({"model": model, "results": results} | ({"scores": scores} if scores else {}), "\n".join(told))
