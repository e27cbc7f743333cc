"""RoBERTa against transformers: the same numbers in both directions, padding included."""


import polymodal
import pytest
import torch
import transformers
from parity import assert_both_ways, assert_equal, assert_same_outputs, saved
from polymodal.registry import family
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.meta import without_weights
from polymodal.text.roberta import RobertaConfig
from safetensors.torch import load_file, save_file

TINY = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 26, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "num_labels": 3}
OUTPUTS = {
    "RobertaModel": ("last_hidden_state", "pooler_output"),
    "RobertaForMaskedLM": ("logits",),
    "RobertaForSequenceClassification": ("logits",),
    "RobertaForTokenClassification": ("logits",),
    "RobertaForQuestionAnswering": ("start_logits", "end_logits"),
    "RobertaForMultipleChoice": ("logits",),
}


def inputs(architecture, pad=1):
    """Rows with padding on the right, in the middle and on the left; padding has no position."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 99, (4, 2, 17), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :, 9:] = mask[2, 1, 3:] = mask[1, 0, 4:6] = mask[3, :, :5] = 0
    ids[mask == 0] = pad
    if architecture != "RobertaForMultipleChoice":
        ids, mask = ids.flatten(0, 1), mask.flatten(0, 1)
    return {"input_ids": ids, "attention_mask": mask}


def reference(architecture, directory, **overrides):
    settings = {**TINY, **overrides} | ({"num_labels": 2} if architecture == "RobertaForQuestionAnswering" else {})
    return saved(architecture, transformers.RobertaConfig(**settings), directory)


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_theirs_to_ours_and_back(architecture, tmp_path):
    theirs = reference(architecture, tmp_path / "theirs")
    arguments = inputs(architecture)
    assert_both_ways(theirs, tmp_path, OUTPUTS[architecture], [(arguments, None), ({"input_ids": arguments["input_ids"]}, None)])


@pytest.mark.parametrize("architecture", ["RobertaForMaskedLM", "RobertaForSequenceClassification"])
def test_another_activation_and_padding_id(architecture, tmp_path):
    """The heads keep theirs, and positions begin behind the id of padding."""
    theirs = reference(architecture, tmp_path, hidden_act="relu", pad_token_id=3, type_vocab_size=2)
    arguments = inputs(architecture, pad=3)
    types = (torch.arange(17) > 6).long().expand_as(arguments["input_ids"])
    assert_same_outputs(polymodal.load(tmp_path), theirs, OUTPUTS[architecture], {**arguments, "token_type_ids": types})


def test_packed_documents_and_padded_ones_give_the_numbers_of_single_ones(tmp_path):
    reference("RobertaModel", tmp_path)
    ours = polymodal.load(tmp_path)
    documents = [torch.randint(2, 99, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 24, 2)]
    row, positions = torch.cat(documents)[None], torch.cat([torch.arange(len(d)) for d in documents])[None]
    padded = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True, padding_value=1)
    with torch.no_grad():
        single = [ours(d[None]) for d in documents]
        beside = ours(padded, (padded != 1).long())
        for packed in (ours(row, position_ids=positions, lengths=(5, 24, 2)), ours(row, lengths=(5, 24, 2))):
            assert_equal(packed.last_hidden_state[0], torch.cat([s.last_hidden_state[0] for s in single]))
            assert_equal(packed.pooler_output, torch.cat([s.pooler_output for s in single]))
    for states, alone in zip(beside.last_hidden_state, single):
        assert_equal(states[:alone.last_hidden_state.shape[1]], alone.last_hidden_state[0])


def test_as_many_tokens_as_positions(tmp_path):
    theirs = reference("RobertaModel", tmp_path)
    ours = polymodal.load(tmp_path)
    ids = torch.randint(2, 99, (2, 24), generator=torch.Generator().manual_seed(3))
    assert_same_outputs(ours, theirs, OUTPUTS["RobertaModel"], {"input_ids": ids})
    with pytest.raises(UserError, match="has 24 positions and the text needs 25"):
        ours(torch.cat([ids, ids[:, :1]], 1))


def test_released_files_with_a_pooler_a_decoder_and_buffers_are_read(tmp_path):
    theirs = reference("RobertaForMaskedLM", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state |= {"roberta.embeddings.position_ids": torch.arange(26)[None], "roberta.pooler.dense.weight": torch.zeros(32, 32),
              "roberta.pooler.dense.bias": torch.zeros(32), "lm_head.decoder.bias": state["lm_head.bias"].clone(),
              "lm_head.decoder.weight": state["roberta.embeddings.word_embeddings.weight"].clone()}
    save_file(state, tmp_path / "model.safetensors")
    assert_same_outputs(polymodal.load(tmp_path), theirs, OUTPUTS["RobertaForMaskedLM"], inputs("RobertaForMaskedLM"))


COUNTS = {"RobertaForMaskedLM": 124_697_433, "RobertaModel": 124_645_632}


@pytest.mark.parametrize("architecture", ["RobertaForMaskedLM", "RobertaModel"])
def test_real_sizes(architecture):
    """Every key and shape of the base model, and its published number of parameters."""
    entry = family("roberta")
    config = RobertaConfig(**entry.sizes["base"])
    net = next(n for n in entry.nets if n.architecture == architecture)
    with without_weights():
        ours = net.build(config)
        theirs = getattr(transformers, architecture)(transformers.RobertaConfig(**config.to_dict()))
    written = {k: v.shape for k, v in to_theirs(net.format("transformers").rules(config), ours.state_dict()).items()}
    assert written == {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("lm_head.decoder")}
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) == COUNTS[architecture]


@pytest.mark.parametrize("change", [{"pad_token_id": None}, {"pad_token_id": 25}, {"pad_token_id": -1}])
def test_a_padding_id_that_leaves_no_positions_is_refused(change):
    with pytest.raises(UserError, match="pad_token_id"):
        RobertaConfig(**{**TINY, **change})
