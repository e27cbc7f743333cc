"""`polymodal systems | generate | embed`: what there is, text from a model, vectors from a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..base.options import DataOn, DataOnBad, DataWorkers, Device, IgnoreGenerationConfig, Json, Model, ModelTokenizer, Quantize, RayAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from ...seq2seq.generation.batch import GeneratedText
    from ...seq2seq.generation.examples import FewShotPrompt
    from ...seq2seq.generation.options import GenerationSettings
    from ...shared.tokenizer import Tokenizer

ORDER = 50


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("systems")(systems)
    app.command("generate")(generate)
    app.command("embed")(embed)


def systems(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of the README.")] = False,
    json: Json = False,
) -> None:
    """List every system that can be pretrained."""
    from ..base.console import Console
    from ..model.listing import systems as known

    rows = known()
    heads = ("name", "folder", "year", "objective", "tasks", "sizes", "reference")
    table = [heads, *((r.name, r.folder, str(r.year), r.objective, " ".join(r.tasks) or "-", " ".join(r.sizes), r.reference) for r in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
    text = "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in table)
    if markdown:
        from ..model.listing import readme_table

        text = readme_table().rstrip()
    Console(json=json).finish({"systems": [r.to_dict() for r in rows]}, text)


def generate(
    inputs: Annotated[list[str] | None, typer.Argument(
        metavar="[FILE|FOLDER|TEXT|-]...", show_default=False,
        help="Prompts: files with one a line, tables (jsonl, csv, tsv, parquet) with a field text, folders of them, texts, or - for stdin. "
             "None on a terminal: asks for prompts until Ctrl-D.")] = None,
    model: Model = ...,  # type: ignore[assignment]
    tokenizer: ModelTokenizer = None,
    whole: Annotated[bool, typer.Option("--whole", help="A file (or stdin) is one prompt, of all its lines.")] = False,
    examples: Annotated[Path | None, typer.Option(
        metavar="FILE", help="A table (jsonl, csv, tsv, parquet) with the columns prompt and answer: its rows stand before each prompt, "
                             "the first ones that have room. A text then ends at a blank line; not with --stop, nor with beams.")] = None,
    template: Annotated[str | None, typer.Option(
        help="With --examples: what becomes of each prompt, such as 'Question: {prompt}\\nAnswer:' (\\n for a new line). "
             "An answer follows behind a space. Default: {prompt}.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Default: 50, or what the model's positions leave.")] = None,
    min_new_tokens: Annotated[int | None, typer.Option(min=0, help="Do not end a text before N tokens. Default: 0.")] = None,
    do_sample: Annotated[bool | None, typer.Option(
        "--do-sample/--no-do-sample", help="Draw tokens; else the most probable one each time. Default: draw where one of the next four "
                                           "is given.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Divides the logits before drawing. Default: 1.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k most probable tokens; 0 for all. Default: 50.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the most probable tokens that reach p. Default: 1.")] = None,
    min_p: Annotated[float | None, typer.Option(
        help="Draw among tokens with this fraction of the best one's probability. Default: 0.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(
        help="Above 1: tokens that occurred become less probable. Default: 1.")] = None,
    no_repeat_ngram_size: Annotated[int | None, typer.Option(
        min=0, help="No N tokens in a row occur twice; 0, the default: no limit.")] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Number of beams. Default: 1, no beam search.")] = None,
    num_return_sequences: Annotated[int | None, typer.Option(
        min=1, help="Texts for each prompt: draws, or the best beams. Default: 1.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Of beams: above 0 favours long texts. Default: 1.")] = None,
    early_stopping: Annotated[str | None, typer.Option(
        metavar="true|false|never",
        help="Of beams: end with enough texts, when a better one is unlikely (the default), or impossible.")] = None,
    ignore_generation_config: IgnoreGenerationConfig = False,
    stop: Annotated[list[str] | None, typer.Option(help="A text ends before this (\\n for a new line); may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws. Default: another one each time; the results tell it.")] = None,
    logprobs: Annotated[int | None, typer.Option(
        min=0, metavar="N", help="With --json, --json-lines or --out: the log-probability of each token, and of the N most probable "
                                 "ones.")] = None,
    truncate: Annotated[bool, typer.Option(
        "--truncate", help="Read only the end of a prompt that leaves no room for the new tokens; else it is refused.")] = False,
    json_lines: Annotated[bool, typer.Option(
        "--json-lines", help="Write each text to stdout as a line of JSON as soon as it is there, with the number of its prompt.")] = False,
    out: Annotated[Path | None, typer.Option(
        help="Write the texts to a .jsonl file instead of stdout, one a line. A killed run continues when it is run again.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that run together.")] = 16,
    device: Device = None,
    quantize: Quantize = None,
    json: Json = False,
) -> None:
    """Continue texts with a language model."""
    import sys
    import time

    from ...seq2seq.generation.defaults import settings_of
    from ...seq2seq.generation.examples import PROMPT, Examples, ending
    from ...seq2seq.generation.generate import generate_texts
    from ...seq2seq.generation.options import GenerationOptions
    from ...shared.decoder import EncoderDecoder
    from ...shared.errors import UserError
    from ..base.console import Console
    from ..base.files import json_line
    from ..base.inputs import documents
    from ..inference.generated import check_out, cut_line, generate_into, read_examples, records, shown_of, texts_of
    from ..model.frontdoor import for_inference
    from ..model.open import choose_device, fingerprint, open_text_model

    choices: dict[str, Any] = {"true": True, "false": False, "never": "never"}
    if early_stopping is not None and early_stopping not in choices:
        raise UserError(f"--early-stopping is {early_stopping!r}, expected true, false or never")
    given = {
        "max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "do_sample": do_sample, "temperature": temperature,
        "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size, "num_beams": num_beams, "num_return_sequences": num_return_sequences,
        "length_penalty": length_penalty,
        "early_stopping": None if early_stopping is None else choices[early_stopping], "seed": seed,
        "stop_strings": tuple(map(_unescaped, stop)) if stop else None,
        "logprobs": logprobs, "truncate": truncate or None}
    options: GenerationOptions = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]
    if out is not None:
        check_out(out)
    if template is not None and examples is None:
        raise UserError("--template is for the prompts behind --examples: give both, or neither")
    shots = None if examples is None else Examples(read_examples(examples), PROMPT if template is None else _unescaped(template))
    if json_lines and (json or out is not None):
        raise UserError("--json-lines, --json and --out say where the results go: leave all but one out")
    if logprobs is not None and not (json_lines or json or out is not None):
        raise UserError("--logprobs is told by --json, --json-lines and --out: give one of them")
    screen = not (json or json_lines) and out is None and sys.stdout.isatty()
    interactive = not inputs and screen and sys.stdin.isatty()
    console = Console(json=json or json_lines)
    prompts = [] if interactive else [d.text for d in documents(inputs, lines=not whole, warn=console.warn)]
    place = choose_device(device, quantize)
    loaded, vocabulary = open_text_model(model, tokenizer, place)
    identity = {} if out is None else {
        "model": fingerprint(loaded, vocabulary.fingerprint), "quantize": quantize, "device": place.partition(":")[0]}
    settings = settings_of(loaded, options, ignore=ignore_generation_config)
    side_by_side = settings.copies * (1 if interactive else min(batch_size, len(prompts)))
    loaded = for_inference(loaded, cast("Any", quantize), prepack=True, rows=side_by_side)
    asked: list[str | FewShotPrompt] = list(prompts)
    ask: Callable[[str], str] = str
    if shots is not None:
        settings, taken = ending(settings), shots
        few = taken.before(prompts, loaded, vocabulary, settings)
        asked, ask = list(few), lambda prompt: taken.before([prompt], loaded, vocabulary, settings)[0].text
        if line := taken.lacking(few):
            console.warn(line)
    if interactive:
        _converse(loaded, vocabulary, settings, ask)
        return
    answers = isinstance(loaded, EncoderDecoder)  # what an encoder-decoder writes stands alone; a decoder continues its prompt
    if screen and len(prompts) == 1 and settings.copies == 1:
        _stream(loaded, vocabulary, texts_of(asked)[0], settings, "" if answers else shown_of(asked[0]))
        return
    if out is not None:
        count = generate_into(out, loaded, asked, vocabulary, settings, identity, batch_size=batch_size, console=console)
        console.finish({"model": model, "prompts": len(prompts), "texts": count, "out": str(out)}, f"{count} texts: {out}")
        return
    results: dict[int, list[dict[str, Any]]] = {}

    def keep(batch: Mapping[int, list[GeneratedText]]) -> None:
        for number, written in batch.items():
            results[number] = records(loaded, asked[number], written)
            for line in results[number] if json_lines else ():
                print(json_line({"number": number, **line}), flush=True)

    begun = time.perf_counter()
    with console.progress("generating", len(prompts)) as bar:
        generate_texts(loaded, texts_of(asked), vocabulary, settings, batch_size=batch_size, advance=bar.advance, keep=keep)
    told = [line for number in range(len(prompts)) for line in results[number]]
    if line := cut_line(told):
        console.warn(line)
    if not json_lines:
        console.finish({"model": model, "seconds": round(time.perf_counter() - begun, 3), "results": told},
                       "\n\n".join(r["text"] for r in told))


def _unescaped(text: str) -> str:
    """What was typed, with line ends and tabs for their names."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _stream(model: nn.Module, tokenizer: Tokenizer, prompt: str, settings: GenerationSettings, before: str = "") -> None:
    """Print a continuation as it is written, behind `before`; nothing, where the prompt cannot be continued."""
    import sys

    from ...seq2seq.generation.generate import generate_texts

    opening = [before]

    def show(piece: str) -> None:
        print(*opening, piece, sep="", end="", flush=True)
        opening.clear()

    ((written,),) = generate_texts(model, [prompt], tokenizer, settings, stream=show)
    show("\n")
    if written.cut_tokens:
        print(f"warning: the first {written.cut_tokens} tokens of the prompt were not read", file=sys.stderr)


def _converse(model: nn.Module, tokenizer: Tokenizer, settings: GenerationSettings, ask: Callable[[str], str]) -> None:
    """Ask for prompts and write the continuations of what `ask` makes of them, until Ctrl-D; Ctrl-C ends one continuation."""
    import sys
    from contextlib import suppress

    from ...seq2seq.generation.generate import generate_texts
    from ...shared.errors import UserError

    with suppress(ImportError):  # line editing and history
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]

    print("A prompt a line; Ctrl-C ends a text, Ctrl-D ends all.", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        if not prompt.strip():
            continue
        try:
            if settings.copies == 1:
                _stream(model, tokenizer, ask(prompt), settings)
            else:
                print("\n\n".join(w.text for w in generate_texts(model, [ask(prompt)], tokenizer, settings)[0]))
        except KeyboardInterrupt:
            print()
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def embed(
    inputs: Annotated[list[str] | None, typer.Argument(
        metavar="[FILE|FOLDER|TEXT|-]...", show_default=False,
        help="Files with one text a line, tables (jsonl, csv, tsv, parquet) with a field text, folders of them, texts, or - for stdin; "
             "pictures for CLIP, ViT, MAE and BEiT.")] = None,
    model: Model = ...,  # type: ignore[assignment]
    tokenizer: ModelTokenizer = None,
    data: Annotated[str | None, typer.Option(
        metavar="DATA", help="Embed a packed data set (folder or address) instead, into --out. A killed run "
                                             "continues when it is run again.")] = None,
    of: Annotated[str | None, typer.Option(metavar="text|image", help="With --data: what becomes vectors. Default: what there is.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the vectors to a .npy array [N, D] or to .jsonl instead of stdout.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="At most N tokens of a text; the rest is cut off. Default: the "
                                                             "model's limit.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Leave the vectors' lengths as they are, instead of 1.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts that run together.")] = 32,
    device: Device = None,
    on_bad: DataOnBad = "raise", workers: DataWorkers = None, on: DataOn = "local", ray_address: RayAddress = None,
    json: Json = False,
) -> None:
    """Turn texts into vectors, or pictures with CLIP, ViT, MAE or BEiT."""
    from functools import partial

    from ...shared.errors import UserError
    from ..base.console import Console
    from ..base.files import write_atomic
    from ..base.inputs import documents, picture_files
    from ..crew.pieces import Workers
    from ..inference.bulk import full, opened, run_over, said
    from ..inference.embed import embed_pictures, embed_texts, length_of
    from ..inference.embedded import Maker
    from ..inference.embedded import write as write_array
    from ..inference.runners import VECTOR, Embed, chosen_field
    from ..model.open import open_model, open_text_model

    if out is not None and out.suffix not in (".npy", ".jsonl"):
        raise UserError(f"--out {out} must end in .npy or .jsonl")
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first")
    console = Console(json=json)
    crew = Workers(workers, on, ray_address)
    if data is not None:
        samples, file = opened(data, inputs or (), out, (".npy", ".jsonl"))
        work = Embed(full(model), chosen_field(samples.index.fields, model, of), None if tokenizer is None else full(tokenizer), max_length,
                     not raw, batch_size)
        done = run_over(samples, data, work, file, array=VECTOR if file.suffix == ".npy" else None, device=device, on_bad=on_bad,
                        workers=crew, console=console)
        dimension = done.shapes[VECTOR][0]
        console.finish({"model": model, "data": data, "dimension": dimension, "out": str(file), **said(done, console)},
                       f"{done.count} vectors of {dimension} numbers: {file}")
        return
    if of is not None or crew != Workers():
        raise UserError("--of, --workers and --on belong to --data: pack the files into a data set first, or leave these options out")
    pictures = picture_files(inputs or [], console.warn)
    if pictures:
        names = [str(p) for p in pictures]
        loaded = open_model(model, device)
        with console.progress("embedding", len(names)) as bar:
            vectors = embed_pictures(loaded, pictures, batch_size=batch_size, normalize=not raw, advance=bar.advance)
        identify = partial(Maker.found, loaded, full(model))
    else:
        names = [d.text for d in documents(inputs, lines=True, warn=console.warn)]
        loaded, vocabulary = open_text_model(model, tokenizer, device)
        limit = max_length or length_of(loaded)
        with console.progress("embedding", len(names)) as bar:
            vectors = embed_texts(loaded, names, vocabulary, max_length=limit, batch_size=batch_size, normalize=not raw,
                                  advance=bar.advance)
        identify = partial(Maker.found, loaded, full(model), vocabulary, limit)
    kind = "image" if pictures else "text"
    facts: dict[str, Any] = {"model": model, "count": len(names), "dimension": vectors.shape[1]}
    if out is not None:
        if out.suffix == ".npy":
            write_array(out, names, vectors.numpy(), identify())
        else:
            write_atomic(out, "".join(line + "\n" for line in _lines(kind, names, vectors.tolist())).encode("utf-8"))
        console.finish({**facts, "out": str(out)}, f"{len(names)} vectors of {vectors.shape[1]} numbers: {out}")
    elif json:
        console.finish({**facts, "results": [{kind: n, "embedding": v} for n, v in zip(names, vectors.tolist())]})
    else:
        for line in _lines(kind, names, vectors.tolist()):
            console.say(line)


def _lines(kind: str, names: list[str], vectors: list[list[float]]) -> list[str]:
    from ..base.files import json_line

    return [json_line({kind: n, "embedding": v}) for n, v in zip(names, vectors)]
