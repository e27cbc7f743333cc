"""SigLIP's loss: the numbers of transformers and open_clip, the same on any ranks, and what it makes of files."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import open_clip
import polymodal
import processes
import pytest
import torch
import transformers
from contract.cases import batch_of, cases, samples_of
from open_clip.loss import SigLipLoss
from polymodal.multimodal import sigmoid_loss
from polymodal.multimodal.clip import CLIP, FAMILIES, CLIPConfig
from polymodal.multimodal.sigmoid_loss import sigmoid_sum
from polymodal.shared import dist
from polymodal.shared.convert import to_ours, to_theirs
from polymodal.shared.errors import UserError
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

OPEN_CLIP = FAMILIES[0].nets[0].format("open_clip")


def unit(rows: int, seed: int, width: int = 6) -> Tensor:
    made = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(made, dim=-1)


def inputs(rows: int) -> list[Tensor]:
    """Pictures, texts that are near them, the scale and the bias."""
    image = unit(rows, 0)
    text = F.normalize(image + 1.2 * unit(rows, 1), dim=-1)
    return [t.requires_grad_() for t in (image, text, torch.tensor(7.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64))]


def by_the_paper(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Its algorithm 1, as a sum."""
    labels = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return -F.logsigmoid(labels * (scale * image @ text.T + bias)).sum()


@pytest.mark.parametrize("room", [1 << 24, 33])
def test_loss_gradient_and_accuracy_whatever_is_held_at_a_time(room):
    given = inputs(11)
    with patch.object(sigmoid_loss, "CHUNK_LOGITS", room):
        found = sigmoid_sum(*given, [11])
    expected = by_the_paper(*given)
    torch.testing.assert_close(found.total, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(torch.autograd.grad(3 * found.total, given), torch.autograd.grad(3 * expected, given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    cosines = given[0] @ given[1].T
    right = [(cosines.argmax(d) == torch.arange(11)).sum() for d in (1, 0)]
    assert [found.image_to_text, found.text_to_image] == right and 0 < min(right) < 11
    with torch.no_grad():
        assert torch.allclose(sigmoid_sum(*given, [11]).total, expected)


def test_equal_captions_are_no_mistakes_of_each_other():
    _, text, scale, bias = inputs(4)
    same = text.detach().clone()
    same[3] = same[2]
    pictures = same.clone()
    found = sigmoid_sum(pictures, same, scale, bias, [4])
    assert (found.image_to_text, found.text_to_image) == (4, 4)


def test_the_loss_is_that_of_transformers_siglip():
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(text_config={**shape, "vocab_size": 40, "max_position_embeddings": 8},
                                       vision_config={**shape, "image_size": 16, "patch_size": 8})
    theirs = transformers.SiglipModel(config)
    with torch.no_grad():
        theirs.logit_scale.fill_(1.7)
        theirs.logit_bias.fill_(-2.0)
    out = theirs(torch.randint(0, 40, (5, 8)), torch.randn(5, 3, 16, 16), return_loss=True)
    image, text = (t.detach().requires_grad_() for t in (out.image_embeds, out.text_embeds))
    scale, bias = theirs.logit_scale.detach()[0].requires_grad_(), theirs.logit_bias.detach()[0].requires_grad_()
    found = sigmoid_sum(image, text, scale.exp(), bias, [5]).total / 5
    torch.testing.assert_close(found, out.loss, rtol=1e-5, atol=0)
    expected = torch.autograd.grad(out.loss, [out.image_embeds, out.text_embeds, theirs.logit_scale, theirs.logit_bias])
    for ours, other in zip(torch.autograd.grad(found, [image, text, scale, bias]), expected, strict=True):
        torch.testing.assert_close(ours, other.view_as(ours), rtol=1e-5, atol=1e-7)


SIZES = [3, 1, 4]


def as_a_rank(out: Path) -> None:
    """One rank of three with its rows: loss, gradients and right answers."""
    given = inputs(sum(SIZES))
    torch.distributed.init_process_group("gloo")
    rows = slice(sum(SIZES[: dist.rank()]), sum(SIZES[: dist.rank() + 1]))
    found = sigmoid_sum(given[0][rows], given[1][rows], *given[2:], dist.first_dims(given[0][rows]))
    gradients = torch.autograd.grad(2 * found.total, given)
    torch.save(([x.detach() for x in found], [dist.all_reduce_sum(g) for g in gradients]), out / f"{dist.rank()}.pt")
    processes.leave_together()


@pytest.mark.slow
def test_three_ranks_with_different_numbers_of_pairs_are_one(tmp_path):
    """Also with pieces of logits; no rank ever has all features."""
    processes.together(processes.ranks(3, as_a_rank, tmp_path))
    parts = [torch.load(tmp_path / f"{r}.pt") for r in range(3)]
    given = inputs(sum(SIZES))
    whole = sigmoid_sum(*given, [sum(SIZES)])
    for number, expected in enumerate(whole):
        torch.testing.assert_close(sum(found[number] for found, _ in parts), expected.detach(), rtol=1e-12, atol=0)
    for gradients in (gradients for _, gradients in parts):
        for ours, theirs in zip(gradients, torch.autograd.grad(2 * by_the_paper(*given), given), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------- the system and its files


def siglip():
    """The contract's case, a system of it and a batch."""
    case = next(c for c in cases() if c.name == "clip-tiny-siglip")
    system = case.still().build()
    return case, system, batch_of(system.objective, samples_of(system.objective, case.context.tokenizer, range(6)))


def test_the_systems_loss_is_open_clips_and_the_chance_is_that_of_a_constant():
    case, system, batch = siglip()
    system.eval()
    step = system(batch)
    net = system.net
    assert net.logit_bias.item() == -10 and net.logit_scale.exp().item() == pytest.approx(10)
    image, text = system.image_embeds(batch.images), system.text_embeds(batch)
    expected = SigLipLoss()(image, text, net.logit_scale.exp(), net.logit_bias)
    torch.testing.assert_close(step.terms["sigmoid"].total / 6, expected, rtol=1e-5, atol=0)
    share = torch.tensor(1 / 6, dtype=torch.float64)
    total, count = step.metrics["sigmoid_chance"]
    assert float(total) / count == pytest.approx(float(6 * torch.distributions.Bernoulli(share).entropy()), rel=1e-6)
    assert step.metrics.keys() | {"sigmoid"} == set(system.measured())
    assert "sigmoid_chance" not in system.train()(batch).metrics
    assert case.coupled


def test_open_clip_reads_it_and_transformers_is_refused(tmp_path):
    _, system, _ = siglip()
    net = system.net.eval()
    with torch.no_grad():
        net.logit_bias.fill_(-4.5)
    assert FAMILIES[0].nets[0].default_format(net.config).name == "open_clip"
    record = OPEN_CLIP.write(net)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(record))
    save_file(to_theirs(OPEN_CLIP.rules(net.config), net.state_dict()), tmp_path / "open_clip_model.safetensors")
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    assert theirs.logit_bias.item() == -4.5
    pixels, ids = torch.randn(3, 3, 64, 64), torch.randint(1, net.config.text_config.vocab_size - 1, (3, 77))
    ids[:, 5] = net.config.text_config.eos_token_id
    with torch.no_grad():
        image, text, scale, bias = theirs(pixels, ids)
        torch.testing.assert_close(net(ids, pixels).logits_per_image, scale * image @ text.T + bias, rtol=1e-5, atol=1e-5)
    again = polymodal.load(tmp_path)
    assert again.config.logit_bias_init_value == -10 and again.logit_bias.item() == -4.5
    with pytest.raises(UserError, match=r"transformers' CLIPModel has no logit_bias.*save this model in open_clip's format"):
        polymodal.save(again, tmp_path / "transformers", format="transformers")
    plain = open_clip.CLIP(**{k: v for k, v in record["model_cfg"].items() if k != "init_logit_bias"})
    with pytest.raises(UserError, match="logit_bias"):
        to_ours(OPEN_CLIP.rules(net.config), plain.state_dict())


def test_a_loss_that_does_not_suit_the_network_is_refused_with_the_fix():
    with pytest.raises(UserError, match=r"this network has none: set model.logit_bias_init_value=-10 and model.logit_scale_init_value=2.3"):
        polymodal.system("clip", size="tiny", objective={"loss": "siglip"})
    with pytest.raises(UserError, match=r"this network has one: set objective.loss=siglip, or model.logit_bias_init_value=null"):
        polymodal.system("clip", size="tiny-siglip", objective={"loss": "clip"})
    for size, loss in (("tiny", "clip"), ("tiny-siglip", "siglip")):
        net = polymodal.system("clip", size=size, objective={"loss": loss}).net
        assert isinstance(net, CLIP) and (net.logit_bias is None) == (loss == "clip")
    assert "logit_bias_init_value" not in CLIPConfig().to_dict()
