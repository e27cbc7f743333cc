"""`polymodal recipes`: the list of recipes, and all about one."""

from __future__ import annotations

import json

import pytest
import yaml
from polymodal.pipelines import cli
from polymodal.pipelines.run.recipe import recipe, recipes
from polymodal.pipelines.run.records import known_recipes
from polymodal.shared.errors import UserError


def test_every_recipe_is_listed_once_and_says_what_a_record_must_say():
    found = known_recipes()
    assert sorted(r.name for r in found) == sorted(recipes()) and len({r.name for r in found}) == len(found)
    for r in found:
        assert r.about and {"paper", "target", "cost", "command"} <= r.record.keys(), r
        assert r.name in r.record["command"] or r.record["command"] == "polymodal demo"


def test_the_list_is_chosen_by_system_and_task():
    assert {r.system for r in known_recipes(system="bert")} == {"bert"}
    spans = known_recipes(task="span")
    assert len(spans) > 3 and {r.task for r in spans} == {"span"}
    assert {r.task for r in known_recipes(task="pretrain")} == {None}
    for wrong in ({"system": "brt"}, {"task": "nothing"}, {"system": ""}):
        with pytest.raises(UserError, match="of which there is no recipe: expected one of"):
            known_recipes(**wrong)


def test_the_command(capsys):
    assert cli.run(["recipes", "--system", "bert"]) == 0
    listed = capsys.readouterr().out
    assert "bert-tiny" in listed and "cost: 41 s" in listed and "mae-tiny" not in listed
    assert cli.run(["recipes", "bert-tiny"]) == 0
    shown = capsys.readouterr().out
    assert "Paper: Devlin" in shown
    assert yaml.safe_load(shown[shown.index("name: bert-tiny"):]) == yaml.safe_load(recipe("bert-tiny").to_yaml())
    assert cli.run(["recipes", "bert-tiny", "gpt2-tiny", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["recipes"]
    assert [r["settings"]["name"] for r in told] == ["bert-tiny", "gpt2-tiny"] and told[0]["record"]["command"].startswith("polymodal")


def test_what_is_no_recipe_is_refused_with_what_is_near(capsys):
    assert cli.run(["recipes", "bert-tniy"]) == 2
    assert "did you mean bert-tiny" in capsys.readouterr().err
    assert cli.run(["recipes", "xyzzy"]) == 2
    assert "`polymodal recipes` lists all" in capsys.readouterr().err
    assert cli.run(["recipes", "bert-tiny", "--system", "bert"]) == 2
    assert "leave them out" in capsys.readouterr().err
