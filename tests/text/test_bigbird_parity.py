"""BigBird against transformers: the same numbers in both directions, in training and out of it, and its random blocks."""

import polymodal
import pytest
import torch
import transformers
from parity import assert_both_ways, assert_equal, assert_same_gradients, assert_same_outputs, noise, saved
from polymodal.registry import family
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import UserError
from polymodal.text import _random_blocks
from polymodal.text.bigbird import BigBirdConfig

TINY = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 640, "num_labels": 3, "block_size": 4, "num_random_blocks": 2, "sep_token_id": 2,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
OUTPUTS = {
    "BigBirdModel": ("last_hidden_state", "pooler_output"),
    "BigBirdForMaskedLM": ("logits",),
    "BigBirdForPreTraining": ("prediction_logits", "seq_relationship_logits"),
    "BigBirdForSequenceClassification": ("logits",),
    "BigBirdForTokenClassification": ("logits",),
    "BigBirdForQuestionAnswering": ("start_logits", "end_logits"),
    "BigBirdForMultipleChoice": ("logits",),
}
BAR = transformers.models.big_bird.modeling_big_bird.BigBirdBlockSparseAttention


def ids(*shape):
    """Pairs, the first text of 9 tokens."""
    found = torch.randint(3, 99, shape, generator=torch.Generator().manual_seed(shape[-1]))
    found[..., 9], found[..., -1] = 2, 2
    return found


def config(**overrides):
    return transformers.BigBirdConfig(**{**TINY, **overrides})


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_theirs_to_ours_and_back(architecture, tmp_path):
    """Long texts, with padding too, and the longest that are read whole."""
    theirs = saved(architecture, config(**({"num_labels": 2} if "Answering" in architecture else {})), tmp_path / "theirs")
    shape = (2, 2) if "Choice" in architecture else (2,)
    padded = ids(*shape, 64)
    mask = torch.ones_like(padded)
    mask[1, ..., 50:] = 0
    whole = [{"input_ids": ids(*shape, n)} for n in (64, 36)]  # a text of up to 36 tokens makes their network a full one for good
    cases = [(given, None) for given in whole]
    if architecture in ("BigBirdForMaskedLM", "BigBirdForTokenClassification", "BigBirdForQuestionAnswering"):
        cases.insert(0, ({"input_ids": padded, "attention_mask": mask}, mask.bool()))
    assert_both_ways(theirs, tmp_path, OUTPUTS[architecture], cases)


@pytest.mark.parametrize("length", [37, 47])
def test_a_last_block_that_is_not_full(length, tmp_path):
    """Theirs is filled with padding, whose states it hands out, too."""
    theirs = saved("BigBirdForMaskedLM", config(), tmp_path)
    ours, mask = polymodal.load(tmp_path), torch.ones(2, length, dtype=torch.long)
    mask[1, 30:] = 0
    for given in ({"input_ids": ids(2, length)}, {"input_ids": ids(2, length), "attention_mask": mask}):
        with torch.no_grad():
            assert_equal(*(net(**given).logits[mask.bool()] for net in (ours, theirs)))


@pytest.mark.parametrize(("length", "positions", "size"), [
    (64, 640, 4), (50, 640, 4), (600, 600, 16), (1024, 4096, 64), (1024, 1024, 64), (3072, 3072, 64), (4096, 4096, 64), (4096, 4096, 128)])
def test_random_blocks_are_theirs(length, positions, size):
    """Each head's, by the layer's number; blocks that they read twice count twice."""
    module = BAR(transformers.BigBirdConfig(hidden_size=8, num_attention_heads=2, max_position_embeddings=positions, block_size=size), 5)
    count = -(-length // size)
    drawn = []
    gather = module.torch_gather_b2
    module.torch_gather_b2 = lambda blocks, places: (drawn.append(places[0]), gather(blocks, places))[1]
    mask = torch.ones(1, count * size)
    blocked, band, rows, columns = transformers.BigBirdModel.create_masks_for_block_sparse_attn(mask, size)
    with torch.no_grad():
        module.train()(torch.randn(1, count * size, 8), band, rows, columns, blocked, blocked)
    table = _random_blocks.transformers_training(count, size, 3, 5, 2, positions).counts
    rest = table.int() - _random_blocks.paper(count, size, 0, 0).counts.int()
    assert not rest[:, [0, -1]].any() and bool((rest >= 0).all()) and bool((rest[:, 1:-1].sum(-1) == 3).all())
    assert torch.equal(rest[:, 1:-1], torch.zeros_like(rest[:, 1:-1]).scatter_add_(2, drawn[0], torch.ones_like(drawn[0], dtype=torch.int)))
    assert bool((table > 1).any()) == (length == 1024)


@pytest.mark.parametrize(("length", "training"), [(96, True), (96, False), (30, True), (640, True), (1024, True), (1024, False)])
def test_loss_and_every_gradient(length, training, tmp_path):
    """With random blocks as well as without, in pieces as well as under a dense mask."""
    theirs = noise(transformers.BigBirdForMaskedLM(config(max_position_embeddings=1024, block_size=32 if length > 600 else 4)), scale=0.1)
    theirs.save_pretrained(tmp_path)
    ours = polymodal.load(tmp_path)
    theirs.train(training)
    ours.train(training)
    theirs.bert.pooler = None  # it is read by nobody
    labels = torch.randint(3, 99, (2, length), generator=torch.Generator().manual_seed(4))
    loss = theirs(input_ids=ids(2, length), labels=labels).loss
    mine = torch.nn.functional.cross_entropy(ours(ids(2, length)).logits.flatten(0, 1), labels.flatten())
    assert float((mine - loss).detach().abs()) < 1e-5 * float(loss.detach())
    loss.backward()
    mine.backward()
    for p in ours.trunk.pooler.parameters():
        p.grad = torch.zeros_like(p)
    net = next(n for n in family("bigbird").nets if n.architecture == "BigBirdForMaskedLM")
    assert_same_gradients(ours, theirs, net.format("transformers").rules(ours.config))


def test_the_paper_s_layout_is_no_network_of_theirs(tmp_path):
    entry = family("bigbird")
    paper = BigBirdConfig(**{**TINY, "num_labels": 2, "random_layout": "paper"})
    net = noise(next(n for n in entry.nets if n.architecture == "BigBirdForMaskedLM").build(paper))
    polymodal.save(net, tmp_path)
    again = polymodal.load(tmp_path)
    assert again.config == net.config
    with torch.no_grad():
        assert_equal(again(ids(1, 90)).logits, net(ids(1, 90)).logits)
    with pytest.raises(UserError, match="random blocks as in the paper"):
        polymodal.save(net, tmp_path / "theirs", format="transformers")
    with pytest.raises(ValueError, match="polymodal-bigbird"):
        transformers.AutoModel.from_pretrained(tmp_path)


def test_full_attention_for_all_texts(tmp_path):
    theirs = saved("BigBirdForMaskedLM", config(attention_type="original_full"), tmp_path)
    assert_same_outputs(polymodal.load(tmp_path), theirs, ("logits",), {"input_ids": ids(2, 90)})


COUNTS = {"BigBirdForPreTraining": 128_112_824, "BigBirdForMaskedLM": 128_111_286, "BigBirdModel": 127_468_800}


@pytest.mark.parametrize("architecture", COUNTS)
def test_real_sizes(architecture):
    """Every key and shape of the base model, and its published number of parameters."""
    entry = family("bigbird")
    base = BigBirdConfig(**{**entry.sizes["base"], "random_layout": "transformers"})
    net = next(n for n in entry.nets if n.architecture == architecture)
    with torch.device("meta"):
        ours, theirs = net.build(base), getattr(transformers, architecture)(transformers.BigBirdConfig(**base.to_dict()))
    written = {k: v.shape for k, v in to_theirs(net.format("transformers").rules(base), ours.state_dict()).items()}
    assert written == {k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("cls.predictions.decoder")}
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == COUNTS[architecture]


@pytest.mark.parametrize(("change", "says"), [
    ({"block_size": 0}, "block_size is 0, expected at least 1"),
    ({"num_random_blocks": -1}, "num_random_blocks is -1, expected at least 0"),
    ({"attention_type": "sparse"}, "attention_type is 'sparse', expected one of block_sparse, original_full"),
    ({"random_layout": "mine"}, "random_layout is 'mine', expected one of transformers, paper"),
])
def test_blocks_that_make_no_sense_are_refused(change, says):
    with pytest.raises(UserError, match=says):
        BigBirdConfig(**{**TINY, **change})


@pytest.mark.parametrize("change", [{"use_bias": False}, {"rescale_embeddings": True}])
def test_a_network_that_is_not_computed_here_is_refused(change, tmp_path):
    saved("BigBirdForMaskedLM", config(**change), tmp_path)
    with pytest.raises(UserError, match=next(iter(change))):
        polymodal.load(tmp_path)


def test_blocks_too_long_for_their_plan_are_refused():
    """transformers fails on them, too."""
    with pytest.raises(UserError, match="leaves block 1 \\(of 256 tokens\\) 1 blocks to draw 3 from: choose a smaller block_size"):
        _random_blocks.transformers_training(16, 256, 3, 0, 2, 4096)
