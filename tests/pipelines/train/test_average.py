"""The average of the weights: its numbers against timm and torch, and in runs that stop, resume, rewind and choose their best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from contract.letters import go, known, letters
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.optim import OptimSettings
from polymodal.pipelines.run.recipe import CheckpointSettings, EvaluateSettings
from polymodal.pipelines.train.average import Average
from polymodal.shared.errors import UserError
from safetensors.torch import load_file
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

DECAY = 0.7
OPTIM = OptimSettings("sgd", lr=0.05, momentum=0.0, ema_decay=DECAY)
EVERY = CheckpointSettings(every=1, keep_last=99)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name, count in (("train", 64), ("held", 16)):
        (root / f"{name}.txt").write_text("\n".join("abcdefgh"[: 3 + i % 5] * (1 + i % 3) + name[0] for i in range(count)))
        pack([root / f"{name}.txt"], root / name, PackSettings(Reading(split="line")), workers=Workers(1), console=Console(quiet=True))
    return SimpleNamespace(train=root / "train", held=root / "held")


def tensors(out: Path, update: int, kind: str) -> dict[str, torch.Tensor]:
    """What the checkpoint of an update holds: `model/` or `ema/`."""
    (file,) = (out / "checkpoints" / checkpoint.name_of(update)).glob("shard-*.safetensors")
    return {name.removeprefix(kind): tensor for name, tensor in load_file(file).items() if name.startswith(kind)}


def exported(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "export" / "net.pt", weights_only=True)


@pytest.mark.parametrize("warmup", [True, False])
def test_the_numbers_are_those_of_timm_and_of_torch(warmup):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).requires_grad_(False))
    ours = Average(net, replace(OPTIM, ema_decay=0.8, ema_warmup=warmup))
    timms = ModelEmaV3(net, decay=0.8, use_warmup=warmup)
    torchs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    for update in range(12):
        with torch.no_grad():
            for p in net[0].parameters():
                p += torch.randn_like(p)
        ours.update(update)
        timms.update(net, step=update + 1)
        torchs.update_parameters(net)
    raw, found = {n: p.clone() for n, p in net.named_parameters()}, ours.tensors()
    assert list(found) == ["ema/0.weight", "ema/0.bias"]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, timms.module.state_dict()[name.removeprefix("ema/")], rtol=1e-6, atol=1e-7)
        theirs = torchs.module.state_dict()[name.removeprefix("ema/")]
        assert torch.allclose(tensor, theirs, rtol=1e-6, atol=1e-7) != warmup  # torch has no warm-up
    with ours.in_use():
        for name in found:
            assert not torch.equal(net.state_dict()[name.removeprefix("ema/")], raw[name.removeprefix("ema/")])
    assert all(torch.equal(p, raw[n]) for n, p in net.named_parameters()), "its own weights again, to the last bit"


def test_a_run_trains_as_without_and_is_evaluated_exported_and_loaded_with_it(data, tmp_path):
    with known():
        recipe = letters(optim=OPTIM, max_updates=6, checkpoint=EVERY, evaluate=EvaluateSettings(every=3))
        go(recipe, data, tmp_path / "with")
        go(replace(recipe, optim=replace(OPTIM, ema_decay=None)), data, tmp_path / "without")
        found, plain = (Run(tmp_path / name) for name in ("with", "without"))
        assert [r["loss"] for r in found.metrics("train")] == [r["loss"] for r in plain.metrics("train")]
        assert [r["loss"] for r in found.metrics("eval")] != [r["loss"] for r in plain.metrics("eval")]
        average: dict[str, torch.Tensor] = {}
        for update in range(6):
            weights = tensors(tmp_path / "with", update + 1, "model/")
            decay = 0 if update == 0 else min(DECAY, 1 - (1 + update) ** (-2 / 3))
            kept = tensors(tmp_path / "with", update + 1, "ema/")
            assert kept.keys() <= weights.keys() and not kept.keys() & {n for n in weights if "running" in n}
            average = {n: decay * average[n] + (1 - decay) * weights[n] if update else weights[n] for n in kept}
            for name, tensor in average.items():
                torch.testing.assert_close(kept[name], tensor, rtol=1e-5, atol=1e-7)
            assert not tensors(tmp_path / "without", update + 1, "ema/")
        system = found.system()
        raw = tensors(tmp_path / "with", 6, "model/")
        for name, tensor in system.state_dict().items():
            assert torch.equal(tensor, tensors(tmp_path / "with", 6, "ema/").get(name, raw[name])), name
            assert torch.equal(tensor, exported(tmp_path / "with")[name]), name


def test_resumes_are_exact_and_turning_it_on_or_off_is_told(data, tmp_path):
    with known():
        recipe = letters(optim=OPTIM, max_updates=6, checkpoint=EVERY)
        go(recipe, data, tmp_path / "whole")
        start = tmp_path / "whole" / "checkpoints" / checkpoint.name_of(3)
        go(recipe, data, tmp_path / "again", resume=str(start))
        for kind in ("model/", "ema/"):
            theirs = tensors(tmp_path / "again", 6, kind)
            assert theirs and all(torch.equal(t, theirs[n]) for n, t in tensors(tmp_path / "whole", 6, kind).items())
        said: list[str] = []
        console = Console(quiet=True)
        console.say = said.append  # type: ignore[method-assign]
        go(replace(recipe, optim=replace(OPTIM, ema_decay=None)), data, tmp_path / "off", resume=str(start), console=console)
        assert any("optim.ema_decay is null now" in line for line in said) and not tensors(tmp_path / "off", 6, "ema/")
        start = tmp_path / "off" / "checkpoints" / checkpoint.name_of(6)
        go(replace(recipe, max_updates=7), data, tmp_path / "on", resume=str(start), console=console)
        assert any("it begins with those of update 6" in line for line in said)
        before, after = (tensors(tmp_path / name, u, "model/") for name, u in (("off", 6), ("on", 7)))
        decay = min(DECAY, 1 - 7 ** (-2 / 3))
        for name, tensor in tensors(tmp_path / "on", 7, "ema/").items():
            torch.testing.assert_close(tensor, decay * before[name] + (1 - decay) * after[name], rtol=1e-5, atol=1e-7)


def test_the_best_average_is_exported_and_an_update_that_is_left_out_changes_nothing(data, tmp_path):
    with known():
        best = letters(optim=OPTIM, max_updates=6, evaluate=EvaluateSettings(every=2),
                       checkpoint=CheckpointSettings(every=0, keep_best=True))
        go(best, data, tmp_path / "best")
        at = Run(tmp_path / "best").chosen()
        assert at is not None
        system = Run(tmp_path / "best").system()
        for name, tensor in tensors(tmp_path / "best", at.update, "ema/").items():
            assert torch.equal(system.state_dict()[name], tensor) and torch.equal(exported(tmp_path / "best")[name], tensor)
        skipping = letters(optim=OPTIM, max_updates=4, checkpoint=EVERY)
        go(replace(skipping, health=replace(skipping.health, leave_out=((3, 3),))), data, tmp_path / "left-out")
        second, third = (tensors(tmp_path / "left-out", update, "ema/") for update in (2, 3))
        assert all(torch.equal(t, third[n]) for n, t in second.items())


def test_a_run_that_goes_on_from_another_begins_with_its_raw_weights(data, tmp_path):
    with known():
        recipe = letters(optim=OPTIM, max_updates=3, checkpoint=EVERY)
        go(recipe, data, tmp_path / "first")
        go(replace(recipe, seed=1, max_updates=1), data, tmp_path / "second", continue_from=tmp_path / "first")
        go(replace(recipe, seed=1, max_updates=1, optim=replace(OPTIM, ema_decay=None)), data, tmp_path / "plain",
           continue_from=tmp_path / "first")
        ours, theirs = (tensors(tmp_path / name, 1, "model/") for name in ("second", "plain"))
        assert all(torch.equal(t, theirs[n]) for n, t in ours.items())
        assert all(torch.equal(t, ours[n]) for n, t in tensors(tmp_path / "second", 1, "ema/").items()), "the first step copies the weights"


def test_numbers_without_meaning_are_refused():
    for decay in (0.0, 1.0, -0.1, 1.5):
        with pytest.raises(UserError, match=r"ema_decay is .*, expected a number above 0 and below 1, or null"):
            OptimSettings(ema_decay=decay)
