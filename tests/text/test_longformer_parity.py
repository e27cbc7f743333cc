"""Longformer against transformers: the same numbers in both directions, padding and global tokens included."""

import polymodal
import pytest
import torch
import transformers
from parity import assert_both_ways, assert_equal, assert_same_gradients, assert_same_outputs, noise, saved
from polymodal.registry import family
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import UserError
from polymodal.text.longformer import LongformerConfig

TINY = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 66, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "num_labels": 3, "attention_window": [4, 8]}
SEP = 2
OUTPUTS = {
    "LongformerModel": ("last_hidden_state", "pooler_output"),
    "LongformerForMaskedLM": ("logits",),
    "LongformerForSequenceClassification": ("logits",),
    "LongformerForTokenClassification": ("logits",),
    "LongformerForQuestionAnswering": ("start_logits", "end_logits"),
    "LongformerForMultipleChoice": ("logits",),
}


def inputs(architecture, length=40):
    """Pairs with three separators, of different lengths, with padding on the right."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 99, (4, 2, length), generator=generator)
    ids[..., 0], ids[..., 9], ids[..., 10], ids[..., -1] = 0, SEP, SEP, SEP
    ids[1, :, 30], ids[1, :, 31:] = SEP, 1
    mask = (ids != 1).long()
    if architecture != "LongformerForMultipleChoice":
        ids, mask = ids.flatten(0, 1), mask.flatten(0, 1)
    return {"input_ids": ids, "attention_mask": mask}


def reference(architecture, directory, **overrides):
    settings = {**TINY, **overrides} | ({"num_labels": 2} if architecture == "LongformerForQuestionAnswering" else {})
    return saved(architecture, transformers.LongformerConfig(**settings), directory)


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_theirs_to_ours_and_back(architecture, tmp_path):
    """With each task's own global tokens, and with given ones; what stands at padding means nothing."""
    theirs = reference(architecture, tmp_path / "theirs")
    arguments = inputs(architecture)
    marked = torch.rand(arguments["input_ids"].shape, generator=torch.Generator().manual_seed(2)) < 0.1
    rows = arguments["attention_mask"].bool()
    cases = [(arguments, rows), ({**arguments, "global_attention_mask": marked.long()}, rows)]
    if architecture == "LongformerForMultipleChoice":
        whole = {"input_ids": arguments["input_ids"][[0, 2, 3]]}
        ours = polymodal.load(tmp_path / "theirs")
        with torch.no_grad():
            assert_equal(ours(**arguments).logits, theirs(**arguments).logits)
        cases = [(whole, None)]
    elif "Sequence" in architecture or architecture == "LongformerModel":
        ours = polymodal.load(tmp_path / "theirs")
        for given, _ in cases:
            with torch.no_grad():
                for name in OUTPUTS[architecture]:
                    a, b = (getattr(net(**given), name) for net in (ours, theirs))
                    assert_equal(*((a, b) if a.dim() < 3 else (a[rows], b[rows])))
        whole = {"input_ids": arguments["input_ids"][[0, 4]]}
        cases = [(whole, None), ({**whole, "global_attention_mask": marked[[0, 4]].long()}, None)]
    assert_both_ways(theirs, tmp_path, OUTPUTS[architecture], cases)


def test_one_window_for_all_layers_and_short_texts(tmp_path):
    theirs = reference("LongformerForMaskedLM", tmp_path, attention_window=16)
    ours = polymodal.load(tmp_path)
    for length in (5, 17, 64):
        ids = torch.randint(3, 99, (2, length), generator=torch.Generator().manual_seed(length))
        assert_same_outputs(ours, theirs, ("logits",), {"input_ids": ids})


def test_packed_texts_are_those_of_single_ones_and_windows_are_really_used(tmp_path):
    """Long enough that windows are computed in chunks; with and without a global token; texts of different lengths."""
    reference("LongformerForSequenceClassification", tmp_path, max_position_embeddings=702)
    ours, lengths = polymodal.load(tmp_path), (300, 7, 300, 640)
    documents = [torch.randint(3, 99, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    row = torch.cat(documents)[None]
    with torch.no_grad():
        assert_equal(ours(row, lengths=lengths).logits, torch.cat([ours(d[None]).logits for d in documents]))
        marked = torch.rand(row.shape, generator=torch.Generator().manual_seed(0)) < 0.01
        packed = ours(row, lengths=lengths, global_attention_mask=marked).logits
        alone = [ours(d[None], global_attention_mask=m).logits for d, m in zip(documents, marked.split(lengths, 1))]
    assert_equal(packed, torch.cat(alone))


@pytest.mark.parametrize("length", [24, 640])
def test_loss_and_every_gradient_with_global_tokens(length, tmp_path):
    settings = {**TINY, "max_position_embeddings": length + 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    theirs = noise(transformers.LongformerForMaskedLM(transformers.LongformerConfig(**settings)), scale=0.1)
    theirs.save_pretrained(tmp_path)
    ours = polymodal.load(tmp_path)
    generator = torch.Generator().manual_seed(4)
    ids, labels = (torch.randint(3, 99, (2, length), generator=generator) for _ in range(2))
    marked = torch.zeros_like(ids)
    marked[:, 0] = marked[0, 5] = marked[1, length // 2:length // 2 + 2] = 1
    loss = theirs(input_ids=ids, global_attention_mask=marked, labels=labels).loss
    mine = torch.nn.functional.cross_entropy(ours(ids, global_attention_mask=marked).logits.flatten(0, 1), labels.flatten())
    assert float((mine - loss).detach().abs()) < 1e-5 * float(loss.detach())
    loss.backward()
    mine.backward()
    net = next(n for n in family("longformer").nets if n.architecture == "LongformerForMaskedLM")
    assert_same_gradients(ours, theirs, net.format("transformers").rules(ours.config))


COUNTS = {"LongformerForMaskedLM": 148_711_257, "LongformerModel": 148_659_456}


@pytest.mark.parametrize("architecture", COUNTS)
def test_real_sizes(architecture):
    """Every key and shape of the base model, and its published number of parameters."""
    entry = family("longformer")
    config = LongformerConfig(**entry.sizes["base"])
    net = next(n for n in entry.nets if n.architecture == architecture)
    with torch.device("meta"):
        ours = net.build(config)
        theirs = getattr(transformers, architecture)(transformers.LongformerConfig(**config.to_dict()))
    written = {k: v.shape for k, v in to_theirs(net.format("transformers").rules(config), ours.state_dict()).items()}
    assert written == {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("lm_head.decoder")}
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) == COUNTS[architecture]


@pytest.mark.parametrize(("change", "says"), [
    ({"attention_window": 7}, "attention_window is 7, expected an even number"), ({"attention_window": 0}, "attention_window is 0"),
    ({"attention_window": (4,)}, "attention_window has 1 numbers, expected one or as many as num_hidden_layers, 2"),
    ({"attention_window": (4, 5)}, "attention_window is 5"), ({"attention_dilation": (0, 1)}, "attention_dilation is 0"),
    ({"attention_dilation": 2, "dilated_heads": 5}, "dilated_heads is 5, there are 4 heads"),
])
def test_windows_that_make_no_sense_are_refused(change, says):
    with pytest.raises(UserError, match=says):
        LongformerConfig(**{**TINY, "attention_window": 4, **change})
