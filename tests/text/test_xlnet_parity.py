"""XLNet against transformers: the same numbers in both directions, with order, places, segments and memory; the same loss and gradients."""

import json

import numpy as np
import polymodal
import pytest
import torch
import transformers
from parity import assert_both_ways, assert_equal, assert_same_gradients, noise, saved
from polymodal.registry import family
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.meta import without_weights
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text.xlnet_config import XLNetConfig
from safetensors.torch import load_file

TINY = {"vocab_size": 99, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48, "mem_len": 9, "reuse_len": 6, "num_labels": 3}
OUTPUT = {"XLNetModel": "last_hidden_state", "XLNetLMHeadModel": "logits"}


def reference(architecture, directory, **overrides):
    return saved(architecture, transformers.XLNetConfig(**{**TINY, **overrides}), directory)


def drawn(length=13, batch=2, seed=1):
    """Ids, segments, an order that hides some places, and places to predict."""
    g = torch.Generator().manual_seed(seed)
    return (torch.randint(6, 99, (batch, length), generator=g), torch.randint(3, (batch, length), generator=g),
            (torch.rand(batch, length, length, generator=g) < 0.4).float(), torch.tensor([[1, 5, 7, 12], [0, 2, 9, 11]]))


@torch.no_grad()
def assert_same_outputs(ours, theirs, architecture):
    ids, types, order, places = drawn()
    name, mapping = OUTPUT[architecture], torch.nn.functional.one_hot(places, 13).float()
    left = torch.ones(2, 13)
    left[0, :4] = 0
    for mine, its in (
        ({}, {}),
        ({"attention_mask": left, "token_type_ids": types}, {}),
        ({"token_type_ids": types, "perm_mask": order}, {}),
        ({"attention_mask": left, "perm_mask": order}, {}),
        ({"token_type_ids": types, "perm_mask": order, "target_rows": places}, {"target_mapping": mapping}),
        ({"token_type_ids": types, "target_rows": places}, {"target_mapping": mapping}),
    ):
        both = {k: v for k, v in mine.items() if k != "target_rows"}
        a, b = ours(ids, **mine, output_hidden_states=True), theirs(ids, **both, **its, output_hidden_states=True)
        assert_equal(getattr(a, name), getattr(b, name))
        states = b.hidden_states[::2][:-1] if its else b.hidden_states  # theirs are those of both streams by turns
        assert len(a.hidden_states) == len(states)
        for x, y in zip(a.hidden_states, states):
            assert_equal(x, y)


@pytest.mark.parametrize("architecture", OUTPUT)
def test_theirs_to_ours_and_back(architecture, tmp_path):
    theirs = reference(architecture, tmp_path / "theirs")
    ours = polymodal.load(tmp_path / "theirs")
    assert ours.architecture == architecture and not ours.training
    assert_same_outputs(ours, theirs, architecture)

    noise(ours, seed=5)
    polymodal.save(ours, tmp_path / "ours")
    again, info = getattr(transformers, architecture).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_same_outputs(ours, again.eval(), architecture)
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() == load_file(tmp_path / "theirs" / "model.safetensors").keys()
    mine, yours = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("ours", "theirs"))
    assert mine == yours


@pytest.mark.parametrize("change", [{"clamp_len": 3}, {"ff_activation": "relu"}, {"mem_len": None, "reuse_len": None},
                                    {"tie_word_embeddings": False}])
def test_other_settings(change, tmp_path):
    theirs = reference("XLNetLMHeadModel", tmp_path, **change)
    assert_same_outputs(polymodal.load(tmp_path), theirs, "XLNetLMHeadModel")


def test_memory_is_the_references(tmp_path):
    """Three segments one behind the other: the memory grows to 9 states, 6 of each segment; with and without places to predict."""
    theirs = reference("XLNetLMHeadModel", tmp_path)
    ours = polymodal.load(tmp_path)
    for with_places in (True, False):
        mine = its = None
        for step in range(3):
            ids, types, order, places = drawn(seed=step)
            with torch.no_grad():
                a = ours(ids, None, types, mine, order, places if with_places else None, use_mems=True)
            mapping = torch.nn.functional.one_hot(places, 13).float() if with_places else None
            with torch.no_grad():
                b = theirs(ids, token_type_ids=types, perm_mask=order, target_mapping=mapping, mems=its, use_mems=True)
            assert_equal(a.logits, b.logits)
            mine, its = a.mems, b.mems
            assert mine.keep.sum(1).tolist() == [len(its[0])] * 2
            for x, y in zip(mine.states, its, strict=True):
                assert_equal(x[:, -len(y):], y.transpose(0, 1))


def test_padding_and_packing_change_nothing(tmp_path):
    reference("XLNetModel", tmp_path)
    ours = polymodal.load(tmp_path)
    texts = [torch.randint(6, 99, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 13, 2)]
    types = [torch.cat([torch.zeros(len(t) - 1), torch.full((1,), 2.0)]).long() for t in texts]
    with torch.no_grad():
        alone = torch.cat([ours(t[None], None, s[None]).last_hidden_state[0] for t, s in zip(texts, types)])
        packed = ours(torch.cat(texts)[None], None, torch.cat(types)[None], lengths=(5, 13, 2)).last_hidden_state
        assert_equal(packed[0], alone)
        for side in ("left", "right"):
            ids, kinds, keep = (torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
                                for rows in (texts, types, [torch.ones_like(t) for t in texts]))
            out = ours(ids, keep, kinds).last_hidden_state
            assert_equal(out[keep.bool()], alone)


TASKS = {"XLNetForSequenceClassification": ("logits",), "XLNetForTokenClassification": ("logits",),
         "XLNetForQuestionAnsweringSimple": ("start_logits", "end_logits"), "XLNetForMultipleChoice": ("logits",)}


@pytest.mark.parametrize("architecture", TASKS)
def test_networks_of_tasks_both_ways(architecture, tmp_path):
    outputs = {"num_labels": 2} if architecture == "XLNetForQuestionAnsweringSimple" else {}
    theirs = saved(architecture, transformers.XLNetConfig(**{**TINY, **outputs}), tmp_path / "theirs")
    ids, types, _, _ = drawn(batch=6)
    left = torch.ones_like(ids)
    left[0, :4] = 0
    if architecture == "XLNetForMultipleChoice":
        ids, types, left = (t.view(2, 3, -1) for t in (ids, types, left))
    assert_both_ways(theirs, tmp_path, TASKS[architecture], [
        ({"input_ids": ids}, None), ({"input_ids": ids, "attention_mask": left, "token_type_ids": types}, None)])


@torch.no_grad()
def test_the_class_of_a_text_is_the_same_alone_padded_and_packed(tmp_path):
    saved("XLNetForSequenceClassification", transformers.XLNetConfig(**TINY), tmp_path)
    ours = polymodal.load(tmp_path)
    assert not ours.trunk.mask.requires_grad
    texts = [torch.randint(6, 99, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 13, 2)]
    alone = torch.cat([ours(t[None]).logits for t in texts])
    assert_equal(ours(torch.cat(texts)[None], lengths=(5, 13, 2)).logits, alone)
    for side in ("left", "right"):
        ids, keep = (torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
                     for rows in (texts, [torch.ones_like(t) for t in texts]))
        assert_equal(ours(ids, keep).logits, alone)


def batch_of(system, tok, samples):
    """Rows of tokens that follow each other, and one that nothing follows."""
    rng = np.random.default_rng(0)
    ids = [i for i in range(tok.vocab_size) if i not in tok.special_ids]
    made = [Sample(str(n), {"tokens.u16": rng.choice(ids, 24).astype("<u2").tobytes()}, n) for n in range(samples)]
    for n, sample in enumerate(made):
        sample.followed_by(lambda n=n: made[n + 1] if n + 1 < samples else None)
        sample.pair_with(lambda n=n: made[n - 1])
    batch = system.objective.collate([e for s in made for e in system.objective.example(s, rng)])
    batch.sample_ids = [10 * s.index for s in made]
    return batch


def small(tok, **more):
    torch.manual_seed(0)
    system = polymodal.system("xlnet", size="tiny", tokenizer=tok, d_model=32, d_inner=48, dropout=0.0, mem_len=20, **more)
    noise(system.net).train()
    return system


@pytest.fixture(scope="module")
def tok():
    words = [a + b for a in ("ka", "mo", "ti", "su") for b in ("ren", "sol", "an", "es")]
    return Tokenizer.train([" ".join(words)] * 9, "word", 25, style=STYLES["xlnet"])


def test_loss_and_every_gradient_of_a_batch_are_the_references(tok, tmp_path):
    """A real batch of the objective, after another one whose memory it reads, given to their loss as dense masks."""
    system = small(tok)
    first, batch = batch_of(system, tok, 4), batch_of(system, tok, 4)
    first.sample_ids, batch.sample_ids = [0, 10, 20, 30], [1, 11, 21, 31]
    carry = system(first).carry
    assert carry["keep"].shape == (4, 20) and bool(carry["keep"].all())
    polymodal.save(system.net, tmp_path)
    theirs = transformers.XLNetLMHeadModel.from_pretrained(tmp_path).train()
    mapping = torch.nn.functional.one_hot(batch.target_rows, batch.ids.shape[1]).float()
    assert batch.counts["targets"] == 3 * 8 + 4, "of 48 tokens, and of 24 in the row that nothing follows"
    expected = theirs(input_ids=batch.ids, token_type_ids=batch.token_type_ids, perm_mask=batch.hidden().float(), target_mapping=mapping,
                      mems=[s.transpose(0, 1) for s in carry["states"]], labels=batch.targets).loss
    expected.backward()
    term = system(batch, carry).terms["plm"]
    loss = term.total / batch.counts[term.count]
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(system.net, theirs, family("xlnet").nets[0].format("transformers").rules(system.net.config))


def test_a_row_goes_on_from_its_lane_wherever_it_stands(tok):
    system = small(tok).double()
    first, batch = batch_of(system, tok, 3), batch_of(system, tok, 3)
    first.sample_ids, batch.sample_ids = [0, 10, 20], [21, 1, 77]
    carry = system(first).carry
    out = system.read(batch, carry).last_hidden_state
    batch.follows = [-1, -1, -1]
    new = system.read(batch, carry).last_hidden_state
    assert torch.allclose(out[2], new[2]) and not torch.allclose(out[0], new[0]) and not torch.allclose(out[1], new[1])
    moved = {"ids": [20, 0, 10], "keep": carry["keep"][[2, 0, 1]], "states": tuple(s[[2, 0, 1]] for s in carry["states"])}
    batch.follows = []
    assert torch.allclose(system.read(batch, moved).last_hidden_state, out)


COUNTS = {"XLNetLMHeadModel": 116_750_336}


def test_real_sizes():
    """Every key and shape of the base model, and its published number of parameters."""
    entry = family("xlnet")
    config = XLNetConfig(**entry.sizes["base"])
    for net in entry.nets:
        with without_weights():
            ours = net.build(config)
            theirs = getattr(transformers, net.architecture)(transformers.XLNetConfig(**config.to_dict()))
        written = {k: v.shape for k, v in to_theirs(net.format("transformers").rules(config), ours.state_dict()).items()}
        assert written == {k: v.shape for k, v in theirs.state_dict().items() if k != "lm_loss.weight"}
        count = sum(p.numel() for p in ours.parameters())
        assert count == sum(p.numel() for p in theirs.parameters()) == COUNTS.get(net.architecture, count)


@pytest.mark.parametrize(("change", "message"), [
    ({"attn_type": "uni"}, "attn_type"), ({"bi_data": True}, "bi_data"), ({"summary_type": "first"}, "summary_type"),
    ({"d_head": 5}, "d_head is 5, expected d_model / n_head, which is 8")])
def test_what_is_not_computed_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        XLNetConfig.from_dict({**{k: v for k, v in TINY.items() if k != "num_labels"}, **change})
