"""Reformer against transformers: the same numbers in both directions, losses and gradients, with the rotations of one `hash_seed`.

Where a token sees itself alone in several rounds, transformers' weights of the rounds add up to 1 but for some thousandths in fp32, so
several rounds are compared in fp64; there transformers draws other rotations, and is given those of fp32.
"""

import json

import polymodal
import pytest
import torch
import transformers
from parity import assert_both_ways, assert_equal, assert_same_gradients, noise, saved
from polymodal.registry import family
from polymodal.shared.convert import to_ours
from polymodal.shared.errors import UserError
from polymodal.text.reformer_config import ReformerConfig
from safetensors.torch import load_file, save_file
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

TINY = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 2, "attention_head_size": 8, "feed_forward_size": 48,
        "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [12, 20], "max_position_embeddings": 64, "lsh_attn_chunk_length": 8,
        "local_attn_chunk_length": 4, "hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0, "axial_norm_std": 0.3,
        "num_buckets": 8, "hash_seed": 3, "attn_layers": ["local", "lsh", "local", "lsh"]}
ONE_WAY = {"lsh_num_chunks_after": 0, "local_num_chunks_after": 0, "is_decoder": True}
BOTH_WAYS = {"lsh_num_chunks_after": 1, "local_num_chunks_after": 1, "is_decoder": False}
OUTPUTS = {"ReformerModel": ("last_hidden_state",), "ReformerForSequenceClassification": ("logits",),
           "ReformerForQuestionAnswering": ("start_logits", "end_logits")}


def ids(*shape):
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(sum(shape)))


def pair(architecture, **more):
    """Their model and ours with the same weights, in fp64; the bias that they leave out is 0."""
    theirs = noise(getattr(transformers, architecture)(transformers.ReformerConfig(**{**TINY, **more})), scale=0.15)
    torch.nn.init.zeros_(theirs.lm_head.bias)
    net = next(n for n in family("reformer").nets if n.architecture == architecture)
    config = ReformerConfig.from_dict({**TINY, **more})
    ours, rules = net.build(config), net.format("transformers").rules(config)
    ours.load_state_dict(to_ours(rules, theirs.state_dict()))
    return theirs.double(), ours.eval().double(), rules


@pytest.fixture
def fp32_hashes(monkeypatch):
    """Their rotations as in fp32."""
    hashed = LSHSelfAttention._hash_vectors
    monkeypatch.setattr(LSHSelfAttention, "_hash_vectors", lambda self, vectors, *more, **named: hashed(self, vectors.float(), *more,
                                                                                                        **named))


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_theirs_to_ours_and_back(architecture, tmp_path):
    """In fp32, one round; texts that fill their chunks and one that does not, of which transformers pads each alone."""
    labels = {} if architecture == "ReformerModel" else {"num_labels": 2 if "Question" in architecture else 3}
    theirs = saved(architecture, transformers.ReformerConfig(**{**TINY, **BOTH_WAYS, **labels}), tmp_path / "theirs", scale=0.1)
    cases = [({"input_ids": ids(2, n)}, None) for n in (64, 3)]
    assert_both_ways(theirs, tmp_path, OUTPUTS[architecture], cases, scale=0.1)
    ours, text = polymodal.load(tmp_path / "theirs"), ids(1, 45)
    with torch.no_grad():
        for name in OUTPUTS[architecture]:
            found, expected = (getattr(net(input_ids=text), name) for net in (ours, theirs))
            assert_equal(found, expected[:, :found.shape[1]])


@pytest.mark.parametrize("more", [
    {"attn_layers": ["local", "local"]}, {"attn_layers": ["lsh"]}, {"num_hashes": 3}, {"num_hashes": 2, "num_buckets": [4, 4]},
    {"num_hashes": 2, "num_buckets": None}, {"num_hashes": 2, "lsh_num_chunks_before": 2, "local_num_chunks_before": 3},
    {"axial_pos_embds": False}, {"hidden_act": "gelu", "chunk_size_feed_forward": 16},
], ids=str)
@pytest.mark.parametrize("architecture", ["ReformerModelWithLMHead", "ReformerForMaskedLM"])
def test_loss_and_every_gradient(architecture, more, fp32_hashes):
    causal = architecture == "ReformerModelWithLMHead"
    theirs, ours, rules = pair(architecture, **(ONE_WAY if causal else BOTH_WAYS), **more)
    text, labels = ids(2, 64), ids(64, 2).T.contiguous()
    out, mine = theirs.train()(input_ids=text, labels=labels), ours.train()(text).logits
    torch.testing.assert_close(mine, out.logits, rtol=1e-8, atol=1e-9)
    rows, targets = (mine[:, :-1], labels[:, 1:]) if causal else (mine, labels)
    loss = torch.nn.functional.cross_entropy(rows.flatten(0, 1), targets.flatten())
    assert float((loss - out.loss).detach().abs()) < 1e-6 * float(loss.detach())  # theirs is computed in fp32
    out.loss.backward()
    loss.backward()
    theirs.lm_head.bias.grad = ours.head.bias.grad  # which they have not
    assert_same_gradients(ours, theirs, rules)


def test_the_heads_bias_is_added_and_older_files_are_read(tmp_path):
    """Files of transformers 4 have the bias twice, and masks beside the weights."""
    config = transformers.ReformerConfig(**{**TINY, **ONE_WAY})
    theirs = saved("ReformerModelWithLMHead", config, tmp_path, scale=0.1)
    weights = load_file(tmp_path / "model.safetensors")
    buffers = {f"reformer.encoder.layers.{n}.attention.self_attention.{name}": torch.tensor(-1e5) for n in (1, 3)
               for name in ("self_mask_value_float32", "mask_value_float16")}
    save_file({**weights, **buffers, "lm_head.decoder.bias": weights["lm_head.bias"].clone()}, tmp_path / "model.safetensors")
    ours, text = polymodal.load(tmp_path), ids(2, 64)
    with torch.no_grad():
        assert_equal(ours(text).logits, theirs(text).logits + weights["lm_head.bias"])
    polymodal.save(ours, tmp_path / "again")
    again = transformers.ReformerModelWithLMHead.from_pretrained(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), theirs.state_dict().values(), strict=True))
    records = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tmp_path / "again")]
    assert records[0] == records[1]


def test_a_config_of_another_network_is_refused(tmp_path):
    saved("ReformerForMaskedLM", transformers.ReformerConfig(**{**TINY, **BOTH_WAYS}), tmp_path)
    polymodal.load(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**record, "architectures": ["ReformerModelWithLMHead"]}))
    with pytest.raises(UserError, match=r"names ReformerModelWithLMHead with is_decoder False: expected True"):
        polymodal.load(tmp_path)


@pytest.mark.parametrize("length", [64, 4096, 65_536, 8 * 65_536])
def test_the_number_of_buckets_is_theirs(length):
    config = transformers.ReformerConfig(max_position_embeddings=length, lsh_attn_chunk_length=64)
    attention = LSHSelfAttention(config)
    attention._set_num_buckets(length)
    found = ReformerConfig(max_position_embeddings=length, axial_pos_embds=False).factors(length)
    assert list(found) == (attention.num_buckets if isinstance(attention.num_buckets, list) else [attention.num_buckets])


def test_real_sizes():
    """Every key and shape of the published enwik8 model, and its number of parameters."""
    entry = family("reformer")
    config = ReformerConfig(**entry.sizes["base"])
    net = entry.nets[0]
    with torch.device("meta"):
        ours = net.build(config)
        theirs = transformers.ReformerModelWithLMHead(transformers.ReformerConfig(**config.to_dict()))
    assert sum(p.numel() for p in ours.parameters()) == 149_182_722
    mapped = to_ours(net.format("transformers").rules(config), theirs.state_dict())
    assert {k: v.shape for k, v in mapped.items()} == {k: v.shape for k, v in ours.state_dict().items()}
