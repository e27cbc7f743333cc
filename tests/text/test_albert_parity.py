"""ALBERT against transformers: the same numbers in both directions, padding included."""

import json

import polymodal
import pytest
import torch
import transformers
from parity import assert_both_ways, assert_same_outputs, noise, saved
from polymodal.registry import family
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.meta import without_weights
from polymodal.text.albert import AlbertConfig
from safetensors.torch import load_file, save_file

TINY = {"vocab_size": 99, "embedding_size": 24, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 24, "num_labels": 3}
SCALE = 0.5
"""Of matrices: a block that is applied again and again needs large ones."""
OUTPUTS = {
    "AlbertModel": ("last_hidden_state", "pooler_output"),
    "AlbertForMaskedLM": ("logits",),
    "AlbertForPreTraining": ("prediction_logits", "sop_logits"),
    "AlbertForSequenceClassification": ("logits",),
    "AlbertForTokenClassification": ("logits",),
    "AlbertForQuestionAnswering": ("start_logits", "end_logits"),
    "AlbertForMultipleChoice": ("logits",),
}


def inputs(architecture):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 99, (3, 2, 17), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :, 9:] = mask[2, 1, 3:] = 0
    types = (torch.arange(17) > 6).long().expand_as(ids)
    if architecture != "AlbertForMultipleChoice":
        ids, mask, types = ids.flatten(0, 1), mask.flatten(0, 1), types.flatten(0, 1)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def reference(architecture, directory, **overrides):
    settings = {**TINY, **overrides}
    if architecture in ("AlbertForQuestionAnswering", "AlbertForPreTraining"):
        settings["num_labels"] = 2
    return saved(architecture, transformers.AlbertConfig(**settings), directory, SCALE)


@pytest.mark.parametrize(("architecture", "groups"), [*((name, 1) for name in OUTPUTS), ("AlbertForPreTraining", 4), ("AlbertModel", 2)])
def test_theirs_to_ours_and_back(architecture, groups, tmp_path):
    """With one block for all layers, one for each, and one for two."""
    theirs = reference(architecture, tmp_path / "theirs", num_hidden_groups=groups)
    assert polymodal.load(tmp_path / "theirs").config.sharing == ("none" if groups == 4 else "all")
    arguments = inputs(architecture)
    assert_both_ways(theirs, tmp_path, OUTPUTS[architecture], [(arguments, None), ({"input_ids": arguments["input_ids"]}, None)],
                     SCALE)


@pytest.mark.parametrize("change", [{"embedding_size": 32}, {"hidden_act": "gelu"}])
def test_tables_as_wide_as_the_layers_have_a_map_and_the_head_has_the_trunks_activation(change, tmp_path):
    theirs = reference("AlbertForPreTraining", tmp_path, **change)
    assert_same_outputs(polymodal.load(tmp_path), theirs, OUTPUTS["AlbertForPreTraining"], inputs("AlbertForPreTraining"))


def test_released_files_with_the_other_head_and_old_keys_are_read(tmp_path):
    theirs = reference("AlbertForMaskedLM", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state |= {"albert.embeddings.position_ids": torch.arange(24)[None], "albert.pooler.weight": torch.zeros(32, 32),
              "albert.pooler.bias": torch.zeros(32), "sop_classifier.classifier.weight": torch.zeros(2, 32),
              "sop_classifier.classifier.bias": torch.zeros(2), "predictions.decoder.bias": state["predictions.bias"].clone(),
              "predictions.decoder.weight": state["albert.embeddings.word_embeddings.weight"].clone()}
    save_file(state, tmp_path / "model.safetensors")
    record = json.loads((tmp_path / "config.json").read_text())
    record |= {"down_scale_factor": 1, "gap_size": 0, "net_structure_type": 0, "num_memory_blocks": 0, "layers_to_keep": []}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert_same_outputs(polymodal.load(tmp_path), theirs, OUTPUTS["AlbertForMaskedLM"], inputs("AlbertForMaskedLM"))
    (tmp_path / "config.json").write_text(json.dumps(record | {"inner_group_num": 2}))
    with pytest.raises(UserError, match="inner_group_num"):
        polymodal.load(tmp_path)


# ------------------------------------------------------------------------------------------------ sharing


@pytest.mark.parametrize("sharing", ["attention", "feed-forward"])
def test_a_shared_part_is_that_of_the_first_layer(sharing, tmp_path):
    """Against transformers' network without sharing, whose layers hold copies of the part; and it is saved once, in our format."""
    small = {k: v for k, v in TINY.items() if k != "num_labels"}
    ours = noise(polymodal.system("albert", size="tiny", **small, sharing=sharing).net)
    theirs = transformers.AlbertForPreTraining(transformers.AlbertConfig(**small, num_hidden_groups=4)).eval()
    polymodal.save(ours, tmp_path / "ours")
    state = load_file(tmp_path / "ours" / "model.safetensors")
    part = ".attention." if sharing == "attention" else ".f"  # ffn, ffn_output, full_layer_layer_norm
    once = [name for name in state if part in name.removeprefix("albert.encoder.albert_layer_groups")]
    assert once and all("groups.0." in name for name in once)
    copies = {name.replace("groups.0.", f"groups.{n}."): state[name] for name in once for n in range(1, 4)}
    missing, unexpected = theirs.load_state_dict({**state, **copies}, strict=False)
    assert not unexpected and {"predictions.decoder.weight", "predictions.decoder.bias"} >= set(missing)
    assert_same_outputs(ours, theirs, OUTPUTS["AlbertForPreTraining"], inputs("AlbertForPreTraining"))

    again = polymodal.load(tmp_path / "ours")
    assert again.config == ours.config and again.config.sharing == sharing
    assert_same_outputs(again, theirs, OUTPUTS["AlbertForPreTraining"], inputs("AlbertForPreTraining"))
    with pytest.raises(UserError, match=f"has sharing {sharing}: write it as polymodal"):
        polymodal.save(ours, tmp_path / "theirs", format="transformers")
    with pytest.raises(ValueError, match="polymodal-albert"):
        transformers.AutoConfig.from_pretrained(tmp_path / "ours")


def test_parameters_of_the_sharing_modes():
    """The paper's table 4 counts the base size with E = 128: 12M, 64M, 38M and 89M."""
    counts = {}
    for sharing in ("all", "attention", "feed-forward", "none"):
        with without_weights():
            net = polymodal.system("albert", size="base", sharing=sharing).net.trunk
        counts[sharing] = sum(p.numel() for p in net.parameters()) / 1e6
    assert counts == pytest.approx({"all": 12, "attention": 64, "feed-forward": 38, "none": 89}, abs=0.7)


@pytest.mark.parametrize(("change", "message"), [
    ({"num_hidden_groups": 3}, "num_hidden_groups 3 does not divide num_hidden_layers 4"),
    ({"num_hidden_groups": 2, "sharing": "attention"}, "num_hidden_groups is 2, expected 1 where layers share attention alone"),
    ({"sharing": "heads"}, "sharing"),
])
def test_sharing_that_cannot_be_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        polymodal.system("albert", size="tiny", **{**TINY, **change})
    assert AlbertConfig(num_hidden_layers=4, sharing="none") == AlbertConfig(num_hidden_layers=4, num_hidden_groups=4)


def test_the_base_model_has_every_key_and_the_published_number_of_parameters():
    with without_weights():
        ours = polymodal.system("albert", size="base").net
        config = transformers.AlbertConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072)
        theirs = transformers.AlbertForPreTraining(config)
    rules = family("albert").nets[0].format("transformers").rules(ours.config)
    written = {k: v.shape for k, v in to_theirs(rules, ours.state_dict()).items()}
    assert written == {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("predictions.decoder")}
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 11_813_810
