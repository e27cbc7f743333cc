import pytest
import torch
import torch.nn.functional as F
from polymodal.shared.loss import accuracy_sum, contrastive_sum, cross_entropy_sum, linear_cross_entropy_sum


@pytest.mark.parametrize("chunk", [None, 1, 4, 1000])
@pytest.mark.parametrize("with_bias", [False, True])
def test_chunked_loss_and_gradients_equal_autograd(chunk: int | None, with_bias: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(19, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(19, generator=rng, dtype=torch.float64, requires_grad=True) if with_bias else None
    targets = torch.randint(0, 19, (11,), generator=rng)
    targets[[0, 7]] = -100
    leaves = [t for t in (hidden, weight, bias) if t is not None]
    plain = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
    ours = linear_cross_entropy_sum(hidden, weight, bias, targets, chunk)
    torch.testing.assert_close(ours, plain)
    for got, want in zip(torch.autograd.grad(3 * ours, leaves), torch.autograd.grad(3 * plain, leaves)):
        torch.testing.assert_close(got, want)


def test_chunked_gradient_only_where_it_is_wanted() -> None:
    hidden, weight, targets = torch.randn(5, 4), torch.randn(7, 4, requires_grad=True), torch.randint(0, 7, (5,))
    (grad,) = torch.autograd.grad(linear_cross_entropy_sum(hidden, weight, None, targets), [weight])
    (want,) = torch.autograd.grad(cross_entropy_sum(hidden @ weight.T, targets), [weight])
    torch.testing.assert_close(grad, want)
    with torch.no_grad():
        assert not linear_cross_entropy_sum(hidden, weight, None, targets).requires_grad


def test_chunked_loss_under_autocast_is_near_fp32() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    targets = torch.randint(0, 9, (6,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy_sum(hidden, weight, None, targets, 4)
    assert loss.dtype == torch.float32
    got = torch.autograd.grad(loss, [hidden, weight])
    want = torch.autograd.grad(cross_entropy_sum(hidden @ weight.T, targets), [hidden, weight])
    for g, w in zip(got, want):
        assert g.dtype == torch.float32
        torch.testing.assert_close(g, w, atol=0.06, rtol=0.06)


def test_no_targets_is_a_zero_with_zero_gradients() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    for rows in (hidden, hidden[:0]):
        targets = torch.full((rows.shape[0],), -100)
        for loss in (linear_cross_entropy_sum(rows, weight, None, targets), cross_entropy_sum(rows @ weight.T, targets)):
            assert loss.item() == 0.0
            for g in torch.autograd.grad(loss, [hidden, weight], retain_graph=True):
                assert (g == 0).all()


def test_sums_do_not_depend_on_how_rows_are_split() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(10, 5, dtype=torch.float64), torch.randint(0, 5, (10,))
    targets[3] = -100
    whole = cross_entropy_sum(logits, targets)
    torch.testing.assert_close(cross_entropy_sum(logits[:3], targets[:3]) + cross_entropy_sum(logits[3:], targets[3:]), whole)
    assert accuracy_sum(logits[:3], targets[:3]) + accuracy_sum(logits[3:], targets[3:]) == accuracy_sum(logits, targets)


def test_accuracy_ignores_what_is_ignored() -> None:
    logits = torch.eye(4)
    assert accuracy_sum(logits, torch.tensor([0, 1, 0, -100])) == 2


def test_contrastive_loss_is_clips_and_adds_up_over_ranks() -> None:
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=-1).requires_grad_() for _ in range(2))
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    logits = scale * image @ text.T
    labels = torch.arange(6)
    want = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2 * 6
    torch.testing.assert_close(contrastive_sum(image, text, scale), want)
    leaves = [image, text, scale]
    shares = [contrastive_sum(image[i : i + 2], text[i : i + 2], scale, image, text, offset=i) for i in (0, 2, 4)]
    total = torch.stack(shares).sum()
    torch.testing.assert_close(total, want)
    for got, expected in zip(torch.autograd.grad(total, leaves), torch.autograd.grad(want, leaves)):
        torch.testing.assert_close(got, expected)
