"""Every registered system under `compile: true` (`compile_parts`), by dynamo alone: what is traced, and how often."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.cases import Case, batch_of, once, samples_of, style_of, tokenizer
from polymodal.pipelines.train.layers import compile_parts
from polymodal.shared.block import Block
from polymodal.shared.errors import UserError
from torch import Tensor
from torch._dynamo.testing import CompileCounter


def gradients(system: Any, batch: Any) -> dict[str, Tensor]:
    system.zero_grad()
    terms = system(batch).terms.values()
    torch.stack([t.total * (t.weight / batch.counts[t.count]) for t in terms]).sum().backward()
    return {n: p.grad.clone() for n, p in system.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("case", once(), ids=lambda c: c.name)
def test_batches_of_other_documents_are_not_compiled_anew(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same gradients as without a compiler, and no new graph once exact and variable shapes, with padding and without, were seen."""
    torch.compiler.reset()
    counter = CompileCounter()
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, backend=counter))
    plain, compiled = case.build().eval(), case.build().eval()  # no dropout
    if not plain.compiles:
        with pytest.raises(UserError, match="set compile=false"):
            compile_parts(compiled)
        return
    compiled.load_state_dict(plain.state_dict())
    compile_parts(compiled)
    tok = tokenizer(style_of(case)) if style_of(case) else None
    seen: list[int] = []
    for few in (range(5), range(5, 9), range(9, 15), range(15, 18), range(18, 25), range(25, 27), range(27, 33)):
        for objective in plain.objective.by_turn().values():
            batch = batch_of(objective, samples_of(objective, tok, few))
            expected = gradients(plain, batch)
            for name, found in gradients(compiled, batch).items():
                torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
        seen.append(counter.frame_count)
    blocks = [p for m in plain.modules() if isinstance(m, Block) for p in m.parameters()]
    assert (seen[0] > 0) == (not blocks or any(p.requires_grad for p in blocks)), "what is not trained is not compiled"
    assert seen[4:] == seen[3:4] * 3, f"graphs after each batch: {seen}"
    with torch.no_grad():
        compiled(batch)
    assert counter.frame_count == seen[-1], "evaluation is not compiled"
    torch.compiler.reset()
