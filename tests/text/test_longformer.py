"""Longformer beside its paper: what begins with a shorter network's weights, who is global, what a dilated head sees."""

from dataclasses import fields

import numpy as np
import polymodal
import pytest
import torch
from parity import assert_equal, noise
from polymodal.pipelines.train.start import copy_weights
from polymodal.registry import family
from polymodal.shared.attention.mask import Mask
from polymodal.shared.attention.plan import Shape
from polymodal.shared.errors import UserError
from polymodal.shared.family import Context
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text._global import Globals
from polymodal.text.longformer import LongformerConfig, from_bert, from_shorter

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99,
         "max_position_embeddings": 40}
ENTRY = family("longformer")
NAMES = [f.name for f in fields(LongformerConfig) if f.name != "extra"]


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(["karen moso tisol kaan"] * 20, "byte-bpe", 270, style=STYLES["roberta"])


def begun(source, architecture, **overrides):
    """A Longformer with the weights of another network, as a run begins with them."""
    config = ENTRY.starts[source.config_family].config(source.config)
    net = next(n for n in ENTRY.nets if n.architecture == architecture).build(LongformerConfig(**{
        **{name: getattr(config, name) for name in NAMES}, **overrides}))
    noise(net, seed=7)
    return net.eval(), copy_weights(net, source, ENTRY, "source", ENTRY.starts[source.config_family])


@pytest.mark.parametrize(("name", "architecture"), [("roberta", "RobertaForMaskedLM"), ("bert", "BertForMaskedLM"),
                                                    ("bert", "BertForPreTraining"), ("roberta", "RobertaForTokenClassification")])
@pytest.mark.parametrize("marked", [False, True])
def test_a_longer_network_equals_the_shorter_one_before_it_is_trained(name, architecture, marked):
    """On texts that fit into half a window, whether tokens are global or not: their projections are copies."""
    entry = family(name)
    source = noise(next(n for n in entry.nets if n.architecture == architecture).build(entry.config(**SMALL)))
    source.config_family = name
    head = "LongformerForTokenClassification" if "Token" in architecture else "LongformerForMaskedLM"
    net, lines = begun(source, head, max_position_embeddings=150, attention_window=64)
    ids = torch.randint(3, 99, (2, 30), generator=torch.Generator().manual_seed(0))
    keep = torch.ones_like(ids)
    if name == "roberta":
        keep[1, 20:] = 0
        ids[1, 20:] = 1
    given = {"global_attention_mask": (torch.arange(30) % 7 == 0).long().expand_as(ids)} if marked else {}
    with torch.no_grad():
        a, b = net(ids, keep, **given), source(ids, keep)
    rows = keep.bool()
    assert_equal(*(getattr(out, "logits", None)[rows] if hasattr(out, "logits") else out.prediction_logits[rows] for out in (a, b)))
    assert any("trunk.embed.position.weight [40, 32] -> [150, 32]" in line for line in lines)
    if head == "LongformerForMaskedLM":
        assert not any("randomly" in line for line in lines)


def test_positions_are_copied_until_there_are_enough():
    entry = family("roberta")
    source = noise(entry.nets[0].build(entry.config(**SMALL)))
    source.config_family = "roberta"
    net, _ = begun(source, "LongformerForMaskedLM", max_position_embeddings=102)
    table, longer = source.trunk.embed.position.weight, net.trunk.embed.position.weight
    assert torch.equal(longer[:40], table) and torch.equal(longer[40:78], table[2:]) and torch.equal(longer[78:], table[2:26])


def test_the_config_follows_and_a_head_of_another_kind_is_refused():
    roberta, bert = family("roberta").config(**SMALL, type_vocab_size=1), family("bert").config(**SMALL)
    assert (from_shorter(roberta).max_position_embeddings, from_shorter(roberta).type_vocab_size) == (4098, 1)
    assert from_bert(bert).max_position_embeddings == 4097 and from_bert(bert).longest_input == 4096
    with pytest.raises(UserError, match="hidden_act relu has a head"):
        from_bert(family("bert").config(**SMALL, hidden_act="relu"))


def system(tok, **settings):
    return polymodal.system("longformer", size="tiny", tokenizer=tok, **settings)


def looked_at(net, ids, lengths=None):
    (mask, *_) = net.trunk.masks(ids, None, lengths)
    return None if mask.global_tokens is None else mask.global_tokens


def test_each_task_has_its_global_tokens(tok):
    """`<s>` to classify, the question with `<s>` to answer, nothing to tag; in texts that are packed, in each."""
    question, text = ([tok.cls_id, 9, 9, tok.sep_id], [tok.sep_id, 8, 8, 8, tok.sep_id])
    row, lengths = torch.tensor([[*question, *text] * 2]), (9, 9)
    classes = {"classes": ("a", "b")}
    assert looked_at(system(tok, task="classify", **classes).net, row, lengths).nonzero()[:, 1].tolist() == [0, 9]
    assert looked_at(system(tok, task="span").net, row, lengths).nonzero()[:, 1].tolist() == [0, 1, 2, 9, 10, 11]
    assert looked_at(system(tok, task="choice").net, row, lengths).nonzero()[:, 1].tolist() == [5, 6, 7, 8, 14, 15, 16, 17]
    for net in (system(tok, task="tag", **classes).net, system(tok).net):
        assert looked_at(net, row, lengths) is None
    assert looked_at(system(tok, task="span").net, row[:, :9].expand(2, -1)).sum(1).tolist() == [3, 3]


def test_projections_are_trained_where_the_loss_depends_on_them(tok):
    """Those of global tokens where there are some; in the last layer those whose tokens are read."""
    own, ordinary = "blocks.{}.attention.global_", "blocks.{}.attention.qkv"
    for settings, frozen in (({}, [own.format(0), own.format(1)]), ({"objective": {"global_first": True}}, [own.format(1)]),
                             ({"task": "tag", "classes": ("a",)}, [own.format(0), own.format(1)]),
                             ({"task": "classify", "classes": ("a", "b")}, [ordinary.format(1)]), ({"task": "span"}, [])):
        for name, parameter in system(tok, **settings).net.named_parameters():
            assert parameter.requires_grad != any(part in name for part in frozen), (settings, name)


def test_the_separator_is_the_tokenizers(tok):
    words = Tokenizer.train(["karen moso"] * 20, "wordpiece", 26, style=STYLES["bert"])
    for own in (tok, words):
        assert system(own, task="span").net.config.sep_token_id == own.sep_id
    assert ENTRY.task("span").adapt(LongformerConfig(), Context(words)).sep_token_id == words.sep_id


def test_a_dilated_head_sees_every_second_token():
    config = LongformerConfig(**{**SMALL, "num_hidden_layers": 2, "attention_window": 4, "attention_dilation": (1, 3), "dilated_heads": 1})
    net = next(n for n in ENTRY.nets if n.architecture == "LongformerModel").build(config).eval()
    plain, dilated = net.masks(torch.zeros(1, 20, dtype=torch.long), None, None)
    row = torch.tensor([10])
    seen = [mask.part(mask.predicate(row.device), row, torch.arange(20))[0, :, 0] for mask in (plain, dilated)]
    assert seen[0].nonzero()[:, 1].tolist() == [8, 9, 10, 11, 12]
    assert [head.nonzero()[:, 0].tolist() for head in seen[1]] == [[8, 9, 10, 11, 12]] * 3 + [[4, 7, 10, 13, 16]]


def test_a_dilated_network_has_a_format_of_its_own(tmp_path):
    config = LongformerConfig(**SMALL, attention_window=4, attention_dilation=(1, 2))
    net = noise(next(n for n in ENTRY.nets if n.architecture == "LongformerModel").build(config))
    polymodal.save(net, tmp_path)
    again, ids = polymodal.load(tmp_path), torch.arange(3, 33)[None]
    assert again.config == config
    with torch.no_grad():
        assert_equal(again(ids).last_hidden_state, net(ids).last_hidden_state)
    with pytest.raises(UserError, match="dilated windows"):
        polymodal.save(net, tmp_path / "theirs", format="transformers")


def test_texts_without_global_tokens_between_others(tok):
    """Only rows that are global are put back, whatever stands beside them."""
    marked = torch.zeros(3, 8, dtype=torch.bool)
    marked[0, 2] = marked[2, 0] = marked[2, 5] = True
    plan = Globals(Mask(window=(1, 1), global_tokens=marked), Shape(3, 8, 8, torch.device("cpu")))
    assert plan.places.tolist() == [2, 8, 16, 21] and plan.used.tolist() == [0, 2, 3]
    assert Globals(Mask(window=(1, 1), global_tokens=marked & False), Shape(3, 8, 8, torch.device("cpu"))).places is None


def test_long_texts_are_read_in_full_sequences(tok):
    made = system(tok, objective={"max_length": 64})
    examples = list(made.objective.example(Sample("0", {"txt": ("karen moso tisol " * 80).encode()}, 0), np.random.default_rng(0)))
    assert len(examples) > 2 and {len(e.input_ids) for e in examples[:-1]} == {64}
