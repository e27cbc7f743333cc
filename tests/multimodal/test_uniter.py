"""UNITER: the text side beside transformers' BERT, every loss and gradient beside the paper's formulas in fp64, and the noise."""

import numpy as np
import polymodal
import pytest
import torch
import transformers
from parity import assert_equal, noise
from polymodal.multimodal import uniter
from polymodal.multimodal.region_pairs import ITM, MLM, MRC, MRC_KL, MRFR, RegionReader, UniterObjective, UniterSettings, batch_of_pairs
from polymodal.multimodal.uniter import FAMILIES, UniterConfig, UniterForPreTraining, UniterModel, UniterSystem, rules
from polymodal.registry import family
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.family import Context
from polymodal.shared.meta import without_weights
from polymodal.shared.sample import Sample
from region_samples import CLASSES, CONFIG, SHAPE, TOKENIZER, WIDTH, WORDS, paired, regions, sample
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F


def objective(task="", training=True, **settings):
    return UniterObjective(TOKENIZER, UniterSettings(**settings), WIDTH, CLASSES, task, training)


def examples(task, numbers=range(6), **settings):
    made = objective(task, **settings)
    return made, [e for s in paired(numbers) for e in made.example(s, np.random.default_rng((3, s.index)))]


# ---------------------------------------------------------------------------------------- the text side


def bert_of(net, attention="sdpa", prefix="uniter."):
    """transformers' BERT with the trunk's weights, by the names of the published code."""
    c = net.config
    theirs = to_theirs(rules(c), net.state_dict())
    config = transformers.BertConfig(vocab_size=c.vocab_size, **SHAPE, layer_norm_eps=c.layer_norm_eps, attn_implementation=attention)
    model = transformers.BertModel(config).to(next(net.parameters()).dtype).eval()
    model.load_state_dict({k.removeprefix(prefix): v for k, v in theirs.items() if k.startswith(prefix) and "img_embeddings" not in k})
    return model, theirs


def test_a_text_alone_is_read_as_by_transformers_bert():
    net = noise(UniterForPreTraining(CONFIG))
    theirs, _ = bert_of(net)
    ids = torch.randint(5, CONFIG.vocab_size, (3, 9))
    keep = torch.ones(3, 9, dtype=torch.long)
    keep[1, 6:] = keep[2, 2:] = 0
    with torch.no_grad():
        ours, expected = net.trunk(ids, keep), theirs(ids, attention_mask=keep)
    assert_equal(ours.last_hidden_state[keep.bool()], expected.last_hidden_state[keep.bool()])
    assert_equal(ours.pooled, expected.pooler_output)


def test_real_sizes_have_the_published_parameters():
    """BERT-base cased with its pooler has 108,310,272; the image side 2048 x 768 and so on."""
    with without_weights():
        base = UniterModel(UniterConfig())
        counted = sum(p.numel() for p in base.parameters())
        image = (2048 + 7) * 768 + 2 * 768 + 3 * 2 * 768 + 2 * 2048
        assert counted == 108_310_272 + image
        whole = UniterForPreTraining(UniterConfig(**uniter.SIZES["large"]))
    assert whole.trunk.stack.num_layers == 24 and whole.region_classifier.classes.weight.shape == (1601, 1024)


def test_the_names_are_those_of_the_published_code():
    with without_weights():
        theirs = to_theirs(rules(UniterConfig()), UniterForPreTraining(UniterConfig()).state_dict())
    assert theirs["uniter.img_embeddings.img_linear.weight"].shape == (768, 2048)
    assert theirs["uniter.img_embeddings.pos_linear.weight"].shape == (768, 7)
    assert theirs["uniter.img_embeddings.mask_embedding.weight"].shape == (2, 2048)
    assert theirs["region_classifier.net.3.weight"].shape == (1601, 768) and theirs["itm_output.weight"].shape == (2, 768)
    for name in ("uniter.img_embeddings.LayerNorm.weight", "uniter.img_embeddings.img_layer_norm.bias", "uniter.pooler.dense.weight",
                 "uniter.img_embeddings.pos_layer_norm.weight", "feat_regress.net.0.weight", "feat_regress.net.2.bias", "feat_regress.bias",
                 "region_classifier.net.0.bias", "region_classifier.net.2.weight", "cls.predictions.transform.dense.weight",
                 "uniter.encoder.layer.11.attention.self.query.weight"):
        assert name in theirs, name


# ------------------------------------------------------------------------- the paper's formulas, once more


def norm(x, theirs, name):
    return F.layer_norm(x, x.shape[-1:], theirs[f"{name}.weight"], theirs[f"{name}.bias"], 1e-12)


def linear(x, theirs, name):
    return F.linear(x, theirs[f"{name}.weight"], theirs[f"{name}.bias"])


def states_of(example, theirs, bert):
    """One pair through transformers' modules, with nothing beside it."""
    part = {name: {k.removeprefix(f"uniter.{name}."): v for k, v in theirs.items() if k.startswith(f"uniter.{name}.")}
            for name in ("embeddings", "encoder", "pooler")}
    words = functional_call(bert.embeddings, part["embeddings"], (torch.from_numpy(example.input_ids)[None],))
    features, boxes, hidden = (torch.from_numpy(a) for a in (example.regions.features, example.regions.boxes, example.masked))
    sides = boxes[:, 2:] - boxes[:, :2]
    place = torch.cat([boxes, sides, sides.prod(1, keepdim=True)], dim=1).double()
    seen = torch.where(hidden[:, None], theirs["uniter.img_embeddings.mask_embedding.weight"][1], features.double())
    x = norm(linear(seen, theirs, "uniter.img_embeddings.img_linear"), theirs, "uniter.img_embeddings.img_layer_norm")
    x = x + norm(linear(place, theirs, "uniter.img_embeddings.pos_linear"), theirs, "uniter.img_embeddings.pos_layer_norm")
    x = norm(x + theirs["uniter.embeddings.token_type_embeddings.weight"][1], theirs, "uniter.img_embeddings.LayerNorm")
    states = functional_call(bert.encoder, part["encoder"], (torch.cat([words, x[None]], dim=1),))[0]
    pooled = functional_call(bert.pooler, part["pooler"], (states,))
    return states[0, :len(example.input_ids)], states[0, len(example.input_ids):], pooled[0]


def distance_of(words, found):
    """IPOT of one pair with a plan without gradient (model/ot.py: 50 steps, beta 0.5)."""
    cost = 1 - F.normalize(words, dim=-1) @ F.normalize(found, dim=-1).T
    m, n = cost.shape
    with torch.no_grad():
        kernel, plan, sigma = (-cost.T / 0.5).exp(), torch.ones(n, m, dtype=cost.dtype), torch.full((m,), 1 / m, dtype=cost.dtype)
        for _ in range(50):
            q = kernel * plan
            delta = 1 / (n * (q @ sigma))
            sigma = 1 / (m * (delta @ q))
            plan = delta[:, None] * q * sigma
    return (cost @ plan).trace()


def loss_of(task, made, theirs, bert):
    """The mean loss of examples, as the paper and the published code have it."""
    total, count = 0, 0
    for e in made:
        words, found, pooled = states_of(e, theirs, bert)
        hidden, wanted = torch.from_numpy(e.masked), torch.from_numpy(e.regions.features).double()
        chances = torch.from_numpy(e.regions.classes).double()
        if task == MLM:
            x = norm(F.gelu(linear(words, theirs, "cls.predictions.transform.dense")), theirs, "cls.predictions.transform.LayerNorm")
            logits = x @ theirs["uniter.embeddings.word_embeddings.weight"].T + theirs["cls.predictions.bias"]
            total = total + F.cross_entropy(logits[e.positions], torch.from_numpy(e.targets), reduction="sum")
            count += len(e.targets)
        elif task == MRFR:
            x = norm(F.gelu(linear(found[hidden], theirs, "feat_regress.net.0")), theirs, "feat_regress.net.2")
            told = x @ theirs["uniter.img_embeddings.img_linear.weight"] + theirs["feat_regress.bias"]
            total = total + F.mse_loss(told, wanted[hidden]) * int(hidden.sum())
            count += int(hidden.sum())
        elif task in (MRC, MRC_KL):
            x = norm(F.gelu(linear(found[hidden], theirs, "region_classifier.net.0")), theirs, "region_classifier.net.2")
            logits = linear(x, theirs, "region_classifier.net.3")
            if task == MRC:
                total = total + F.cross_entropy(logits, chances[hidden][:, 1:].max(-1).indices + 1, reduction="sum")
            else:
                total = total + F.kl_div(logits.log_softmax(-1), chances[hidden], reduction="none").mean() * int(hidden.sum())
            count += int(hidden.sum())
        else:
            sign = 1 if e.match else -1
            total = total + F.cross_entropy(linear(pooled, theirs, "itm_output")[None], torch.tensor([e.match]))
            total, count = total + 0.1 * sign * distance_of(words, found), count + 1
    return total / count


@pytest.mark.parametrize("task", [MLM, MRFR, MRC, MRC_KL, ITM])
def test_every_loss_and_gradient_is_that_of_the_formulas(task):
    net = noise(UniterForPreTraining(CONFIG).double(), seed=2)
    system = UniterSystem(net, objective(mrc=1), 0.1).train()
    own, made = examples(task, range(8), negative_prob=0.5)
    batch = own.collate(made)
    if task == ITM:
        assert 0 < sum(e.match for e in made) < 8
    step = system(batch)
    ours = sum(t.weight * t.total / batch.counts[t.count] for t in step.terms.values())
    ours.backward()
    bert, weights = bert_of(net, "eager")
    theirs = {k: v.detach().clone().requires_grad_(True) for k, v in weights.items()}
    expected = loss_of(task, made, theirs, bert)
    expected.backward()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-9)
    gradients = to_theirs(rules(CONFIG), {**net.state_dict(), **{n: p.grad for n, p in net.named_parameters()},
                                          "head.weight": net.trunk.embed.word.weight.grad})
    largest = max(float(v.grad.abs().max()) for v in theirs.values() if v.grad is not None)
    for name, tensor in theirs.items():
        wanted = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        assert torch.allclose(gradients[name], wanted, rtol=1e-6, atol=1e-9 * largest), name


def test_packed_pairs_are_the_padded_ones():
    net = noise(UniterForPreTraining(CONFIG))
    _, made = examples(MRFR)
    packed = batch_fields(made)
    words, pictures = max(len(e.input_ids) for e in made), max(len(e.masked) for e in made)
    ids, keep = torch.zeros(len(made), words, dtype=torch.long), torch.zeros(len(made), words)
    feats, place = torch.zeros(len(made), pictures, WIDTH), torch.zeros(len(made), pictures, 7)
    there, hidden = torch.zeros(len(made), pictures), torch.zeros(len(made), pictures, dtype=torch.bool)
    for i, e in enumerate(made):
        s, r = len(e.input_ids), len(e.masked)
        ids[i, :s], keep[i, :s], there[i, :r], hidden[i, :r] = torch.from_numpy(e.input_ids), 1, 1, torch.from_numpy(e.masked)
        feats[i, :r], place[i, :r] = torch.from_numpy(e.regions.features), torch.from_numpy(e.regions.locations)
    with torch.no_grad():
        ours = net.trunk.packed(packed)
        padded = net.trunk(ids, keep, visual_feats=feats, visual_pos=place, visual_attention_mask=there, visual_masked=hidden)
        whole = net(ids, keep, visual_feats=feats, visual_pos=place, visual_attention_mask=there, visual_masked=hidden)
    (at, kept), (regions_at, regions_kept) = packed.word_places(), packed.region_places()
    assert_equal(ours.last_hidden_state[0, at][kept], padded.last_hidden_state[:, :words][keep.bool()])
    assert_equal(ours.last_hidden_state[0, regions_at][regions_kept], padded.last_hidden_state[:, words:][there.bool()])
    assert_equal(ours.pooled, padded.pooled)
    assert whole.prediction_logits.shape == (6, words, CONFIG.vocab_size) and whole.region_logits.shape == (6, pictures, CLASSES)
    with torch.no_grad():
        assert_equal(net.score_pairs(packed), whole.match_logits[:, 1] - whole.match_logits[:, 0])


def batch_fields(made):
    from polymodal.multimodal.region_pairs import RegionBatch

    return RegionBatch(counts={}, **batch_of_pairs([e.input_ids for e in made], [e.regions for e in made], [e.masked for e in made]))


# -------------------------------------------------------------------------------------------- the noise


def drawn(task, count=3000, tokens=20, width=12, **settings):
    own = objective(task, **settings)
    text = " ".join(WORDS[:tokens]).encode()
    fields = regions(0, width).fields()
    made = [Sample(str(n), {"txt": text, **fields}, n, "here") for n in range(count)]
    other = Sample("o", {"txt": text, **regions(1, width + 1).fields()}, 0, "here")
    found = []
    for s in made:
        s.pair_with(lambda: other)
        found += own.example(s, np.random.default_rng((5, s.index)))
    return own, found


def test_words_are_masked_as_in_the_published_code():
    """Each with probability 0.15, never a special token, at least one; 80/10/10; the regions stay."""
    own, found = drawn(MLM)
    whole = own.reader.framed(" ".join(WORDS[:20]))
    assert whole[0] == own.cls_id and whole[-1] == own.sep_id and len(whole) == 22
    chosen = np.zeros((len(found), 22), dtype=bool)
    kinds = np.zeros(3)
    for row, e in zip(chosen, found):
        row[e.positions] = True
        assert len(e.positions) and not e.masked.any() and np.array_equal(e.targets, whole[e.positions])
        assert np.array_equal(np.delete(e.input_ids, e.positions), np.delete(whole, e.positions))
        new = e.input_ids[e.positions]
        kinds += [(new == own.mask_id).sum(), ((new != own.mask_id) & (new != e.targets)).sum(), (new == e.targets).sum()]
    assert not chosen[:, [0, 21]].any()
    draws, none = len(found) * 20, 0.85**20
    expected = 0.15 * draws + none * len(found)  # where none is drawn, the first one is
    assert abs(chosen.sum() - expected) < 4 * (draws * 0.15 * 0.85) ** 0.5
    assert abs(chosen[:, 1].mean() - (0.15 + none)) < 4 * (0.2 / len(found)) ** 0.5 and abs(chosen[:, 5].mean() - 0.15) < 0.03
    forced = none * len(found)
    total, sure = kinds.sum(), kinds.sum() - forced
    assert abs(kinds[0] - (0.8 * sure + forced)) < 4 * (total * 0.16) ** 0.5
    assert abs(kinds[1] - 0.1 * sure * (1 - 1 / len(own.words))) < 4 * (total * 0.09) ** 0.5
    assert not set(own.words.tolist()) & TOKENIZER.special_ids and len(own.words) == 60


def test_regions_are_masked_with_probability_15_at_least_one_and_the_words_stay():
    own, found = drawn(MRFR)
    chosen = np.array([e.masked for e in found])
    assert chosen.any(1).all() and all(not len(e.positions) and own.mask_id not in e.input_ids for e in found)
    none = 0.85**12
    expected = 0.15 + none / 12
    assert abs(chosen.mean() - expected) < 4 * (0.1275 / chosen.size) ** 0.5
    assert np.abs(chosen.mean(0) - expected).max() < 4.5 * (0.15 / len(chosen)) ** 0.5
    batch = own.collate(found[:50])
    assert not batch.features[batch.masked].any() and torch.equal(batch.region_targets[:, 0] != 0, torch.ones(len(batch.region_rows)) == 1)


def test_half_of_the_pictures_are_replaced_and_the_captions_stay():
    own, found = drawn(ITM)
    whole = own.reader.framed(" ".join(WORDS[:20]))
    assert all(np.array_equal(e.input_ids, whole) and not e.masked.any() for e in found)
    assert all((len(e.masked) == 12) == (e.match == 1) for e in found)
    assert abs(np.mean([e.match for e in found]) - 0.5) < 4 * (0.25 / len(found)) ** 0.5


def test_a_partner_that_cannot_be_used_leaves_the_picture():
    own = objective(ITM, negative_prob=1.0)
    for other in (None, Sample("o", {"txt": b"w1"}, 1, "here"), sample(1, width=WIDTH + 1)):
        one = sample(0)
        one.pair_with(lambda other=other: other)
        (found,) = own.example(one, np.random.default_rng(0))
        assert found.match == 1


def test_tasks_take_turns_by_the_published_quotas():
    assert objective().turns == {ITM: 2, MLM: 2, MRFR: 1, MRC_KL: 1}
    assert {name: o.needs_partner for name, o in objective().by_turn().items()} == {ITM: True, MLM: False, MRFR: False, MRC_KL: False}
    assert list(objective(itm=0, mlm=0, mrfr=0, mrc_kl=0, mrc=3).by_turn()) == [MRC]


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(("settings", "message"), [
    ({"itm": 0, "mlm": 0, "mrfr": 0, "mrc_kl": 0}, "are all 0"), ({"mlm": -1}, "mlm is -1"), ({"mask_prob": 1.5}, "mask_prob is 1.5"),
    ({"max_length": 2}, "at least 3 tokens"), ({"max_regions": 0}, "max_regions is 0"), ({"wra": -1.0}, "wra is -1"),
])
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        UniterSettings(**settings)


def test_samples_that_do_not_fit_are_told():
    for task, bad, message in (
        (MRFR, sample(0, width=WIDTH + 1), "features of width 11, the model reads 10"),
        (MRC, sample(0, classes=CLASSES + 1), "8 classes, the model tells 7"),
        (MLM, Sample("a", {"txt": b"w1"}, 0, "here"), "no field 'regions.npy'"),
        (MLM, Sample("a", regions(0, 2).fields(), 0, "here"), "no text"),
        (MRC_KL, Sample("a", {"txt": b"w1", **regions(0, 2)._replace(classes=None).fields()}, 0, "here"), "no class probabilities"),
    ):
        with pytest.raises(BadSample, match=message):
            list(objective(task).example(bad, np.random.default_rng(0)))
    assert list(objective(MRFR).example(sample(0, classes=CLASSES + 1), np.random.default_rng(0)))  # classes are not asked for


def test_what_does_not_fit_a_network_is_refused_before_a_run():
    entry = family("uniter")
    with pytest.raises(UserError, match="max_length is 60, the model has 32 positions"):
        entry.pretraining.build(UniterConfig(**{**SHAPE, "max_position_embeddings": 32}), {}, Context(TOKENIZER))
    with pytest.raises(UserError, match=r"no class probabilities: set objective.mrc and"):
        entry.pretraining.build(CONFIG, {}, Context(TOKENIZER, regions=(WIDTH, 0)))
    with pytest.raises(UserError, match="type_vocab_size is 1"):
        UniterConfig(type_vocab_size=1)


def test_captions_and_regions_are_cut_to_their_limits():
    reader = RegionReader(TOKENIZER, UniterSettings(max_length=6, max_regions=2), WIDTH, CLASSES, training=True)
    long = Sample("a", {"txt": " ".join(WORDS).encode(), **regions(0, 5).fields()}, 0, "here")
    assert len(reader.caption(long, np.random.default_rng(0))) == 6 and len(reader.regions(long).features) == 2
    several = Sample("a", {"json": b'{"captions": ["w1", "w2 w3"]}', **regions(0, 5).fields()}, 0, "here")
    assert {len(reader.caption(several, np.random.default_rng(n))) for n in range(20)} == {3, 4}
    first = RegionReader(TOKENIZER, UniterSettings(), WIDTH, CLASSES, training=False)
    assert {len(first.caption(several, np.random.default_rng(n))) for n in range(20)} == {3}


# --------------------------------------------------------------------------------------------- the start


@pytest.mark.parametrize("name", sorted(FAMILIES[0].starts))
def test_it_begins_with_any_bert(name):
    from polymodal.pipelines.train.start import copy_weights

    start = noise(polymodal.system(name, size="tiny", vocab_size=90, **SHAPE).net)
    adopt = FAMILIES[0].starts[name]
    config = uniter.with_regions(adopt.config(start.config), Context(regions=(WIDTH, CLASSES)))
    assert config.vocab_size == 90 and config.visual_feat_dim == WIDTH and config.num_object_labels == CLASSES
    net = UniterForPreTraining(config)
    lines = copy_weights(net, start, FAMILIES[0], name, adopt)
    ids = torch.randint(5, 90, (2, 7))
    with torch.no_grad():
        assert_equal(net.eval().trunk(ids).last_hidden_state, start.eval().trunk(ids).last_hidden_state)
    assert torch.equal(net.head.bias, start.head.bias) and any("trunk.regions" in line for line in lines)


def test_a_bare_bert_will_do():
    from polymodal.pipelines.train.start import copy_weights
    from polymodal.shared.encoder import Encoder

    start = noise(Encoder(CONFIG))
    net = UniterForPreTraining(CONFIG)
    copy_weights(net, start, FAMILIES[0], "bert", FAMILIES[0].starts["bert"])
    assert torch.equal(net.trunk.embed.word.weight, start.embed.word.weight) and isinstance(net.match, nn.Linear)
