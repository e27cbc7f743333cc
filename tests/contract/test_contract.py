"""The contract between systems and the loop, for every registered system: a new file is tested by being registered.

What each property means stands in `checks.py`, that each can fail in `test_checks.py`; whole runs are in `test_runs.py`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields

import numpy as np
import polymodal
import pytest
import torch
from contract import checks
from contract.cases import TOPICS, Case, batch_of, cases, config_of, samples_of, style_of, tokenizer
from polymodal.pipelines.model.frontdoor import net_of, save
from polymodal.pipelines.run.recipe import recipes
from polymodal.registry import families, module_of
from polymodal.seq2seq.text2text import Text2TextObjective
from polymodal.shared.block import Block
from polymodal.shared.errors import UserError
from polymodal.shared.family import Context, Family, Format, Net
from polymodal.shared.meta import without_weights
from polymodal.shared.sample import Sample
from polymodal.shared.system import Objective, System
from polymodal.shared.tokenizer import STYLES, Tokenizer
from torch import nn

FEW = range(5)
"""Samples of 1, 2, 3, 6 and 20 sentences."""
each_system = pytest.mark.parametrize("case", cases(), ids=lambda c: c.name)
each_family = pytest.mark.parametrize("family", families().values(), ids=lambda f: f.name)
each_net = pytest.mark.parametrize(("case", "net"), [
    pytest.param(c, n, id=f"{c.name}-{n.architecture}")
    for c in cases() if not c.recipe.task and "default" not in c.name for n in c.family.nets])


def samples(case: Case, system: System, numbers=FEW):
    return samples_of(system.objective, tokenizer(style_of(case)) if style_of(case) else None, numbers)


def objectives(system: System) -> list[Objective]:
    """Of each task that takes turns; else the one there is."""
    return list(system.objective.by_turn().values())


def exact(case: Case) -> System:
    """In fp64 and without dropout."""
    return case.still().build().double().train()


@each_system
def test_the_objective_draws_from_its_generator_alone(case):
    system = case.build()
    for objective in objectives(system):
        checks.check_objective(objective, samples(case, system))


@each_system
def test_every_token_of_a_long_text_is_read(case):
    """Without sentence marks: each word is an input or a target of some example. (Tasks, captions, translations are cut, as they say.)"""
    if not style_of(case) or case.recipe.task or case.sequential or case.coupled or case.reads != ("",):
        return
    if any(isinstance(objective, Text2TextObjective) for objective in objectives(case.build())):
        return
    words = [f"w{a}{b}{c}" for a in "bcdfghjk" for b in "lmnpqrst" for c in "vwxyzaeioub"]
    tok = Tokenizer.train([" ".join(words)] * 2, "word", 2000, style=STYLES[style_of(case)])
    expected = set(tok.encode(" ".join(words), add_special_tokens=False))
    assert len(expected) == len(words) == 704
    # without the companions, which have other words
    system = case.recipe.build(case.family, Context(tok, TOPICS, net_only=True, counts=np.ones(tok.vocab_size, dtype=np.int64)))
    text, other = (Sample(part[:4], {"txt": part.encode()}, n, "here") for n, part in enumerate([" ".join(words), "other"]))
    text.pair_with(lambda: other)
    for objective in objectives(system):
        read = {int(i) for e in objective.example(text, np.random.default_rng(0))
                for f in fields(e) if isinstance(value := getattr(e, f.name), np.ndarray) for i in value.flat}
        assert expected <= read, f"{len(expected - read)} of {len(expected)} are not"


@each_system
def test_every_parameter_gets_a_finite_gradient(case):
    system = case.build().train()
    checks.check_gradients(system, [batch_of(o, samples(case, system, range(n, n + 4))) for o in objectives(system) for n in (0, 4)])


@each_system
def test_weights_decay_and_nothing_else(case):
    checks.check_decay(case.build())


@each_system
def test_a_batch_is_its_samples_side_by_side(case):
    """Loss, gradient and metrics are sums, and no sample touches another; or the system says that it couples them, and does."""
    system = exact(case)
    made = samples(case, system)
    for objective in objectives(system):
        whole, alone = batch_of(objective, made), [batch_of(objective, [s]) for s in made]
        if system.coupled:
            with pytest.raises(AssertionError, match="not the sum"):
                checks.check_sums(system, whole, alone)
        else:
            checks.check_sums(system, whole, alone)
            checks.check_documents(system, objective, made, samples(case, system, (31, 47, 33)))


@each_family
def test_no_value_in_a_config_is_a_defect(family):
    """A network can be built of any value of any field, or the value is refused as the user's mistake."""
    tiny = config_of(next(c for c in cases() if c.family.name == family.name).build())
    for field, value, change in checks.odd_values(tiny):
        try:
            config = change()
            with without_weights():
                for net in family.nets:
                    net.build(config)
        except Exception as error:
            assert isinstance(error, UserError), f"{field} = {value!r}: {error!r}"


def test_no_decoder_sees_the_future():
    found = [case for case in cases() if checks.decoders(case.build().net)]
    assert found
    for case in found:
        net = exact(case).net
        checks.check_future(net, net.config.vocab_size)


@each_system
def test_one_batch_is_learnt(case):
    for objective in objectives(case.build()):
        system = case.still().build()
        checks.check_overfits(system, batch_of(objective, samples(case, system, (0, 5, 10, 15))))


@each_system
def test_what_the_model_makes_of_held_out_data_can_be_shown(case):
    system = case.build()
    for objective in objectives(system):
        checks.check_preview(system, batch_of(objective.evaluation(), samples(case, system)))


@pytest.mark.parametrize("case", [c for c in cases() if c.recipe.task and c.family.tasks[0].name == "classify"
                                  and any(isinstance(m, Block) for m in c.build().modules())], ids=lambda c: c.name)
def test_a_task_can_be_tuned_in_parts(case):
    """Frozen layers, layer-wise rates, the head alone; that runs end early for any system, the loop's tests show."""
    system = case.build()
    checks.check_parts(system, batch_of(system.objective, samples(case, system)))


@each_system
def test_what_an_evaluation_measures_is_known_before_it(case):
    system = case.build()
    batches = {task: batch_of(o.evaluation(), samples(case, system)) for task, o in system.objective.by_turn().items()}
    checks.check_measured(system, batches)


# ------------------------------------------------------------------------------------------- weights on disk


@each_net
def test_rules_cover_every_key_both_ways(case, net: Net):
    model = shaken(net.build(config_of(case.build())))
    ours = model.state_dict()
    for format in formats(net, model):
        checks.check_rules(format.rules(model.config), ours, net.architecture)


@each_net
def test_what_is_saved_is_loaded_again(case, net: Net, tmp_path):
    model = shaken(net.build(config_of(case.build())))
    assert net_of(model, case.family) is net
    for name in (format.name for format in formats(net, model)):
        save(model, tmp_path / name, format=name)
        loaded = polymodal.load(tmp_path / name)
        assert type(loaded) is type(model) and loaded.architecture == net.architecture and not loaded.training
        assert loaded.config == model.config or name != "transformers"  # other libraries do not say everything
        found, expected = loaded.state_dict(), model.state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[k], v) for k, v in expected.items())
        save(loaded, tmp_path / "again" / name, format=name)
        written = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in (tmp_path / name, tmp_path / "again" / name)]
        assert written[0] == written[1]


def shaken(model: nn.Module) -> nn.Module:
    """Every parameter and statistic at a value of its own, tied ones at a common one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in {t.data_ptr(): t for t in model.state_dict().values() if t.is_floating_point()}.values():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return model


def formats(net: Net, model: nn.Module) -> list[Format]:
    """The formats in which this network can be written: its own first, and the other libraries' that have it."""
    default = net.default_format(model.config)
    found = [default]
    for format in net.formats:
        if format is not default and format.write is not None:
            with suppress(UserError):
                format.write(model)
                found.append(format)
    return found


# ------------------------------------------------------------------------------------------------ the card


@each_family
def test_a_family_says_what_it_is(family: Family):
    card = family.card
    documented = module_of(family).__doc__ or ""
    assert any(line.startswith("Faithful") for line in documented.splitlines()), "its docstring says what is faithful and what deviates"
    assert card.url in documented and str(card.year) in documented
    assert card.title and card.paper and card.url.startswith("https://") and 1950 < card.year < 2100 and family.pretraining.objective
    assert {"tiny", "base"} <= set(family.sizes)
    assert family.nets and card.reference
    mine = [r for r in (make() for make in recipes().values()) if r.system == family.name]
    assert ("tiny", "") in {(r.size, r.task) for r in mine}
    for r in mine:
        assert r.size in family.sizes and family.task(r.task)


@each_system
def test_the_network_of_a_system_is_one_that_can_be_loaded(case):
    system = case.build()
    for net in system.exports().values():
        assert net_of(net, case.family) is not None
    assert "" in system.exports() and system.exports()[""] is system.net
