"""Every registered system's training step on a GPU that is not there (`cuda.py`): no mixed devices, nothing is waited for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.cases import Case, batch_of, samples_of, style_of, tokenizer, watched
from contract.cuda import backward, gpu, to_gpu
from polymodal.pipelines.run.optim import OptimSettings, build_optimizer, clip_gradients
from polymodal.shared.attention.choose import Documents, make_plan
from polymodal.shared.attention.mask import Mask


def on_gpu(batch: Any) -> Any:
    """As the loop does it."""
    return batch.map_tensors(lambda t: torch.empty(t.shape, dtype=t.dtype)).to("cuda")


@pytest.mark.parametrize("case", watched(), ids=lambda c: c.name)
def test_a_training_step_neither_mixes_devices_nor_waits(case: Case) -> None:
    system = case.build().train()
    samples = samples_of(system.objective, tokenizer(style_of(case)) if style_of(case) else None, range(3))
    batches = [batch_of(objective, samples) for objective in system.objective.by_turn().values()]
    with gpu() as machine:
        to_gpu(system)
        for companion in system.companions.values():
            to_gpu(companion.net)
        optimizer = build_optimizer(system, OptimSettings())
        machine.waits.clear()
        for batch in batches:
            terms = system(on_gpu(batch)).terms.values()
            gradients = backward(torch.stack([t.total * (t.weight / batch.counts[t.count]) for t in terms]).sum())
            trained = [p for p in system.parameters() if p.requires_grad]
            assert {id(p) for p in trained} == {id(p) for p in gradients}
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
            clip_gradients(trained, 1.0)
            optimizer.step()
            system.after_update(0)
    assert machine.waits == []


def test_what_is_wrong_on_a_gpu_is_noticed() -> None:
    with gpu() as machine:
        x = torch.ones(4, 4, device="cuda", requires_grad=True)
        assert backward((x * x).sum())[x].device.type == "cuda"
        with pytest.raises(RuntimeError, match="same device"):
            _ = x + torch.ones(4)
        with pytest.raises(Exception, match=r"item|scalar"):
            x.sum().item()
        with pytest.raises(Exception, match="nonzero"):
            x.detach()[x.detach() > 0].sum()
        torch.ones(4).to("cuda", non_blocking=True)
        assert machine.waits == []
        torch.tensor([1, 2], device="cuda")
        x.detach().to("cpu", non_blocking=True)
        assert len(machine.waits) == 2 and "test_cuda.py" in machine.waits[0]


def test_documents_are_one_kernel_on_a_gpu() -> None:
    """In half precision and without dropout; no tensor is cut for it and none put together."""
    with gpu():
        q, k, v = torch.empty(1, 12, 3, 4, 16, device="cuda", dtype=torch.bfloat16).permute(2, 0, 3, 1, 4).unbind(0)
        plan = make_plan(Mask(causal=True, lengths=(5, 7)), 1, 12, 12, q.device)
        assert isinstance(plan, Documents) and plan.varlen and "groups" not in vars(plan)
        assert plan(q, k, v).shape == q.shape and "groups" not in vars(plan)
        assert plan(q, k, v, dropout=0.1).shape == q.shape and "groups" in vars(plan)
