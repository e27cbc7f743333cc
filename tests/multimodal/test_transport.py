"""Optimal transport between words and regions: against a linear programme, and against the algorithm written down again."""

import numpy as np
import pytest
import torch
from polymodal.multimodal.transport import cosine_costs, ipot, transport_distances
from scipy.optimize import linprog


def pair(seed, words, regions, width=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(words, width)), rng.normal(size=(regions, width))


def padded(pairs, words=None, regions=None):
    """Pairs as one batch, with noise at the padding: nothing there may matter."""
    s, r = words or max(len(w) for w, _ in pairs), regions or max(len(v) for _, v in pairs)
    x, y = (torch.full((len(pairs), n, pairs[0][0].shape[1]), 3.0, dtype=torch.float64) for n in (s, r))
    keep = [torch.zeros(len(pairs), n, dtype=torch.bool) for n in (s, r)]
    for i, (w, v) in enumerate(pairs):
        x[i, :len(w)], y[i, :len(v)] = torch.from_numpy(w), torch.from_numpy(v)
        keep[0][i, :len(w)], keep[1][i, :len(v)] = True, True
    return x, y, *keep


def costs_of(words, regions):
    unit = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in (words, regions)]
    return 1 - unit[0] @ unit[1].T


def written_again(costs, beta=0.5, steps=50):
    """IPOT for one pair, with nothing but scalars and loops over words and regions: appendix of Chen et al. 2019, algorithm 1."""
    n, m = costs.shape
    plan, sigma = [[1.0] * m for _ in range(n)], [1 / m] * m
    for _ in range(steps):
        q = [[np.exp(-costs[i, j] / beta) * plan[i][j] for j in range(m)] for i in range(n)]
        delta = [1 / (n * sum(q[i][j] * sigma[j] for j in range(m))) for i in range(n)]
        sigma = [1 / (m * sum(q[i][j] * delta[i] for i in range(n))) for j in range(m)]
        plan = [[delta[i] * q[i][j] * sigma[j] for j in range(m)] for i in range(n)]
    return np.array(plan)


SHAPES = ((1, 1), (2, 5), (7, 3), (4, 4))


def test_a_padded_batch_is_each_pair_alone():
    pairs = [pair(n, *shape) for n, shape in enumerate(SHAPES)]
    x, y, x_keep, y_keep = padded(pairs)
    costs = cosine_costs(x, y, x_keep, y_keep)
    plans, distances = ipot(costs, x_keep, y_keep), transport_distances(x, y, x_keep, y_keep)
    for i, (w, v) in enumerate(pairs):
        expected = costs_of(w, v)
        assert np.allclose(costs[i, :len(w), :len(v)], expected, atol=1e-12)
        # the code scales words first: the paper's roles are the other way round, which is the same algorithm on the transpose
        again = written_again(expected.T).T
        assert np.allclose(plans[i, :len(w), :len(v)], again, rtol=1e-9, atol=1e-13)
        assert not plans[i, len(w):].any() and not plans[i, :, len(v):].any()
        assert float(distances[i]) == pytest.approx(float((expected * again).sum()), rel=1e-9)


def test_with_enough_steps_it_is_the_least_cost_that_a_linear_programme_finds():
    for n, (words, regions) in enumerate(((3, 4), (5, 5), (6, 2))):
        w, v = pair(100 + n, words, regions)
        costs = costs_of(w, v)
        rows = np.kron(np.eye(words), np.ones(regions))
        columns = np.kron(np.ones(words), np.eye(regions))
        best = linprog(costs.ravel(), A_eq=np.concatenate([rows, columns]),
                       b_eq=np.concatenate([np.full(words, 1 / words), np.full(regions, 1 / regions)]), bounds=(0, None))
        assert best.success
        x, y, x_keep, y_keep = padded([(w, v)], 8, 7)
        table = cosine_costs(x, y, x_keep, y_keep)
        plan = ipot(table, x_keep, y_keep, iterations=3000)[0, :words, :regions].numpy()
        assert np.allclose(plan.sum(1), 1 / words, atol=1e-6) and np.allclose(plan.sum(0), 1 / regions, atol=1e-6)
        assert float((plan * costs).sum()) == pytest.approx(best.fun, rel=1e-4)
        early = float((ipot(table, x_keep, y_keep)[0, :words, :regions].numpy() * costs).sum())
        assert best.fun * 0.999 < early < best.fun * 1.1  # 50 steps, as in training, come near


def test_the_gradient_is_that_of_the_costs_under_a_fixed_plan():
    x, y, x_keep, y_keep = padded([pair(1, 4, 3), pair(2, 2, 5)])
    x.requires_grad_(True), y.requires_grad_(True)
    transport_distances(x, y, x_keep, y_keep).sum().backward()
    found = x.grad, y.grad
    a, b = (t.detach().clone().requires_grad_(True) for t in (x, y))
    plan = ipot(cosine_costs(a.detach(), b.detach(), x_keep, y_keep), x_keep, y_keep)
    (plan * (1 - torch.nn.functional.cosine_similarity(a[:, :, None], b[:, None], dim=-1))).sum().backward()
    assert torch.allclose(found[0], a.grad, atol=1e-12) and torch.allclose(found[1], b.grad, atol=1e-12)
    assert not found[0][~x_keep].any() and not found[1][~y_keep].any()


def test_half_precision_is_solved_in_single():
    x, y, x_keep, y_keep = padded([pair(n, *shape) for n, shape in enumerate(SHAPES)])
    whole = transport_distances(x, y, x_keep, y_keep)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = transport_distances(x.bfloat16(), y.bfloat16(), x_keep, y_keep)
    assert half.dtype == torch.float32 and torch.allclose(half.double(), whole, atol=2e-2)
    assert torch.allclose(transport_distances(x.float(), y.float(), x_keep, y_keep).double(), whole, atol=1e-5)
