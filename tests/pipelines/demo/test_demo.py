"""The demo's data and, slowly, the demo itself; its page in a browser."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import browser
import numpy as np
import pytest
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.demo import data
from polymodal.pipelines.demo.demo import demo, train, unigram_loss
from polymodal.pipelines.demo.pace import Pace, Part, plan
from polymodal.pipelines.demo.story import Story
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer


def test_pythons_documentation_is_plain_text() -> None:
    documents = list(islice(data.python_documents(), 250))
    assert len(documents) > 200 and sum(map(len, documents)) > 1_000_000
    assert documents[:130] == list(islice(data.python_documents(), 130)), "the same text every time: 80 topics, and modules"
    assert not any(line.strip("= ") == "" and "===" in line for d in documents for line in d.splitlines()), "underlines are layout"


def test_concepts_have_one_name_each_and_no_flags_or_skin_tones() -> None:
    concepts = data.openmoji_concepts()
    names = [c.name for c in concepts]
    assert len(names) == len(set(names)) > 1500
    assert not any("skin tone" in n or n.startswith("flag:") for n in names)
    assert data.Concept("woman farmer", Path()).stem == data.Concept("man farmer", Path()).stem == "farmer"


def test_the_split_is_by_concept() -> None:
    concepts = data.openmoji_concepts()
    train, held_out = data.split_concepts(concepts, 150, seed=0)
    assert len(held_out) == 150 and len(train) + 150 == len(concepts)
    assert not {c.name for c in train} & {c.name for c in held_out}
    assert data.split_concepts(concepts, 150, seed=1)[1] != held_out


def test_unigram_loss_is_the_cross_entropy_of_token_frequencies(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(["a a a b b c"] * 30))
    tok = Tokenizer.train(["a a a b b c"] * 30, "word", 50, style=None)
    pack(texts, tmp_path / "train", PackSettings(tokenizer=tok, block=32))
    pack(texts, tmp_path / "held", PackSettings(tokenizer=tok, block=32, shuffle=3))
    loss = unigram_loss(tmp_path / "train", tmp_path / "held", vocabulary=tok.vocab_size)
    share = np.array([3, 2, 1, 1]) / 7  # a, b, c and the end of each document
    assert math.isclose(loss, -(share * np.log(share)).sum(), rel_tol=0.03), "smoothing changes little"


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        demo(tmp_path, Console(quiet=True), lambda _: pytest.fail("a command ran"))
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize("update", [0.01, 0.3, 0.6, 1.5])
def test_a_part_is_planned_to_end_in_its_time(update: float) -> None:
    part, pace = Part(360, ends=165), Pace(update, evaluation=0.4, start=6.0, made=20)
    found = plan(part, pace, now=40.0, starts=pace.start)
    took = (found.updates - pace.made) * update + 6 * pace.evaluation  # the first updates are made
    assert found.seconds == 165 - 40 - 6 and took <= found.seconds
    assert found.updates == 360 or took > 0.9 * found.seconds - update, "the time is used"


def test_a_machine_that_is_too_slow_makes_the_fewest_updates_and_its_run_has_an_end() -> None:
    found = plan(Part(360, ends=165), Pace(20.0, 1.0, 30.0, made=3), now=160.0, starts=30.0)
    assert found.updates == 60 and found.seconds == 1.0
    assert found.limit(spent=9.0) == ["--max-seconds", "1"]
    endless = plan(Part(4, math.inf, first=2), Pace(20.0, 1.0, 30.0, made=3), now=1e6, starts=30.0)
    assert endless.length() == ["--max-updates", 4, "--set", "evaluate.every=1"] and endless.limit() == []


@pytest.mark.parametrize("ending", ["complete", "out of time"])
def test_a_run_goes_on_from_the_updates_that_were_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str) -> None:
    """The command is a stand-in that writes what a run writes: half a second for an update."""
    commands: list[list[str]] = []

    def invoke(words: Sequence[str]) -> None:
        commands.append(list(words))
        updates = int(words[words.index("--max-updates") + 1])
        run = tmp_path / "runs/clip"
        run.mkdir(parents=True, exist_ok=True)
        rows = [{"split": "train", "update": updates, "step_s": 0.5}, {"split": "eval", "update": updates, "seconds": 0.25}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"update {updates}/{updates}", file=sys.stderr)
        print(json.dumps({"updates": updates, "ending": ending if len(commands) == 2 else "complete"}))

    story = Story(tmp_path, Console(), invoke, limit=200)
    train(story, "clip", Part(360, ends=105), "pretrain", "clip-tiny-locked")
    first, second = commands
    assert first[:4] == ["pretrain", "clip-tiny-locked", "--max-updates", "20"]
    assert first[4:6] == ["--max-seconds", "26"], "a quarter of its time at most"
    updates, seconds = (float(second[second.index(option) + 1]) for option in ("--max-updates", "--max-seconds"))
    assert 104 <= seconds <= 105 and 20 + 0.9 * 105 / 0.5 < updates < 20 + 105 / 0.5
    part = story.parts["clip"]
    assert part["updates"] == part["planned"] == updates and part["most"] == 360 and part["ending"] == ending
    said = capsys.readouterr().out
    assert f"0.50 s for an update, {seconds:.0f} s left for this part: {updates:.0f} updates (fewer than 360, to end in time)" in said
    assert ("out of time: ended cleanly" in said) == (ending != "complete")


def test_steps_and_updates_tell_the_time_that_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polymodal.pipelines.demo.story._EVERY", 0.0)

    def invoke(_: Sequence[str]) -> None:
        print("update 10/360  loss 3.0", file=sys.stderr)
        print("epoch: 1506 samples", file=sys.stderr)
        print("{}")

    story = Story(tmp_path, Console(), invoke, limit=290)
    story.step("CLIP")
    story.command("pretrain", "clip-tiny-locked")
    step, _, line = capsys.readouterr().out.splitlines()
    assert (step, line) == ("[   0 s, 290 s left] CLIP", "         [   0 s, 290 s left] update 10/360  loss 3.0")


@pytest.fixture(scope="module")
def quick_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "polymodal", "demo", "--quick", "--json", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (out / "result.json").write_text(done.stdout.strip().splitlines()[-1])
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_runs_and_its_kill_changes_nothing(quick_demo: Path) -> None:
    result = json.loads((quick_demo / "result.json").read_text())
    assert result["kill"]["identical"] and result["kill"]["computed_twice"] >= 1
    assert result["kill"]["resumed_from"] < result["kill"]["killed_after"]
    assert {name: part["updates"] for name, part in result["parts"].items()} == {"clip": 4, "gpt2": 20, "bert": 4}
    zero = result["zero_shot"]
    assert len(zero["guesses"]) == 150 and 0 <= zero["top1"] <= zero["top5"] <= 1
    assert result["gpt2"]["eval"]["loss"] > 0 and result["bert_unigram"] > 0
    assert Path(result["report"]).stat().st_size > 100_000


@pytest.mark.browser
@pytest.mark.timeout(900)
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize(("scheme", "number"), [("dark", 0), ("light", 1)])
def test_the_page_in_a_browser(quick_demo: Path, tmp_path: Path, width: int, scheme: str, number: int) -> None:
    """No console message, nothing wider than the window, the reader's colours, every picture decoded."""
    # Chromium's own window is never narrower than 500 pixels, a frame may be; it reports to the page around it
    probe = (
        "<script>addEventListener('load', () => { const d = document.documentElement; parent.postMessage(JSON.stringify({"
        "width: d.scrollWidth, window: innerWidth, back: getComputedStyle(document.body).backgroundColor,"
        "broken: [...document.images].filter(i => i.complete && !i.naturalWidth).length, images: document.images.length}), '*') })</script>"
    )
    text = (quick_demo / "report.html").read_text().replace('loading="lazy"', "")
    (tmp_path / "page.html").write_text(text.replace("</head>", probe + "</head>"))
    path = tmp_path / "frame.html"
    path.write_text(
        "<!doctype html><title></title><script>addEventListener('message', e => document.title = e.data)</script>"
        f'<iframe src="page.html" style="width: {width}px; height: 900px; border: 0"></iframe>'
    )
    found = json.loads(browser.said(path, tmp_path / "profile", f"--blink-settings=preferredColorScheme={number}"))
    assert found["width"] <= found["window"] == width, found
    assert found["images"] >= 48 and not found["broken"], found
    brightness = sum(map(int, found["back"].removeprefix("rgb(").removesuffix(")").split(",")))
    assert (brightness < 150) == (scheme == "dark"), found
