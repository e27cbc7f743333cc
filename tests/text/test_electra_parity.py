"""ELECTRA against transformers: the same numbers in both directions, padding included."""


import polymodal
import pytest
import torch
import transformers
from parity import assert_both_ways, assert_equal, assert_same_outputs, saved
from polymodal.registry import family
from polymodal.shared.convert import to_theirs
from polymodal.shared.meta import without_weights
from polymodal.text.electra import ElectraConfig, ElectraSettings, generator_config

TINY = {"vocab_size": 99, "embedding_size": 12, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 24, "num_labels": 3}
OUTPUTS = {
    "ElectraModel": ("last_hidden_state",),
    "ElectraForPreTraining": ("logits",),
    "ElectraForMaskedLM": ("logits",),
    "ElectraForSequenceClassification": ("logits",),
    "ElectraForTokenClassification": ("logits",),
    "ElectraForQuestionAnswering": ("start_logits", "end_logits"),
    "ElectraForMultipleChoice": ("logits",),
}


def inputs():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 99, (4, 17), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    mask[2, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": (torch.arange(17) > 6).long().expand_as(ids)}


def reference(architecture, directory, **overrides):
    settings = {**TINY, **overrides} | ({"num_labels": 2} if architecture == "ElectraForQuestionAnswering" else {})
    return saved(architecture, transformers.ElectraConfig(**settings), directory)


@pytest.mark.parametrize("embedding_size", [12, 32])
@pytest.mark.parametrize("architecture", OUTPUTS)
def test_theirs_to_ours_and_back(architecture, embedding_size, tmp_path):
    theirs = reference(architecture, tmp_path / "theirs", embedding_size=embedding_size)
    arguments = inputs()
    if architecture == "ElectraForMultipleChoice":
        arguments = {name: value.view(2, 2, -1) for name, value in arguments.items()}
    assert_both_ways(theirs, tmp_path, OUTPUTS[architecture], [(arguments, None), ({"input_ids": arguments["input_ids"]}, None)])


@pytest.mark.parametrize("architecture", ["ElectraForPreTraining", "ElectraForMaskedLM", "ElectraForSequenceClassification"])
def test_another_activation(architecture, tmp_path):
    """It does not reach the generator's head nor the classifier's, which always have GELU there."""
    theirs = reference(architecture, tmp_path, hidden_act="relu")
    assert_same_outputs(polymodal.load(tmp_path), theirs, OUTPUTS[architecture], inputs())


def test_packed_documents_give_the_numbers_of_single_ones(tmp_path):
    reference("ElectraForPreTraining", tmp_path)
    ours = polymodal.load(tmp_path)
    documents = [torch.randint(0, 99, (n,), generator=torch.Generator().manual_seed(n)) for n in (5, 9, 2)]
    with torch.no_grad():
        positions = torch.cat([torch.arange(len(d)) for d in documents])[None]
        packed = ours(torch.cat(documents)[None], position_ids=positions, lengths=(5, 9, 2)).logits[0]
        single = torch.cat([ours(d[None]).logits[0] for d in documents])
    assert_equal(packed, single)


BASE = {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
COUNTS = {"base discriminator": 109_483_009, "base generator": 33_740_602, "small discriminator": 13_549_057}


@pytest.mark.parametrize(("what", "architecture"), [
    ("base discriminator", "ElectraForPreTraining"), ("base generator", "ElectraForMaskedLM"),
    ("small discriminator", "ElectraForPreTraining"), ("small classifier", "ElectraForSequenceClassification")])
def test_real_sizes(what, architecture):
    """Every key and shape of the published sizes, and their number of parameters."""
    config = ElectraConfig(**(BASE if what.startswith("base") else {}))
    if what.endswith("generator"):
        config = generator_config(config, ElectraSettings(generator_hidden_size=1 / 3))
        assert (config.hidden_size, config.num_attention_heads, config.intermediate_size, config.embedding_size) == (256, 4, 1024, 768)
    net = next(n for n in family("electra").nets if n.architecture == architecture)
    with without_weights():
        ours = net.build(config)
        theirs = getattr(transformers, architecture)(transformers.ElectraConfig(**config.to_dict()))
    written = {k: v.shape for k, v in to_theirs(net.format("transformers").rules(config), ours.state_dict()).items()}
    assert written == {k: v.shape for k, v in theirs.state_dict().items() if k != "generator_lm_head.weight"}
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) == COUNTS.get(what, count)
