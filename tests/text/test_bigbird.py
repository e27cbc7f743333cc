"""BigBird beside its paper: who sees whom, texts of all lengths side by side, and what begins with a shorter network's weights."""

from dataclasses import fields

import polymodal
import pytest
import torch
from parity import assert_equal, noise
from polymodal.pipelines.train.start import copy_weights
from polymodal.registry import family
from polymodal.shared.attention.choose import make_plan
from polymodal.shared.attention.sparse import Blocks
from polymodal.shared.errors import UserError
from polymodal.shared.family import Context
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text import _random_blocks
from polymodal.text.bigbird import BigBirdConfig, from_bert, from_roberta

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99,
         "max_position_embeddings": 40}
LONG = {**SMALL, "max_position_embeddings": 700, "block_size": 4, "num_random_blocks": 2, "hidden_act": "gelu"}
"""Texts of up to 36 tokens are read whole."""
ENTRY = family("bigbird")
NAMES = [f.name for f in fields(BigBirdConfig) if f.name != "extra"]
LAYOUTS = [{"random_layout": "paper"}, {"random_layout": "transformers"}]


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(["karen moso tisol kaan"] * 20, "byte-bpe", 270, style=STYLES["roberta"])


def net_of(architecture, **overrides):
    net = next(n for n in ENTRY.nets if n.architecture == architecture).build(BigBirdConfig(**{**LONG, **overrides}))
    return noise(net, scale=0.1)


def text(length):
    return torch.randint(3, 99, (length,), generator=torch.Generator().manual_seed(length))


def test_a_block_sees_its_window_the_ends_and_others_at_random():
    """Of 20 blocks, each other one is drawn by 3 of those that are left, 14 or 15: within four standard deviations."""
    count, drawn = 20, torch.zeros(20, 20)
    for seed in range(400):
        table = _random_blocks.paper(count, 16, 3, seed).table
        near = _random_blocks.paper(count, 16, 0, seed).table
        assert bool((table | ~near).all()) and bool(table[[0, -1]].all()) and table.shape == (count, count)
        extra = table & ~near
        assert extra[1:-1].sum(-1).tolist() == [3] * (count - 2)
        drawn += extra
    for row in range(1, count - 1):
        (others,) = (~near[row]).nonzero(as_tuple=True)
        assert near[row].nonzero()[:, 0].tolist() == sorted({0, row - 1, row, row + 1, count - 1})
        chance = 3 / len(others)
        assert float((drawn[row, others] / 400 - chance).abs().max()) < 4 * (chance * (1 - chance) / 400) ** 0.5


def test_each_layer_has_a_graph_of_its_own_that_stays():
    model = net_of("BigBirdModel", random_layout="paper")
    first, second = model.mask(torch.zeros(1, 200, dtype=torch.long), None, None)
    assert first.blocks is not second.blocks and not torch.equal(first.blocks.table, second.blocks.table)
    assert model.train().mask(torch.zeros(3, 200, dtype=torch.long), None, None)[1].blocks is second.blocks
    assert isinstance(make_plan(model.mask(torch.zeros(1, 700, dtype=torch.long), None, None)[0], 1, 700, 700, torch.device("cpu")), Blocks)


def test_a_network_of_transformers_sees_what_it_does_there_in_training_and_out_of_it():
    model = net_of("BigBirdModel", random_layout="transformers")
    masks = {mode: model.train(mode).mask(torch.zeros(1, 200, dtype=torch.long), None, None) for mode in (True, False)}
    assert masks[True][0].blocks.table.shape[0] == 4 and masks[True][0] is not masks[True][1]
    assert masks[False][0] is masks[False][1] and masks[False][0].blocks.table[5, :5].tolist() == [3, 0, 0, 0, 1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [False, True])
def test_packed_texts_are_those_of_single_ones(layout, training):
    """Shorter than a block, of full attention, with a last block that is not full, twice the same length, and long enough for pieces."""
    model = net_of("BigBirdForMaskedLM", **layout, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train(training)
    lengths = (3, 36, 37, 610, 3, 41, 37)
    row = torch.cat([text(n + place) [:n] for place, n in enumerate(lengths)])[None]
    with torch.no_grad():
        alone = [model(part).logits for part in row.split(lengths, 1)]
        assert_equal(model(row, lengths=lengths).logits, torch.cat(alone, 1))
        assert_equal(model(row[:, 39:76], lengths=(37,)).logits, alone[2])


@pytest.mark.parametrize("length", [36, 37, 200])
def test_full_attention_is_left_where_a_text_has_more_blocks_than_it_sees(length):
    model, whole = (net_of("BigBirdForMaskedLM", random_layout="paper", attention_type=kind) for kind in ("block_sparse", "original_full"))
    with torch.no_grad():
        equal = torch.allclose(model(text(length)[None]).logits, whole(text(length)[None]).logits, atol=1e-4)
    assert equal == (length == 36)


def test_the_backward_pass_holds_no_more_than_full_attention_s():
    """Nothing of the keys that blocks share is kept for it, in any layer."""
    kept = {}
    for kind in ("block_sparse", "original_full"):
        model, found = net_of("BigBirdModel", random_layout="paper", attention_type=kind).train(), {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, f=found: f.update({t.untyped_storage().data_ptr(): t}) or t, lambda t: t):
            out = model(text(700)[None])
        kept[kind] = sum(t.untyped_storage().nbytes() for t in found.values())
        out.last_hidden_state.sum().backward()
    assert kept["block_sparse"] <= 1.01 * kept["original_full"]


def begun(source, architecture, **overrides):
    """A BigBird with the weights of another network, as a run begins with them."""
    config = ENTRY.starts[source.config_family].config(source.config)
    net = next(n for n in ENTRY.nets if n.architecture == architecture).build(BigBirdConfig(**{
        **{name: getattr(config, name) for name in NAMES}, **overrides}))
    noise(net, seed=7)
    return net.eval(), copy_weights(net, source, ENTRY, "source", ENTRY.starts[source.config_family])


@pytest.mark.parametrize(("name", "architecture"), [("roberta", "RobertaForMaskedLM"), ("bert", "BertForMaskedLM"),
                                                    ("bert", "BertForPreTraining"), ("roberta", "RobertaForTokenClassification")])
def test_a_longer_network_equals_the_shorter_one_before_it_is_trained(name, architecture):
    entry = family(name)
    source = noise(next(n for n in entry.nets if n.architecture == architecture).build(entry.config(**SMALL)))
    source.config_family = name
    head = "BigBirdForTokenClassification" if "Token" in architecture else "BigBirdForMaskedLM"
    net, lines = begun(source, head, max_position_embeddings=150, block_size=8)
    ids, keep = text(60).view(2, 30), torch.ones(2, 30, dtype=torch.long)
    keep[1, 20:] = 0
    ids[1, 20:] = source.config.pad_token_id
    with torch.no_grad():
        a, b = net(ids, keep), source(ids, keep)
    rows = keep.bool()
    assert_equal(*(getattr(out, "logits", None)[rows] if hasattr(out, "logits") else out.prediction_logits[rows] for out in (a, b)))
    assert any("trunk.embed.position.weight [40, 32] -> [150, 32]" in line for line in lines)
    table, longer = source.trunk.embed.position.weight, net.trunk.embed.position.weight
    own = table[2:] if name == "roberta" else table
    assert torch.equal(longer, torch.cat([own] * 4)[:150])


def test_the_config_follows_and_a_head_of_another_kind_is_refused():
    roberta, bert = family("roberta").config(**SMALL, type_vocab_size=1), family("bert").config(**SMALL, hidden_act="relu")
    config = from_roberta(roberta)
    assert (config.max_position_embeddings, config.type_vocab_size, config.random_layout, config.pad_token_id) == (4096, 1, "paper", 1)
    assert from_bert(bert).hidden_act == "relu"  # in its head, too
    with pytest.raises(UserError, match="a RoBERTa with hidden_act relu has another activation in its head"):
        from_roberta(family("roberta").config(**SMALL, hidden_act="relu"))


def test_a_bigbird_becomes_longer():
    source, net = net_of("BigBirdForMaskedLM", max_position_embeddings=40), net_of("BigBirdForMaskedLM", max_position_embeddings=100)
    copy_weights(net, source, ENTRY, "source", ENTRY.starts["bigbird"])
    table = source.trunk.embed.position.weight
    assert torch.equal(net.trunk.embed.position.weight, torch.cat([table, table, table[:20]]))


def test_no_answer_is_looked_for_in_the_question():
    model = net_of("BigBirdForQuestionAnswering", sep_token_id=2)
    first, second = text(12), text(9)
    first[4] = second[2] = 2
    with torch.no_grad():
        out = model(torch.cat([first, second])[None], lengths=(12, 9))
        alone = [model(t[None]) for t in (first, second)]
        typed = model(first[None], token_type_ids=(torch.arange(12) > 4).long()[None])
    low = (out.start_logits[0] < -1e5).nonzero()[:, 0].tolist()
    assert low == [1, 2, 3, 4, 13, 14] == (out.end_logits[0] < -1e5).nonzero()[:, 0].tolist()
    assert_equal(out.start_logits, torch.cat([a.start_logits for a in alone], 1))
    assert torch.equal(typed.start_logits, alone[0].start_logits)


def test_one_type_of_tokens_is_enough_for_questions():
    assert net_of("BigBirdForQuestionAnswering", type_vocab_size=1)(text(12)[None]).start_logits.shape == (1, 12)


def test_the_separator_is_the_tokenizers(tok):
    assert polymodal.system("bigbird", size="tiny", tokenizer=tok, task="span").net.config.sep_token_id == tok.sep_id
    assert polymodal.system("bigbird", size="tiny", tokenizer=tok).net.config.sep_token_id == tok.sep_id
    assert ENTRY.task("span").adapt(BigBirdConfig(), Context(tok)).sep_token_id == tok.sep_id


def test_a_pooler_that_nothing_reads_is_kept_and_not_trained(tok):
    for task, trained in (({}, False), ({"task": "tag", "classes": ("a",)}, False), ({"task": "choice"}, True)):
        trunk = polymodal.system("bigbird", size="tiny", tokenizer=tok, **task).net.trunk
        assert {p.requires_grad for p in trunk.pooler.parameters()} == {trained} and trunk.reads_summary == trained
    assert polymodal.system("bigbird", size="tiny", tokenizer=tok, task="span").net.trunk.pooler is None
