"""The contract, property by property, as functions that raise AssertionError where a system breaks it.

The loss of a batch is a sum, whose parts know nothing of one another; its gradient reaches what is trained; a decoder does
not see what comes later; an objective draws from the generator it is given and from nothing else.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from contract.cases import batch_of, examples_of
from polymodal.pipelines.run.optim import OptimSettings, freeze, layer_depths, parameter_groups
from polymodal.pipelines.train import passes
from polymodal.pipelines.train.meter import Meter
from polymodal.shared.convert import Rule, Untied, to_ours, to_theirs
from polymodal.shared.decoder import Decoder, EncoderDecoder
from polymodal.shared.errors import UserError
from polymodal.shared.sample import Sample
from polymodal.shared.system import Batch, Objective, Preview, Step, System
from torch import Tensor, nn

Gradients = dict[str, Tensor]


def loss_of(system: System, batch: Batch, counts: Mapping[str, int] | None = None, carry: Any = None) -> tuple[Tensor, Step]:
    """A micro-batch's share of the loss, by the loop's own arithmetic.

    `counts` are the denominators of the whole global batch; by default the batch's own.
    """
    counts = batch.counts if counts is None else counts
    micro = passes.MicroBatch(batch, carry, {name: 1 / n if n else 0.0 for name, n in counts.items()})
    return passes.ScaledLoss(system)(micro), micro.result()


def gradients_of(system: System, batches: Sequence[Batch], counts: Mapping[str, int]) -> tuple[float, Gradients]:
    """Loss and gradient of a global batch that is divided into `batches`; no part goes on from another."""
    system.zero_grad()
    total = 0.0
    for batch in batches:
        loss, _ = loss_of(system, batch, counts)
        loss.backward()
        total += loss.item()
    return total, {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in system.named_parameters() if p.requires_grad}


def assert_same_gradients(found: Gradients, expected: Gradients, rel: float, floor: float = 1e-3) -> None:
    """Compare parameter by parameter; what is below `rel * floor` of the whole gradient's norm is rounding."""
    assert found.keys() == expected.keys()
    whole = float(torch.stack([g.double().norm() for g in expected.values()]).norm())
    assert whole > 0
    wrong = [f"{name} by {error / max(size, 1e-300):.1e} ({error / whole:.1e} of the whole)" for name in expected
             if (error := float((found[name] - expected[name]).double().norm())) > rel * (size := float(expected[name].double().norm()))
             and error > rel * floor * whole]
    assert not wrong, f"gradients differ relatively: {wrong}"


def assert_close(found: float, expected: float, rel: float, what: str) -> None:
    """Relative difference of two numbers."""
    assert abs(found - expected) <= rel * max(abs(found), abs(expected)), f"{what}: {found} and {expected}"


# ------------------------------------------------------------------------------------------- the loss side


def check_gradients(system: System, batches: Sequence[Batch]) -> None:
    """Every loss is finite and not negative, has a count, and everything that is trained is reached by a gradient that is finite.

    A term is positive in some batch: one that is of some samples alone (UNITER's pairs that do not match) may have none of them in another.

    An update lies between two batches: a block may begin as the identity, behind a gain of 0.
    """
    optimizer = torch.optim.Adam([p for p in system.parameters() if p.requires_grad], 1e-3)
    reached: dict[str, bool] = {n: False for n, p in system.named_parameters() if p.requires_grad}
    assert reached, "nothing is trained"
    largest: dict[str, float] = {}
    for batch in batches:
        system.zero_grad()
        loss, step = loss_of(system, batch)
        assert step.terms, "no term"
        for name, term in step.terms.items():
            assert term.total.ndim == 0 and bool(term.total.isfinite()) and term.total >= 0, f"{name} is {term.total}"
            largest[name] = max(largest.get(name, 0.0), float(term.total.detach()))
            if term.labels is not None:
                counted = int((term.labels >= 0).sum())
                assert counted == batch.counts[term.count], f"{name} has {counted} labels, the count is {batch.counts[term.count]}"
        loss.backward()
        lacking = [name for name, parameter in system.named_parameters() if name in reached and parameter.grad is None]
        assert not lacking, f"{lacking} have no gradient, not even zeros: ranks would wait for it"
        for name, parameter in system.named_parameters():
            if parameter.grad is not None:
                assert name in reached, f"{name} is frozen and has a gradient"
                assert bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite"
                reached[name] |= bool(parameter.grad.any())
        optimizer.step()
    assert all(largest.values()), f"{[name for name, most in largest.items() if not most]} are 0 in every batch"
    missing = [name for name, there in reached.items() if not there]
    assert not missing, f"no gradient reaches {missing}"


def check_sums(system: System, batch: Batch, alone: Sequence[Batch], rel: float = 1e-9) -> None:
    """Loss, gradient and metrics of a batch are the sums of those of its samples, whatever padding and packing do. In fp64."""
    assert len(alone) > 2 and sum(b.samples for b in alone) == batch.samples
    for name, count in batch.counts.items():
        assert sum(b.counts.get(name, 0) for b in alone) == count, f"the count {name} is not a sum over the samples"
    whole, expected = gradients_of(system, [batch], batch.counts)
    parts, found = gradients_of(system, alone, batch.counts)
    assert_close(parts, whole, rel, "the loss of the batch is not the sum of its samples'")
    assert_same_gradients(found, expected, rel)
    system.eval()
    with torch.no_grad():
        step, steps = system(batch), [system(b) for b in alone]
    system.train()
    for name, term in step.terms.items():
        assert_close(sum(float(s.terms[name].total) for s in steps if name in s.terms), float(term.total), rel, f"{name} in evaluation")
    for name, (total, count) in step.metrics.items():
        there = [s.metrics[name] for s in steps if name in s.metrics]
        assert sum(float(n) for _, n in there) == float(count), f"the count of the metric {name} is not a sum over the samples"
        assert_close(sum(float(t) for t, _ in there), float(total), 1e-6, f"the metric {name} is not a sum over the samples")


def check_documents(system: System, objective: Objective[Any], samples: Sequence[Sample], others: Sequence[Sample],
                    rel: float = 1e-9) -> None:
    """What the others of a batch lose does not move when one sample is exchanged for another one. In fp64."""

    def loss(chosen: Sequence[Sample]) -> float:
        batch = batch_of(objective, chosen)
        return sum(t.weight * float(t.total) for t in system(batch).terms.values())

    with torch.no_grad():
        for place, other in enumerate(others):
            changed = [*samples[:place], other, *samples[place + 1:]]
            mine, theirs = loss([samples[place]]), loss([other])
            assert abs(mine - theirs) > 1e3 * rel * mine, "the probe is blind: the exchanged sample itself loses the same"
            before, after = loss(samples) - mine, loss(changed) - theirs
            assert_close(after, before, rel, f"the others lose something else when sample {place} is another one")


def decoders(net: nn.Module) -> bool:
    """Whether the network reads and writes from left to right."""
    return isinstance(net, EncoderDecoder) or (isinstance(net, Decoder) and not net.decoder_info.reread)


def check_future(net: nn.Module, vocab_size: int, length: int = 11) -> None:
    """Changing a token moves the logits from there on, and none before. In fp64."""
    net.eval()
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, vocab_size, (2, length)))
    at = length // 2
    later = ids.clone()
    later[:, at:] = (later[:, at:] + 1 + torch.from_numpy(rng.integers(0, vocab_size - 1, (2, length - at)))) % vocab_size
    with torch.no_grad():
        if isinstance(net, EncoderDecoder):
            source = torch.from_numpy(rng.integers(0, vocab_size, (2, 7)))
            a, b = (net(input_ids=source, decoder_input_ids=x).logits for x in (ids, later))
        else:
            a, b = (net(input_ids=x).logits for x in (ids, later))
    moved = (a - b).abs().amax((0, 2)) > 1e-12 * a.abs().max()
    assert not bool(moved[:at].any()), f"a token moves logits {moved[:at].nonzero().flatten().tolist()} before it, at {at}"
    assert bool(moved[at:].all()), "the probe is blind: the changed tokens move nothing"


def check_overfits(system: System, batch: Batch, below: float = 0.6, updates: int = 60, lr: float = 3e-3) -> None:
    """One batch is learnt: its loss falls below a fraction of what it was, within some dozen updates."""
    optimizer = torch.optim.Adam([p for p in system.parameters() if p.requires_grad], lr)
    system.train()
    first = last = 0.0
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (update + 1) / 10)
        loss, _ = loss_of(system, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(system.parameters(), 1.0)
        optimizer.step()
        system.after_update(update)
        first, last = first or loss.item(), loss.item()
        if last < below * first:
            return
    raise AssertionError(f"after {updates} updates on one batch the loss is {last:.3f}, it began at {first:.3f}")


# ------------------------------------------------------------------------------------------- weights on disk


def odd_values(config: Any) -> Iterator[tuple[str, Any, Callable[[], Any]]]:
    """Fields of a config, of configs inside it too, with a value that nobody means, and what makes the config with it."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            for name, odd, change in odd_values(value):
                yield f"{f.name}.{name}", odd, lambda f=f, change=change: replace(config, **{f.name: change()})
            continue
        odd_ones: tuple[Any, ...] = ()
        if isinstance(value, bool):
            odd_ones = (not value,)
        elif isinstance(value, (int, float)):
            odd_ones = tuple(type(value)(n) for n in (0, -1, 3, 7))
        elif isinstance(value, str):
            odd_ones = ("nonsense",)
        for odd in odd_ones:
            yield f.name, odd, lambda f=f, odd=odd: replace(config, **{f.name: odd})


def check_decay(system: System) -> None:
    """Weight decay is for what multiplies: all that decays is called a weight or a projection."""
    decayed = {id(p) for group in parameter_groups(system, OptimSettings()) if group["weight_decay"] for p in group["params"]}
    weight = re.compile(r"(weight|weights\.\d+|projections\.\d+)$")
    wrong = [name for name, p in system.named_parameters() if id(p) in decayed and not weight.search(name)]
    assert not wrong, f"{wrong} decay: a module that holds such a parameter names it in `no_decay`"


def check_parts(system: System, batch: Batch) -> None:
    """Layers can be frozen and learn more slowly, and a head alone can be trained: what is frozen stays, all that is not moves."""
    tensors = dict(system.named_parameters())
    trained = {name for name, p in tensors.items() if p.requires_grad}
    depths = {name: depth for name, depth in layer_depths(system).items() if name in trained}
    if not depths:  # a task of heads alone, which freezes all below them
        return
    lowest, heads = {name for name, depth in depths.items() if depth.layer == 0}, trained - depths.keys()
    assert lowest, "no parameter is known as one of the embeddings"
    assert any(depth.layer == 1 for depth in depths.values()), "no parameter is known as one of the lowest layer"
    assert heads, "nothing lies above the layers"
    rates = {id(p): group.get("lr_scale", 1.0) for group in parameter_groups(system, OptimSettings(layer_decay=0.5))
             for p in group["params"]}
    assert all(rates[id(tensors[name])] == 0.5 ** depth.above for name, depth in depths.items())
    assert all(rates[id(tensors[name])] == 1.0 for name in heads)
    for parts, frozen in ((["embed", "layers:1"], {name for name, depth in depths.items() if depth.layer <= 1}), (["net.trunk.*"], {
            name for name in trained if name.startswith("net.trunk.")})):
        for name in trained:
            tensors[name].requires_grad_(True)
        assert trained & set(freeze(system, parts)) == frozen
        system.zero_grad()
        loss, _ = loss_of(system, batch)
        loss.backward()
        assert all(tensors[name].grad is None for name in frozen), f"{parts} is frozen and has a gradient"
        missing = [name for name in trained - frozen if tensors[name].grad is None]
        assert trained - frozen and not missing, f"with {parts} frozen no gradient reaches {missing}"


def check_rules(rules: Sequence[Rule], ours: Mapping[str, Tensor], what: str) -> None:
    """A rule table maps every key of ours there and back unchanged, and tells of each key that is missing or strange."""
    theirs = to_theirs(rules, ours, what)
    again = to_ours(rules, theirs, what)
    assert again.keys() == ours.keys()
    wrong = [name for name, tensor in ours.items() if not torch.equal(again[name], tensor)]
    assert not wrong, f"{wrong} come back changed"
    optional = {key for rule in rules if isinstance(rule, Untied) for key in rule.their_keys}  # another tensor stands for it
    for name in theirs.keys() - optional:
        try:
            found = to_ours(rules, {k: v for k, v in theirs.items() if k != name}, what)
        except UserError as error:
            assert name in str(error), f"{name} is missing, and the error does not name it: {error}"
        else:  # another name of a tied weight
            assert all(torch.equal(found[k], v) for k, v in ours.items()), f"{name} is not missed"
    try:
        to_ours(rules, {**theirs, "stranger.weight": torch.zeros(1)}, what)
    except UserError as error:
        assert "stranger.weight" in str(error)
    else:
        raise AssertionError("a strange key is not noticed")


# ------------------------------------------------------------------------------------------- the data side


def same(a: Any, b: Any) -> bool:
    """Whether two examples or batches hold the same values."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return bool(a == b)


def check_objective(objective: Objective[Any], samples: Sequence[Sample]) -> None:
    """Examples follow from the sample and its generator alone, in any process; counts are there before the forward pass."""
    state = (np.random.get_state()[1].copy(), torch.get_rng_state())  # noqa: NPY002 - the global one must not be touched
    first = examples_of(objective, samples)
    assert all(first), "a sample gave no example"
    travelled = pickle.loads(pickle.dumps(objective))
    backwards = examples_of(travelled, list(reversed(samples)))[::-1]
    assert same(first, examples_of(objective, samples)), "the same generators give other examples"
    assert same(first, backwards), "examples depend on what came before, or on the process"
    untouched = np.array_equal(state[0], np.random.get_state()[1]) and torch.equal(state[1], torch.get_rng_state())  # noqa: NPY002
    assert untouched, "a global generator was used"
    batch = batch_of(objective, samples)
    assert same(batch, batch_of(travelled, samples)), "collate is not deterministic"
    assert batch.counts and all(isinstance(n, int) and n > 0 for n in batch.counts.values()), f"counts are {batch.counts}"
    assert isinstance(objective.needs_partner, bool) and isinstance(objective.sequential, bool)
    held_out = objective.evaluation()
    assert isinstance(held_out, Objective)
    assert batch_of(held_out, samples).counts.keys() == batch.counts.keys(), "evaluation counts something else"
    for example in (e for part in first for e in part):
        shown = objective.describe(example)
        assert isinstance(shown, Preview) and shown.rows, "describe gives no rows"
        assert all(isinstance(text, str) for row in shown.rows for text in row)


def check_measured(system: System, batches: Mapping[str, Batch]) -> None:
    """A system names the numbers of an evaluation before there is one: those that the loop then writes, all of them. Batches by task."""
    named = system.measured()
    assert named is not None, "it does not say what an evaluation measures"
    meter = Meter(torch.device("cpu"), chance=True, turns=system.objective.turns)
    system.eval()
    with torch.no_grad():
        for task, batch in batches.items():
            meter.add(system(batch), batch.counts, task)
    system.train()
    means = {**meter.means(), **meter.chances()}
    found = {*means, *system.derived(means)}
    assert {"loss", *named} == found and len(named) == len(set(named)), f"it names {sorted(named)}, an evaluation has {sorted(found)}"


def check_preview(system: System, batch: Batch, limit: int = 3) -> None:
    """What the model makes of held-out examples can be shown, and derived numbers come from means."""
    system.eval()
    with torch.no_grad():
        step = system(batch)
        shown = system.preview(batch, limit)
    system.train()
    assert 0 < len(shown) <= limit, f"{len(shown)} previews of at most {limit}"
    for preview in shown:
        assert preview.rows and all(isinstance(text, str) for row in preview.rows for text in row)
        assert preview.image is None or (preview.image.dtype == np.uint8 and preview.image.ndim == 3)
    means = {n: float(t.total) / batch.counts[t.count] for n, t in step.terms.items()}
    means |= {n: float(t) / max(float(c), 1e-9) for n, (t, c) in step.metrics.items()}
    derived = system.derive(means)
    assert not set(derived) & set(means) and all(isinstance(v, float) and v == v for v in derived.values()), f"derived numbers {derived}"
