"""T5 against transformers: outputs, weights both ways, caches, greedy generation."""

import json
import tempfile
from pathlib import Path

import polymodal
import pytest
import torch
import transformers
from polymodal.seq2seq import t5
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.shared.attention.cache import KVCache
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.meta import without_weights

VARIANTS = {
    "tied": {},
    "gated, untied": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "untied": {"tie_word_embeddings": False},
    "gated, tied": {"feed_forward_proj": "gated-silu"},
    "deeper decoder": {"num_decoder_layers": 3},
}


def reference(architecture="T5ForConditionalGeneration", **overrides):
    """A small reference net whose norms and biases are not at their initial values."""
    config = transformers.T5Config(
        vocab_size=60, d_model=16, d_kv=5, d_ff=24, num_layers=2, num_heads=3, decoder_start_token_id=0,
        relative_attention_num_buckets=8, relative_attention_max_distance=20, **overrides)
    torch.manual_seed(0)
    net = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        if overrides.get("tie_word_embeddings") is False and architecture == "T5ForConditionalGeneration":
            net.lm_head.weight = torch.nn.Parameter(torch.zeros(60, 16))  # transformers 5 ties it; version 1.1 has its own
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def ours_from(theirs):
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        if theirs.config.scale_decoder_outputs is False:  # transformers 5 tells the two versions apart by this alone
            assert json.loads((Path(directory) / "config.json").read_text())["tie_word_embeddings"] is True
        return polymodal.load(directory)


def batch():
    """Texts padded on either side, targets padded on the right; longer than the farthest bucket."""
    g = torch.Generator().manual_seed(1)
    ids, targets = torch.randint(2, 60, (3, 30), generator=g), torch.randint(2, 60, (3, 25), generator=g)
    mask, target_mask = torch.ones(3, 30, dtype=torch.long), torch.ones(3, 25, dtype=torch.long)
    mask[1, 20:], mask[2, :5], target_mask[1, 15:] = 0, 0, 0
    return ids, mask, targets, target_mask


def assert_near(ours, theirs):
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_outputs_equal_the_reference(variant):
    theirs = reference(**VARIANTS[variant])
    ours = ours_from(theirs)
    ids, mask, targets, target_mask = batch()
    a = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=targets, decoder_attention_mask=target_mask, output_hidden_states=True)
    b = ours(ids, mask, targets, target_mask, output_hidden_states=True)
    assert_near(b.logits, a.logits)
    assert_near(b.encoder_last_hidden_state, a.encoder_last_hidden_state)
    for mine, other in ((b.encoder_hidden_states, a.encoder_hidden_states), (b.decoder_hidden_states, a.decoder_hidden_states)):
        assert len(mine) == len(other)
        for x, y in zip(mine, other):
            assert_near(x, y)


@torch.no_grad()
def test_labels_are_shifted_as_in_the_reference():
    theirs = reference()
    ours = ours_from(theirs)
    ids, mask, labels, target_mask = batch()
    labels = labels.masked_fill(target_mask == 0, -100)
    a = theirs(input_ids=ids, attention_mask=mask, labels=labels)
    b = ours(ids, mask, labels=labels)
    assert_near(b.logits, a.logits)
    assert_near(torch.nn.functional.cross_entropy(b.logits.flatten(0, 1), labels.flatten()), a.loss)


@pytest.mark.parametrize("architecture", ["T5Model", "T5EncoderModel"])
@torch.no_grad()
def test_headless_networks_equal_the_reference(architecture):
    theirs = reference(architecture)
    ours = ours_from(theirs)
    ids, mask, targets, target_mask = batch()
    if architecture == "T5Model":
        a = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=targets, decoder_attention_mask=target_mask)
        assert_near(ours(ids, mask, targets, target_mask).last_hidden_state, a.last_hidden_state)
    else:
        assert_near(ours(ids, mask).last_hidden_state, theirs(input_ids=ids, attention_mask=mask).last_hidden_state)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_reference_loads_what_we_write(variant, tmp_path):
    torch.manual_seed(3)
    overrides = {"d_model": 16, "d_kv": 5, "d_ff": 24, "num_layers": 2, "num_heads": 3, "vocab_size": 60, **VARIANTS[variant]}
    ours = polymodal.system("t5", size="small", **overrides).net.eval()
    polymodal.save(ours, tmp_path)
    theirs, report = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids, mask, targets, target_mask = batch()
    a = theirs.eval()(input_ids=ids, attention_mask=mask, decoder_input_ids=targets, decoder_attention_mask=target_mask)
    assert_near(ours(ids, mask, targets, target_mask).logits, a.logits)
    again = polymodal.load(tmp_path)
    assert again.config == ours.config
    assert all(torch.equal(again.state_dict()[k], v) for k, v in ours.state_dict().items())


@torch.no_grad()
def test_an_untied_head_that_the_file_leaves_out_is_the_word_table():
    """So transformers 5 saves a fresh net of version 1.1: unscaled, and tied all the same."""
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=60, d_model=16, d_kv=5, d_ff=24, num_layers=1, num_heads=3, decoder_start_token_id=0, tie_word_embeddings=False)).eval()
    ours = ours_from(theirs)
    assert ours.head.weight is not ours.trunk.embed.word.weight
    ids, mask, targets, _ = batch()
    assert_near(ours(ids, mask, targets).logits, theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=targets).logits)
    back = to_theirs(t5.NETS[0].format("transformers").rules(ours.config), ours.state_dict())
    assert torch.equal(back["lm_head.weight"], theirs.shared.weight)


@torch.no_grad()
def test_step_by_step_equals_one_pass():
    ours = ours_from(reference(num_decoder_layers=3))
    ids, mask, targets, _ = batch()
    whole = ours(ids, mask, targets).logits
    for sizes in ([1] * 25, [7, 1, 1, 16]):
        reader, cache, start, steps = ours.decoder_for(ids, mask), KVCache(3, 25), 0, []
        for size in sizes:
            seen = torch.ones(3, start + size, dtype=torch.bool)
            position = torch.arange(start, start + size).expand(3, -1)
            steps.append(reader.next_logits(targets[:, start:start + size], seen, position, cache))
            start += size
        ends = torch.tensor(sizes).cumsum(0) - 1
        assert_near(torch.stack(steps, dim=1), whole[:, ends])


@pytest.mark.parametrize("variant", ["tied", "gated, untied"])
@pytest.mark.parametrize("end", [1, 53])
def test_greedy_generation_equals_the_reference(variant, end):
    theirs = reference(**VARIANTS[variant], eos_token_id=end)
    with torch.no_grad():
        theirs.shared.weight.mul_(0.1)  # or the net repeats what it reads
        for block in theirs.decoder.block:
            block.layer[-1].DenseReluDense.wo.weight.mul_(10)
    ours = ours_from(theirs)
    ids, mask, _, _ = batch()
    out = generate_ids(ours, ids, mask, max_new_tokens=20)
    expected = theirs.generate(input_ids=ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    assert torch.equal(out, expected)
    assert len(out.unique()) >= 8
    if variant == "tied":
        assert (out[:, -1] == 0).any() == (end == 53)  # one row writes 53 early: what follows is padding


def test_sampling_draws_the_same_beside_other_texts_and_penalises_what_was_written():
    ours = ours_from(reference(feed_forward_proj="gated-gelu", tie_word_embeddings=False))
    ids, mask, _, _ = batch()
    settings = {"max_new_tokens": 15, "do_sample": True, "seed": 3, "eos_token_id": -1}
    out = generate_ids(ours, ids, mask, **settings)
    assert torch.equal(generate_ids(ours, ids[:1], mask[:1], **settings), out[:1])
    assert torch.equal(generate_ids(ours, ids[1:2, :20], None, first_stream=1, **settings), out[1:2])
    theirs = reference(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    penalised = generate_ids(ours, ids, mask, max_new_tokens=15, repetition_penalty=1.8)
    assert torch.equal(penalised, theirs.generate(input_ids=ids, attention_mask=mask, max_new_tokens=15, repetition_penalty=1.8))
    assert not torch.equal(penalised, generate_ids(ours, ids, mask, max_new_tokens=15))


def test_encoding_for_generation_uses_no_dropout_and_leaves_the_mode_alone():
    ours = ours_from(reference()).train()
    ids, mask, _, _ = batch()
    reader = ours.decoder_for(ids, mask)
    assert ours.training
    assert torch.equal(reader.memory, ours.eval().trunk.encode(ids, mask))


def test_initial_deviations_are_the_papers():
    config = t5.T5Config(vocab_size=400, d_model=64, d_kv=32, d_ff=256, num_layers=2, num_heads=4)
    torch.manual_seed(0)
    ours, theirs = t5.T5ForConditionalGeneration(config), transformers.T5ForConditionalGeneration(transformers.T5Config(**config.to_dict()))
    mine = to_theirs(t5.NETS[0].format("transformers").rules(config), ours.state_dict())
    for name, tensor in theirs.state_dict().items():
        if name in mine and tensor.numel() > 1000:
            assert mine[name].std().item() == pytest.approx(tensor.std().item(), rel=0.1), name
        elif name in mine and "layer_norm" in name:
            assert torch.equal(mine[name], tensor)


def test_parameter_counts():
    """The published sizes: 60 506 624 and 222 903 552; version 1.1 in base 247 577 856."""
    with without_weights():
        counts = {size: sum(p.numel() for p in t5.T5ForConditionalGeneration(t5.T5Config(**t5.SIZES[size])).parameters())
                  for size in ("small", "base", "base-v1.1")}
    assert counts == {"small": 60_506_624, "base": 222_903_552, "base-v1.1": 247_577_856}


def test_config_refuses_what_it_does_not_compute():
    record = transformers.T5Config(feed_forward_proj="gated-gelu").to_dict()
    assert t5.T5Config.from_dict(record).activation == "gelu_new"
    with pytest.raises(UserError, match="dense_act_fn"):
        t5.T5Config.from_dict(record | {"dense_act_fn": "relu"})
    with pytest.raises(UserError, match="feed_forward_proj"):
        t5.T5Config(feed_forward_proj="gated-what")
    with pytest.raises(UserError, match="d_ff"):
        t5.T5Config(d_ff=0)
