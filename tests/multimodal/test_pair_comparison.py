"""UNITER's fine-tuning on two pictures: the network beside the published one's modules, token types, and what is refused."""

import json

import numpy as np
import pytest
import torch
from parity import assert_equal, noise
from polymodal.multimodal.pair_comparison import (
    TYPE_TABLE,
    ComparisonObjective,
    ComparisonSystem,
    PictureComparer,
    UniterForNlvr2PairedAttn,
    two_by_two,
)
from polymodal.multimodal.region_pairs import PairSettings, RegionBatch
from polymodal.multimodal.uniter import FAMILIES, UniterConfig, UniterForPreTraining, UniterModel
from polymodal.multimodal.uniter_formats import comparison_rules
from polymodal.pipelines.train.start import copy_weights
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.family import Context
from polymodal.shared.sample import Sample
from region_samples import CLASSES, CONFIG, SHAPE, TOKENIZER, WIDTH, regions
from torch import nn
from torch.nn import functional as F

LABELS = ("no", "yes", "both")
TWO = UniterConfig(vocab_size=TOKENIZER.vocab_size, visual_feat_dim=WIDTH, num_object_labels=CLASSES, num_labels=3, labels=LABELS,
                   type_vocab_size=3, **SHAPE)


def about(n, label=b"1", second=True, **options):
    other = {f"second.{name}": data for name, data in regions(n + 50, 1 + n % 4, **options).fields().items()} if second else {}
    return Sample(str(n), {"txt": f"w{n} w1 w{n}".encode(), "cls": label, **regions(n, 2 + n % 3).fields(), **other}, n, "here")


def net_of():
    return UniterForNlvr2PairedAttn(UniterModel(TWO, pooler=False), TWO)


def objective():
    return ComparisonObjective(TOKENIZER, PairSettings(), WIDTH, LABELS)


def examples(samples):
    return [e for s in samples for e in objective().example(s, np.random.default_rng(0))]


def as_published(rows, theirs):
    """Logits of the states of two rows, [L, D] each, by PyTorch's own attention and the formulas of model/nlvr2.py."""
    pooled = []
    for name, x, other in (("attn1", rows[0], rows[1]), ("attn2", rows[1], rows[0])):
        attention = nn.MultiheadAttention(SHAPE["hidden_size"], SHAPE["num_attention_heads"], dtype=x.dtype).eval()
        attention.load_state_dict({k.removeprefix(f"{name}."): v for k, v in theirs.items() if k.startswith(f"{name}.")})
        seen, _ = attention(x[:, None], other[:, None], other[:, None])
        joined = F.linear(torch.cat([seen[:, 0], x], dim=-1), theirs["fc.0.weight"], theirs["fc.0.bias"]).relu()
        weights = F.linear(joined, theirs["attn_pool.fc.0.weight"], theirs["attn_pool.fc.0.bias"])[:, 0].relu().softmax(0)
        pooled.append(weights @ joined)
    return F.linear(torch.cat(pooled), theirs["nlvr2_output.weight"], theirs["nlvr2_output.bias"])


def test_the_loss_is_that_of_the_published_modules():
    net = noise(net_of().double(), seed=4)
    made = examples([about(n, str(n % 3).encode()) for n in range(5)])
    batch = objective().collate(made)
    step = ComparisonSystem(net, objective())(batch)
    theirs = to_theirs(comparison_rules(TWO), net.state_dict())
    total = right = 0
    for e in made:
        one = RegionBatch(counts={}, **two_by_two([e.input_ids], [e.pictures]))
        logits = as_published(net.trunk.packed(one).last_hidden_state[0].split(list(one.row_lengths)), theirs)
        total += F.cross_entropy(logits[None], torch.tensor([e.label])).item()
        right += int(logits.argmax()) == e.label
    assert batch.counts == {"samples": 5} and step.terms["classes"].total.item() == pytest.approx(total, rel=1e-9)
    assert int(step.metrics["accuracy"][0]) == right
    assert theirs["attn1.in_proj_weight"].shape == (48, 16) and theirs["uniter.embeddings.token_type_embeddings.weight"].shape == (3, 16)


def test_the_regions_of_the_second_picture_have_a_type_of_their_own():
    batch = objective().collate(examples([about(0), about(1)]))
    counts = batch.counts_of_regions
    assert counts == (2, 1, 3, 2) and batch.types.tolist() == [1, 1, 2, 1, 1, 1, 2, 2]
    net = noise(net_of())
    with torch.no_grad():
        before = net.trunk.packed(batch).last_hidden_state[0].split(list(batch.row_lengths))
        net.trunk.embed.token_type.weight[2] += 1
        after = net.trunk.packed(batch).last_hidden_state[0].split(list(batch.row_lengths))
    assert [torch.equal(a, b) for a, b in zip(before, after)] == [True, False, True, False]


def test_padded_pairs_have_the_logits_of_packed_ones():
    net, made = noise(net_of()), examples([about(n) for n in range(3)])
    packed = objective().collate(made)
    shown = [r for e in made for r in e.pictures]
    ids = nn.utils.rnn.pad_sequence([torch.from_numpy(e.input_ids) for e in made for _ in range(2)], batch_first=True)
    features, places, there = (nn.utils.rnn.pad_sequence([torch.as_tensor(x).float() for x in parts], batch_first=True) for parts in (
        [r.features for r in shown], [r.locations for r in shown], [np.ones(len(r.features)) for r in shown]))
    keep = nn.utils.rnn.pad_sequence([torch.ones(len(e.input_ids)) for e in made for _ in range(2)], batch_first=True)
    with torch.no_grad():
        assert_equal(net(ids, keep, visual_feats=features, visual_pos=places, visual_attention_mask=there), net.logits(packed))


def test_the_second_type_begins_as_the_first_ones_pictures():
    start, net = noise(UniterForPreTraining(CONFIG)), net_of()
    lines = copy_weights(net, start, FAMILIES[0], "uniter", FAMILIES[0].starts["uniter"])
    old = start.trunk.embed.token_type.weight
    assert torch.equal(net.trunk.embed.token_type.weight, old[[0, 1, 1]]) and any(TYPE_TABLE in line for line in lines)
    again = noise(net_of(), seed=3)
    copy_weights(again, net, FAMILIES[0], "uniter", FAMILIES[0].starts["uniter"])
    assert torch.equal(again.trunk.embed.token_type.weight, net.trunk.embed.token_type.weight)


def test_probabilities_are_those_of_the_logits():
    by, samples = PictureComparer(noise(net_of()), TOKENIZER), [about(0), about(1)]
    told = by.probabilities([by.read(s) for s in samples])
    with torch.no_grad():
        assert torch.allclose(told, by.model.logits(objective().collate(examples(samples))).softmax(-1), atol=1e-6)
    assert by.labels == LABELS


@pytest.mark.parametrize(("sample", "message"), [
    (about(0, second=False), "no second picture: expected fields such as 'second.png'"), (about(0, b"3"), "class 3, the model has 3"),
    (about(0, width=WIDTH + 1), "sample '0.second' of here: its regions have features of width 11"),
])
def test_samples_that_do_not_fit_are_told(sample, message):
    with pytest.raises(BadSample, match=message):
        examples([sample])


def test_a_config_is_fitted_to_the_data():
    task = FAMILIES[0].task("compare")
    fitted = task.adapt(CONFIG, Context(classes=("a", "b"), regions=(WIDTH, 0)))
    assert fitted.labels == ("a", "b") and fitted.type_vocab_size == 3 and CONFIG.type_vocab_size == 2
    with pytest.raises(UserError, match="comparing needs classes and the data set names none"):
        task.build(CONFIG, {}, Context(TOKENIZER))


def test_two_pictures_are_packed_from_lists(tmp_path):
    from polymodal.pipelines.crew.pieces import Workers
    from polymodal.pipelines.data.dataset import DataSet
    from polymodal.pipelines.pack.pack import pack
    from polymodal.pipelines.pack.settings import PackSettings, Reading

    for n in range(3):
        found = regions(n, 2)
        np.savez(tmp_path / f"{n}.npz", features=found.features, norm_bb=found.boxes)
    rows = [{"image": [f"{n}.npz", f"{(n + 1) % 3}.npz"], "caption": f"w{n}", "label": ("no", "yes")[n % 2]} for n in range(3)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pack([tmp_path / "t.jsonl"], tmp_path / "out", PackSettings(Reading("regions", label_field="label"), shuffle=None), workers=Workers(1))
    data = DataSet.open(tmp_path / "out")
    first = data.read(0)
    assert np.allclose(first.regions().features, regions(0, 2).features, atol=1e-2)
    assert np.allclose(first.second().regions().features, regions(1, 2).features, atol=1e-2)
    assert [data.read(n).label() for n in range(3)] == [0, 1, 0] and data.index.schema["classes"] == ["no", "yes"]
    rows[1]["image"] = ["0.npz"] * 3
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"line 2.*a list of 3 files with regions, expected one, or a list of two"):
        pack([tmp_path / "t.jsonl"], tmp_path / "bad", PackSettings(Reading("regions")), workers=Workers(1))
