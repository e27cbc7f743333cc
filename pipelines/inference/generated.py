"""Continuations of many prompts in one file: a run that is killed goes on when it is given again, with no text lost and none twice.

Texts are kept as they are written, each batch as lines behind the others, in a folder beside the file. The file itself is put into place in
one step, in the order of the prompts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from ..._version import __version__
from ...seq2seq.generation.batch import GeneratedText
from ...seq2seq.generation.defaults import settings_of
from ...seq2seq.generation.examples import PROMPT, Examples, FewShotPrompt
from ...seq2seq.generation.examples import ending as until_blank_line
from ...seq2seq.generation.generate import generate_texts
from ...seq2seq.generation.options import GenerationOptions, GenerationSettings
from ...seq2seq.generation.sampling import seeded
from ...shared.decoder import EncoderDecoder
from ...shared.errors import BadSample, UserError
from ...shared.tokenizer import Tokenizer
from ...shared.unicode import half_character
from ..base.console import Console
from ..base.files import ending, json_line, json_lines, read_json_lines, replace_durably, write_atomic
from ..base.tables import TABLE_ENDINGS, TABLES, rows
from ..crew.crew import claim, keep_same
from ..model.open import fingerprint
from ..model.prepack import PackedLinear
from ..model.quantize import Int8Linear

_FORMAT = 1
_TEXTS = "texts.jsonl"
_SEED = "seed"


def read_examples(path: Path) -> list[tuple[str, str]]:
    """The prompts and answers of a table with the columns `prompt` and `answer`, in its order.

    Raises:
        UserError: the file is no table, or a row lacks one of them.
    """
    if not path.is_file() or ending(path) not in TABLE_ENDINGS:
        raise UserError(f"--examples {path}: expected a file that ends in {', '.join(TABLES)}, with the columns prompt and answer")
    found: list[tuple[str, str]] = []
    for place, row in rows(path):
        if isinstance(row, BadSample):
            raise UserError(str(row))
        prompt, answer = row.get("prompt"), row.get("answer")
        if not (isinstance(prompt, str) and isinstance(answer, str)):
            raise UserError(f"{place}: expected texts in 'prompt' and 'answer'; its fields are {', '.join(map(str, list(row)[:8]))}")
        if reason := half_character(prompt) or half_character(answer):
            raise UserError(f"{place} holds {reason}: mend it or take it out")
        found.append((prompt, answer))
    return found


def records(model: nn.Module, prompt: str | FewShotPrompt, written: Sequence[GeneratedText]) -> list[dict[str, Any]]:
    """What is told of the continuations of a prompt; what an encoder-decoder writes stands alone, examples are only counted."""
    shown, more = shown_of(prompt), {} if isinstance(prompt, str) else {"shots": prompt.shots}
    before = "" if isinstance(model, EncoderDecoder) else shown
    return [{"prompt": shown, **more, "continuation": w.text, "text": before + w.text, **_told(w)} for w in written]


def _told(text: GeneratedText) -> dict[str, Any]:
    """All but the text: why it ended, tokens, and where there are any, what was cut, seed, score and log-probabilities."""
    told: dict[str, Any] = {"finish_reason": text.finish_reason, "prompt_tokens": text.prompt_tokens,
                            "completion_tokens": text.completion_tokens}
    if text.cut_tokens:
        told["cut_tokens"] = text.cut_tokens
    told |= {name: value for name, value in (("seed", text.seed), ("score", text.score)) if value is not None}
    if text.logprobs is not None:
        told["logprobs"] = [asdict(token) | {"top": [dict(zip(("token", "id", "logprob"), other)) for other in token.top]}
                            for token in text.logprobs]
    return told


def cut_line(results: Sequence[Mapping[str, Any]]) -> str:
    """A line for people where prompts were cut at their beginning; else empty."""
    cut = [r["cut_tokens"] for r in results if "cut_tokens" in r]
    return f"{len(cut)} of {len(results)} texts continue a prompt without its beginning, of up to {max(cut)} tokens" if cut else ""


def check_out(out: Path) -> None:
    """Refuse a file that cannot be written, before anything is read."""
    if out.suffix != ".jsonl":
        raise UserError(f"--out {out} must end in .jsonl")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file")


def shown_of(prompt: str | FewShotPrompt) -> str:
    """The prompt without the examples before it."""
    return prompt if isinstance(prompt, str) else prompt.shown


def texts_of(prompts: Sequence[str | FewShotPrompt]) -> list[str]:
    """What the model reads."""
    return [prompt if isinstance(prompt, str) else prompt.text for prompt in prompts]


def generate_into(out: Path, model: nn.Module, prompts: Sequence[str | FewShotPrompt], tokenizer: Tokenizer, settings: GenerationSettings,
                  identity: Mapping[str, Any], *, batch_size: int = 16, console: Console | None = None) -> int:
    """Write the continuations of prompts as lines of JSON, in the order of the prompts; returns how many lines there are.

    Args:
        out: the file; replaced in one step when all is done.
        model: as in `generate_texts`.
        prompts: as there, or with examples before them.
        tokenizer: as there.
        settings: as there. Without a seed, the run draws one, and keeps it after a kill.
        identity: what else a run must have in common with a killed one, to go on from it: plain values that tell the model.
        batch_size: prompts that run together.
        console: where lines and progress go.
    """
    console = console or Console(quiet=True)
    folder = out.with_name(f".{out.name}.parts").absolute()
    lock = claim(folder, f"another process is writing {str(out)!r}: wait for it, or choose another file")
    try:
        texts = texts_of(prompts)
        digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
        keep_same(folder, {"format": _FORMAT, "polymodal": __version__, "prompts": digest, "settings": asdict(settings), **identity})
        settings = _seeded(settings, folder / _SEED)
        kept = folder / _TEXTS
        known: dict[int, list[dict[str, Any]]] = {line["number"]: line["texts"] for line in read_json_lines(kept)}
        if known:
            console.say(f"{len(known)} of {len(prompts)} prompts have their texts from a run that was stopped")
        replace_durably(kept, json_lines({"number": n, "texts": told} for n, told in known.items()))  # without a line that was cut short
        with kept.open("a", encoding="utf-8") as file, console.progress("generating", len(prompts)) as bar:
            bar.advance(len(known))

            def keep(batch: Mapping[int, list[GeneratedText]]) -> None:
                for number, written in batch.items():
                    known[number] = records(model, prompts[number], written)
                    file.write(json_line({"number": number, "texts": known[number]}) + "\n")
                file.flush()
                os.fsync(file.fileno())

            generate_texts(model, texts, tokenizer, settings, batch_size=batch_size, advance=bar.advance, known=tuple(known), keep=keep)
        lines = [line for number in range(len(prompts)) for line in known[number]]
        write_atomic(out, json_lines(lines).encode())
        if line := cut_line(lines):
            console.warn(line)
        shutil.rmtree(folder)
        return len(lines)
    except UserError:
        if not read_json_lines(folder / _TEXTS):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        lock.close()


def _seeded(settings: GenerationSettings, file: Path) -> GenerationSettings:
    """The settings with the seed that is kept in a file, where draws have none of their own."""
    found = seeded(settings)
    if found is settings:
        return settings
    if not file.exists():
        write_atomic(file, str(found.seed).encode())
    return replace(settings, seed=int(file.read_text()))


def generate_file(model: nn.Module, prompts: Sequence[str], out: str | Path, *, tokenizer: Tokenizer, batch_size: int = 16,
                  examples: Sequence[tuple[str, str]] = (), template: str = PROMPT, ignore_generation_config: bool = False,
                  **options: Unpack[GenerationOptions]) -> int:
    """Write the continuations of prompts to a file of JSON lines, in their order; after a kill, the same call goes on.

    A line tells prompt, continuation, text, why it ended (`finish_reason`: stop or length), tokens read and written, and where there are
    any, seed, score and log-probabilities, as `polymodal generate --out` does.

    Args:
        model: a language model from `polymodal.load`, without `quantize` and `prepack`: they hide the weights that a killed run is known
            by.
        prompts: the texts.
        out: a file that ends in .jsonl; put into place in one step when all is done.
        tokenizer: the model's.
        batch_size: prompts that run together.
        examples: as in `polymodal.generate`.
        template: as there.
        ignore_generation_config: as there.
        **options: as there.

    Returns:
        How many lines there are.
    """
    out = Path(out)
    check_out(out)
    if any(isinstance(module, (Int8Linear, PackedLinear)) for module in model.modules()):
        raise UserError("this model's weights are quantized or prepacked, and a killed run is known by them: load it plainly, or run "
                        "`polymodal generate --out`")
    settings = settings_of(model, options, ignore=ignore_generation_config)
    asked: Sequence[str | FewShotPrompt] = prompts
    if examples:
        asked, settings = Examples(examples, template).before(prompts, model, tokenizer, settings), until_blank_line(settings)
    elif template != PROMPT:
        raise UserError("template is for examples: pass examples=[(prompt, answer), ...], or leave it out")
    place = next(model.parameters()).device.type
    return generate_into(out, model, asked, tokenizer, settings,
                         {"model": fingerprint(model, tokenizer.fingerprint), "quantize": None, "device": place}, batch_size=batch_size)
