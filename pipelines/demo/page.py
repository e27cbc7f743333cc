"""The page that `polymodal demo` writes about itself."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from ..inspection import page
from ..inspection.report import run_parts
from ..run.directory import open_run
from ..run.environment import describe_environment
from .data import Concept
from .story import COMPARED, Story

_SHOWN = 48
_NAMES = {"clip": "CLIP", "gpt2": "GPT-2", "bert": "BERT"}


def write_page(story: Story, concepts: list[Concept]) -> Path:
    """Write report.html: results, pictures with predicted and true names, runs, samples, commands."""
    results = story.results
    machine = describe_environment()
    sheet = page.Page(
        "polymodal: the demo",
        f"From raw files to three trained systems in {results['seconds'] / 60:.1f} minutes on {os.cpu_count()} CPU cores "
        f"({machine['processor']}), {machine['started'][:10]}, torch {machine['torch']}, Python {platform.python_version()}.",
    )
    sheet.section("Results", page.cards(_cards(results)), page.paragraph(_caveat(results), soft=True))
    sheet.section("Zero-shot: pictures of concepts it never saw", *_zero_shot(story, concepts))
    sheet.section("CLIP: the run", *run_parts(open_run(story.out / "runs/clip")))
    sheet.section("GPT-2: generated text", *[page.sample([("prompt", p), ("continuation", t)]) for p, t in _generated(results)])
    sheet.section("GPT-2: the run, killed and resumed", *_kill(results["kill"]),
                  *run_parts(open_run(story.out / "runs/gpt2"), {"unigram": results["gpt2_unigram"]}))  # fmt: skip
    sheet.section("BERT: the run", *run_parts(open_run(story.out / "runs/bert"), {"unigram": results["bert_unigram"]}))
    sheet.section("Time", *_time(story))
    sheet.section("The commands", page.paragraph("Everything above came from these, in this order:"), page.code("\n".join(story.commands)))
    path = story.out / "report.html"
    sheet.save(path)
    return path


def _cards(results: dict[str, Any]) -> list[tuple[str, str]]:
    zero = results["zero_shot"]
    gpt2, bert = np.exp(results["gpt2"]["eval"]["loss"]), np.exp(results["bert"]["eval"]["loss"])
    kill = results["kill"]
    return [
        (f"{zero['top1']:.3f}", f"CLIP zero-shot top-1 on {len(zero['guesses'])} unseen concepts (chance {zero['chance_top1']:.3f})"),
        (f"{zero['top5']:.3f}", f"top-5 (chance {zero['chance_top5']:.3f})"),
        (f"{gpt2:.1f}", f"GPT-2 held-out perplexity (unigram baseline {np.exp(results['gpt2_unigram']):.1f})"),
        (f"{bert:.1f}", f"BERT held-out masked perplexity (unigram baseline {np.exp(results['bert_unigram']):.1f})"),
        (COMPARED[kill["identical"]], f"{kill['computed_twice']} logged losses, before SIGKILL and again after it"),
    ]


def _caveat(results: dict[str, Any]) -> str:
    rest, concepts = results["zero_shot"]["without_variants"], results["concepts"]
    return (
        f"One seed, one split by concept: {concepts['training']} concepts to train on, {concepts['held_out']} others to name; "
        f"with so few, one standard deviation of top-1 is about 0.04. The text tower was trained before, by others, on far more text; "
        f"the image tower began with random weights. Leaving out held-out people whose man, woman or person variant was trained on, "
        f"{rest['concepts']} concepts remain: top-1 {rest['top1']:.3f}, top-5 {rest['top5']:.3f}."
    )


def _time(story: Story) -> list[str]:
    rows = [
        (_NAMES[name], part["updates"], part["planned"], f"{part['update_s']:.2f}", f"{part['seconds']:.0f}", f"{part['ended']:.0f}",
         "no limit" if part["ends"] is None else f"{part['ends']:.0f}", part["ending"])
        for name, part in story.parts.items()
    ]  # fmt: skip
    return [
        page.paragraph(
            "The first updates of each run are timed, and its length is chosen so that its learning rate is down when the time of the "
            "part is up. On a slow machine the runs are shorter, and their results are worse."
        ),
        page.table(("run", "updates", "planned", "seconds for an update", "seconds", "ended at second", "to end by", "ending"), rows),
    ]


def _zero_shot(story: Story, concepts: list[Concept]) -> list[str]:
    guesses: dict[str, list[str]] = story.results["zero_shot"]["guesses"]
    items: list[tuple[bytes, str, list[tuple[str, str]]]] = []
    for concept in concepts[:: max(1, len(concepts) // _SHOWN)][:_SHOWN]:
        found = guesses[concept.name]
        rank = found.index(concept.name) + 1 if concept.name in found else 0
        picture = (story.out / "raw/pictures-held-out" / f"{concept.path.stem}.png").read_bytes()
        lines = [(found[0], "good" if rank == 1 else "bad")]
        if rank != 1:
            lines.append((f"is: {concept.name}" + (f" (guess {rank})" if rank else ""), "soft"))
        items.append((picture, concept.name, lines))
    return [
        page.paragraph(
            f"Every picture is compared with all {len(guesses)} held-out names. Shown is a fixed part of them, chosen by position: "
            "the model's first guess, green where it is right, and otherwise the true name."
        ),
        page.pictures(items),
        page.paragraph("Pictures: OpenMoji 17, CC BY-SA 4.0, openmoji.org.", soft=True),
    ]


def _kill(kill: dict[str, Any]) -> list[str]:
    again = f"the {kill['computed_twice']} losses that it logged a second time were"
    said = {True: f"{again} bit for bit the same", False: f"{again} NOT the same", None: "its time was up before it logged a loss again"}
    return [
        page.paragraph(
            f"The process got SIGKILL after update {kill['killed_after']}. The run was started again: it resumed from the "
            f"checkpoint of update {kill['resumed_from']}, and {said[kill['identical']]}."
        )
    ]


def _generated(results: dict[str, Any]) -> list[tuple[str, str]]:
    return [(g["prompt"], g["continuation"]) for g in results["generated"]["results"]]
