"""Each property of the contract test can fail: a system that keeps the contract passes, and for every way to break it one does not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from contract import checks
from contract.cases import batch_of, samples_of
from polymodal.shared.convert import Rename
from polymodal.shared.decoder import DecoderInfo
from polymodal.shared.errors import UserError
from polymodal.shared.system import Batch, Objective, Preview, Step, System, Term
from torch import Tensor, nn
from torch.nn import functional as F

LETTERS = 128


@dataclass(kw_only=True)
class Rows(Batch):
    ids: Tensor
    targets: Tensor
    lengths: tuple[int, ...]


class Letters(Objective):
    """The next letter of a text; one letter in ten becomes another one."""

    def __init__(self, fault):
        self.fault = fault
        self.calls = 0

    def example(self, sample, rng):
        self.calls += 1
        if self.fault == "memory":
            rng = np.random.default_rng(self.calls)
        if self.fault == "global generator":
            rng = np.random.default_rng(int(torch.randint(100, ())))
        ids = np.frombuffer(sample.text().encode()[:60], np.uint8).astype(np.int64)
        noisy = np.where(rng.random(len(ids)) < 0.1, 32, ids)
        if self.fault != "empty":
            yield noisy[:-1], ids[1:]

    def collate(self, examples):
        lengths = tuple(len(a) for a, _ in examples)
        ids, targets = (torch.from_numpy(np.concatenate([e[i] for e in examples])) for i in (0, 1))
        counts = {"targets": {"constant count": 100, "no count": 0}.get(self.fault, len(targets))}
        return Rows(counts=counts, ids=ids, targets=targets, lengths=lengths, tokens=len(ids))

    def describe(self, example):
        return Preview(() if self.fault == "no description" else (("text", "".join(map(chr, example[0]))),))


class Mean(nn.Module):
    """Logits of the next letter from this one and the mean of those before it in its text."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.table = nn.Embedding(LETTERS, 16)
        self.out = nn.Linear(32, LETTERS)
        self.unused = nn.Parameter(torch.ones(3)) if fault == "unused parameter" else None
        self.start = nn.Parameter(torch.zeros(1, 16)) if fault == "table decays" else None

    @property
    def decoder_info(self):
        return DecoderInfo(max_positions=99, num_layers=0)

    def next_logits(self, input_ids, attention_mask, position_ids, cache):
        return self(input_ids).logits[:, -1]

    def forward(self, input_ids):
        x = self.table(input_ids)
        before = x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        if self.fault == "future":
            before = x.mean(1, keepdim=True).expand_as(x)
        if self.fault == "deaf":
            before, x = before * 0, x * 0
        return Step({}, {"logits": self.out(torch.cat([x, before], -1))})


class Output:
    def __init__(self, logits):
        self.logits = logits


class Toy(System):
    def __init__(self, fault=""):
        torch.manual_seed(0)
        super().__init__(Mean(fault), Letters(fault))
        self.fault = fault
        self.net.register_forward_hook(lambda m, i, o: Output(o.metrics["logits"]))

    def forward(self, batch, carry=None):
        parts = [batch.ids] if self.fault == "leak" else batch.ids.split(batch.lengths)
        logits = torch.cat([self.net(p[None]).logits[0] for p in parts])
        if self.fault == "nan":
            logits = logits * float("nan")
        if self.fault == "gradient of zeros":
            logits = logits.detach() + self.net.out.bias + self.net.out.weight.sum() + 0 * self.net.table.weight.sum()
        if self.fault == "no gradient":
            logits = logits.detach() + self.net.out.bias
        targets = batch.targets
        if self.fault == "cannot be learnt":
            targets = torch.randint(LETTERS, targets.shape)
        total = F.cross_entropy(logits, targets, reduction="mean" if self.fault == "mean" else "sum")
        if self.fault == "rounded":  # so coarsely that no processor's order of adding makes up for it
            total = total + (total.detach().bfloat16() - total.detach())
        right = (logits.argmax(-1) == targets).sum()
        count = "tokens" if self.fault == "unknown count" else "targets"
        metric = (right / len(targets), 1) if self.fault == "metric is a mean" else (right, len(targets))
        labels = targets[:-1] if self.fault == "labels lack one" else targets
        return Step({"lm": Term(total, count, labels=labels)}, {"accuracy": metric})

    def measured(self):
        return {"measures nothing": None, "measures something else": ("lm", "accuracy")}.get(
            self.fault, ("lm", "lm_chance", "accuracy", "perplexity"))

    def derive(self, means):
        return {"lm": 0.0} if self.fault == "derives a term" else {"perplexity": float(np.exp(means["lm"]))}

    def preview(self, batch, limit=4):
        return [Preview((("text", "x"),))] * (limit + 1 if self.fault == "too many previews" else limit)


def samples(toy, numbers=range(5)):
    return samples_of(toy.objective, None, numbers)


def sums(toy):
    toy.double()
    made = samples(toy)
    checks.check_sums(toy, batch_of(toy.objective, made), [batch_of(toy.objective, [s]) for s in made])


def gradients(toy):
    checks.check_gradients(toy, [batch_of(toy.objective, samples(toy, range(n, n + 4))) for n in (0, 4)])


def documents(toy):
    checks.check_documents(toy.double(), toy.objective, samples(toy), samples(toy, (31, 47, 33)))


def future(toy):
    checks.check_future(toy.net.double(), LETTERS)


def overfits(toy):
    checks.check_overfits(toy, batch_of(toy.objective, samples(toy)))


def objective(toy):
    checks.check_objective(toy.objective, samples(toy))


def decay(toy):
    checks.check_decay(toy)


def preview(toy):
    checks.check_preview(toy, batch_of(toy.objective, samples(toy)))


def measured(toy):
    checks.check_measured(toy, {"": batch_of(toy.objective, samples(toy))})


CHECKS = (sums, gradients, documents, future, overfits, objective, decay, preview, measured)


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_a_system_that_keeps_the_contract_passes(check):
    check(Toy())


@pytest.mark.parametrize(("check", "fault", "said"), [
    (sums, "mean", "not the sum"), (sums, "leak", "not the sum"), (sums, "constant count", "count targets is not a sum"),
    (sums, "metric is a mean", "metric accuracy"), (sums, "rounded", "not the sum"), (sums, "cannot be learnt", "not the sum"),
    (gradients, "unused parameter", r"\['net.unused'\] have no gradient"), (gradients, "no gradient", "net.table.weight"),
    (gradients, "gradient of zeros", r"no gradient reaches \['net.table.weight'\]"),
    (gradients, "nan", "lm is nan"), (gradients, "unknown count", "tokens"), (gradients, "labels lack one", "labels"),
    (documents, "leak", "others lose something else"),
    (future, "future", "logits .* before it"), (future, "deaf", "blind"),
    (overfits, "cannot be learnt", "after 60 updates"), (overfits, "no gradient", "after 60 updates"),
    (objective, "memory", "same generators|what came before"), (objective, "global generator", "same generators|what came before"),
    (objective, "empty", "no example"), (objective, "no count", "counts are"), (objective, "no description", "describe gives no rows"),
    (decay, "table decays", r"\['net.start'\] decay"),
    (measured, "measures nothing", "does not say"), (measured, "measures something else", r"names \['accuracy', 'lm'\], an evaluation has"),
    (preview, "too many previews", "previews of at most"), (preview, "derives a term", "derived numbers"),
])
def test_a_system_that_breaks_it_does_not(check, fault, said):
    with pytest.raises((AssertionError, KeyError), match=said):
        check(Toy(fault))


KEYS = {"table.weight": torch.arange(6.0).view(2, 3), "out.bias": torch.arange(3.0)}


class Forgets(Rename):
    """Reads zeros where nothing is."""

    def read(self, tensors):
        return [torch.zeros_like(t) for t in tensors]


@pytest.mark.parametrize(("rules", "said"), [
    ((Rename("a", "table.weight"), Forgets("b", "out.bias")), "come back changed"),
    ((Rename("a", "table.weight"),), "out.bias"),
])
def test_rules_that_lose_something_are_found(rules, said):
    checks.check_rules((Rename("a", "table.weight"), Rename("b", "out.bias")), KEYS, "toy")
    with pytest.raises((AssertionError, UserError), match=said):
        checks.check_rules(rules, KEYS, "toy")
