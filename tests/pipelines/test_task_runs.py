"""Every task of encoders from the command line, as a user has it: pack, finetune, a kill, the same command again, evaluate, use."""

from __future__ import annotations

import json
import signal
import time
from itertools import pairwise

import processes
import pytest
from polymodal.pipelines.run.directory import Run
from polymodal.shared.tokenizer import Tokenizer

WORDS = ["red", "green", "blue", "cat", "dog", "house", "tree", "runs", "sleeps", "and", "the", "small", "large", "old", "new"]
TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SETTINGS = ["objective={}", "max_updates=60", "data.global_batch=4", "data.window=16", "precision=32", "accelerator=cpu", "log.every=5",
            "log.tensorboard=false", "evaluate.every=20", "checkpoint.every=5", "checkpoint.keep_best=true", "model.hidden_size=32",
            "model.num_attention_heads=2", "model.intermediate_size=32", "model.max_position_embeddings=42", "optim.layer_decay=0.8"]
ROWS = {
    "labels": lambda n, a, b: {"text": f"{a} {b}", "labels": sorted({a[0], b[0]})[:n % 3]},
    "score": lambda n, a, b: {"text": f"{a} {b}", "score": n / 3},
    "tag": lambda n, a, b: {"words": [a, b, "the"], "tags": ["B-X", "I-X", "O"] if n % 2 else ["O", "B-Y", "O"]},
    "choice": lambda n, a, b: {"text": a, "choices": [b, "old", "new"][:2 + n % 2], "label": n % 2},
    "span": lambda n, a, b: {"question": "which", "context": f"the {a} and {b}",
                             "answers": [{"text": a, "answer_start": 4}] if n % 3 else []},
}
"""A row of each kind of data."""
CLASSES = {"labels": ["--classes", ",".join(sorted({word[0] for word in WORDS}))], "tag": ["--classes", "B-X,B-Y,I-X,O"]}
MONITORS = {"labels": "micro_f1", "score": "pearson", "tag": "entity_f1", "choice": "accuracy", "span": "exact_windows"}
USES = {"labels": ["classify", "red cat"], "score": ["classify", "red cat"], "tag": ["tag", "red cat"],
        "span": ["answer", "which", "the cat"]}
"""The commands that use the network; `choice` has none."""


def run(*words):
    """A command that must succeed, and what it says as JSON."""
    return json.loads(processes.polymodal(*words, "--json", env=ONE_THREAD).check().out.splitlines()[-1])


def rows_of(directory):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(directory).metrics()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_a_task_from_the_command_line(kind, tmp_path):
    pairs = [*pairwise(WORDS), *pairwise(reversed(WORDS))]
    for name, part in (("data", pairs[6:]), ("held", pairs[:6])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(ROWS[kind](n, a, b)) + "\n" for n, (a, b) in enumerate(part)))
        run("pack", tmp_path / f"{name}.jsonl", "--kind", kind, "--out", tmp_path / name, *CLASSES.get(kind, []))
    Tokenizer.train([" ".join(WORDS)] * 20, "wordpiece", 60).save(tmp_path / "tok")
    task = "classify" if kind == "labels" else kind
    settings = [part for s in [*SETTINGS, f"task={task}", f"evaluate.monitor={MONITORS[kind]}"] for part in ("--set", s)]

    def line(out):
        return ["pretrain", "bert-tiny", "--data", tmp_path / "data", "--eval-data", tmp_path / "held", "--tokenizer", tmp_path / "tok",
                "--out", tmp_path / out, *settings]

    killed = processes.polymodal(*line("run"), env=ONE_THREAD)
    end = time.monotonic() + 120
    while time.monotonic() < end and killed.poll() is None and not any(r["update"] >= 10 for r in Run(tmp_path / "run").metrics("train")):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it ended before it could be killed"
    again, whole = run(*line("run")), run(*line("whole"))
    assert again["updates"] == whole["updates"] == 60 and rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")
    record = run("evaluate", task, "--model", tmp_path / "run", "--data", tmp_path / "held", "--predictions", tmp_path / "lines.jsonl")
    assert record["data"]["measured"] == 6 == len((tmp_path / "lines.jsonl").read_text().splitlines()) and record["metrics"]
    if kind in USES:
        command, *words = USES[kind]
        assert run(command, *words, "--model", tmp_path / "run")["results"]
