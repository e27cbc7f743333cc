"""CLIP: parity with transformers and open_clip both ways, the loss, locked towers, chunked towers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import open_clip
import pytest
import torch
import transformers
from polymodal.multimodal.clip import CLIP, FAMILIES, CLIPConfig, adapt
from polymodal.multimodal.pairs import Memo
from polymodal.shared.convert import to_ours, to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.family import Context
from polymodal.shared.meta import without_weights
from polymodal.shared.packed import side_by_side
from polymodal.shared.settings import build_settings
from safetensors.torch import save_file
from torch.nn import functional as F

NET = FAMILIES[0].nets[0]
OPEN_CLIP = NET.formats[1]


def shaken(model):
    """Every parameter and statistic away from its start, so that no term hides behind a 0 or a 1."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.add_(0.1 * torch.randn_like(b))
            if name.endswith("running_var"):
                b.mul_(1 + 0.5 * torch.rand_like(b))
    return model.eval()


def close(ours, theirs):
    assert ours.shape == theirs.shape
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < 1e-5, f"relative difference {error:.2e}"


def reference_config(eos=49, act="quick_gelu"):
    text = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 12, "eos_token_id": eos, "bos_token_id": 48, "pad_token_id": 1, "hidden_act": act}
    vision = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 16,
              "patch_size": 4, "hidden_act": act}
    return transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)


def texts():
    ids = torch.full((4, 9), 1)
    for row, length in enumerate((9, 5, 3, 7)):
        ids[row, :length] = torch.randint(3, 48, (length,), generator=torch.Generator().manual_seed(row))
        ids[row, length - 1] = 49
    mask = (ids != 1).long()
    return ids, mask


@pytest.mark.parametrize("eos", [49, 2])
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_transformers_parity_both_ways(eos, act):
    theirs = shaken(transformers.CLIPModel(reference_config(eos, act)))
    config = CLIPConfig.from_dict(theirs.config.to_dict())
    ours = CLIP(config).eval()
    ours.load_state_dict(to_ours(NET.format("transformers").rules(config), theirs.state_dict()))
    ids, mask = texts()
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        a, b = ours(ids, pixels, mask), theirs(ids, pixels, mask)
        for name in ("logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
            close(getattr(a, name), getattr(b, name))
        large = torch.randn(2, 3, 24, 32)
        close(ours.get_image_features(large, True), theirs.get_image_features(large, interpolate_pos_encoding=True).pooler_output)
    written = to_theirs(NET.format("transformers").rules(config), ours.state_dict())
    assert written.keys() == theirs.state_dict().keys()
    assert all(torch.equal(written[k], v) for k, v in theirs.state_dict().items())
    assert transformers.CLIPConfig(**config.to_dict()).to_dict()["text_config"]["eos_token_id"] == eos


def test_transformers_reads_what_we_write(tmp_path):
    config = CLIPConfig.from_dict(reference_config().to_dict())
    ours = shaken(CLIP(config))
    record = {**config.to_dict(), "model_type": "clip", "architectures": ["CLIPModel"]}
    (tmp_path / "config.json").write_text(json.dumps(record))
    save_file(to_theirs(NET.format("transformers").rules(config), ours.state_dict()), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(NET.formats[0].files(ours)["preprocessor_config.json"]))
    theirs = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    ids, mask = texts()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        close(ours(ids, pixels, mask).logits_per_image, theirs(ids, pixels, mask).logits_per_image)
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path)
    assert processor.crop_size["height"] == 16
    assert CLIPConfig.from_dict(record) == config


VISION = {"image_size": 16, "layers": 2, "width": 24, "patch_size": 4, "head_width": 8, "mlp_ratio": 2.0}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 32, "patch_size": None}
TEXT = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 4, "layers": 2}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("vision", [VISION, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("pool", [{}, {"pool_type": "eos", "eos_id": 49}], ids=["argmax", "eos"])
def test_open_clip_parity_both_ways(tmp_path, quick, vision, pool):
    model_cfg = {"embed_dim": 20, "quick_gelu": quick, "vision_cfg": vision, "text_cfg": {**TEXT, **pool}}
    theirs = shaken(open_clip.CLIP(**model_cfg, output_dict=True))
    record = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1], "interpolation": "bicubic"}}
    assert OPEN_CLIP.recognises(record)
    config = OPEN_CLIP.read(record, tmp_path)
    ours = CLIP(config).eval()
    ours.load_state_dict(to_ours(OPEN_CLIP.rules(config), theirs.state_dict()))
    OPEN_CLIP.finish(ours, record, tmp_path)
    assert ours.preprocessing.image_mean == (0.5, 0.4, 0.3)
    ids, _ = texts()
    ids = F.pad(ids, (0, 3), value=1)
    pixels = torch.randn(3, 3, vision["image_size"], vision["image_size"])
    with torch.no_grad():
        out = theirs(pixels, ids)
        mine = ours(ids, pixels)
        close(mine.image_embeds, out["image_features"])
        close(mine.text_embeds, out["text_features"])
    written = to_theirs(OPEN_CLIP.rules(config), ours.state_dict())
    assert all(torch.equal(written[k], v) for k, v in theirs.state_dict().items()) and len(written) == len(theirs.state_dict())

    # what we write, open_clip builds again
    again = OPEN_CLIP.write(ours)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(again))
    save_file(written, tmp_path / "open_clip_model.safetensors")
    loaded = open_clip.create_model(f"local-dir:{tmp_path}")
    with torch.no_grad():
        close(loaded.eval()(pixels, ids)[0], mine.image_embeds)
        close(loaded.eval()(pixels, ids)[1], mine.text_embeds)
    assert replace(OPEN_CLIP.read(again, tmp_path), logit_scale_init_value=0.0) == replace(config, logit_scale_init_value=0.0)


def test_open_clip_and_transformers_hold_the_same_model():
    theirs = shaken(transformers.CLIPModel(reference_config(act="gelu")))
    config = CLIPConfig.from_dict(theirs.config.to_dict())
    ours = CLIP(config).eval()
    ours.load_state_dict(to_ours(NET.format("transformers").rules(config), theirs.state_dict()))
    other = open_clip.CLIP(**OPEN_CLIP.write(ours)["model_cfg"], output_dict=True).eval()
    other.load_state_dict(to_theirs(OPEN_CLIP.rules(config), ours.state_dict()))
    ids, _ = texts()
    ids = F.pad(ids, (0, 3), value=1)
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        close(other(pixels, ids)["text_features"], theirs(ids, pixels).text_embeds)
        close(other(pixels, ids)["image_features"], theirs(ids, pixels).image_embeds)


SIZES = {"base": 151_277_313, "base16": 149_620_737, "large": 427_616_513, "rn50": 102_007_137}


@pytest.mark.parametrize(("size", "parameters"), SIZES.items())
def test_real_sizes(size, parameters):
    with without_weights():
        net = CLIP(build_settings(CLIPConfig, FAMILIES[0].sizes[size], size))
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_what_changes_the_model_is_refused(tmp_path):
    record = {"model_cfg": {"embed_dim": 20, "vision_cfg": {**VISION, "attentional_pool": True}, "text_cfg": {**TEXT, "embed_cls": True}},
              "preprocess_cfg": {}}
    with pytest.raises(UserError, match=r"attentional_pool.*embed_cls"):
        OPEN_CLIP.read(record, tmp_path)
    with pytest.raises(UserError, match="hidden_acts"):
        CLIPConfig.from_dict({**reference_config().to_dict(), "text_config": {"hidden_acts": "gelu"}})
    mixed = CLIPConfig.from_dict(reference_config().to_dict())
    mixed = replace(mixed, vision_config=replace(mixed.vision_config, hidden_act="gelu"))
    with pytest.raises(UserError, match="one activation"):
        OPEN_CLIP.write(CLIP(mixed))
    assert NET.default_format(mixed).name == "transformers"


@dataclass(frozen=True)
class Model:
    model: CLIPConfig


@pytest.mark.parametrize(("model", "message"), [
    ({"projection_dim": 0}, "projection_dim is 0"), ({"text_config": {"hidden_act": "gleu"}}, "hidden_act is 'gleu', expected one of"),
    ({"text_config": {"max_position_embeddings": 0}}, r"model\.text_config: max_position_embeddings is 0"),
    ({"vision_config": {"patch_size": 0}}, "patch_size is 0"), ({"text_config": {"attention_dropout": 2.0}}, "probability"),
    ({"vision_config": {"hidden_size": 100}}, "does not divide hidden_size 100"),
    ({"vision_config": {"layers": [1], "head_width": 0}}, "head_width is 0"),
])  # fmt: skip
def test_impossible_shapes(model, message):
    with pytest.raises(UserError, match=message):
        build_settings(Model, {"model": model}, "recipe")


# ------------------------------------------------------------------------------------------- training


class Words:
    """A tokenizer for tests: one id for each word, CLIP's frame around them."""

    vocab_size, pad_id, fingerprint, special_ids = 50, 1, "words", frozenset({1, 48, 49})

    def encode(self, text, *, max_length=None, **_):
        ids = [3 + sum(map(ord, w)) % 40 for w in text.split()]
        return [48, *ids[: (max_length or 99) - 2], 49]

    def decode(self, ids, **_):
        return " ".join(str(int(i)) for i in ids)


def tiny(image_size=16, **overrides):
    model = {"projection_dim": 20,
             "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                             "max_position_embeddings": 12},
             "vision_config": {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
                               "image_size": image_size, "patch_size": 4}, **overrides}  # fmt: skip
    return build_settings(CLIPConfig, model, "model")


def system(settings=None, **overrides):
    torch.manual_seed(0)
    context = Context(tokenizer=Words())
    return FAMILIES[0].pretraining.build(adapt(tiny(**overrides), context), settings or {}, context)


def batch_of(sys, count, seed=0):
    rng = np.random.default_rng(seed)
    from polymodal.multimodal.pairs import Pair

    size = sys.net.preprocessing.image_size
    words = ["red", "green", "blue", "cat", "dog", "house", "tree", "on", "under", "the", "a"]
    return sys.objective.collate([
        Pair(torch.from_numpy(rng.integers(0, 255, (3, size, size), dtype=np.uint8)),
             tuple(sys.objective.tokenizer.encode(" ".join(rng.choice(words, rng.integers(1, 7))))))
        for _ in range(count)])  # fmt: skip


def gradients(sys, batch):
    sys.zero_grad()
    step = sys(batch)
    step.terms["contrastive"].total.backward()
    return step, {n: p.grad.clone() for n, p in sys.named_parameters() if p.grad is not None}


def test_the_loss_is_openclips_summed():
    sys = system()
    batch = batch_of(sys, 6)
    step = sys(batch)
    ids = torch.nn.utils.rnn.pad_sequence(batch.input_ids[0].split(list(batch.lengths)), batch_first=True, padding_value=1)
    out = sys.net(ids, sys.normalize(batch.images))
    expected = open_clip.ClipLoss()(out.image_embeds, out.text_embeds, sys.net.logit_scale.exp())
    assert torch.allclose(step.terms["contrastive"].total / 6, expected, rtol=1e-5)
    assert batch.counts == {"pairs": 6} and step.terms["contrastive"].count == "pairs"
    assert step.metrics["image_to_text"][0] == (out.logits_per_image.argmax(1) == torch.arange(6)).sum()


def test_packed_captions_do_not_leak():
    sys = system().eval()
    a, b = side_by_side([[48, 5, 6, 49], [48, 9, 49]]), side_by_side([[48, 5, 6, 49], [48, 30, 31, 32, 49]])
    out = [sys.net.text_trunk(t.input_ids, None, t.position_ids, lengths=t.lengths) for t in (a, b)]
    assert torch.allclose(out[0][0], out[1][0], atol=1e-6) and not torch.allclose(out[0][1], out[1][1], atol=1e-2)
    part = b.select([1])
    assert torch.allclose(sys.net.text_trunk(part.input_ids, None, part.position_ids, lengths=part.lengths)[0], out[1][1], atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_chunked_towers_give_the_same_gradient(chunk):
    whole, chunked = system().double(), system({"chunk": chunk}).double()
    batch = batch_of(whole, 8)
    (step, expected), (other, found) = gradients(whole, batch), gradients(chunked, batch)
    assert torch.allclose(step.terms["contrastive"].total, other.terms["contrastive"].total, rtol=1e-12)
    assert expected.keys() == found.keys()
    for name in expected:
        assert (expected[name] - found[name]).abs().max() <= 1e-9 * expected[name].abs().max() + 1e-15, name


def test_a_rank_with_fewer_rows_runs_its_towers_as_often_as_the_others():
    """Where weights are divided, all ranks gather them together; the passes that are too many change nothing."""
    one, other = system({"chunk": 2}).double(), system({"chunk": 2}).double()
    batch = batch_of(one, 3)
    runs: list[int] = []
    other.net.image_trunk.register_forward_hook(lambda *_: runs.append(1))
    for made, most in ((one, 3), (other, 7)):
        (made.image_embeds(batch.images, most).sum() + made.text_embeds(batch, most).sum()).backward()
    assert len(runs) == 2 * 4, "four pieces, forward and again"
    for (name, ours), theirs in zip(other.named_parameters(), one.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_chunks_and_batch_statistics_exclude_each_other():
    resnet = {"vision_config": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 32}}
    with pytest.raises(UserError, match="batch statistics"):
        system({"chunk": 4}, **resnet)
    sys = system(**resnet)
    _, found = gradients(sys, batch_of(sys, 8))
    assert found.keys() == dict(sys.named_parameters()).keys()


def test_locked_towers_stay():
    sys = system(lock_text=True, lock_image=True)
    sys.train()
    assert not sys.net.text_trunk.training and not sys.net.image_trunk.training and not sys.net.image_head.training and sys.net.training
    _, found = gradients(sys, batch_of(sys, 6))
    assert set(found) == {"net.text_head.weight", "net.logit_scale"}
    free = system()
    batch = batch_of(sys, 6)
    assert torch.allclose(sys(batch).terms["contrastive"].total, free(batch).terms["contrastive"].total, rtol=1e-5)


def test_a_locked_text_tower_reads_each_caption_once():
    sys = system(lock_text=True)
    reads = []
    sys.net.text_trunk.register_forward_hook(lambda m, i, o: reads.append(len(o)))
    batch = batch_of(sys, 40)
    distinct = len(set(batch.keys))
    first, second = sys.text_embeds(batch), sys.text_embeds(batch)
    assert reads == [distinct] and distinct < 40 and torch.equal(first, second)
    assert first.requires_grad


def test_a_kept_feature_keeps_nothing_of_its_batch():
    memo = Memo(1)
    rows = torch.randn(64, 8)
    memo([bytes([n]) for n in range(64)], lambda missing: rows[missing])
    (kept,) = memo._kept.values()
    assert kept.untyped_storage().nbytes() == 8 * 4 and torch.equal(kept, rows[63])


def test_the_memo_forgets_what_was_unused_longest():
    memo = Memo(2)
    calls = []

    def compute(rows):
        calls.append(list(rows))
        return torch.tensor([[float(r)] for r in rows])

    memo([b"a", b"b", b"a"], compute)
    memo([b"a"], compute)
    memo([b"c"], compute)
    assert calls == [[0, 1], [0]] and len(memo) == 2
    memo([b"a", b"b"], compute)
    assert calls[-1] == [1]
    assert memo([b"x", b"y", b"z"], compute).shape == (3, 1) and len(memo) == 2


def test_logit_scale_starts_and_stays():
    sys = system()
    assert sys.net.logit_scale.item() == pytest.approx(math.log(1 / 0.07), abs=1e-4)
    with torch.no_grad():
        sys.net.logit_scale.fill_(9.0)
    sys.after_update(0)
    assert sys.net.logit_scale.exp().item() == pytest.approx(100)
    with torch.no_grad():
        sys.net.logit_scale.fill_(-1.0)
    sys.after_update(1)
    assert sys.net.logit_scale.item() == 0


def test_preview_names_the_best_captions():
    sys = system().eval()
    batch = batch_of(sys, 5)
    shown = sys.preview(batch, limit=2)
    assert len(shown) == 2 and shown[0].image.shape == (16, 16, 3)
    best = (sys.image_embeds(batch.images) @ sys.text_embeds(batch).T).argmax(1)
    rows = batch.input_ids[0].split(list(batch.lengths))
    assert shown[1].rows[1][1].startswith(Words().decode(rows[best[1]]))


def test_settings_are_checked():
    with pytest.raises(UserError, match="max_length"):
        system({"max_length": 13})
    with pytest.raises(UserError, match="did you mean"):
        system({"chunks": 2})


class NoEnd(Words):
    def encode(self, text, **_):
        return [5, 6]


class EndIsTwo(Words):
    special_ids = frozenset({2})

    def encode(self, text, **_):
        return [5, 2]


@pytest.mark.parametrize(("tokenizer", "message"), [(NoEnd(), "end-of-text"), (EndIsTwo(), "highest id")])
def test_tokenizers_that_do_not_fit(tokenizer, message):
    with pytest.raises(UserError, match=message):
        adapt(tiny(), Context(tokenizer=tokenizer))
    with pytest.raises(UserError, match="no tokenizer"):
        adapt(tiny(), Context())
