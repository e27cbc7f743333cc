from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields

import pytest
import yaml
from polymodal.pipelines.run.recipe import Recipe, recipe, recipes, record
from polymodal.pipelines.train import devices
from polymodal.pipelines.train.devices import choose_precision
from polymodal.registry import families
from polymodal.shared.errors import UserError
from polymodal.shared.family import Context
from polymodal.shared.meta import without_weights
from polymodal.shared.settings import build_settings

NAMES = sorted(recipes())


def test_every_family_of_the_issue_has_three_sizes():
    assert {f"{family}-{size}" for family in ("bert", "gpt2", "clip", "vit") for size in ("tiny", "small", "base")} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_complete_and_its_docstring_is_the_record(name, tmp_path):
    found = recipe(name)
    assert found.name == name and found.size in families()[found.system].sizes
    for part in ("Paper:", "Target:", "Cost:", "Command: "):
        assert part in record(name), part
    path = tmp_path / "saved.yaml"
    path.write_text(found.to_yaml())
    assert recipe(path) == found


def test_overrides_are_typed():
    found = recipe("gpt2-tiny", ["optim.lr=1e-4", "precision=32", "data.micro_batch=8", "model.n_layer=3", "optim.clip=null",
                                 "devices=2"])
    assert (found.optim.lr, found.precision, found.data.micro_batch, found.model["n_layer"]) == (1e-4, "32", 8, 3)
    assert found.optim.clip is None and found.devices == 2
    assert found.model["resid_pdrop"] == 0.0  # the rest of the mapping stays


def test_every_problem_at_once_with_the_nearest_name():
    with pytest.raises(UserError) as error:
        recipe("gpt2-tiny", ["optim.lrr=1", "model.n_embdd=3", "objective.max_len=3", "size=tny", "seed", "data.global_batch=x",
                             "data.window=0", "schedule.name=cosin", "precision=16-mixed"])
    for part in ("optim.lrr; did you mean optim.lr?", "model.n_embdd; did you mean model.n_embd?",
                 "objective.max_len; did you mean objective.max_length?",
                 "size is 'tny'", "--set seed: expected KEY=VALUE", "data.global_batch is 'x', expected int", "did you mean cosine?",
                 "precision is '16-mixed', expected auto | 32 | bf16-mixed | bf16-true"):
        assert part in str(error.value), part


@pytest.mark.parametrize(("overrides", "message"), [
    (["max_updates=0"], "max_updates is 0"), (["data.micro_batch=64", "data.global_batch=32"], "micro_batch is 64, more than"),
    (["checkpoint.keep_last=0"], "keep_last"), (["optim=3"], "optim is 3"), (["optim.lr.x=3"], "it has no parts"),
    (["system=gtp2"], "did you mean gpt2"), (["schedule.name=wsd"], "wsd needs decay"),
])
def test_impossible_values(overrides, message):
    with pytest.raises(UserError, match=message):
        recipe("gpt2-tiny", overrides)


def test_yaml_with_a_base(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: gpt2-tiny\noptim: {lr: 5e-4}\nmodel:\n  n_layer: 1\n")
    (tmp_path / "again.yaml").write_text("base: mine.yaml\nmax_updates: 7\n")
    found = recipe(tmp_path / "again.yaml", ["seed=3"])
    assert (found.name, found.system, found.optim.lr, found.model["n_layer"]) == ("again", "gpt2", 5e-4, 1)
    assert (found.max_updates, found.seed) == (7, 3)
    assert found.optim.betas == recipe("gpt2-tiny").optim.betas


@pytest.mark.parametrize(("content", "message"), [
    ("- 1\n", "holds list"), ("a: [", "is not YAML"), ("base: nothing\n", "there is no recipe"), ("base: me.yaml\n", "leads back"),
    ("name: x\n", "system is missing"), ("base: 3\n", "base is 3"), ("!!python/object/apply:os.system ['true']\n", "is not YAML"),
])
def test_bad_yaml(tmp_path, content, message):
    (tmp_path / "me.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        recipe(tmp_path / "me.yaml")


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean gpt2-tiny"):
        recipe("gpt2-tinny")
    with pytest.raises(UserError, match="does not exist"):
        recipe("nothing.yaml")


def test_precision(monkeypatch):
    assert isinstance(devices.cpu_features(), Mapping)
    for features, chosen in (({}, "32"), ({"avx512_f": True}, "32"), ({"amx_bf16": True}, "bf16-mixed"),
                             ({"avx512_bf16": True}, "bf16-mixed")):
        monkeypatch.setattr(devices, "cpu_features", lambda found=features: found)
        assert choose_precision("auto", "cpu") == chosen
    assert choose_precision("auto", "mps") == "32"
    assert choose_precision("bf16-true", "cpu") == "bf16-true"


def test_a_recipe_is_plain_yaml():
    content = yaml.safe_load(recipe("clip-base").to_yaml())
    assert content["data"]["global_batch"] == 32_768 and isinstance(Recipe(name="x", system="gpt2").to_dict(), dict)


@pytest.mark.parametrize("name", [name for name in NAMES if recipe(name).evaluate.monitor != "loss"])
def test_what_a_recipe_watches_its_evaluations_measure(name):
    found = recipe(name)
    with without_weights():
        system = found.build(families()[found.system], Context(classes=("B-X", "I-X", "O"), net_only=True))
    assert found.evaluate.monitor in system.measured()


@pytest.mark.parametrize("name", NAMES)
def test_a_resolved_recipe_is_the_same_with_every_setting(name, tmp_path):
    """Through YAML and JSON, too, as a run keeps it."""
    whole = recipe(name)
    task = families()[whole.system].task(whole.task)
    settings = build_settings(task.settings, whole.objective, name)
    (tmp_path / "kept.yaml").write_text(whole.resolved().to_yaml())
    kept = recipe(tmp_path / "kept.yaml")
    assert kept == whole.resolved() == kept.resolved()
    assert set(kept.objective) == {f.name for f in fields(task.settings) if f.init}
    assert build_settings(task.settings, json.loads(json.dumps(kept.objective)), name) == settings
