"""int8 weights for inference: what is quantized, how near it stays, what is refused."""

from __future__ import annotations

import numpy as np
import polymodal
import pytest
import torch
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.cli import run
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.evaluation.evaluate import EvaluationSettings, evaluate
from polymodal.pipelines.evaluation.perplexity import Perplexity
from polymodal.pipelines.model import quantize as module
from polymodal.pipelines.model.quantize import Int8Linear, quantize
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train.loop import pretrain
from polymodal.shared.attention.mask import Mask
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer
from torch import nn


@pytest.fixture(params=["this processor", "no VNNI"])
def processor(request, monkeypatch):
    """Every x86 processor can do what one without VNNI does."""
    if request.param == "no VNNI":
        monkeypatch.setattr(module, "takes_eight_bits", lambda: False)


def test_a_layer_is_near_its_original_and_rows_have_their_own_steps(processor):
    torch.manual_seed(0)
    whole = nn.Linear(64, 48)
    with torch.no_grad():
        whole.weight[3] *= 100
    less = Int8Linear(whole.weight, whole.bias)
    x = torch.randn(5, 7, 64)
    found, expected = less(x), whole(x)
    assert found.shape == expected.shape
    # two roundings of up to half a step of about max/127 each: below 2 % of the norm in every row, whatever its scale
    for row in range(48):
        assert (found - expected)[..., row].norm() < 0.02 * (expected - whole.bias)[..., row].norm()
    assert not torch.equal(found, expected)
    assert less(x.double()).dtype == torch.float64


def test_without_vnni_the_inputs_are_exact_and_rows_alone(monkeypatch):
    monkeypatch.setattr(module, "takes_eight_bits", lambda: False)
    torch.manual_seed(0)
    whole = nn.Linear(64, 48)
    less = Int8Linear(whole.weight, whole.bias)
    steps = whole.weight.detach().abs().amax(1, keepdim=True) / 127
    rounded = (whole.weight.detach() / steps).round() * steps
    x = torch.randn(6, 64) * 10.0 ** torch.arange(-3, 3)[:, None]
    x[5] = x[5].relu()
    expected = x.double() @ rounded.double().T + whole.bias.double()
    half = x.abs().amax(1) / 63 / 126 / 2  # a step of the second product is 1/126 of one of the first, which is 1/63 of the largest input
    limit = half * rounded.abs().sum(1).max() + 1e-6 * expected.abs().amax(1)
    assert ((less(x) - expected).abs().amax(1) < limit).all()
    assert torch.equal(less(x)[2:3], less(x[2:3]))
    assert torch.equal(less(torch.zeros(2, 64)), whole.bias.detach().expand(2, 48))
    assert less(torch.full((1, 64), float("nan"))).isnan().all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A GPT-2 that has learnt an order of words, and held-out texts."""
    root = tmp_path_factory.mktemp("int8")
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(40)]

    def text() -> str:
        start, step = rng.integers(40), rng.integers(1, 4)
        return " ".join(words[(start + step * i) % 40] for i in range(24))

    for name, count in (("train", 300), ("held", 30)):
        (root / f"{name}.txt").write_text("\n\n".join(text() for _ in range(count)))
        pack([root / f"{name}.txt"], root / name, workers=Workers(1))
    tok = Tokenizer.train([(root / "train.txt").read_text()], "byte-bpe", 290)
    tok.save(root / "tok")
    chosen = recipe("gpt2-tiny", ["precision=32", "accelerator=cpu", "max_updates=60", "data.global_batch=16", "log.tensorboard=false",
                                  "model.n_embd=64", "model.n_positions=128", "checkpoint.every=0", "optim.lr=0.003"])
    pretrain(chosen, root / "train", root / "run", tokenizer=root / "tok", console=Console(quiet=True))
    return root


def test_the_perplexity_stays_within_one_percent(trained):
    found = {kind: evaluate(Perplexity(window=64), trained / "run", trained / "held", EvaluationSettings(quantize=kind),
                            console=Console(quiet=True))
             for kind in (None, "int8")}
    before, after = (found[kind]["metrics"]["perplexity"] for kind in (None, "int8"))
    assert before < 10, "the network learnt nothing, so nothing is tested"
    assert after != before and after == pytest.approx(before, rel=0.01)
    assert found["int8"]["settings"]["quantize"] == "int8" and "quantize" not in found[None]["settings"]


def test_every_matrix_is_replaced_and_the_head_too(trained):
    net = polymodal.load(trained / "run", quantize="int8")
    assert not any(type(m) is nn.Linear for m in net.modules())
    assert sum(isinstance(m, Int8Linear) for m in net.modules()) == 4 * net.config.n_layer + 1
    tok = polymodal.tokenizer(trained / "run")
    whole = polymodal.load(trained / "run")
    texts = [polymodal.generate(m, "word1 word2 word3 word4", tokenizer=tok, max_new_tokens=12) for m in (net, whole)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("size", ["tiny", "tiny-v1.1"])
def test_t5_tied_and_untied(size, processor):
    torch.manual_seed(0)
    net = polymodal.system("t5", size=size).net.eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() > 1:
                p.normal_(std=0.05)
    ids = torch.randint(3, 100, (2, 9))
    with torch.inference_mode():
        expected = net(input_ids=ids, decoder_input_ids=ids).logits
        found = quantize(net, "int8")(input_ids=ids, decoder_input_ids=ids).logits
    assert (found - expected).norm() < 0.1 * expected.norm()  # of random weights
    assert not torch.equal(found, expected)


def test_what_is_refused(trained, capsys):
    with pytest.raises(UserError, match="expected int8"):
        polymodal.load(trained / "run", quantize="int4")
    with pytest.raises(UserError, match="another device"):
        quantize(nn.Linear(2, 2, device="meta"), "int8")
    with pytest.raises(UserError, match="no linear layers"):
        quantize(nn.Embedding(2, 2), "int8")
    with pytest.raises(UserError, match="give a window"):
        evaluate(Perplexity(), trained / "run", trained / "held", EvaluationSettings(quantize="int8"), console=Console(quiet=True))
    assert run(["generate", "word1", "--model", str(trained / "run"), "--quantize", "int3"]) == 2
    assert "expected int8" in capsys.readouterr().err


def test_the_commands_take_it(trained, capsys):
    assert run(["generate", "word1 word2 word3", "--model", str(trained / "run"), "--quantize", "int8", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("word1 word2 word3")
    assert run(["evaluate", "perplexity", "--model", str(trained / "run"), "--data", str(trained / "held"), "--window", "64",
                "--quantize", "int8"]) == 0


def test_layers_without_a_weight_of_their_own_attend_to_a_memory():
    """Transformer-XL splits its projection's weight to spare the memory's queries; quantized layers have none to split."""
    from polymodal.shared.attention.plan import Shape
    from polymodal.text._relative import Relative, RelativeAttention

    torch.manual_seed(0)
    attention = RelativeAttention(32, 2, 16)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, memory = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    plan = Relative(Mask(causal=True, offset=7), Shape(2, 5, 12, x.device), positions=torch.randn(12, 32))
    with torch.no_grad():
        expected = attention(x, plan, memory)
        found = quantize(attention, "int8")(x, plan, memory)
    assert not torch.equal(found, expected) and (found - expected).norm() < 0.02 * expected.norm()
