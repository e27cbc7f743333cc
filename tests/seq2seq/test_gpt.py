"""GPT against transformers: the same numbers in both directions, padding included, and the same text."""

import json

import numpy as np
import polymodal
import pytest
import torch
import transformers
from parity import assert_both_ways, assert_same_outputs, saved
from polymodal.registry import family
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.meta import without_weights
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from safetensors.torch import load_file, save_file

TINY = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40}


def reference(directory, architecture="OpenAIGPTLMHeadModel", **overrides):
    return saved(architecture, transformers.OpenAIGPTConfig(**{**TINY, **overrides}), directory)


def inputs():
    ids = torch.randint(0, 60, (3, 17), generator=torch.Generator().manual_seed(1))
    right, left = torch.ones_like(ids), torch.ones_like(ids)
    right[1, 9:] = 0
    left[2, :5] = 0
    return ids, right, left


@pytest.mark.parametrize(("architecture", "field"), [("OpenAIGPTLMHeadModel", "logits"), ("OpenAIGPTModel", "last_hidden_state")])
def test_theirs_to_ours_and_back(architecture, field, tmp_path):
    theirs = reference(tmp_path / "theirs", architecture)
    ids, right, left = inputs()
    cases = [({"input_ids": ids}, None), ({"input_ids": ids, "attention_mask": right}, right.bool()),
             ({"input_ids": ids, "attention_mask": left, "position_ids": (left.cumsum(-1) - 1).clamp(min=0)}, left.bool())]
    assert_both_ways(theirs, tmp_path, [field], cases)


@pytest.mark.parametrize("afn", ["relu", "silu", "swish"])
def test_other_activations(afn, tmp_path):
    theirs = reference(tmp_path, afn=afn)
    assert_same_outputs(polymodal.load(tmp_path), theirs, ["logits"], {"input_ids": inputs()[0]})


def test_the_released_layout_without_prefix_and_with_buffers_is_read(tmp_path):
    """The released config.json and names of weights."""
    theirs = reference(tmp_path)
    state = {k.removeprefix("transformer."): v for k, v in load_file(tmp_path / "model.safetensors").items()}
    state |= {f"h.{i}.attn.bias": torch.ones(1, 1, 40, 40).tril() for i in range(3)} | {"position_ids": torch.arange(40)}
    save_file(state, tmp_path / "model.safetensors")
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**record, "n_special": 0, "predict_special_tokens": True, "n_ctx": 40}))
    assert_same_outputs(polymodal.load(tmp_path), theirs, ["logits"], {"input_ids": inputs()[0]})


@pytest.mark.parametrize("change", [{"afn": "gelu_new"}, {"n_head": 5}, {"tie_word_embeddings": False}])
def test_a_config_that_would_change_the_numbers_is_refused(change, tmp_path):
    reference(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(record | change))
    with pytest.raises(UserError, match=next(iter(change))):
        polymodal.load(tmp_path)


def test_the_papers_size():
    entry = family("gpt")
    config = entry.config()
    with without_weights():
        ours = entry.nets[0].build(config)
        theirs = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig())
    written = {k: v.shape for k, v in to_theirs(entry.nets[0].format("transformers").rules(config), ours.state_dict()).items()}
    assert written == {k: v.shape for k, v in theirs.state_dict().items() if k != "lm_head.weight"}
    assert sum(p.numel() for p in ours.parameters()) == 116_534_784 == sum(p.numel() for p in theirs.parameters())


def test_greedy_tokens_equal_the_references_and_the_cache_changes_nothing(tmp_path):
    theirs = reference(tmp_path)
    ours = polymodal.load(tmp_path)
    ids = torch.randint(0, 60, (4, 7), generator=torch.Generator().manual_seed(3))
    expected = ids
    with torch.no_grad():  # transformers' `generate` keeps no cache for this class; the loop is as plain
        for _ in range(30):
            expected = torch.cat([expected, theirs(expected).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(generate_ids(ours, ids, max_new_tokens=30), expected)
    assert torch.equal(generate_ids(ours, ids, max_new_tokens=30, use_cache=False), expected)


@pytest.mark.parametrize(("style", "end"), [("plain", "</s>"), ("bert", None)])
def test_a_document_ends_where_the_vocabulary_has_an_end(style, end):
    text = "it was the best of times, it was the worst of times"
    tok = Tokenizer.train([text] * 9, "word", 40, style=STYLES[style])
    system = polymodal.system("gpt", size="tiny", tokenizer=tok, objective={"max_length": 5})
    made = list(system.objective.example(Sample("x", {"txt": text.encode()}), np.random.default_rng(0)))
    expected = [*tok.encode(text, add_special_tokens=False), *([tok.token_to_id(end)] if end else [])]
    assert [i for e in made for i in e.ids[1:].tolist()] == expected[1:] and made[0].ids[0] == expected[0]
    assert system.net.config.eos_token_id == (tok.token_to_id(end) if end else None)


def test_a_text_is_generated():
    text = "call me ishmael"
    tok = Tokenizer.train([text] * 9, "char", 40)
    net = polymodal.system("gpt", size="tiny", tokenizer=tok).net
    assert polymodal.generate(net, "call", tokenizer=tok, max_new_tokens=4).startswith("call")
