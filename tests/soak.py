"""Kill training runs at random and continue them on other ranks and workers; everything must be as if nothing had happened.

    python tests/soak.py --trials 100 [--minutes 30] [--seed 0] [--only gpt2] [--exec] [--json] [--keep DIR]

A trial draws a tiny system, a layout (1 to 4 ranks, ddp or fsdp, micro-batch, workers, asynchronous saving or not) and one to
three kills: SIGKILL for one rank (its agent starts the ranks again, or gives up), for the torchrun agent (its ranks go on for a moment
without it) or for everything; while a start writes recipe.yaml, system.json, environment.json or the tokenizer, at any moment of the
updates, or while a checkpoint is being written. After each it goes on, on the same or on another layout, until the run is complete.
Every rank writes down the samples that it is given. Then

- every update must have had the samples of the uninterrupted run, in its order, and every epoch every sample exactly once;
- losses, gradient norms and final weights must be those of the uninterrupted run: bit for bit where the layout stayed the same (with
  dropout), losses within 1e-5 relative to one process's otherwise (without dropout);
- no checkpoint under its final name may be incomplete, at any time the run stands still.

One line for each trial, and at the end a table of what was killed at which moment, and what was being written then. The first difference
ends the soak with exit code 1 and the command that repeats the trial (what the moment of a kill meets cannot be repeated exactly).

Starting Python and torch takes longer than such a run. Therefore the agents are torchrun's own, run by a fork of this process, and their
ranks are forks, too; `--exec` starts everything by torchrun's command line instead, as a user does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
sys.path.insert(0, str(Path(__file__).parent))

SAMPLES, BATCH, UPDATES = 41, 12, 10
"""The batch divides by 1 to 4 ranks and does not divide the samples, so that epochs end inside an update; as few as show three epochs."""
MOMENTS = ("start", "update", "save")
COMMON = (f"data.global_batch={BATCH}", "data.lanes=12", "data.window=8", f"max_updates={UPDATES}", "log.every=1", "log.tensorboard=false",
          "precision=32", "accelerator=cpu", "optim.name=adamw", "optim.lr=1e-3", "optim.eps=1e-6", "optim.clip=0.5", "schedule.warmup=4",
          "evaluate.every=0", "checkpoint.keep_last=3")
TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")


@dataclass(frozen=True)
class System:
    """A system smaller than its tiny recipe."""

    case: str
    """Its name among the contract's cases, which have its data."""
    recipe: str
    model: tuple[str, ...]
    dropout: tuple[str, ...]
    """Names of its rates of dropout."""
    coupled: bool = False


SYSTEMS = {
    "gpt2": System("gpt2-tiny", "gpt2-tiny", ("n_embd=16", "n_layer=2", "n_head=2", "n_positions=32"),
                   ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
    "bert": System("bert-tiny", "bert-tiny", ("hidden_size=16", "num_hidden_layers=2", "num_attention_heads=2", "intermediate_size=32",
                                              "max_position_embeddings=64"),
                   ("hidden_dropout_prob", "attention_probs_dropout_prob")),
    "t5": System("t5-tiny", "t5-tiny", ("d_model=16", "d_kv=8", "d_ff=32", "num_layers=1", "num_heads=2"), ("dropout_rate",)),
    "transformer-xl": System("transformer_xl-tiny", "transformer-xl-tiny", (
        "d_model=16", "d_embed=16", "n_layer=2", "n_head=2", "d_head=8", "d_inner=32", "mem_len=40"), ("dropout", "dropatt")),
    "clip": System("clip-tiny", "clip-tiny", (
        "projection_dim=16", "vision_config.hidden_size=16", "vision_config.num_hidden_layers=1", "vision_config.num_attention_heads=2",
        "vision_config.intermediate_size=32", "vision_config.image_size=32", "text_config.hidden_size=16",
        "text_config.num_hidden_layers=1", "text_config.num_attention_heads=2", "text_config.intermediate_size=32"), (), coupled=True),
}


@dataclass(frozen=True)
class Layout:
    """How a part of a run is spread out."""

    world: int = 1
    micro: int | None = None
    strategy: str = "auto"
    shard_size: int | None = None
    workers: int = 0
    asynchronous: bool = False
    every: int = 4

    def __str__(self) -> str:
        how = f" {self.strategy.replace('auto', 'ddp')}{f' of {self.shard_size}' if self.shard_size else ''}" if self.world > 1 else ""
        return (f"{self.world} rank{'s' * (self.world > 1)}{how}, micro {self.micro or BATCH // self.world}, {self.workers} workers, "
                f"{'asynchronous' if self.asynchronous else 'synchronous'} every {self.every}")

    @property
    def arithmetic(self) -> Layout:
        """What decides in which order numbers are added."""
        return Layout(self.world, self.micro, self.strategy, self.shard_size)

    def overrides(self) -> list[str]:
        """For the recipe."""
        values = {"data.micro_batch": self.micro, "strategy": self.strategy, "shard_size": self.shard_size, "data.workers": self.workers,
                  "checkpoint.asynchronous": self.asynchronous, "checkpoint.every": self.every}
        return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@dataclass(frozen=True)
class Kill:
    """What is killed, and when."""

    victim: str
    """rank, agent or all."""
    update: int
    """Not before this update is under way."""
    moment: str
    """Of `MOMENTS`: start, while the run's files are being written; update, at any time; save, while a checkpoint is being written."""
    delay: float
    restart: bool
    """rank: whether the agent starts the ranks again."""

    def __str__(self) -> str:
        when = "at its start" if self.moment == "start" else f"after update {self.update}"
        inside = " inside a checkpoint" if self.moment == "save" else f" {1000 * self.delay:.0f} ms"
        return f"kill {self.victim}{' (restarted)' if self.restart else ''}{inside} {when}"


@dataclass
class Trial:
    """One run with its accidents."""

    seed: int
    system: str
    same: bool
    """The layout stays the same: bit for bit."""
    parts: list[tuple[Layout, Kill | None]] = field(default_factory=list)
    story: list[str] = field(default_factory=list)


def draw(seed: int, only: str = "") -> Trial:
    """What a trial does."""
    rng = random.Random(f"soak {seed}")
    name = rng.choice([s for s in SYSTEMS if only in s])
    trial = Trial(seed, name, same=rng.random() < 0.5)
    coupled = SYSTEMS[name].coupled

    def layout(like: Layout | None = None) -> Layout:
        moving = {"workers": rng.choice([0, 0, 1, 2]), "asynchronous": rng.random() < 0.6, "every": rng.choice([1, 2, 3])}
        if like is not None:
            return Layout(**{**asdict(like.arithmetic), **moving})
        world = rng.choice([1, 2, 2, 3, 4])
        share = BATCH // world
        micro = None if coupled else rng.choice([None, share // 3])
        fsdp = world > 1 and rng.random() < 0.4
        shards = rng.choice([None, 2]) if fsdp and world == 4 else None
        return Layout(world, micro, "fsdp" if fsdp else "auto", shards, **moving)

    first = layout()
    reached = 0
    for _ in range(rng.choice([1, 2, 2, 3])):
        reached = rng.randrange(reached, min(reached + UPDATES // 2, UPDATES - 3) + 1)
        victim = rng.choice(["rank", "agent", "all"])
        kill = Kill(victim, reached, rng.choice(MOMENTS), rng.uniform(0, 0.15), victim == "rank" and rng.random() < 0.5)
        trial.parts.append((first if not trial.parts else layout(first if trial.same else None), kill))
    trial.parts.append((layout(first if trial.same else None), None))
    return trial


# --- a rank ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What the ranks are told."""

    recipe: str
    overrides: list[str]
    data: str
    tokenizer: str | None
    out: str
    part: int
    slow: float
    """Seconds that a rank's file of a checkpoint takes at least, for a kill to meet."""


def rank_main(job: Job) -> None:
    """Train as one rank, and write down what it is given."""
    import torch
    from polymodal.pipelines.base.console import Console
    from polymodal.pipelines.data.stream import Stream
    from polymodal.pipelines.run import checkpoint, directory
    from polymodal.pipelines.run.recipe import recipe
    from polymodal.pipelines.train import loop

    torch.set_num_threads(1)
    out = Path(job.out)
    rank, attempt = int(os.environ["RANK"]), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    (out.parent / f"pid-{rank}").write_text(f"{job.part} {attempt} {os.getpid()}")
    loader, write, replace = Stream.loader, checkpoint.write, directory.replace_durably
    book = (out.parent / f"samples-{rank}.jsonl").open("a")

    def watched(self: Stream, start_update: int = 0, **more: Any) -> Iterator[Any]:
        each = self.layout.accumulate
        for number, batch in enumerate(loader(self, start_update, **more), start_update * each):
            book.write(json.dumps([job.part, attempt, number // each, self.layout.world, rank, number % each, batch.sample_ids]) + "\n")
            book.flush()
            yield batch

    def slowly(path: Path, pieces: Any) -> Any:
        time.sleep(job.slow * (1 + rank) / 4)
        entry = write(path, pieces)
        time.sleep(job.slow / 2)
        return entry

    def noted(path: Path, text: str) -> None:
        (out.parent / f"writing-{job.part}").write_text(path.name)  # what a kill meets
        time.sleep(job.slow / 8)
        replace(path, text)
        time.sleep(job.slow / 8)
        (out.parent / f"writing-{job.part}").write_text("the tokenizer" if path.name == directory.SYSTEM else "")

    Stream.loader, checkpoint.write, directory.replace_durably = watched, slowly, noted
    loop.pretrain(recipe(job.recipe, job.overrides), job.data, out, tokenizer=job.tokenizer, console=Console(quiet=True))


def agent_main(job: Job, world: int, restarts: int, logs: Path) -> None:
    """Be a torchrun agent whose ranks are forks of this process."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    elastic_launch(LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=world, run_id=uuid.uuid4().hex, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1", max_restarts=restarts, monitor_interval=0.05, start_method="fork", shutdown_timeout=10,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL)), rank_main)(job)


# --- a run -----------------------------------------------------------------------------------------------------------


class Difference(Exception):
    """The run is not what it should be."""


def fork(work: Callable[[], None], log: Path) -> int:
    """Do `work` in a process of its own, in a session of its own; its output goes to `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def family_of(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(path.read_text().rsplit(")", 1)[1].split()[1]), []).append(int(path.parent.name))
        except OSError:
            continue
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def alive(pid: int) -> bool:
    """Whether it runs (and is not a zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Soak:
    """Runs trials in a directory."""

    def __init__(self, root: Path, by_command: bool = False) -> None:
        self.root, self.by_command = root, by_command
        self._data: dict[str, tuple[str, str | None]] = {}
        self._references: dict[tuple[Any, ...], Path] = {}

    def data(self, system: str) -> tuple[str, str | None]:
        """Data set and tokenizer; made by another process, because threads of the tokenizer library do not survive a fork."""
        if system not in self._data:
            place, result = self.root / "data", self.root / f"data-{system}.json"

            def make() -> None:
                from contract import cases

                cases.TRAIN, cases.HELD = range(SAMPLES), range(SAMPLES, SAMPLES + 4)
                made = cases.prepare(place, next(c for c in cases.cases() if c.name == SYSTEMS[system].case))
                result.write_text(json.dumps([str(made.train), made.tokenizer and str(made.tokenizer)]))

            place.mkdir(exist_ok=True)
            os.waitpid(fork(make, self.root / "data.log"), 0)
            if not result.exists():
                raise RuntimeError((self.root / "data.log").read_text()[-2000:])
            self._data[system] = tuple(json.loads(result.read_text()))
        return self._data[system]

    def job(self, system: str, layout: Layout, out: Path, part: int, dropout: bool, slow: float) -> Job:
        """What the ranks of one part of a run are told."""
        entry = SYSTEMS[system]
        loop, tokenizer = self.data(system)
        rates = [f"{name}={0.1 if dropout else 0.0}" for name in entry.dropout]
        return Job(entry.recipe, [*COMMON, *(f"model.{o}" for o in (*entry.model, *rates)), *layout.overrides()], loop, tokenizer,
                   str(out / "run"), part, slow)

    def start(self, job: Job, world: int, restarts: int, log: Path) -> int:
        """Start an agent with its ranks; its pid."""
        if self.by_command:
            arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world), "--max-restarts", str(restarts),
                         "--monitor-interval", "0.05", __file__, "--rank", json.dumps(asdict(job))]
            with log.open("a") as file:
                return subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=file, start_new_session=True).pid
        logs = log.parent / f"logs-{job.part}"
        logs.mkdir(parents=True)
        return fork(lambda: agent_main(job, world, restarts, logs), log)

    def reference(self, system: str, layout: Layout, dropout: bool) -> Path:
        """The uninterrupted run of a system with an arithmetic; made once."""
        key = (system, layout, dropout)
        if key not in self._references:
            out = self.root / f"reference-{len(self._references)}"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            pid = self.start(self.job(system, layout, out, 0, dropout, 0.0), layout.world, 0, out / "log")
            self.wait(pid, out, lambda: False, 300)
            if newest(out) != UPDATES:
                raise RuntimeError(f"the uninterrupted run of {system} failed:\n{self.tell(out)}")
            self._references[key] = out
        return self._references[key]

    def wait(self, pid: int, out: Path, until: Callable[[], bool], seconds: float = 200) -> bool:
        """Wait for the end of an agent, or until something is the case: whether it is."""
        end = time.monotonic() + seconds
        while True:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return False
            if until():
                return True
            if time.monotonic() > end:
                kill(family_of(pid))
                os.waitpid(pid, 0)
                raise Difference(f"it hung for {seconds:.0f} s:\n{self.tell(out)}")
            time.sleep(0.001)

    @staticmethod
    def tell(out: Path) -> str:
        """The ends of what the processes said."""
        files = [p for p in sorted(out.rglob("*")) if p.is_file() and (p.name.startswith("log") or p.suffix == ".log")]
        return "\n".join(f"--- {p}\n{p.read_text(errors='replace')[-1500:]}" for p in files if p.stat().st_size)

    def run(self, trial: Trial) -> dict[str, Any]:
        """Make a trial; what came out, or a `Difference`."""
        began = time.monotonic()
        first = trial.parts[0][0]
        layout = first.arithmetic if trial.same else Layout()
        expected = self.reference(trial.system, layout, trial.same)
        out = self.root / f"trial-{trial.seed}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        counts: dict[str, Any] = {"kills": 0, "inside": 0, "points": []}
        for part, (where, accident) in enumerate(trial.parts):
            self.part(trial, out, part, where, accident, counts)
            check_checkpoints(out)
            if complete(out):
                break
        if not complete(out):
            raise Difference(f"the run ended after {newest(out)} updates of {UPDATES}, or without its export:\n{self.tell(out)}")
        compare(out, expected, trial.same)
        seconds = time.monotonic() - began
        shutil.rmtree(out)
        return {"seed": trial.seed, "system": trial.system, "same": trial.same, **counts, "seconds": round(seconds, 1),
                "story": trial.story}

    def part(self, trial: Trial, out: Path, part: int, where: Layout, accident: Kill | None, counts: dict[str, Any]) -> None:
        """Start, or continue, and meet an accident."""
        job = self.job(trial.system, where, out, part, trial.same, 0.08 if accident else 0.0)
        pid = self.start(job, where.world, int(accident is not None and accident.restart), out / "log")
        trial.story.append(str(where))
        if accident is None:
            self.wait(pid, out, lambda: False)
            return
        checkpoints = out / "run" / "checkpoints"

        def ripe() -> bool:
            if accident.moment == "start":
                return (out / f"writing-{part}").exists()
            if last_update(out, part) < accident.update:
                return False
            return accident.moment == "update" or any(checkpoints.glob(".tmp-update-*"))

        if not self.wait(pid, out, ripe):
            trial.story.append(f"[ended before it: {accident}]")
            if newest(out) != UPDATES:
                raise Difference(f"the run ended by itself after {newest(out)} updates:\n{self.tell(out)}")
            return
        time.sleep(accident.delay / 4 if accident.moment == "save" else accident.delay)
        everything = family_of(pid)
        inside = any(checkpoints.glob(".tmp-update-*"))
        note = out / f"writing-{part}"
        writing = (note.read_text() if note.exists() else "") or ("a checkpoint" if inside else "nothing")
        if accident.victim == "rank":
            victim = random.Random(trial.seed).randrange(where.world)
            kill([int((out / f"pid-{victim}").read_text().split()[2])])
        else:
            kill([pid] if accident.victim == "agent" else everything)
        counts["kills"] += 1
        counts["inside"] += inside
        counts["points"].append([accident.moment, accident.victim, writing])
        trial.story.append(f"{accident}{f' [met a write of {writing}]' if writing != 'nothing' else ''}")
        if accident.victim == "rank":
            self.wait(pid, out, lambda: False)
            everything += [int(p.read_text().split()[2]) for p in out.glob("pid-*")]
        else:
            os.waitpid(pid, 0)
            time.sleep(accident.delay)  # ranks without their agent go on, or end, or wait
        kill([p for p in everything if alive(p)])
        end = time.monotonic() + 10
        while any(alive(p) for p in everything):
            if time.monotonic() > end:
                raise Difference("processes do not die")
            time.sleep(0.005)


# --- what must hold --------------------------------------------------------------------------------------------------


def newest(out: Path) -> int:
    """The update of the newest checkpoint."""
    found = [int(p.name.removeprefix("update-")) for p in (out / "run" / "checkpoints").glob("update-*")]
    return max(found, default=0)


def complete(out: Path) -> bool:
    """Whether a run has its last checkpoint and its export: ranks whose agent is killed after the one may end before the other."""
    return newest(out) == UPDATES and (out / "run" / "export").is_dir()


def last_update(out: Path, part: int) -> int:
    """The update that rank 0 was given last in a part of the run; -1 before its first."""
    path = out / "samples-0.jsonl"
    lines = path.read_text().splitlines(keepends=True)[-1:] if path.exists() else []
    if not lines or not lines[0].endswith("\n"):
        return -1
    record = json.loads(lines[0])
    return record[2] if record[0] == part else -1


def check_checkpoints(out: Path) -> None:
    """Whatever is called a checkpoint is whole."""
    from polymodal.pipelines.run import checkpoint

    for there in checkpoint.all_checkpoints(out / "run" / "checkpoints"):
        if (reason := checkpoint.damage(there.path)) is not None:
            raise Difference(f"{there.path} is not whole: {reason}")


def sequence(out: Path) -> list[int]:
    """The samples of the run in the order of their positions, by the last attempt at each update."""
    attempts: dict[int, dict[tuple[int, int], dict[tuple[int, int], tuple[int, list[int]]]]] = {}
    for path in sorted(out.glob("samples-*.jsonl")):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                part, attempt, update, world, rank, micro, ids = json.loads(line)
                attempts.setdefault(update, {}).setdefault((part, attempt), {})[micro, rank] = (world, ids)
    found: list[int] = []
    for update in range(UPDATES):
        pieces = attempts[update][max(attempts[update])]
        positions: list[int] = []
        for micro in sorted({m for m, _ in pieces}):
            world = pieces[micro, 0][0]
            rows = [pieces[micro, rank][1] for rank in range(world)]  # rank r has every world-th position from r on
            positions += [sample for column in zip(*rows, strict=True) for sample in column]
        if len(positions) != BATCH:
            raise Difference(f"update {update} had {len(positions)} samples: {pieces}")
        found += positions
    return found


def rows(out: Path) -> list[dict[str, Any]]:
    """The metrics without times."""
    lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in lines]


def weights(out: Path) -> dict[str, Any]:
    """The exported network."""
    from safetensors.numpy import load_file

    return {k: v for path in sorted((out / "run" / "export").glob("*.safetensors")) for k, v in load_file(path).items()}


def compare(out: Path, expected: Path, same: bool) -> None:
    """The run is the uninterrupted one."""
    import numpy as np

    found, wanted = sequence(out), sequence(expected)
    if found != wanted:
        at = next(i for i, (a, b) in enumerate(zip(found, wanted)) if a != b)
        raise Difference(f"update {at // BATCH} had the samples {found[at // BATCH * BATCH:][:BATCH]}, "
                         f"expected {wanted[at // BATCH * BATCH:][:BATCH]}")
    number = len(set(found))
    for epoch in range(len(found) // number):
        if len(set(found[epoch * number : (epoch + 1) * number])) != number:
            raise Difference(f"epoch {epoch} does not have every one of {number} samples once")
    if number < SAMPLES and number != len(set(wanted)):
        raise Difference(f"{number} samples were seen of {SAMPLES}")
    a, b = rows(out), rows(expected)
    if [r["update"] for r in a] != [r["update"] for r in b] or [r["update"] for r in a] != list(range(1, UPDATES + 1)):
        raise Difference(f"lines of the updates {[r['update'] for r in a]}")
    for one, other in zip(a, b):
        if same and one != other:
            raise Difference(f"update {one['update']}: {one}, expected exactly {other}")
        if abs(one["loss"] - other["loss"]) > 1e-5 * abs(other["loss"]):
            raise Difference(f"update {one['update']}: loss {one['loss']!r}, expected {other['loss']!r} within 1e-5")
    one, other = weights(out), weights(expected)
    if one.keys() != other.keys() or not one:
        raise Difference(f"the exports have {sorted(one)} and {sorted(other)}")
    for name, tensor in one.items():
        if not (np.array_equal(tensor, other[name]) if same else np.allclose(tensor, other[name], rtol=1e-3, atol=1e-4)):
            raise Difference(f"the weights {name} differ by up to {np.abs(tensor - other[name]).max()}")


# --- the command -----------------------------------------------------------------------------------------------------


def imports() -> None:
    """Everything that a rank needs, before the first fork."""
    import torch
    from polymodal.registry import families

    for module in ("contract.cases", "polymodal.pipelines.train.loop", "torch._dynamo", "torch.distributed.checkpoint",
                   "torch.distributed.launcher.api"):
        importlib.import_module(module)
    families()
    torch.set_num_threads(1)


def main() -> int:
    """Make trials; 1 where one found a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no trial begins after this time")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; the next ones count on")
    parser.add_argument("--only", default="", help="systems whose name contains this")
    parser.add_argument("--exec", action="store_true", help="start everything by torchrun's command line")
    parser.add_argument("--json", action="store_true", help="one JSON object for each trial and a last one for all")
    parser.add_argument("--keep", type=Path, help="a directory for the runs, which is not removed")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        rank_main(Job(**json.loads(given.rank)))
        return 0
    imports()
    root = given.keep or Path(tempfile.mkdtemp(prefix="soak-"))
    root.mkdir(parents=True, exist_ok=True)
    soak = Soak(root, given.exec)
    results: list[dict[str, Any]] = []
    end = time.monotonic() + 60 * given.minutes
    for seed in range(given.seed, given.seed + given.trials):
        if time.monotonic() > end:
            break
        trial = draw(seed, given.only)
        try:
            results.append(soak.run(trial))
        except Difference as difference:
            again = f"python tests/soak.py --trials 1 --seed {seed}{f' --only {given.only}' if given.only else ''}{' --exec' * given.exec}"
            failed = {"seed": seed, "system": trial.system, "same": trial.same, "story": trial.story, "difference": str(difference),
                      "again": again, "kept": str(root / f"trial-{seed}")}
            print(json.dumps(failed) if given.json else f"trial {seed} {trial.system}: {'; '.join(trial.story)}\n"
                  f"DIFFERENCE: {difference}\nkept in {failed['kept']}; again: {again}", flush=True)
            return 1
        last = results[-1]
        print(json.dumps(last) if given.json else f"trial {seed} {last['system']}: {'; '.join(last['story'])}: "
              f"{'equal bit for bit' if last['same'] else 'equal within 1e-5'}, {last['seconds']} s", flush=True)
    if given.keep is None:
        shutil.rmtree(root)
    points = Counter(tuple(point) for r in results for point in r["points"])
    if not given.json:
        print(f"\n{'moment':8}{'killed':8}{'was being written':20}times")
        for (moment, victim, writing), times in sorted(points.items()):
            print(f"{moment:8}{victim:8}{writing:20}{times:5}")
    total = {"trials": len(results), "kills": sum(r["kills"] for r in results), "inside": sum(r["inside"] for r in results),
             "points": [[*point, times] for point, times in sorted(points.items())], "bit_for_bit": sum(r["same"] for r in results),
             "seconds": round(sum(r["seconds"] for r in results), 1)}
    print(json.dumps(total) if given.json else f"{total['trials']} trials with {total['kills']} kills, {total['inside']} of them inside a "
          f"checkpoint's writing: no difference ({total['bit_for_bit']} compared bit for bit), {total['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
