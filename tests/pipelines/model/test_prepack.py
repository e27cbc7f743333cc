"""Weights laid out for the CPU: the same network, whatever the number of rows, and nothing changed where it would not pay."""

from __future__ import annotations

import polymodal
import pytest
import torch
from polymodal.pipelines.cli import run
from polymodal.pipelines.model import prepack as module
from polymodal.pipelines.model.frontdoor import save
from polymodal.pipelines.model.linears import replace_linears
from polymodal.pipelines.model.prepack import PackedLinear, prepack
from polymodal.pipelines.model.quantize import Int8Linear, quantize
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.shared.tokenizer import Tokenizer
from torch import nn

here = pytest.mark.skipif(not module.pays(nn.Linear(2, 2)), reason="needs AVX-512 and oneDNN")


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_any_number_of_rows(dtype, bias):
    torch.manual_seed(0)
    plain = nn.Linear(48, 33, bias=bias).to(dtype)
    packed = PackedLinear(plain.weight, plain.bias)
    x = torch.randn(9, 48).to(dtype)
    with torch.inference_mode():
        for shape in ((0, 48), (1, 48), (1, 1, 48), (2, 48), (3, 1, 48), (4, 48), (3, 3, 48)):
            part = x[:shape[0] * (shape[1] if len(shape) == 3 else 1)].view(shape)
            found, expected = packed(part), plain(part)
            assert found.shape == expected.shape and found.dtype == dtype
            torch.testing.assert_close(found, expected)
        # columns of a wider tensor, and rows that one row is repeated to
        wide = torch.randn(5, 96).to(dtype)
        torch.testing.assert_close(packed(wide[:, ::2]), plain(wide[:, ::2]))
        torch.testing.assert_close(packed(wide[:1, :48].expand(5, -1)), plain(wide[:1, :48].expand(5, -1)))
    assert "in_features=48, out_features=33" in repr(packed)


def nets(name: str, size: str) -> tuple[nn.Module, nn.Module]:
    """A network as it is, and the same one prepacked."""
    both = []
    for _ in range(2):
        torch.manual_seed(0)
        net = polymodal.system(name, size=size).net.eval()
        with torch.no_grad():
            for p in net.parameters():
                if p.dim() > 1:
                    p.normal_(std=0.3)
        both.append(net)
    return both[0], prepack(both[1])


@here
@pytest.mark.parametrize(("name", "size"), [("gpt2", "tiny"), ("t5", "tiny"), ("t5", "tiny-v1.1")])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 0, "num_return_sequences": 2}])
def test_the_same_tokens(name, size, options):
    plain, packed = nets(name, size)
    assert not any(type(m) is nn.Linear for m in packed.modules()) and not any(p.requires_grad for p in packed.parameters())
    assert sum(isinstance(m, PackedLinear) for m in packed.modules()) == sum(type(m) is nn.Linear for m in plain.modules()) + 1  # the head
    for batch in (1, 3):
        ids = torch.randint(3, 100, (batch, 7))
        found, expected = (generate_ids(m, ids, max_new_tokens=12, eos_token_id=-1, **options) for m in (packed, plain))
        assert torch.equal(found, expected)
        assert torch.equal(found, generate_ids(packed, ids, max_new_tokens=12, eos_token_id=-1, use_cache=False, **options))


@here
def test_after_int8_there_is_nothing_to_lay_out():
    net = prepack(quantize(polymodal.system("gpt2", size="tiny").net.eval(), "int8"))
    assert any(isinstance(m, Int8Linear) for m in net.modules()) and not any(isinstance(m, PackedLinear) for m in net.modules())


def test_where_it_would_not_pay_nothing_changes(monkeypatch):
    for net in (nn.Linear(2, 2, device="meta"), nn.Linear(2, 2, dtype=torch.float64)):
        assert not module.pays(net)
    monkeypatch.setattr(module, "cpu_features", dict)
    net = nn.Sequential(nn.Linear(2, 2))
    assert prepack(net) is net and type(net[0]) is nn.Linear and net[0].weight.requires_grad


def test_few_rows_are_left_to_mkl_on_intel(monkeypatch):
    able = dict.fromkeys(("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq"), True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    for processor, paying in (("Intel Xeon 2.80GHz", [False, False, True, True]), ("AMD EPYC 9B14", [True] * 4)):
        monkeypatch.setattr(module, "cpu_features", lambda name=processor: able | {"cpu_name": name})
        assert [module.pays(nn.Linear(2, 2), rows) for rows in (1, 3, 4, None)] == paying
    assert module.pays(nn.Linear(2, 2, dtype=torch.bfloat16), 1)


@here
def test_load_and_the_command_take_it(tmp_path, capsys, monkeypatch):
    tok = Tokenizer.train(["one two three"], "byte-bpe", 258)
    save(polymodal.system("gpt2", size="tiny", tokenizer=tok).net, tmp_path)
    tok.save(tmp_path)
    assert any(isinstance(m, PackedLinear) for m in polymodal.load(tmp_path, prepack=True).modules())
    assert not any(isinstance(m, PackedLinear) for m in polymodal.load(tmp_path).modules())
    counts = []
    monkeypatch.setattr(module, "replace_linears", lambda net, make: counts.append(replace_linears(net, make)) or counts[-1])
    assert run(["generate", "one", "--model", str(tmp_path), "--device", "cpu", "--max-new-tokens", "3", "--num-beams", "4"]) == 0
    assert capsys.readouterr().out.startswith("one") and counts == [4 * 2 + 1]
