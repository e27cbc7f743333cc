"""Networks that a system reads and does not train: outside of all that is trained, saved and exported; checked when a run goes on."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import numpy as np
import polymodal
import pytest
import torch
from PIL import Image
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.inspection.past import Past, show
from polymodal.pipelines.model.companions import open_companions
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.plan.plan import Cluster, plan
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.directory import open_run
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train import begin
from polymodal.pipelines.train.loop import pretrain
from polymodal.registry import family
from polymodal.shared.errors import UserError
from polymodal.shared.family import Context
from polymodal.shared.meta import without_weights
from polymodal.shared.system import Companion, fingerprint_of
from torch import nn

SMALL = ["data.global_batch=4", "precision=32", "accelerator=cpu", "log.tensorboard=false", "log.every=1", "checkpoint.every=1",
         "model.hidden_size=16", "model.num_attention_heads=2", "model.intermediate_size=16", "max_updates=1"]
QUIET = Console(quiet=True)


def tokenizer(path, seed=0, **more):
    torch.manual_seed(seed)
    polymodal.save(polymodal.system("dvae", size="tiny", n_hid=8, n_init=8, **{"vocab_size": 16, **more}).net, path)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("companions")
    rng = np.random.default_rng(0)
    for number in range(8):
        (path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path / f"pictures/{number}.png")
    pack(path / "pictures", path / "data", workers=Workers(1))
    tokenizer(path / "dvae")
    return path


def train(root, out, *overrides, dvae=None, lines=None, **options):
    console = Console(quiet=True)
    if lines is not None:
        console.say = lines.append
    given = [f"companions.tokenizer={dvae or root / 'dvae'}"] if dvae != "" else []
    return pretrain(recipe("beit-tiny", [*SMALL, *given, *overrides]), root / "data", out, console=console, **options)


def refusal(*arguments, **options):
    with pytest.raises(UserError) as found:
        train(*arguments, **options)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_a_companion_is_no_part_of_what_is_trained(root, tmp_path):
    lines = []
    train(root, tmp_path / "run", lines=lines)
    run = open_run(tmp_path / "run")
    known = fingerprint_of(polymodal.load(root / "dvae"))
    assert run.companions() == {"tokenizer": {"source": str(root / "dvae"), "fingerprint": known}}
    assert any(line.startswith("tokenizer (not trained):") and known[:12] in line for line in lines)
    assert run.config().vocab_size == 16, "the vocabulary follows the tokenizer"
    (saved,) = checkpoint.all_checkpoints(run.checkpoints)
    assert not any("tokenizer" in name or "encoder" in name for name in checkpoint.stored(saved.path))
    assert sorted(p.name for p in run.export.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]

    chosen = recipe("beit-tiny", [*SMALL, f"companions.tokenizer={root / 'dvae'}"])
    context = Context(companions=open_companions(chosen, family("beit")))
    system = chosen.build(family("beit"), context).train()
    net = system.companions["tokenizer"].net
    assert not {id(p) for p in net.parameters()} & {id(p) for p in system.parameters()}
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert copy.deepcopy(system).companions["tokenizer"] is system.companions["tokenizer"]
    other = chosen.build(family("beit"), Context(companions={"tokenizer": Companion("here", lambda: net)}))
    assert all(torch.equal(a, b) for a, b in zip(system.parameters(), other.parameters())), "reading one draws nothing"


def test_a_companion_is_read_once_and_when_it_is_needed():
    read = []

    def load():
        read.append(torch.get_default_device())
        return nn.Sequential(nn.Linear(2, 2), nn.Dropout())

    companion = Companion("there", load)
    assert not read
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with without_weights():
        net = companion.on(torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected) and not net.training and not net[0].weight.is_meta
    assert companion.net is net and len(read) == 1 and companion.fingerprint == fingerprint_of(net)
    net[0].weight.data[0, 0] += 1
    with pytest.raises(UserError, match=r"there holds other weights \(sha256 .*put those back"):
        _ = Companion("there", lambda: net, fingerprint="0" * 64).net
    assert Companion("there", lambda: net, fingerprint=fingerprint_of(net)).net is net


def test_a_run_goes_on_with_the_same_companion_alone(root, tmp_path):
    dvae = shutil.copytree(root / "dvae", tmp_path / "dvae")
    train(root, tmp_path / "run", dvae=dvae)
    moved = dvae.rename(tmp_path / "moved")
    assert train(root, tmp_path / "run", "max_updates=2", dvae=moved)["updates"] == 2, "it may lie elsewhere"
    assert len(show(Past(open_run(tmp_path / "run"), 2).stream(), 1).previews) == 4
    tokenizer(tmp_path / "changed", seed=1)
    said = refusal(root, tmp_path / "run", "max_updates=3", dvae=tmp_path / "changed")
    assert "began with another tokenizer" in said and "set companions.tokenizer back" in said
    shutil.rmtree(moved)
    shutil.copytree(tmp_path / "changed", moved)
    with pytest.raises(UserError, match=r"moved holds other weights \(sha256"):
        Past(open_run(tmp_path / "run"), 2).stream()
    shutil.rmtree(moved)
    assert "companions.tokenizer of beit cannot be read: there is no model directory" in refusal(root, tmp_path / "run", dvae=moved)
    (saved, *_) = checkpoint.all_checkpoints(tmp_path / "run/checkpoints")
    net = polymodal.load(saved.path)
    assert type(net).__name__ == "BeitForMaskedImageModeling", "who needs the network alone needs no tokenizer"
    assert not (tmp_path / "other").exists()


def test_ranks_with_different_companions_are_refused(root, tmp_path, monkeypatch):
    gather = begin.dist.gather_json
    monkeypatch.setattr(begin.dist, "gather_json", lambda value: [*gather(value), {"companions.tokenizer": "other"}]
                        if isinstance(value, dict) and "companions.tokenizer" in value else gather(value))
    assert "the ranks read different files beside the data (companions.tokenizer)" in refusal(root, tmp_path / "run")


def test_mistakes_are_told_before_anything_is_written(root, tmp_path):
    out = tmp_path / "run"
    assert "beit needs a tokenizer beside the network that it trains: set companions.tokenizer=DIR" in refusal(root, out, dvae="")
    assert "there is no model directory at" in refusal(root, out, dvae=tmp_path / "nowhere")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    polymodal.save(polymodal.system("vit", size="tiny", **small).net, tmp_path / "vit")
    assert "which holds a ViTForImageClassification (vit); beit needs a network of dvae there" in refusal(root, out, dvae=tmp_path / "vit")
    coarse = tokenizer(tmp_path / "coarse", image_size=64)
    assert "set objective.token_image_size=32, or model.image_size" in refusal(root, out, dvae=coarse)
    polymodal.save(polymodal.system("beit", size="tiny", vocab_size=99, **small).net, tmp_path / "beit")
    said = refusal(root, out, model=tmp_path / "beit")
    assert "has 16 visual tokens and this network 99" in said
    assert not out.exists()
    train(root, out, "objective.token_image_size=32", dvae=coarse)
    with pytest.raises(UserError, match=r"companions\.teacher is unknown; beit pretraining has companions\.tokenizer"):
        recipe("beit-tiny", ["companions.teacher=x"])
    with pytest.raises(UserError, match=r"companions\.teacher is unknown; vit pretraining has no companions"):
        recipe("vit-tiny", ["companions.teacher=x"])
    with pytest.raises(UserError, match=r"companions\.tokenizer is unknown; beit classify has no companions"):
        recipe("beit-classify-tiny", ["companions.tokenizer=x"])


def test_a_run_is_planned_with_its_companion(root):
    chosen = recipe("beit-tiny", SMALL)
    with pytest.raises(UserError, match="beit needs a tokenizer"):
        plan(chosen, None, Cluster(), console=QUIET)
    chosen = replace(chosen, companions={"tokenizer": str(root / "dvae")})
    told = plan(chosen, root / "data", Cluster(), console=QUIET)
    system = polymodal.system("beit", size="tiny", vocab_size=16, hidden_size=16, num_attention_heads=2, intermediate_size=16)
    assert told["parameters"] == sum(p.numel() for p in system.parameters())
    assert plan(chosen, None, Cluster(), console=QUIET)["parameters"] == told["parameters"]


def test_a_system_in_a_program_has_its_companion(root):
    system = polymodal.system("beit", size="tiny", companions={"tokenizer": root / "dvae"}).eval()
    assert system.net.config.vocab_size == 16
    alone = polymodal.system("beit", size="tiny", vocab_size=16)
    with pytest.raises(UserError, match="built without a tokenizer and cannot read pictures: pass companions="):
        alone(replace(_batch(system)))


def _batch(system):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)

    class Picture(polymodal.shared.sample.Sample):
        def pixels(self):
            return pixels

    return system.objective.collate(list(system.objective.example(Picture("p", {}, index=0), np.random.default_rng(0))))
