"""Each benchmark runs at a tiny size and both of its sides compute the same thing. Nothing here asserts a time."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.bench import bench, generate, gpu, machine, startup, systems, tokenize, train
from polymodal.pipelines.bench.case import Agreement, Case, Contender, Options
from polymodal.pipelines.bench.race import peak_memory, race
from polymodal.pipelines.bench.report import table
from polymodal.shared.attention.mask import Mask
from polymodal.shared.attention.plan import Plan
from polymodal.shared.errors import UserError
from torch.utils.flop_counter import FlopCounterMode

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks"
TINY = Options(quick=True, repetitions=1)
QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def little_to_collect(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A race collects garbage at every lap, and in a process of tests there is much to look at."""
    gc.freeze()
    with monkeypatch.context() as patched:
        patched.setattr(gc, "unfreeze", lambda: None)
        yield
    gc.unfreeze()


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("train", "serve")), "generate", "attention",
                                  "stream", "tokenize"])
def test_benchmark_runs_and_sides_agree(name: str) -> None:
    record = bench.run([name], TINY, QUIET)
    assert [r.get("error") for r in record["results"]] == [None] * len(record["results"])
    assert record["agreed"] and not record["left_out"]
    for result in record["results"]:
        assert result["agreement"]["difference"] <= result["agreement"]["tolerance"]
        assert result["sides"][0]["name"] == "polymodal"
        assert all(len(s["seconds"]) == 1 and s["min_s"] <= s["median_s"] <= s["max_s"] for s in result["sides"])
    json.loads(json.dumps(record))
    assert table(record).count("\n| ") == 1 + sum(len(r["sides"]) for r in record["results"])


def test_gpu_suite_on_a_cpu() -> None:
    """Every line of the GPU suite but compilation and the CUDA kernels themselves."""
    record = bench.run(["gpu"], TINY, QUIET)
    assert [r for r in record["results"] if "error" in r] == []
    assert record["agreed"]
    checked = [r["case"] for r in record["results"] if not r["sides"]]
    assert {"numerics, Flex: prefix, float32", "numerics, Documents: causal documents, float32", "numerics, Local: window, float32",
            "numerics, Blocks: block table, float32", "numerics, SDPA flash attention, causal, float32"} <= set(checked)


def test_numerics_notice_a_wrong_backend() -> None:
    class Careless(Plan):
        @classmethod
        def supports(cls, mask: Mask, shape: object, bias: object) -> bool:
            return True

        def __init__(self, mask: Mask, shape: object, bias: object) -> None: ...

        def __call__(self, q, k, v, scale=None, dropout=0.0):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    problem = gpu.Problem(Mask(causal=True), 32)
    assert not gpu.compare(partial(gpu.by_plan, Careless), problem).holds


def test_commands_start() -> None:
    first, second = (case for case, _ in zip(startup.cases(TINY), range(2)))
    assert first.agree().holds and second.agree().holds
    assert first.contenders[0].step(first.contenders[0].prepare()) == 0


def test_a_command_that_fails_is_no_result() -> None:
    with pytest.raises(UserError, match="exit code 3"):
        startup.execute(("python", "-c", "raise SystemExit(3)"))


# ------------------------------------------------------------------------------------------ the frame


def test_sides_take_turns_and_every_second_round_runs_backwards() -> None:
    log: list[str] = []
    ticks = iter(range(100))
    sides = [Contender(n, partial(str, n), log.append) for n in "ab"]
    laps = race(sides, 3, warmup=1, clock=lambda: float(next(ticks)))
    assert log == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert [lap.seconds for lap in laps] == [[1.0] * 3] * 2


@pytest.mark.parametrize("difference", [0.2, math.nan])
def test_what_disagrees_is_not_timed(difference: float, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(state: object) -> None:
        raise AssertionError("timed although the sides disagree")

    case = Case("c", "about", "tokens", 1, (Contender("a", int, fail),), lambda: Agreement("it", difference, 0.1))
    record = bench.measure(case, TINY, {}, QUIET)
    assert record["sides"] == [] and not record["agreement"]["holds"]
    assert "nothing is timed" in capsys.readouterr().err


def test_a_case_that_breaks_does_not_cost_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> Agreement:
        raise RuntimeError("kernel")

    fine = Case("fine", "", "tokens", 1, (Contender("polymodal", int, float),), lambda: Agreement("it", 0, 0))
    broken = Case("broken", "", "tokens", 1, fine.contenders, explode)
    monkeypatch.setattr(train, "cases", lambda options: iter([broken, fine]))
    record = bench.run(["train"], TINY, QUIET)
    assert record["results"][0]["error"] == "RuntimeError: kernel" and record["results"][1]["sides"]
    assert not record["agreed"]
    monkeypatch.setattr(train, "cases", lambda options: iter([fine]))
    assert bench.run(["train"], Options(quick=True, repetitions=1, seconds=0), QUIET)["left_out"] == ["fine"]


def _break() -> int:
    raise RuntimeError("no kernel\nfor this")


def _no_room() -> int:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")


def _compile_for_ever() -> int:
    while True:
        time.sleep(0.01)


def _case(*prepare: Callable[[], object], **more: Any) -> Case:
    sides = tuple(Contender(f"side {i}", p, repr) for i, p in enumerate(prepare))
    return Case("c", "", "tokens", 1, sides, lambda: Agreement("it", 0, 0), **more)


def _run(monkeypatch: pytest.MonkeyPatch, *todo: Case, keep: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    monkeypatch.setattr(train, "cases", lambda options: iter(todo))
    return bench.run(["train"], TINY, QUIET, keep)


@pytest.mark.parametrize("apart", [False, True])
def test_a_side_that_fails_does_not_cost_the_others(monkeypatch: pytest.MonkeyPatch, apart: bool) -> None:
    record = _run(monkeypatch, _case(int, _no_room, float, apart=apart))
    (result,) = record["results"]
    assert result["failed"] == {"side 1": "out of memory"}
    assert [s["name"] for s in result["sides"]] == ["side 0", "side 2"] and record["agreed"]
    record = _run(monkeypatch, _case(int, _break, apart=apart))
    assert record["results"][0]["failed"] == {"side 1": "RuntimeError: no kernel"} and not record["agreed"]
    record = _run(monkeypatch, _case(_no_room, int, apart=apart), _case(int))
    assert record["results"][0]["error"] == "side 0: out of memory" and record["results"][1]["sides"] and not record["agreed"]
    assert "| out of memory |" in table(record).replace("side 0: ", "")


@pytest.mark.parametrize("apart", [False, True])
def test_a_case_has_a_limit(monkeypatch: pytest.MonkeyPatch, apart: bool) -> None:
    record = _run(monkeypatch, _case(int, _compile_for_ever, int, limit=1.0, apart=apart))
    assert record["results"][0]["failed"] == {"side 1": "out of time", "side 2": "out of time"}
    assert len(record["results"][0]["sides"]) == 1 and record["agreed"]
    record = _run(monkeypatch, _case(_compile_for_ever, int, limit=0.1, apart=apart), _case(int))
    assert "out of time" in record["results"][0]["error"] and record["results"][1]["sides"]


def test_sides_apart_are_never_in_memory_together() -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Weights:
        def __init__(self) -> None:
            assert not alive
            alive.add(self)

    log: list[Any] = []
    laps = race([Contender(n, Weights, lambda _, n=n: log.append(n)) for n in "ab"], 2, warmup=1, apart=True)
    assert log == ["a"] * 3 + ["b"] * 3 and [len(lap.seconds) for lap in laps] == [2, 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_measured_is_on_disk_whatever_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int) -> None:
    seen: list[int] = []

    def end() -> None:
        seen.append(len(json.loads((tmp_path / "r.json").read_text())["results"]))  # there without any ending
        os.kill(os.getpid(), number)
        time.sleep(5)

    with bench.stoppable():
        record = _run(monkeypatch, _case(int), _case(end), _case(int), keep=partial(bench.save, path=tmp_path / "r.json"))
    assert seen == [1] and record["interrupted"] == "c" and not record["agreed"] and len(record["results"]) == 1
    assert json.loads((tmp_path / "r.json").read_text())["interrupted"] == "c"
    assert table(json.loads((tmp_path / "r.json").read_text())).count("side 0") == 1


def test_a_case_that_cannot_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=16 << 30))
    began, options = time.monotonic(), Options(device="cuda", seconds=60)
    assert bench._left_out(_case(int, needs=24 << 30), options, began) == " (needs 24 GiB, the card has 16)"
    assert bench._left_out(_case(int, needs=8 << 30), options, began) is None
    assert bench._left_out(_case(int), options, began - 61) == ""


def test_published_rates() -> None:
    found = [machine.published_rate(card) for card in
             ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H200", "NVIDIA A100-SXM4-80GB", "NVIDIA L40S", "Tesla T4")]
    assert found == [989e12, 756e12, 989e12, 312e12, 362e12, None]


def test_gpu_suite_measures_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "fast_bfloat16", lambda device: True)
    todo = {t.name: t for t in gpu.trainings(Options(device="cuda"))}
    millions = {name: round(gpu.weight_bytes(t.setup) / 18e6) for name, t in todo.items()}
    assert millions == {"GPT-2 124M, full rows": 124, "GPT 1.3B, full rows": 1314, "BERT large, full rows": 336, "CLIP ViT-L/14": 428,
                        "BERT base, full rows": 110, "CLIP ViT-B/32": 151, "BERT base, natural lengths": 110, "T5 base, full rows": 223,
                        "GPT-2 medium (350M), full rows": 355, "CLIP ViT-B/16": 150}
    assert {t.setup.dtype for t in todo.values()} == {torch.bfloat16} and [n for n, t in todo.items() if t.apart] == ["GPT 1.3B, full rows"]


def test_memory_is_that_of_the_steps() -> None:
    """A step that copies 64 MiB adds 64 MiB, the original does not count."""
    memory = peak_memory(Contender("copy", partial(torch.ones, 16 << 20), torch.clone), steps=1)
    assert 60 <= memory.step_mib <= 100
    assert memory.before_mib >= 64


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="no benchmark 'trian'"):
        bench.run(["trian"], TINY, QUIET)
    with pytest.raises(UserError, match=r"no peer 'webdataset'.*transformers"):
        bench.run(["generate"], Options(quick=True, against="webdataset"), QUIET)
    with pytest.raises(UserError, match="no benchmark knows the peer 'nobody'"):
        bench.run([], Options(quick=True, against="nobody"), QUIET)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            bench.run([], Options(device="cuda"), QUIET)


def test_gpt2_beside_torch_alone_where_it_is_asked_for() -> None:
    record = bench.run(["train"], replace(TINY, against="plain-torch"), QUIET)
    assert record["agreed"] and record["results"]
    assert {tuple(s["name"] for s in r["sides"]) for r in record["results"]} == {("polymodal", "plain-torch")}


# -------------------------------------------------------------------------------------------- the work


MAE = next(i for i, (name, _) in enumerate(train.setups(True)) if name.startswith("MAE"))


@pytest.mark.parametrize("index", [*range(11), MAE, -2, -1])
def test_useful_operations_are_those_that_torch_counts(index: int) -> None:
    """Our own step does the useful work and little else: the formula is within 12 % of torch's count, from below."""
    name, setup = train.setups(True)[index]
    trainer = train.ours(setup)
    with FlopCounterMode(display=False) as counter:
        trainer.loss().backward()
    formula = systems.PAIRINGS[setup.system].flops(setup)
    assert 0.88 <= formula / counter.get_total_flops() <= 1.02, name


def test_padding_is_not_counted() -> None:
    config = next(s.config for _, s in train.setups(True) if s.system == "gpt2")
    flops = [systems.gpt2_flops(systems.TrainSetup("gpt2", config, lengths)) for lengths in ((16, 4), (16, 16))]
    assert flops[0] < 0.7 * flops[1]


def test_other_weights_are_noticed() -> None:
    setup = train.setups(True)[0][1]
    ours, theirs = train.ours(setup), train.theirs(setup)
    with torch.no_grad():
        next(theirs.module.parameters()).mul_(1.01)
    losses = ours.loss().item(), theirs.loss().item()
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


def test_tokenizing_restores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    with tokenize.one_thread():
        pass
    import os

    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_published_tables_are_the_results_files() -> None:
    """Every number in benchmarks/README.md comes from a results file beside it."""
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    files = sorted(RESULTS.glob("*.json"))
    for file in files:
        assert table(json.loads(file.read_text())) in page, f"{file.name}: its table is not in benchmarks/README.md"
    assert page.count("| case |") == len(files)


WRITTEN = [case for case in generate.cases(Options(quick=True)) if case.flops and "greedy" in case.name and "bf16" not in case.name]


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.name)
def test_operations_of_a_continuation(case):
    """Beside what torch counts of the peer's products (it multiplies every pair of a prompt, which a causal mask need not)."""
    writer = case.contenders[1].prepare()
    with FlopCounterMode(display=False) as counter:
        case.contenders[1].step(writer)
    assert 0.9 <= case.flops / counter.get_total_flops() <= 1.02
