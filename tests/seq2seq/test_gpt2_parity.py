"""GPT-2 against transformers: the same numbers in both directions, padding included, and the same text."""

import json

import polymodal
import pytest
import torch
import transformers
from parity import assert_both_ways, assert_equal, assert_same_outputs, saved
from polymodal.registry import family
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.meta import without_weights
from safetensors.torch import load_file, save_file

TINY = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40, "bos_token_id": 60, "eos_token_id": 60}


def reference(directory, architecture="GPT2LMHeadModel", **overrides):
    return saved(architecture, transformers.GPT2Config(**{**TINY, **overrides}), directory)


def inputs():
    ids = torch.randint(0, 60, (3, 17), generator=torch.Generator().manual_seed(1))
    right, left = torch.ones_like(ids), torch.ones_like(ids)
    right[1, 9:] = 0
    left[2, :5] = 0
    return ids, right, left


@pytest.mark.parametrize(("architecture", "field"), [("GPT2LMHeadModel", "logits"), ("GPT2Model", "last_hidden_state")])
def test_theirs_to_ours_and_back(architecture, field, tmp_path):
    theirs = reference(tmp_path / "theirs", architecture)
    ids, right, left = inputs()
    # what a padded position itself computes (left of the prompt it sees no key at all) means nothing
    cases = [({"input_ids": ids}, None), ({"input_ids": ids, "attention_mask": right}, right.bool()),
             ({"input_ids": ids, "attention_mask": left, "position_ids": (left.cumsum(-1) - 1).clamp(min=0)}, left.bool())]
    assert_both_ways(theirs, tmp_path, [field], cases)


def test_packed_documents_give_the_numbers_of_single_ones(tmp_path):
    reference(tmp_path)
    ours = polymodal.load(tmp_path)
    documents = [torch.randint(0, 60, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 9, 2)]
    with torch.no_grad():
        positions = torch.cat([torch.arange(len(d)) for d in documents])[None]
        packed = ours(torch.cat(documents)[None], position_ids=positions, lengths=(5, 9, 2))
        single = torch.cat([ours(d[None]).logits[0] for d in documents])
    assert_equal(packed.logits[0], single)


def test_the_released_layout_without_prefix_and_with_buffers_is_read(tmp_path):
    theirs = reference(tmp_path)
    state = {k.removeprefix("transformer."): v for k, v in load_file(tmp_path / "model.safetensors").items()}
    state |= {f"h.{i}.attn.bias": torch.ones(1, 1, 40, 40).tril() for i in range(3)} | {"h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(state, tmp_path / "model.safetensors")
    assert_same_outputs(polymodal.load(tmp_path), theirs, ["logits"], {"input_ids": inputs()[0]})


@pytest.mark.parametrize("change", [{"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}, {"add_cross_attention": True},
                                    {"n_head": 5}, {"activation_function": "mish"}])
def test_a_config_that_would_change_the_numbers_is_refused(change, tmp_path):
    reference(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(record | change))
    with pytest.raises(UserError, match=next(iter(change))):
        polymodal.load(tmp_path)


@pytest.mark.parametrize(("size", "count"), [("base", 124_439_808), ("medium", 354_823_168)])
def test_real_sizes(size, count):
    entry = family("gpt2")
    config = entry.config(**entry.sizes[size])
    with without_weights():
        ours = entry.nets[0].build(config)
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**entry.sizes[size]))
    written = {k: v.shape for k, v in to_theirs(entry.nets[0].format("transformers").rules(config), ours.state_dict()).items()}
    assert written == {k: v.shape for k, v in theirs.state_dict().items() if k != "lm_head.weight"}
    assert sum(p.numel() for p in ours.parameters()) == count == sum(p.numel() for p in theirs.parameters())


def test_initialisation_scales_the_writers_to_the_residual_stream():
    torch.manual_seed(0)
    net = polymodal.system("gpt2", size="tiny", n_layer=8, vocab_size=2000).net
    block = net.trunk.stack.blocks[3]
    for tensor, std in ((net.trunk.embed.word.weight, 0.02), (block.attention.qkv.weight, 0.02), (block.attention.out.weight, 0.005),
                        (block.feed_forward.up.weight, 0.02), (block.feed_forward.down.weight, 0.005)):
        assert abs(tensor.std().item() / std - 1) < 0.05
    assert net.head.weight is net.trunk.embed.word.weight


# ------------------------------------------------------------------------------------------- generating


def test_greedy_tokens_equal_the_references(tmp_path):
    theirs = reference(tmp_path)
    ours = polymodal.load(tmp_path)
    ids = torch.randint(0, 60, (4, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, :3], mask[2, :6] = 0, 0
    for arguments in ({}, {"repetition_penalty": 1.7}):
        # the reference penalises padding too, so penalties are compared on whole prompts
        keep = mask if not arguments else torch.ones_like(mask)
        expected = theirs.generate(ids, attention_mask=keep, max_new_tokens=30, do_sample=False, pad_token_id=60, **arguments)
        assert torch.equal(generate_ids(ours, ids, keep, max_new_tokens=30, **arguments), expected)


def test_an_end_stops_its_row_and_all_ends_stop_the_call(tmp_path):
    theirs = reference(tmp_path)
    ours = polymodal.load(tmp_path)
    ids = torch.randint(0, 60, (4, 5), generator=torch.Generator().manual_seed(4))
    free = generate_ids(ours, ids, max_new_tokens=20, eos_token_id=-1)
    end = int(free[0, 8])
    expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=end,
                               pad_token_id=60)
    got = generate_ids(ours, ids, max_new_tokens=20, eos_token_id=end)
    assert torch.equal(got, expected)
    alone = generate_ids(ours, ids[:1], max_new_tokens=20, eos_token_id=end)
    assert alone.shape[1] <= 9 and int(alone[0, -1]) == end


def test_continuations_do_not_depend_on_the_prompts_beside_them(tmp_path):
    reference(tmp_path)
    ours = polymodal.load(tmp_path)
    prompts = [torch.randint(0, 60, (n,), generator=torch.Generator().manual_seed(n)) for n in (2, 9, 5)]
    ids = torch.stack([torch.cat([torch.full((9 - len(p),), 7), p]) for p in prompts])
    mask = torch.stack([torch.cat([torch.zeros(9 - len(p)), torch.ones(len(p))]) for p in prompts])
    for settings in ({"repetition_penalty": 1.3}, {"do_sample": True, "top_k": 0, "seed": 3}):
        together = generate_ids(ours, ids, mask, max_new_tokens=12, eos_token_id=-1, **settings)[:, 9:]
        for row, prompt in enumerate(prompts):
            alone = generate_ids(ours, prompt[None], max_new_tokens=12, eos_token_id=-1, first_stream=row, **settings)[0, len(prompt):]
            assert torch.equal(together[row], alone)


class OneStep(torch.nn.Module):
    """A decoder with fixed logits, to see what sampling draws."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    @property
    def decoder_info(self):
        from polymodal.shared.decoder import DecoderInfo

        return DecoderInfo(max_positions=8, num_layers=1)

    def next_logits(self, input_ids, attention_mask, position_ids, cache):
        return self.logits.expand(len(input_ids), -1)


LOGITS = torch.tensor([1.0, 2.5, 0.3, 2.0, -1.0, 1.7])


def warped(temperature=1.0, top_k=0, top_p=1.0):
    """The reference's distribution."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    steps = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        steps.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(TopPLogitsWarper(top_p))
    return steps(torch.zeros(1, 1, dtype=torch.long), LOGITS[None].clone()).softmax(-1)[0]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.75}, {"top_p": 0.01},
                                      {"temperature": 1.4, "top_k": 4, "top_p": 0.8}])
def test_samples_follow_the_references_distribution(settings):
    n = 20_000
    start = torch.zeros(n, 1, dtype=torch.long)
    out = generate_ids(OneStep(LOGITS), start, max_new_tokens=1, do_sample=True, seed=0, **{"top_k": 0, **settings})
    got = torch.bincount(out[:, 1], minlength=6) / n
    expected = warped(**settings)
    assert ((got - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt() + 1e-9).all()


def test_a_seed_repeats_and_another_differs(tmp_path):
    reference(tmp_path)
    ours = polymodal.load(tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    first, second, other = (generate_ids(ours, ids, max_new_tokens=20, do_sample=True, seed=s, eos_token_id=-1) for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"max_new_tokens": 40}, "positions"), ({"max_new_tokens": 0}, "max_new_tokens"), ({"temperature": 0.0}, "temperature"),
    ({"top_p": 0.0}, "top_p"), ({"top_k": -1}, "top_k"), ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"attention_mask": torch.tensor([[1, 1, 0]])}, "left")])
def test_impossible_requests_are_refused(arguments, message, tmp_path):
    reference(tmp_path)
    with pytest.raises(UserError, match=message):
        generate_ids(polymodal.load(tmp_path), torch.tensor([[1, 2, 3]]), do_sample=True, **arguments)


def test_strings_in_strings_out(tmp_path):
    from polymodal.shared.tokenizer import Tokenizer

    corpus = ["the quick brown fox jumps over the lazy dog " * 3, "she sells sea shells by the sea shore"]
    tok = Tokenizer.train(corpus * 5, "byte-bpe", 300)
    theirs = reference(tmp_path, vocab_size=tok.vocab_size, bos_token_id=tok.eos_id, eos_token_id=tok.eos_id)
    tok.save(tmp_path)
    ours, tok = polymodal.load(tmp_path), polymodal.tokenizer(tmp_path)
    prompts = ["the quick", "she sells sea shells", "a"]
    got = polymodal.generate(ours, prompts, tokenizer=tok, max_new_tokens=12)
    for prompt, text in zip(prompts, got):
        ids = torch.tensor([tok.encode(prompt, add_special_tokens=False)])
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=tok.eos_id)
        assert text == tok.decode(out[0])
    assert polymodal.generate(ours, prompts[1], tokenizer=tok, max_new_tokens=12) == got[1]
    only = polymodal.generate(ours, prompts, tokenizer=tok, max_new_tokens=12, return_full_text=False)
    assert [p + t for p, t in zip(prompts, only)] == got
    assert polymodal.generate(ours, prompts, tokenizer=tok, max_new_tokens=12, batch_size=1) == got
    sampled = [polymodal.generate(ours, prompts, tokenizer=tok, do_sample=True, seed=4, batch_size=b) for b in (1, 2, 3)]
    assert sampled[0] == sampled[1] == sampled[2]
    assert polymodal.generate(ours, "", tokenizer=tok, max_new_tokens=3, return_full_text=False) != ""
    # the tokenizer's files travel with the weights
    polymodal.save(ours, tmp_path / "copy")
    assert polymodal.tokenizer(tmp_path / "copy").fingerprint == tok.fingerprint
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "copy")("the quick")["input_ids"] == tok.encode("the quick")
    ids = torch.tensor([[1, 2]])
    assert torch.equal(polymodal.generate(ours, ids, max_new_tokens=5), generate_ids(ours, ids, max_new_tokens=5))
    with pytest.raises(UserError, match="tokenizer"):
        polymodal.generate(ours, "text")
    with pytest.raises(UserError, match="does not generate"):
        polymodal.generate(polymodal.system("bert", size="tiny").net, "text", tokenizer=tok)
