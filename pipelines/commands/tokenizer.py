"""`polymodal tokenizer train | show`: learn a vocabulary, look at what one does to a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..base.options import Json

if TYPE_CHECKING:
    from ...shared.family import Vocabulary
    from ...shared.tokenizer import Style

ORDER = 30
_SAMPLE_TEXTS, _SAMPLE_CHARACTERS = 200, 2000


def register(app: typer.Typer) -> None:
    """Add the command group `tokenizer`."""
    group = typer.Typer(no_args_is_help=True, help="Train a tokenizer on your text, or look at one.")
    group.command("train")(train)
    group.command("show")(show)
    app.add_typer(group, name="tokenizer")


def train(
    sources: Annotated[list[Path], typer.Argument(help="Text, jsonl, csv, tsv or parquet files, folders of them, WebDataset directories.")],
    size: Annotated[int, typer.Option(min=1, help="Number of tokens, special tokens included.")],
    out: Annotated[Path, typer.Option(help="Directory to write; must not exist, or be empty.")],
    system: Annotated[str | None, typer.Option(
        "--for", metavar="SYSTEM", help="A system: kind, style, case and accents as its paper has them; the options below win.")] = None,
    kind: Annotated[str | None, typer.Option(metavar="KIND", help="unigram, bpe, wordpiece, byte-bpe, word or char.")] = None,
    style: Annotated[str | None, typer.Option(
        metavar="STYLE", help="Special tokens and templates: bert, roberta, gpt2, clip, albert, t5, xlnet or plain. "
             "Default: bert for wordpiece, gpt2 for byte-bpe, albert for unigram and bpe, plain for word and char.")] = None,
    lowercase: Annotated[bool | None, typer.Option("--lowercase/--cased", help="Fold case. Default: --cased, or as --for has it.")] = None,
    strip_accents: Annotated[bool | None, typer.Option("--strip-accents/--keep-accents", help="Default: with --lowercase.")] = None,
    chinese: Annotated[bool, typer.Option("--chinese/--no-chinese", help="Every Chinese character is a word (wordpiece).")] = True,
    coverage: Annotated[float, typer.Option(help="Share of the corpus' characters that the alphabet covers.")] = 0.9995,
    min_count: Annotated[int | None, typer.Option(
        min=1, help="Leave out rarer words (word, char), merge no rarer pairs (wordpiece, byte-bpe).")] = None,
    split_punctuation: Annotated[bool, typer.Option("--split-punctuation", help="Punctuation marks are words (word).")] = False,
    max_length: Annotated[int | None, typer.Option(min=1, help="Longest input of the models it is for.")] = None,
    split: Annotated[str, typer.Option(metavar="blank|line|file",
                                       help="Where a plain text is cut into documents: blank (lines), line, file.")] = "blank",
    text_field: Annotated[str, typer.Option(metavar="COLUMN", help="Column or JSON field with the text.")] = "text",
    json: Json = False,
) -> None:
    """Learn a vocabulary from text and write a directory that polymodal and transformers load."""
    import time

    from ...shared.tokenizer import Tokenizer
    from ..base.console import Console
    from ..pack.corpus import iterate_texts

    console = Console(json=json)
    wanted = _wanted(system, kind, style, lowercase, strip_accents)
    chosen = _style(wanted.style)
    _check_out(out)
    began = time.perf_counter()
    sample: list[str] = []
    texts, characters = 0, 0
    with console.progress("reading") as bar:

        def counted(source: Iterable[str]) -> Iterator[str]:
            nonlocal texts, characters
            for text in source:
                if len(sample) < _SAMPLE_TEXTS:
                    sample.append(text[:_SAMPLE_CHARACTERS])
                texts += 1
                characters += len(text)
                bar.advance()
                yield text

        read = iterate_texts(sources, split=split, text_field=text_field, warn=console.warn)
        tok = Tokenizer.train(counted(read), wanted.kind, size, style=chosen, lowercase=wanted.lowercase,
                              strip_accents=wanted.strip_accents, chinese=chinese, coverage=coverage, min_count=min_count,
                              split_punctuation=split_punctuation, max_length=max_length)
    tok.save(out)
    rows = tok.encode_batch(sample, add_special_tokens=False)
    tokens = sum(map(len, rows))
    unknown = sum(row.count(tok.unk_id) for row in rows) / max(tokens, 1) if tok.unk_id is not None else 0.0
    result = {"out": str(out), **asdict(wanted), "vocab_size": tok.vocab_size, "fingerprint": tok.fingerprint, "texts": texts,
              "characters": characters, "characters_per_token": sum(map(len, sample)) / max(tokens, 1), "unknown": unknown,
              "seconds": time.perf_counter() - began}
    console.finish(result, f"{out}: {wanted.kind} vocabulary of {tok.vocab_size} tokens from {texts} texts ({characters} characters) in "
                           f"{result['seconds']:.1f} s; {result['characters_per_token']:.2f} characters a token, {unknown:.2%} unknown; "
                           f"fingerprint {tok.fingerprint[:12]}")


def show(
    directory: Annotated[str, typer.Argument(help="Tokenizer directory or file, hub id, or open_clip.")],
    text: Annotated[str, typer.Argument(help="The text.")],
    json: Json = False,
) -> None:
    """Show what a tokenizer makes of a text: ids, tokens, where they came from, where words begin."""
    from ...shared.tokenizer import Tokenizer
    from ..base.console import Console

    console = Console(json=json)
    tok = Tokenizer.load(directory)
    ids, spans = tok.offsets(text)
    starts = tok.whole_words(ids).tolist()
    framed = tok.encode(text)
    tokens = [{"id": i, "token": tok.id_to_token(i), "start": a, "end": b, "text": text[a:b], "word": word}
              for i, (a, b), word in zip(ids, spans, starts)]
    roles = {role: i for role in ("unk", "pad", "cls", "sep", "mask", "bos", "eos") if (i := getattr(tok, f"{role}_id")) is not None}
    console.say(f"{tok!r}")
    console.say("special tokens: " + (", ".join(f"{role} {i} {tok.id_to_token(i)!r}" for role, i in roles.items()) or "none"))
    for row in tokens:
        word = "word" if row["word"] else ""
        console.say(f"{row['id']:>8}  {word:<4}  {row['start']:>4}-{row['end']:<4}  {row['token']!r:<24} {row['text']!r}")
    console.say(f"with special tokens: {framed}")
    console.finish({"ids": framed, "tokens": tokens, "vocab_size": tok.vocab_size, "fingerprint": tok.fingerprint, "roles": roles})


def _wanted(system: str | None, kind: str | None, style: str | None, lowercase: bool | None, strip_accents: bool | None) -> Vocabulary:
    """What is to be learnt: what `--for` says of its system, under the options that are given. An empty style is the kind's own."""
    from ...shared.errors import UserError
    from ...shared.family import Vocabulary

    own = None
    if system is not None:
        from ...registry import families, family

        own = family(system).vocabulary
        if own is None:
            readers = ", ".join(name for name, entry in families().items() if entry.vocabulary is not None)
            raise UserError(f"{system} reads no text and has no vocabulary; --for takes {readers}")
    elif kind is None:
        raise UserError("which kind of vocabulary? Name the system that will read it (--for bert), or a kind (--kind wordpiece)")
    own = own or Vocabulary(kind or "", "")
    return Vocabulary(kind or own.kind, style or own.style, own.lowercase if lowercase is None else lowercase,
                      own.strip_accents if strip_accents is None else strip_accents)


def _style(name: str) -> Style | None:
    """The style called `name`, or an error that suggests the nearest; None for the empty name."""
    import difflib

    from ...shared.errors import UserError
    from ...shared.tokenizer import STYLES

    if not name or name in STYLES:
        return STYLES[name] if name else None
    near = difflib.get_close_matches(name, STYLES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(STYLES)}"
    raise UserError(f"no style of special tokens is called {name!r}; {hint}")


def _check_out(out: Path) -> None:
    """Find out before the work whether its result can be written."""
    import tempfile

    from ...shared.errors import UserError

    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not empty: name another directory with --out, or remove it")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: --out takes a directory")
    parent = next((p for p in out.absolute().parents if p.exists()), Path("/"))
    try:
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; choose a writable place with --out") from None
