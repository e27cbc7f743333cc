"""The CRF against every sequence of tags, one by one."""

import itertools

import pytest
import torch
from polymodal.text._crf import CRF


def crf(tags, seed=0):
    torch.manual_seed(seed)
    found = CRF(tags).double()
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter)
    return found


def score(model, scores, tags):
    total = model.first[tags[0]] + model.last[tags[-1]] + sum(scores[t, y] for t, y in enumerate(tags))
    return total + sum(model.transitions[a, b] for a, b in itertools.pairwise(tags))


@pytest.mark.parametrize("tags", [1, 2, 4])
def test_losses_and_best_tags_are_those_of_all_sequences(tags):
    model, lengths = crf(tags), (4, 1, 3, 2)
    scores = torch.randn(4, 4, tags).double().requires_grad_()
    truth = torch.randint(tags, (4, 4))
    keep = torch.arange(4) < torch.tensor(lengths)[:, None]
    losses, best = model.loss(scores, truth.masked_fill(~keep, -100), keep), model.best(scores, keep)
    wanted = []
    for row, length in enumerate(lengths):
        every = {y: score(model, scores[row], y) for y in itertools.product(range(tags), repeat=length)}
        wanted.append(torch.stack(list(every.values())).logsumexp(0) - every[tuple(truth[row, :length].tolist())])
        assert tuple(best[row, :length].tolist()) == max(every, key=lambda y: float(every[y].detach()))
    torch.testing.assert_close(losses, torch.stack(wanted), rtol=1e-10, atol=1e-10)
    parameters = [scores, *model.parameters()]
    for a, b in zip(torch.autograd.grad(losses.sum(), parameters), torch.autograd.grad(sum(wanted), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert not torch.autograd.grad(model.loss(scores, truth, keep).sum(), scores)[0][~keep].any()


def test_transitions_decide():
    """A tag that may not follow another does not, whatever the words say."""
    model = CRF(2)
    with torch.no_grad():
        model.transitions[0, 1] = -100.0
    scores = torch.tensor([[[3.0, 0.0], [0.0, 2.0], [0.0, 2.0]]])
    keep = torch.ones(1, 3, dtype=torch.bool)
    assert model.best(scores, keep).tolist() == [[1, 1, 1]] and scores.argmax(-1).tolist() == [[0, 1, 1]]
