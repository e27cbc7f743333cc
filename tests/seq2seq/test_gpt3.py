"""GPT-3: bands in every second layer, the same network as GPT-2 without them, and the paper's table."""

from dataclasses import replace

import polymodal
import pytest
import torch
import transformers
from parity import assert_both_ways, assert_equal, noise, saved
from polymodal.pipelines.run.recipe import recipes
from polymodal.pipelines.run.schedule import factor
from polymodal.registry import family
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.seq2seq.gpt3 import GPT3Config, GPT3LMHeadModel
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.meta import without_weights

TINY = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40, "bos_token_id": 60, "eos_token_id": 60}


def net(window_size=4, **overrides):
    return noise(GPT3LMHeadModel(GPT3Config(**{**TINY, **overrides}, window_size=window_size)))


def ids(rows=2, length=17, seed=0):
    return torch.randint(0, 60, (rows, length), generator=torch.Generator().manual_seed(seed))


def banded(theirs, length, size):
    """Give every second layer of transformers' GPT-2 a band as its mask."""
    apart = torch.arange(length)[:, None] - torch.arange(length)
    band = ((apart >= 0) & (apart < size))[None, None]
    for block in theirs.transformer.h[1::2]:
        block.register_forward_pre_hook(lambda block, given: (*given[:2], band, *given[3:]))
    return theirs


@pytest.mark.parametrize("size", [1, 4, 17])
def test_bands_are_those_of_gpt2_with_a_mask(size):
    ours = net(size)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**TINY)).eval()
    theirs.load_state_dict(to_theirs(family("gpt3").nets[0].format("polymodal").rules(ours.config), ours.state_dict()), strict=False)
    theirs.tie_weights()
    with torch.no_grad():
        assert_equal(ours(ids()).logits, banded(theirs, 17, size)(ids()).logits)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_what_a_token_sees_grows_by_a_band_with_each_banded_layer(layers):
    """With dense layers out of the way (their outputs are 0), a change reaches as far as the bands carry it."""
    model = net(3, n_layer=layers)
    with torch.no_grad():
        for block in list(model.trunk.stack.blocks)[::2]:
            block.attention.out.weight.zero_()
        before = ids(1, 20)
        after = before.clone()
        after[0, 4] = (after[0, 4] + 1) % 60
        moved = ((model(before).logits - model(after).logits).abs().amax(-1) > 0)[0].nonzero()[:, 0].tolist()
    assert moved == list(range(4, 4 + 1 + 2 * (layers // 2)))


def test_long_rows_take_the_plan_for_windows_and_give_the_same():
    model = net(32, n_positions=600)
    row = ids(1, 600)
    with torch.no_grad():
        whole = model(row).logits
        beside = model(torch.cat([row, row[:, :40]], 1), position_ids=torch.cat([torch.arange(600), torch.arange(40)])[None],
                       lengths=(600, 40)).logits
        narrow = GPT3LMHeadModel(replace(model.config, window_size=600))
        narrow.load_state_dict(model.state_dict())
        dense = narrow.eval()(row).logits
    assert_equal(beside[:, :600], whole)
    assert_equal(beside[:, 600:640], model(row[:, :40]).logits.detach())
    assert not torch.allclose(dense[:, 100:], whole[:, 100:], rtol=1e-3)
    assert_equal(dense[:, :32], whole[:, :32])


def test_generating_with_a_cache_is_generating_without():
    model = net(4)
    prompts, mask = ids(3, 9), torch.ones(3, 9, dtype=torch.long)
    mask[1, :5] = 0
    cached, again = (generate_ids(model, prompts, mask, max_new_tokens=25, eos_token_id=-1, use_cache=use) for use in (True, False))
    assert torch.equal(cached, again)
    beams = [generate_ids(model, prompts, mask, max_new_tokens=12, num_beams=3, eos_token_id=-1, use_cache=use) for use in (True, False)]
    assert torch.equal(*beams)
    alone = generate_ids(model, prompts[1:2, 5:], max_new_tokens=25, eos_token_id=-1)
    assert torch.equal(alone[0, 4:], cached[1, 9:])


def test_a_dense_network_is_gpt2s_both_ways(tmp_path):
    theirs = saved("GPT2LMHeadModel", transformers.GPT2Config(**TINY), tmp_path / "theirs")
    assert_both_ways(theirs, tmp_path, ["logits"], [({"input_ids": ids()}, None)])
    dense = net(None)
    polymodal.save(dense, tmp_path / "dense")
    with torch.no_grad():
        expected = dense(ids()).logits
        assert_equal(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()(ids()).logits, expected)
        assert_equal(polymodal.load(tmp_path / "dense")(ids()).logits, expected)


def test_bands_are_saved_in_a_format_of_our_own(tmp_path):
    model = net(4)
    polymodal.save(model, tmp_path / "banded")
    loaded = polymodal.load(tmp_path / "banded")
    assert isinstance(loaded, GPT3LMHeadModel) and loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(loaded(ids()).logits, model(ids()).logits)
    with pytest.raises(ValueError, match="polymodal-gpt3"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "banded")
    with pytest.raises(UserError, match="bands of 4 tokens: write it as polymodal"):
        polymodal.save(model, tmp_path / "theirs", format="transformers")
    polymodal.save(net(None), tmp_path / "dense", format="polymodal")
    assert polymodal.load(tmp_path / "dense").config.window_size is None


@pytest.mark.parametrize("change", [{"window_size": 0}, {"n_head": 5}])
def test_impossible_configs_are_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        GPT3Config(**change)


def test_the_papers_table():
    """Table 2.1 names the parameters in billions, without the tables of words and positions in some rows: to 5 % of one of the two."""
    named = {"base": 0.125, "350m": 0.35, "760m": 0.76, "1.3b": 1.3, "2.7b": 2.7, "6.7b": 6.7, "13b": 13, "175b": 175}
    entry = family("gpt3")
    for size, billions in named.items():
        config = entry.config(**entry.sizes[size])
        with without_weights():
            model = entry.nets[0].build(config)
        count = sum(p.numel() for p in model.parameters())
        trunk = sum(p.numel() for p in model.trunk.stack.parameters())
        assert min(abs(n / 1e9 / billions - 1) for n in (count, trunk)) < 0.05, (size, count, trunk)
    made = {name: recipe() for name, recipe in recipes().items() if name.startswith("gpt3-") and name != "gpt3-tiny"}
    assert {r.size for r in made.values()} == set(named)
    for recipe in made.values():
        batches = recipe.data.ramp
        assert batches.before(recipe.max_updates) * 2048 == pytest.approx(300e9, rel=1e-4)
        at = {billions: batches.update_at(int(billions * 1e9 / 2048)) for billions in (0.1875, 0.375, 130.1875, 260, 280, 299)}
        rates = [factor(recipe.schedule, update, recipe.max_updates, batches) for update in at.values()]
        assert rates == pytest.approx([0.5, 1.0, 0.55, 0.1, 0.1, 0.1], abs=2e-3), "a schedule of tokens"
        assert batches.batch(0) * 2048 == 2**15
        assert 4e9 <= batches.levels[-1].sample * 2048 <= 12e9 + recipe.data.global_batch * 2048
    assert made["gpt3-125m"].data.global_batch * 2048 == 2**19 and made["gpt3-175b"].optim.lr == 0.6e-4
