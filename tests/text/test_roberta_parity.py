"""RoBERTa against transformers: the same numbers in both directions, padding included, and the same loss and gradients."""

import json

import numpy as np
import polymodal
import pytest
import torch
import transformers
from polymodal.registry import family
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.loss import IGNORE
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
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


def noise(model, seed=0):
    """Every parameter random, so that a swapped, lost or untied tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (0.5 if p.dim() == 1 else 0.0))
    return model.eval()


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
    model = noise(getattr(transformers, architecture)(transformers.RobertaConfig(**settings)))
    model.save_pretrained(directory)
    return model


def assert_equal(ours, theirs):
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


def assert_same_outputs(ours, theirs, architecture, arguments):
    with torch.no_grad():
        a, b = ours(**arguments, output_hidden_states=True), theirs(**arguments, output_hidden_states=True)
    for name in OUTPUTS[architecture]:
        assert_equal(getattr(a, name), getattr(b, name))
    assert len(a.hidden_states) == len(b.hidden_states)
    for x, y in zip(a.hidden_states, b.hidden_states):
        assert_equal(x, y)


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_theirs_to_ours_and_back(architecture, tmp_path):
    theirs = reference(architecture, tmp_path / "theirs")
    ours = polymodal.load(tmp_path / "theirs")
    assert ours.architecture == architecture and not ours.training
    arguments = inputs(architecture)
    assert_same_outputs(ours, theirs, architecture, arguments)
    assert_same_outputs(ours, theirs, architecture, {"input_ids": arguments["input_ids"]})

    noise(ours, seed=5)
    polymodal.save(ours, tmp_path / "ours")
    again, info = getattr(transformers, architecture).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_same_outputs(ours, again.eval(), architecture, arguments)
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() == load_file(tmp_path / "theirs" / "model.safetensors").keys()
    mine, yours = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("ours", "theirs"))
    for record in (mine, yours):
        record.pop("problem_type", None)
    assert mine == yours


@pytest.mark.parametrize("architecture", ["RobertaForMaskedLM", "RobertaForSequenceClassification"])
def test_another_activation_and_padding_id(architecture, tmp_path):
    """The heads keep theirs, and positions begin behind the id of padding."""
    theirs = reference(architecture, tmp_path, hidden_act="relu", pad_token_id=3, type_vocab_size=2)
    arguments = inputs(architecture, pad=3)
    types = (torch.arange(17) > 6).long().expand_as(arguments["input_ids"])
    assert_same_outputs(polymodal.load(tmp_path), theirs, architecture, {**arguments, "token_type_ids": types})


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
    assert_same_outputs(ours, theirs, "RobertaModel", {"input_ids": ids})
    with pytest.raises(UserError, match="has 24 positions and the text needs 25"):
        ours(torch.cat([ids, ids[:, :1]], 1))


def test_released_files_with_a_pooler_a_decoder_and_buffers_are_read(tmp_path):
    theirs = reference("RobertaForMaskedLM", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state |= {"roberta.embeddings.position_ids": torch.arange(26)[None], "roberta.pooler.dense.weight": torch.zeros(32, 32),
              "roberta.pooler.dense.bias": torch.zeros(32), "lm_head.decoder.bias": state["lm_head.bias"].clone(),
              "lm_head.decoder.weight": state["roberta.embeddings.word_embeddings.weight"].clone()}
    save_file(state, tmp_path / "model.safetensors")
    assert_same_outputs(polymodal.load(tmp_path), theirs, "RobertaForMaskedLM", inputs("RobertaForMaskedLM"))


def test_loss_and_every_gradient_of_a_batch_are_the_references(tmp_path):
    """A real batch of the objective, given to their loss as padded rows with labels."""
    words = [a + b for a in ("ka", "mo", "ti", "su") for b in ("ren", "sol", "an", "es")]
    tok = Tokenizer.train([" ".join(words)] * 9, "byte-bpe", 290, style=STYLES["roberta"])
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    system = polymodal.system("roberta", size="tiny", tokenizer=tok, hidden_size=32, intermediate_size=48, max_position_embeddings=42,
                              hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    noise(system.net).train()
    samples = [Sample(str(n), {"txt": " ".join(rng.choice(words, 5 + 30 * n)).encode()}, n) for n in range(3)]
    batch = system.objective.collate([e for s in samples for e in system.objective.example(s, rng)])
    assert len(batch.lengths) > 3 and len(set(batch.lengths)) > 2
    polymodal.save(system.net, tmp_path)
    theirs = transformers.RobertaForMaskedLM.from_pretrained(tmp_path).train()
    labels = torch.full((batch.tokens,), IGNORE)
    labels[batch.target_rows] = batch.targets
    ids, marked = (torch.nn.utils.rnn.pad_sequence(row.split(batch.lengths), batch_first=True, padding_value=fill)
                   for row, fill in ((batch.input_ids[0], tok.pad_id), (labels, IGNORE)))
    expected = theirs(input_ids=ids, attention_mask=(ids != tok.pad_id).long(), labels=marked).loss
    expected.backward()
    term = system(batch).terms["mlm"]
    loss = term.total / batch.counts[term.count]
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    rules = family("roberta").nets[0].format("transformers").rules(system.net.config)
    found = to_theirs(rules, {n: p.grad for n, p in system.net.named_parameters(remove_duplicate=False)})
    gradients = {n: p.grad for n, p in theirs.named_parameters()}
    assert gradients.keys() <= found.keys()
    whole = float(torch.stack([g.norm() for g in gradients.values()]).norm())
    for name, gradient in gradients.items():  # those of the keys' biases are 0, but for rounding
        assert float((found[name] - gradient).norm()) < 1e-5 * float(gradient.norm()) + 1e-7 * whole, name


COUNTS = {"RobertaForMaskedLM": 124_697_433, "RobertaModel": 124_645_632}


@pytest.mark.parametrize("architecture", ["RobertaForMaskedLM", "RobertaModel"])
def test_real_sizes(architecture):
    """Every key and shape of the base model, and its published number of parameters."""
    entry = family("roberta")
    config = RobertaConfig(**entry.sizes["base"])
    net = next(n for n in entry.nets if n.architecture == architecture)
    with torch.device("meta"):
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
