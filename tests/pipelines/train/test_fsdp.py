"""FSDP and activation checkpointing: the same losses, gradients and checkpoints as one process; also one of the ranks.

One start of the ranks is for all families.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import processes
import pytest
import torch
from contract.cases import Case, batch_of, cases, prepare, samples_of
from contract.runs import TIMES, run, short
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.model.frontdoor import load, save
from polymodal.pipelines.plan.plan import Cluster, plan
from polymodal.pipelines.run.directory import Run
from polymodal.pipelines.run.optim import OptimSettings, clip_gradients
from polymodal.pipelines.run.recipe import CheckpointSettings, DataSettings, EvaluateSettings, recipe
from polymodal.pipelines.train import loop
from polymodal.pipelines.train.devices import build_fabric
from polymodal.pipelines.train.layers import recompute_blocks
from polymodal.pipelines.train.sharding import building, full, layout_problems, system_problems, undivided, units
from polymodal.shared import dist
from polymodal.shared.block import Block
from polymodal.shared.errors import UserError
from torch import Tensor, nn

CHOSEN = ("gpt2-tiny", "bert-tiny", "t5-tiny", "clip-tiny", "beit-tiny", "distilbert-tiny")


def named(name: str) -> Case:
    """One case without dropout."""
    return next(case for case in cases() if case.name == name).still()


def chosen() -> dict[str, Case]:
    """A decoder, an encoder, both, a loss over the whole batch, also with towers that run piece by piece, and two with a companion."""
    clip = named("clip-tiny")
    pieces = replace(clip, recipe=replace(clip.recipe, objective={**clip.recipe.objective, "chunk": 1}))
    return {name: named(name) for name in CHOSEN} | {"clip-tiny-chunk": pieces}


def fit(case: Case, root: Path, out: Path, world: int, **more: Any) -> None:
    """Train with AdamW and an average of the weights, whose states must move between ranks too; every rank calls it."""
    made = short(case.recipe, micro=None if case.coupled else 2, **({
        "updates": 4, "strategy": "fsdp", "devices": world, "optim": OptimSettings("adamw", lr=1e-3, eps=1e-4, clip=0.5, ema_decay=0.6),
        "checkpoint": CheckpointSettings(every=2, keep_last=9), "evaluate": EvaluateSettings(batch=8, every=3, previews=2),
    } | more))
    data = prepare(root, case)
    loop.pretrain(made, data.train, out, eval_data=data.held, tokenizer=data.tokenizer, console=Console(quiet=True))


def rows(out: Path) -> list[dict[str, Any]]:
    """The metrics without times."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(out).metrics()]


def ranks(world: int, stage: str, root: Path, out: Path) -> None:
    """Run a stage of `as_a_rank` on several ranks."""
    processes.together(processes.ranks(world, as_a_rank, root, out, stage))


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal but for the order of sums."""
    assert [(r["split"], r["update"]) for r in found] == [(r["split"], r["update"]) for r in expected]
    for a, b in zip(found, expected):
        numbers = {k: v for k, v in b.items() if k != "split"}
        assert {k: a[k] for k in numbers} == pytest.approx(numbers, rel=1e-5) and a.keys() == b.keys()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    for case in chosen().values():  # the ranks must not write them both
        prepare(path, case)
    return path


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    """What one process makes of 4 updates; strategy fsdp has nothing to divide there."""
    out = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, case in chosen().items():
        fit(case, root, out / name, 1)
    torch.set_num_threads(threads)
    return out


@pytest.mark.slow
def test_sharded_ranks_train_as_one_and_runs_move_between_layouts(root, alone, tmp_path):
    """2 ranks -> 1 process -> 4 ranks with two copies of two shards: losses, norms before clipping, evaluations, weights, exports."""
    ranks(2, "first", root, tmp_path)
    for name, case in chosen().items():
        out = tmp_path / name
        same(rows(out), rows(alone / name))
        assert max(r["grad_norm"] for r in rows(out) if r["split"] == "train") > 0.5, "nothing was clipped"
        expected, found = (Run(p / name).system().state_dict() for p in (alone, tmp_path))
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-6)
        exported = load(out).state_dict()
        assert all(torch.equal(t, exported[n]) for n, t in Run(out).system().net.state_dict().items())
        assert len(list((out / "checkpoints" / "update-00000004").glob("shard-*"))) == 2
        fit(case, root, out, 1, updates=6, strategy="auto")
        fit(case, root, alone / name, 1, updates=8)
    ranks(4, "second", root, tmp_path)
    for name in chosen():
        last, expected = ([r for r in rows(p / name) if r["update"] > 4 and r["split"] == "train"] for p in (tmp_path, alone))
        same(last, expected)
        assert [r["update"] for r in last] == [5, 6, 7, 8]
        same(rows(tmp_path / name)[-1:], rows(alone / name)[-1:])


def variants(world: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Runs of two updates of a case under fsdp, with accumulation where the loss allows it: on two ranks, two micro-batches of 2."""
    again = {"activation_checkpointing": True}
    return {name: (case, {"strategy": "fsdp", "devices": world, "data": DataSettings(8, 2, lanes=4, window=16), **more})
            for name, (case, more) in {
                "sgd": ("gpt2-tiny", {**again, "optim": OptimSettings("sgd", lr=0.05, nesterov=True)}),
                # texts of very different lengths, so that one rank makes more passes than the other
                "adagrad": ("bert-tiny", {**again, "data": DataSettings(8, 2, max_tokens=48 if world > 1 else None, lanes=4, window=16),
                                           "optim": OptimSettings("adagrad", lr=0.01, eps=0.1)}),
                "bf16": ("gpt2-tiny", {**again, "precision": "bf16-mixed", "optim": OptimSettings("adamw", lr=1e-3)}),
                "started": ("gpt2-tiny", {}),
                "locked": ("clip-tiny", {"data": DataSettings(8, None, lanes=4, window=16),
                                         "model": {**named("clip-tiny").recipe.model, "lock_text": True}}),
                "compiled": ("vit-tiny", {**again, "compile": world > 1}),
            }.items()}


def make(root: Path, out: Path, world: int, names: Sequence[str]) -> None:
    """Make variants, and write what they computed; every rank calls it."""
    for name in names:
        case, more = variants(world)[name]
        start = {"model": root / "start"} if name == "started" else {}
        made = run(named(case), short(named(case).recipe, **more), root, out / name, held=True, **start)
        gradients = [{n: full(g).float() for n, g in update.items()} for update in made.gradients]
        if dist.rank() == 0:
            torch.save((gradients, made.rows), out / f"{name}.pt")


def equal(found: Path, expected: Path, rel: float) -> None:
    """Gradients of every update, by the largest number of each tensor, and losses."""
    (ours, our_rows), (theirs, their_rows) = torch.load(found), torch.load(expected)
    assert len(ours) == len(theirs) == 2
    for update, wanted in zip(ours, theirs):
        assert update.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(update[name], tensor, rtol=0, atol=rel * tensor.abs().max().item() + 1e-8, msg=name)
    assert [r["loss"] for r in our_rows] == pytest.approx([r["loss"] for r in their_rows], rel=rel)


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """Data, a model to start from, and the variants on one process, without compilation."""
    root, out = tmp_path_factory.mktemp("more"), tmp_path_factory.mktemp("variants")
    for case, _ in variants(1).values():
        prepare(root, named(case))
    other = named("gpt2-tiny")
    save(replace(other, recipe=replace(other.recipe, seed=5)).build().net, root / "start")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    make(root, out, 1, list(variants(1)))
    torch.set_num_threads(threads)
    return root, out


@pytest.mark.slow
def test_optimizers_precisions_and_models_to_start_from(more, tmp_path):
    """Accumulation, recomputation and other optimizers in fp32: the same gradients; in bf16 they differ by its rounding alone."""
    root, alone = more
    ranks(2, "sgd,adagrad,bf16,started,locked", root, tmp_path)
    for name in ("sgd", "adagrad", "started", "locked"):
        equal(tmp_path / f"{name}.pt", alone / f"{name}.pt", 2e-5)
    (ours, found), (theirs, expected) = (torch.load(p / "bf16.pt") for p in (tmp_path, alone))
    for update, wanted in zip(ours, theirs, strict=True):
        both = [torch.cat([update[key].flatten(), wanted[key].flatten()]).view(2, -1) for key in wanted]
        mine, other = torch.cat(both, 1)
        assert (mine - other).norm() < 0.05 * other.norm()
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in expected], rel=0.02)
    assert found[-1]["loss"] < found[0]["loss"], "it learns"
    first = [torch.load(alone / f"{name}.pt")[1][0]["loss"] for name in ("sgd", "started")]
    assert first[0] != pytest.approx(first[1], rel=1e-4), "other weights than fresh ones"


@pytest.mark.slow
def test_compiled_blocks_give_the_same_gradients(more, tmp_path):
    """torch.compile with its default backend on two ranks, against one process that compiles nothing."""
    root, alone = more
    ranks(2, "compiled", root, tmp_path)
    equal(tmp_path / "compiled.pt", alone / "compiled.pt", 2e-5)


@pytest.mark.parametrize("name", [*CHOSEN, "transformer_xl-tiny"])
def test_blocks_that_are_computed_again_give_the_same_gradients(name):
    """With dropout, and with fewer tensors kept for the backward pass."""
    case = next(c for c in cases() if c.name == name)
    system = case.build()
    system.train()
    tok = case.context.tokenizer
    batch = batch_of(system.objective, samples_of(system.objective, tok, range(4)))

    def measured() -> tuple[float, int, dict[str, Tensor]]:
        kept: list[int] = []
        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
            loss = sum(term.total for term in system(batch).terms.values())
        system.zero_grad()
        loss.backward()
        return loss.item(), sum(kept), {n: p.grad.clone() for n, p in system.named_parameters() if p.grad is not None}

    loss, kept, gradients = measured()
    recompute_blocks(system)
    again, fewer, recomputed = measured()
    assert again == loss and fewer < kept and recomputed.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(recomputed[key], gradient, rtol=1e-6, atol=1e-7)
    assert system.state_dict().keys() == case.build().state_dict().keys()


def test_units_are_the_blocks_that_run_once_and_share_nothing():
    for case in chosen().values():
        system = case.build()
        assert units(system) == [m for m in system.modules() if isinstance(m, Block)] != []
    system = next(c for c in cases() if c.name == "bert-tiny").build()
    first, second = [m for m in system.modules() if isinstance(m, Block)][:2]
    first.feed_forward.up.weight = second.feed_forward.up.weight
    assert first not in units(system) and second not in units(system)


def test_what_cannot_be_sharded_is_refused_with_all_reasons():
    made = recipe("gpt2-tiny", ["strategy=fsdp", "shard_size=4", "optim.name=muon"])
    found = list(layout_problems(made, 6, "mps"))
    assert len(found) == 3 and "use 2, 3, 6" in found[0] and "muon" in found[1] and "mps" in found[2]
    assert not list(layout_problems(made, 1, "cpu")), "one rank has nothing to divide"
    assert not list(layout_problems(replace(made, shard_size=3, optim=replace(made.optim, name="sgd")), 6, "cpu"))
    with pytest.raises(UserError, match="only fsdp divides"):
        recipe("gpt2-tiny", ["shard_size=4"])
    with pytest.raises(UserError, match="shard_size is 1, expected at least 2"):
        recipe("gpt2-tiny", ["strategy=fsdp", "shard_size=1"])
    norms = next(c for c in cases() if c.name == "clip-tiny-resnet")
    assert "norms over the batch" in next(system_problems(replace(norms.recipe, strategy="fsdp"), norms.build(), 2))
    assert not list(system_problems(norms.recipe, norms.build(), 2))
    assert not list(system_problems(replace(norms.recipe, strategy="fsdp"), named("clip-tiny").build(), 2))


def test_what_stays_whole():
    """Numbers without rows, and what a rank runs without the others."""
    system = named("clip-tiny").build()
    assert undivided(system) == [system.net.logit_scale]
    with patch.object(type(system), "undivided", lambda self: (self.net.text_trunk,)):
        assert {id(p) for p in undivided(system)} == {id(p) for p in (*system.net.text_trunk.parameters(), system.net.logit_scale)}
        assert units(system) == list(system.net.image_trunk.stack.blocks)


def test_a_gradient_in_one_piece_counts_once():
    whole = nn.Parameter(torch.tensor(1.0))
    whole.grad = torch.tensor(3.0)
    other = nn.Parameter(torch.ones(2))
    other.grad = torch.tensor([0.0, 4.0])
    unused = nn.Parameter(torch.ones(2))
    assert clip_gradients([whole, other, unused], 1.0) == 5.0
    assert whole.grad.item() == pytest.approx(0.6) and other.grad.tolist() == pytest.approx([0.0, 0.8]) and unused.grad is None


@pytest.mark.parametrize("case", cases(), ids=lambda c: c.name)
def test_every_system_can_be_built_without_weights(case):
    """As the ranks that are sent theirs build it."""
    with building(replace(case.recipe, strategy="fsdp"), 1, 2):
        empty = case.build()
    real = case.build()
    assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers())) and not any(t.is_meta for t in real.parameters())
    for ours, theirs in ((empty.named_parameters, real.named_parameters), (empty.named_buffers, real.named_buffers)):
        assert [(n, t.shape, t.dtype, t.requires_grad) for n, t in ours()] == [(n, t.shape, t.dtype, t.requires_grad) for n, t in theirs()]


def test_plan_divides_the_memory():
    quiet = Console(quiet=True)
    base = ["accelerator=cpu", "precision=32", "data.global_batch=16", "model.n_layer=5", "model.vocab_size=500", "model.n_positions=128"]

    def memory(*more: str, ranks: int = 4) -> dict[str, int]:
        return plan(recipe("gpt2-tiny", [*base, *more]), None, Cluster(gpus=ranks), console=quiet)["memory"]

    ddp, fsdp, two = memory("strategy=ddp"), memory("strategy=fsdp"), memory("strategy=fsdp", "shard_size=2")
    for part in ("weights", "gradients", "optimizer"):
        assert fsdp[part] == pytest.approx(ddp[part] / 4, abs=1) and two[part] == pytest.approx(ddp[part] / 2, abs=1)
    assert fsdp["activations"] == ddp["activations"]
    assert fsdp["gathered"] < ddp["weights"] + ddp["gradients"] and fsdp["peak"] < two["peak"] < ddp["peak"]
    again = memory("strategy=fsdp", "activation_checkpointing=true", "reshard_after_forward=false")
    assert again["activations"] < 0.7 * fsdp["activations"] and again["gathered"] > fsdp["gathered"]
    with pytest.raises(UserError, match="use 2, 4, or leave it out"):
        memory("strategy=fsdp", "shard_size=3")


def as_a_rank(root: Path, out: Path, stage: str) -> None:
    """As one rank."""
    torch.set_num_threads(1)
    world = int(os.environ["WORLD_SIZE"])
    if stage not in ("first", "second"):
        make(root, out, world, stage.split(","))
        return
    less: dict[str, Any] = {"updates": 8, "shard_size": 2, "activation_checkpointing": True, "reshard_after_forward": False}
    for name, case in chosen().items():
        if stage == "first":
            fresh(case, world)
        fit(case, root, out / name, world, **({} if stage == "first" else less))


def fresh(case: Case, world: int) -> None:
    """The weights of a run that begins are those of one process, bit for bit, and only rank 0 ever had them all."""
    made = short(case.recipe, strategy="fsdp", devices=world)
    fabric = build_fabric(made)
    with building(made, fabric.global_rank, world):
        system = case.build()
    assert all(p.is_meta for p in system.parameters()) == (fabric.global_rank > 0)
    fabric.setup_module(system)
    alone = case.build()
    tied = [name for name, _ in alone.named_parameters(remove_duplicate=False)]
    assert [name for name, _ in system.named_parameters(remove_duplicate=False)] == tied
    for (name, ours), theirs in zip(system.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(full(ours.detach()), theirs), name
        assert ours.requires_grad == theirs.requires_grad
    for ours, theirs in zip(system.buffers(), alone.buffers(), strict=True):
        assert torch.equal(ours, theirs)
