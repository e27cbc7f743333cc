"""Updates that go wrong: raise, skip, rewind; on one rank and on several (this file is also one of the ranks)."""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import processes
import pytest
import torch
from contract.letters import INF, NAN, POISON, Letters, go, known, letters
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.layout import BatchLayout
from polymodal.pipelines.data.stream import Stream
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.logbook import Logbook
from polymodal.pipelines.run.optim import OptimSettings
from polymodal.pipelines.run.recipe import CheckpointSettings, EvaluateSettings, HealthSettings, LogSettings
from polymodal.pipelines.train import loop, rewind
from polymodal.pipelines.train.events import describe_event
from polymodal.pipelines.train.health import Health, has_made_any, merge_ranges
from polymodal.shared.errors import UserError
from polymodal.shared.settings import check_settings

TIMES = ("samples_per_s", "tokens_per_s", "step_s", "data_wait_s", "save_s", "elapsed_s", "seconds")
POISONED = 8
"""The update, from 1, that reads the poisoned text."""


@pytest.fixture(autouse=True)
def reader():
    with known():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """120 texts in a shard, one of them poisoned."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice(list("abcdefgh"), size=rng.integers(3, 30))) for _ in range(150)]
    quiet = Console(quiet=True)
    (root / "held.txt").write_text("\n".join(lines[120:]))
    pack([root / "held.txt"], root / "held", PackSettings(Reading(split="line")), workers=Workers(1), console=quiet)
    for line in range(120):  # the order depends on the content: which text is read when is not known before
        (root / "train.txt").write_text("\n".join([*lines[:line], lines[line] + POISON, *lines[line + 1 : 120]]))
        pack([root / "train.txt"], root / f"train-{line}", PackSettings(Reading(split="line")), workers=Workers(1), console=quiet)
        packed = DataSet.open(root / f"train-{line}")
        order = Stream(packed, Letters(), BatchLayout(8), lanes=4, window=64).order
        places = [order.locate(p).sample for p in range((POISONED - 1) * 8, POISONED * 8)]
        if any(POISON in sample.text() for sample in packed.read_many(places)):
            (root / f"train-{line}").rename(root / "train")
            return SimpleNamespace(train=root / "train", held=root / "held")
    raise AssertionError("no line is read in that update")


def rows(out, split=None):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(out).metrics(split)]


def weights(out):
    return torch.load(out / "export" / "net.pt", weights_only=True)


def state(out):
    newest = checkpoint.newest(out / "checkpoints").state()
    return {k: v for k, v in newest.items() if k not in ("recipe", "elapsed_s")}


def same(a, b):
    """Two runs ended as one: metrics, weights, and everything in the last checkpoint."""
    assert rows(a) == rows(b)
    assert state(a) == state(b)
    for name, tensor in weights(a).items():
        assert torch.equal(tensor, weights(b)[name]), name
        assert tensor.isfinite().all()


@pytest.fixture(scope="module")
def told(data, tmp_path_factory):
    """A run that was told from the start to leave the update out; no sample does any harm."""
    out = tmp_path_factory.mktemp("told") / "run"
    with known():
        go(letters({"leave_out": ((POISONED, POISONED),)}), data, out)
    return out


def test_raise_names_the_update_and_leaves_a_whole_checkpoint(tmp_path, data):
    with pytest.raises(UserError, match=rf"the gradient of update {POISONED} is not finite .*leave_out=\[\[8,8\]\]"):
        go(letters(), data, tmp_path / "run", INF)
    run = Run(tmp_path / "run")
    assert checkpoint.newest(run.checkpoints).update == 6 and run.metrics()[-1]["update"] == 6
    assert all(t.isfinite().all() for t in run.system().state_dict().values())
    event, = run.events()
    assert event["event"] == "raise" and event["update"] == POISONED and event["norm"] is None and "left_out" not in event
    # as the message says: the same run goes on without the update, and ends as one that was told from the start
    go(letters({"leave_out": ((POISONED, POISONED),)}), data, tmp_path / "run", INF)


@pytest.mark.parametrize("policy", ["skip", "rewind"])
@pytest.mark.parametrize("poison", [INF, NAN, 1e6])
def test_a_poisoned_sample_is_left_out_bit_for_bit(tmp_path, data, told, policy, poison):
    warned = []
    console = Console(quiet=True)
    console.warn = warned.append
    result = go(letters({"policy": policy, "spike": 1000.0 if poison == 1e6 else None}), data, tmp_path / "run", poison, console=console)
    assert result["updates"] == 15 and result["ending"] == "complete"
    same(tmp_path / "run", told)
    event, = Run(tmp_path / "run").events()
    assert event["event"] == policy and event["left_out"] == [POISONED, POISONED] and event["positions"] == [56, 64]
    assert (event["limit"] is None) == (poison != 1e6) and event.get("to") == (6 if policy == "rewind" else None)
    assert (event["loss"] is None) == (poison != 1e6)
    assert warned == [describe_event(event)] and "samples at positions 56 to 63 are left out" in warned[0]


def test_the_loss_is_the_clean_runs(tmp_path, data):
    """Eight epochs, with the poisoned sample in each: as good as without poison, within 8 %; learning from it doubles the loss."""
    more = {"max_updates": 120, "evaluate": EvaluateSettings(), "log": LogSettings(every=60, tensorboard=False), "model": {"linear": True},
            "checkpoint": CheckpointSettings(every=30), "optim": OptimSettings("sgd", lr=0.01, clip=None)}
    clean = go(letters(**more), data, tmp_path / "clean")["eval"]["loss"]
    result = go(letters({"policy": "rewind"}, **more), data, tmp_path / "run", NAN)
    assert len(Run(tmp_path / "run").events()) == 8
    assert result["eval"]["loss"] == pytest.approx(clean, rel=0.08)
    assert go(letters(**more), data, tmp_path / "spoilt", 100.0)["eval"]["loss"] > 1.5 * clean


def test_the_event_lists_the_poisoned_sample(tmp_path, data):
    go(letters({"policy": "rewind"}), data, tmp_path / "run", NAN)
    event, = Run(tmp_path / "run").events()
    texts = [sample.text() for sample in DataSet.open(data.train).read_many(event["samples"])]
    assert sum(POISON in text for text in texts) == 1


@pytest.mark.parametrize("crash", ["recorded", "removed", "restored"])
def test_a_kill_in_a_rewind_changes_nothing(tmp_path, data, crash, monkeypatch):
    """The range reaches back behind a checkpoint, which must not be taken up again."""
    settings = {"policy": "rewind", "skip_updates": 4}
    keep = CheckpointSettings(every=2, keep_last=9)
    go(letters({"leave_out": ((POISONED - 3, POISONED),)}, checkpoint=keep), data, tmp_path / "told")
    drop = rewind.drop_outdated

    def killed(*_):
        raise KeyboardInterrupt

    def removed(run):
        assert drop(run) == ["update-00000006"]
        raise KeyboardInterrupt

    where = {"recorded": (rewind, "drop_outdated", killed), "removed": (rewind, "drop_outdated", removed),
             "restored": (Logbook, "go_back", killed)}[crash]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(*where)
        go(letters(settings, checkpoint=keep), data, tmp_path / "run", INF)
    # by chance, the machine does not make the mistake again: what was decided holds
    go(letters(settings, checkpoint=keep), data, tmp_path / "run")
    same(tmp_path / "run", tmp_path / "told")
    event, = Run(tmp_path / "run").events()
    assert event["left_out"] == [5, 8] and event["to"] == 4
    found = checkpoint.open_checkpoint(tmp_path / "run" / "checkpoints" / "update-00000006")
    assert found.state()["health"]["left_out"] == [[4, 6]]


def test_where_no_checkpoint_is_old_enough_less_is_left_out(tmp_path, data):
    health = {"policy": "rewind", "skip_updates": 8}
    go(letters(health, checkpoint=CheckpointSettings(every=3, keep_last=1)), data, tmp_path / "run", INF)
    event, = Run(tmp_path / "run").events()
    assert event["left_out"] == [7, 8] and event["to"] == 6


def test_a_damaged_checkpoint_is_not_gone_back_to(tmp_path, data, monkeypatch):
    apply_policy = loop.apply_policy

    def damage(state, *more):
        if state.health.trouble is not None:
            state.saver.wait()
            next((state.run.checkpoints / "update-00000006").glob("*.safetensors")).write_bytes(b"")
        return apply_policy(state, *more)

    monkeypatch.setattr(loop, "apply_policy", damage)
    go(letters({"policy": "rewind"}), data, tmp_path / "run", INF)
    event, = Run(tmp_path / "run").events()
    assert event["left_out"] == [8, 8] and event["to"] == 3


@pytest.mark.parametrize("optim", [OptimSettings("sgd", lr=0.01), pytest.param(OptimSettings("lamb", lr=0.01), marks=pytest.mark.slow)])
def test_a_rewind_to_the_start_forgets_the_optimizer(tmp_path, data, optim):
    """What an optimizer keeps beside its parameters, too (LAMB counts its steps in its groups)."""
    more = {"optim": optim, "checkpoint": CheckpointSettings(every=0)}
    go(letters({"leave_out": ((POISONED, POISONED),)}, **more), data, tmp_path / "told")
    go(letters({"policy": "rewind"}, **more), data, tmp_path / "run", INF)
    assert Run(tmp_path / "run").events()[0]["to"] == 0
    same(tmp_path / "run", tmp_path / "told")


def test_the_best_checkpoint_of_the_time_before_is_there_after_a_rewind(tmp_path, data):
    more = {"evaluate": EvaluateSettings(every=2, monitor="loss", mode="max"),
            "checkpoint": CheckpointSettings(every=4, keep_last=2, keep_best=True)}
    go(letters({"leave_out": ((5, 8),)}, **more), data, tmp_path / "told")
    result = go(letters({"policy": "rewind", "skip_updates": 4}, **more), data, tmp_path / "run", INF)
    assert Run(tmp_path / "run").events()[0]["to"] == 4 and result["ending"] == "complete"
    same(tmp_path / "run", tmp_path / "told")


def test_a_run_that_diverges_ends(tmp_path, data, monkeypatch):
    """Every update from the fifth on is wrong, whatever is left out."""
    observe = Health.observe
    monkeypatch.setattr(Health, "observe", lambda self, update, norm: observe(self, update, norm * NAN if update > 3 else norm))
    with pytest.raises(UserError, match=r"update 7 is not finite .*, after 2 rewinds, and health\.max_rewinds allows no more"):
        go(letters({"policy": "rewind", "max_rewinds": 2}), data, tmp_path / "rewind")
    assert [(e["event"], e["update"]) for e in Run(tmp_path / "rewind").events()] == [("rewind", 5), ("rewind", 6), ("raise", 7)]
    with pytest.raises(UserError, match=r"update 8 is not finite .*, and so were the 3 updates before it"):
        go(letters({"policy": "skip", "max_skips": 3}), data, tmp_path / "skip")
    assert [e["update"] for e in Run(tmp_path / "skip").events()] == [5, 6, 7, 8, 8]
    # continued, it ends again: the count of rewinds is the run's
    with pytest.raises(UserError, match="after 2 rewinds"):
        go(letters({"policy": "rewind", "max_rewinds": 2}), data, tmp_path / "rewind")


def test_a_window_without_a_step_has_no_line(tmp_path, data):
    go(letters({"leave_out": ((4, 6), (13, 15))}), data, tmp_path / "run")
    assert [r["update"] for r in rows(tmp_path / "run", "train")] == [3, 9, 12]
    assert [r["update"] for r in rows(tmp_path / "run", "eval")] == [5, 10, 15]
    assert state(tmp_path / "run")["health"]["left_out"] == [[3, 6], [12, 15]]
    with pytest.raises(UserError, match=r"health\.leave_out names update 7, which this run has made"):
        go(letters({"leave_out": ((7, 7),)}, max_updates=20), data, tmp_path / "run")


def test_a_skipped_update_is_skipped_again_after_a_kill(tmp_path, data, told, monkeypatch):
    save = loop.save

    def crash(state, logbook, **more):
        if state.update == 9:
            raise KeyboardInterrupt
        save(state, logbook, **more)

    health = {"policy": "skip"}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(loop, "save", crash)
        go(letters(health), data, tmp_path / "run", INF)
    go(letters(health), data, tmp_path / "run", INF)
    same(tmp_path / "run", told)
    assert [e["update"] for e in Run(tmp_path / "run").events()] == [POISONED]


class Late:
    """A norm on its way from a GPU: it arrives after it was asked for a given number of times."""

    def __init__(self, polls):
        self.polls = polls

    def query(self):
        self.polls -= 1
        return self.polls < 0

    def synchronize(self):
        self.polls = -1


def _late(self, update, norm):
    """As `Health.observe` does on a GPU; what arrives when differs between the ranks."""
    self._pending.append((update, norm.clone(), Late(2 if int(os.environ.get("RANK", 0)) else 0)))
    return True


def test_a_norm_that_arrives_late_is_found_in_time(tmp_path, data, told, monkeypatch):
    """On a GPU the loop is ahead of what it knows; nothing is saved or logged before that is settled."""
    monkeypatch.setattr(Health, "observe", _late)
    with pytest.raises(UserError, match=f"the gradient of update {POISONED} is not finite"):
        go(letters(), data, tmp_path / "raise", INF)
    assert checkpoint.newest(tmp_path / "raise" / "checkpoints").update == 6
    result = go(letters({"policy": "rewind"}), data, tmp_path / "run", INF)
    assert result["ending"] == "complete"
    same(tmp_path / "run", told)


def test_stopping_while_something_is_wrong_goes_back_first(tmp_path, data, told, monkeypatch):
    monkeypatch.setattr(Health, "observe", _late)
    monkeypatch.setattr(Health, "has_found_trouble", lambda self: False)
    learn = loop.learn

    def then_stop(state, batches, totals):
        made = learn(state, batches, totals)
        if state.update == POISONED - 1:
            os.kill(os.getpid(), 15)
        return made

    with monkeypatch.context() as patched:
        patched.setattr(loop, "learn", then_stop)
        result = go(letters({"policy": "rewind"}), data, tmp_path / "run", INF)
    assert result["ending"] == "asked to stop" and result["updates"] == 6
    go(letters({"policy": "rewind"}), data, tmp_path / "run", INF)
    same(tmp_path / "run", told)


def test_spikes_are_judged_by_the_median_of_what_was_sound():
    health = Health(HealthSettings(policy="skip", spike=4.0, window=3), torch.device("cpu"))
    found = []
    # nothing is a spike before there are three; then the medians are 2, 2, 2 and, as 8.5 was left out, 1
    for update, norm in enumerate([1.0, 100.0, 2.0, 7.5, 1.0, 8.5, 0.5, 4.5, float("nan"), 3.5]):
        if not health.observe(update, torch.tensor(norm)):
            health.attach_loss(0.5)
            found.append((update, health.skipped[-1].limit, health.skipped[-1].loss))
    assert found == [(5, 8.0, 0.5), (7, 4.0, 0.5), (8, None, 0.5)]


def test_ranges():
    assert merge_ranges([range(4, 6), range(1, 2), range(6, 7), range(2, 2), range(2, 3)]) == [range(1, 3), range(4, 7)]
    assert has_made_any(range(3, 6), 5, [range(3, 4)])
    assert not has_made_any(range(3, 6), 5, [range(3, 5)]) and not has_made_any(range(3, 6), 3, [])


def test_settings_without_meaning_are_refused():
    assert check_settings(HealthSettings, {"policy": "ignore"})[1] == ["policy is 'ignore', expected raise | skip | rewind"]
    problems = check_settings(HealthSettings, {"spike": 1, "window": 0, "leave_out": [[3, 2]]}, "health.")[1]
    for part in ("spike is 1.0", "window is 0", "leave_out has [3, 2]"):
        assert part in problems[0]
    assert check_settings(HealthSettings, {"leave_out": [[3, 5]]})[0].leave_out == ((3, 5),)


# --- several ranks ---------------------------------------------------------------------------------------------------

STAGES = ("told", "skip", "rewind", "late", "fsdp-told", "fsdp-rewind")


def stage(name, data, out):
    """One run of the test below, as one of the ranks."""
    strategy, _, policy = name.rpartition("-")
    health = {"leave_out": ((POISONED, POISONED),)} if policy == "told" else {"policy": "skip" if policy == "skip" else "rewind"}
    made = letters(health, devices=2, model={"batch_norm": False}, strategy=strategy or "ddp")
    with patch.object(Health, "observe", _late) if policy == "late" else contextlib.nullcontext():
        go(made, data, out / name, 1.0 if policy == "told" else INF)


def stages(data, out):
    with known():
        for chosen in STAGES:
            stage(chosen, data, out)


def test_two_ranks_agree(tmp_path, data):
    processes.together(processes.ranks(2, stages, data, tmp_path))
    for name in STAGES:
        strategy, _, policy = name.rpartition("-")
        if policy != "told":
            same(tmp_path / name, tmp_path / ("fsdp-told" if strategy else "told"))
            event, = Run(tmp_path / name).events()
            assert event["left_out"] == [POISONED, POISONED] and event["positions"] == [56, 64]
