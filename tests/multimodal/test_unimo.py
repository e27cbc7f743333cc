"""UNIMO: the text side beside transformers' RoBERTa, every loss and gradient beside the paper's formulas in fp64, and the noise."""

import json
from dataclasses import replace

import numpy as np
import polymodal
import pytest
import torch
import transformers
from parity import assert_equal, noise
from polymodal.multimodal import captions, unimo
from polymodal.multimodal.captions import UnimoForImageCaptioning
from polymodal.multimodal.unimo import FAMILIES, SIZES, UnimoConfig, UnimoForPreTraining, UnimoModel, UnimoSystem
from polymodal.multimodal.unimo_data import (
    CAPTION,
    CONTRAST,
    PAIRS,
    REGIONS,
    SEQ2SEQ,
    TASKS,
    UnimoObjective,
    UnimoSettings,
    fragments,
    hide_regions,
    overlaps,
)
from polymodal.multimodal.unimo_data import WORDS as TEXT
from polymodal.multimodal.unimo_formats import trunk_rules, with_head, with_parts
from polymodal.pipelines.train.start import copy_weights
from polymodal.registry import family
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.family import Context
from polymodal.shared.regions import Regions
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from region_samples import CLASSES, SHAPE, WIDTH, WORDS, regions
from torch.func import functional_call
from torch.nn import functional as F

TOKENIZER = Tokenizer.train([" ".join(WORDS)], "word", 80, style=STYLES["roberta"])
CONFIG = unimo.special(UnimoConfig(vocab_size=TOKENIZER.vocab_size, visual_feat_dim=WIDTH, num_object_labels=CLASSES, type_vocab_size=1,
                                   layer_norm_eps=1e-5, **SHAPE), Context(TOKENIZER))


def objective(task="", training=True, classes=CLASSES, **settings):
    return UnimoObjective(TOKENIZER, UnimoSettings(**settings), WIDTH, classes, 40, task, training)


def sample(n, **json_of):
    """A pair with rewrites, a retrieved text and a retrieved picture."""
    rng = np.random.default_rng(n)
    text = " ".join(rng.choice(WORDS, int(rng.integers(2, 12))))
    record = {"rewrites": {"same": ["w1 w2"], "other": ["w3 w4", "w5"]}, "related": ["w9 w8", "w7"], **json_of}
    near = {f"near0.{name}": data for name, data in regions(n + 50, 3).fields().items()}
    return Sample(str(n), {"txt": text.encode(), "json": json.dumps(record).encode(), **near,
                           **regions(n, int(rng.integers(2, 7))).fields()}, n, "here")


def paired(numbers):
    made = [sample(n) for n in numbers]
    for one, other in zip(made, [*made[1:], made[0]]):
        one.pair_with(lambda other=other: other)
    return made


def examples(task, numbers=range(6), **settings):
    made = objective(task, **settings)
    return made, [e for s in paired(numbers) for e in made.example(s, np.random.default_rng((3, s.index)))]


# ---------------------------------------------------------------------------------------- the text side


def rules(config):
    return (*trunk_rules(config), *with_head(), *with_parts())


def roberta_of(net, attention="sdpa"):
    """transformers' RoBERTa with the trunk's weights."""
    c = net.config
    theirs = to_theirs(rules(c), net.state_dict())
    config = transformers.RobertaConfig(vocab_size=c.vocab_size, **{**SHAPE, "type_vocab_size": 1}, pad_token_id=c.pad_token_id,
                                        layer_norm_eps=c.layer_norm_eps, attn_implementation=attention)
    model = transformers.RobertaModel(config, add_pooling_layer=False).to(next(net.parameters()).dtype).eval()
    own = {k.removeprefix("unimo."): v for k, v in theirs.items() if k.startswith(("unimo.embeddings", "unimo.encoder"))}
    model.load_state_dict(own)
    return model, theirs


def test_a_text_alone_is_read_as_by_transformers_roberta():
    net = noise(UnimoForPreTraining(CONFIG))
    theirs, _ = roberta_of(net)
    ids = torch.randint(5, CONFIG.vocab_size, (3, 9))
    keep = torch.ones(3, 9, dtype=torch.long)
    keep[1, 6:] = keep[2, 2:] = 0
    ids[keep == 0] = CONFIG.pad_token_id
    with torch.no_grad():
        ours, expected = net.trunk(ids, keep), theirs(ids, attention_mask=keep)
    assert_equal(ours.last_hidden_state[keep.bool()], expected.last_hidden_state[keep.bool()])


def test_real_sizes_have_the_published_parameters():
    """RoBERTa-base without its pooler has 124,055,040; the image side, and two poolers."""
    with torch.device("meta"):
        base = UnimoModel(UnimoConfig(**SIZES["base"]))
        counted = sum(p.numel() for p in base.parameters())
        assert counted == 124_055_040 + (2048 + 1 + 5 + 1 + 2) * 768 + 2 * (768 * 768 + 768)
        whole = UnimoForPreTraining(UnimoConfig(**SIZES["large"]))
        names = to_theirs(rules(whole.config), whole.state_dict())
    assert whole.trunk.stack.num_layers == 24 and whole.region_classifier.classes.weight.shape == (1601, 1024)
    assert names["unimo.image_embeddings.location.weight"].shape == (1024, 5) and "unimo.embeddings.LayerNorm.weight" in names


# ------------------------------------------------------------------------- the paper's formulas, once more


def norm(x, theirs, name):
    return F.layer_norm(x, x.shape[-1:], theirs[f"{name}.weight"], theirs[f"{name}.bias"], 1e-5)


def linear(x, theirs, name):
    return F.linear(x, theirs[f"{name}.weight"], theirs[f"{name}.bias"])


def states_of(row, theirs, model):
    """One row through transformers' modules, with nothing beside it: states of [IMG], of the regions, of the words."""
    part = {name: {k.removeprefix(f"unimo.{name}."): v for k, v in theirs.items() if k.startswith(f"unimo.{name}.")}
            for name in ("embeddings", "encoder")}
    x, before = [], 0
    if row.regions is not None:
        features, boxes = torch.from_numpy(row.regions.features).double(), torch.from_numpy(row.regions.boxes).double()
        hidden = torch.zeros(len(features), dtype=torch.bool) if row.masked is None else torch.from_numpy(row.masked)
        mean = features[~hidden].mean(0) if not hidden.all() else torch.zeros(WIDTH, dtype=torch.double)
        seen = torch.cat([mean[None], features.masked_fill(hidden[:, None], 0)])
        sides = boxes[:, 2:] - boxes[:, :2]
        place = torch.cat([torch.tensor([[0.0, 0, 1, 1, 1]]).double(), torch.cat([boxes, sides.prod(1, keepdim=True)], dim=1)])
        x.append(norm(linear(seen, theirs, "unimo.image_embeddings.features") + linear(place, theirs, "unimo.image_embeddings.location"),
                      theirs, "unimo.image_embeddings.LayerNorm"))
        before = len(seen)
    count, first = len(row.input_ids), row.source or 0
    positions = [*range(first), *range(count - first)]
    if count:
        ids, places = torch.from_numpy(row.input_ids)[None], torch.tensor([positions]) + CONFIG.pad_token_id + 1
        x.append(functional_call(model.embeddings, part["embeddings"], (), {"input_ids": ids, "position_ids": places})[0])
    whole = torch.cat(x)
    mask = torch.zeros(len(whole), len(whole), dtype=torch.double)
    if row.source is not None:
        for query in range(len(whole)):
            for key in range(len(whole)):
                if key >= before + first and key > query:
                    mask[query, key] = -1e30
    states = functional_call(model.encoder, part["encoder"], (whole[None],), {"attention_mask": mask[None, None]})[0][0]
    return states[:1], states[1:before], states[before:]


def loss_of(task, made, theirs, model):
    """The sum of the mean losses of examples, as the paper has them."""
    sums, counts = {}, {}

    def add(name, total, count):
        sums[name], counts[name] = sums.get(name, 0) + total, counts.get(name, 0) + count

    for e in made:
        read = [states_of(row, theirs, model) for row in e.rows]
        if task == CONTRAST:
            scores = []
            for c in e.candidates:
                picture, text = read[c.picture][0], read[c.text][2][:1]
                if c.picture == c.text:
                    both = F.relu(linear(text, theirs, "unimo.text_pooler")) * F.relu(linear(picture, theirs, "unimo.picture_pooler"))
                    scores.append(1 / (1 + (-linear(both, theirs, "match")[0, 0]).exp()))
                else:
                    scores.append((text * picture).sum() / text.norm() / picture.norm())
            power = [(score / 0.1).exp() for score in scores]
            right = sum(p for p, c in zip(power, e.candidates) if c.positive)
            add("contrast", -(right / sum(power)).log(), 1)
            continue
        (row,), (_, found, words) = e.rows, read[0]
        if row.positions is not None:
            x = norm(F.gelu(linear(words, theirs, "lm_head.dense")), theirs, "lm_head.layer_norm")
            logits = x @ theirs["unimo.embeddings.word_embeddings.weight"].T + theirs["lm_head.bias"]
            add("words", F.cross_entropy(logits[row.positions], torch.from_numpy(row.targets), reduction="sum"), len(row.targets))
        if row.masked is not None:
            hidden = torch.from_numpy(row.masked)
            x = norm(F.gelu(linear(found[hidden], theirs, "region_regression.dense")), theirs, "region_regression.norm")
            told = x @ theirs["unimo.image_embeddings.features.weight"] + theirs["region_regression.bias"]
            wanted = torch.from_numpy(row.regions.features)[hidden].double()
            add("features", F.mse_loss(told, wanted) * len(wanted), len(wanted))
            x = norm(F.gelu(linear(found[hidden], theirs, "region_classifier.dense")), theirs, "region_classifier.norm")
            chances = torch.from_numpy(row.regions.classes)[hidden].double()
            guess = linear(x, theirs, "region_classifier.classes").log_softmax(-1)
            add("classes", (chances * (chances.log() - guess)).mean() * int(hidden.sum()), int(hidden.sum()))
    return sum(sums[name] / counts[name] for name in sums)


@pytest.mark.parametrize("task", TASKS)
def test_every_loss_and_gradient_is_that_of_the_formulas(task):
    net = noise(UnimoForPreTraining(CONFIG).double(), seed=2)
    own, made = examples(task, range(5))
    system = UnimoSystem(net, objective(), 0.1).train()
    batch = own.collate(made)
    step = system(batch)
    ours = sum(t.weight * t.total / batch.counts[t.count] for t in step.terms.values())
    ours.backward()
    model, weights = roberta_of(net, "eager")
    theirs = {k: v.detach().clone().requires_grad_(True) for k, v in weights.items()}
    expected = loss_of(task, made, theirs, model)
    expected.backward()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-9)
    gradients = to_theirs(rules(CONFIG), {**net.state_dict(), **{n: p.grad for n, p in net.named_parameters()},
                                          "head.weight": net.trunk.embed.word.weight.grad})
    largest = max(float(v.grad.abs().max()) for v in theirs.values() if v.grad is not None)
    for name, tensor in theirs.items():
        wanted = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        assert torch.allclose(gradients[name], wanted, rtol=1e-6, atol=1e-9 * largest), name


def padded(made):
    rows = [e.rows[0] for e in made]
    words, pictures = max(len(r.input_ids) for r in rows), max(len(r.regions.features) for r in rows)
    ids, keep = torch.ones(len(rows), words, dtype=torch.long), torch.zeros(len(rows), words)
    feats, place, there = torch.zeros(len(rows), pictures, WIDTH), torch.zeros(len(rows), pictures, 7), torch.zeros(len(rows), pictures)
    for i, r in enumerate(rows):
        s, n = len(r.input_ids), len(r.regions.features)
        ids[i, :s], keep[i, :s], there[i, :n] = torch.from_numpy(r.input_ids), 1, 1
        feats[i, :n], place[i, :n] = torch.from_numpy(r.regions.features), torch.from_numpy(r.regions.locations)
    return ids, keep, {"visual_feats": feats, "visual_pos": place, "visual_attention_mask": there}


def test_packed_pairs_are_the_padded_ones():
    net = noise(UnimoForPreTraining(CONFIG)).eval()
    own, made = examples(CAPTION)
    ids, keep, pictures = padded(made)
    with torch.no_grad():
        for number, e in enumerate(made):
            alone = replace(own.collate([e]), prefixes=None)
            whole, scores = net.trunk(ids, keep, **pictures), net(ids, keep, **pictures).match_logits
            ours, s = net.trunk.read(alone), len(e.rows[0].input_ids)
            assert_equal(whole.last_hidden_state[number, :s], ours.words)
            assert_equal(whole.last_hidden_state[number, ids.shape[1]:][:len(ours.regions)], ours.regions)
            assert_equal(scores[number:number + 1], net.score_pairs(alone))


def test_captions_are_written_with_a_cache_as_they_are_read_whole():
    """Greedy words, beside the network run anew on all that is written; no word sees a later one."""
    net = noise(UnimoForImageCaptioning(UnimoModel(CONFIG, pooler=False), CONFIG), seed=4).eval()
    _, made = examples(CAPTION, range(3))
    _, _, pictures = padded(made)
    found = [e.rows[0].regions for e in made]
    told = captions.describe(net, found, TOKENIZER, max_new_tokens=7, eos_token_id=-1)
    ids = torch.full((3, 1), CONFIG.cls_token_id)
    with torch.no_grad():
        for _ in range(7):
            ids = torch.cat([ids, net(ids, **pictures)[:, -1:].argmax(-1)], dim=1)
        assert told == [text.strip() for text in TOKENIZER.decode_batch(ids[:, 1:].tolist())] and len(set(told)) > 1
        a = net(ids, **pictures)
        changed = ids.clone()
        changed[:, 4] = (changed[:, 4] + 1) % CONFIG.vocab_size
        moved = (net(changed, **pictures) - a).abs().amax((0, 2)) > 0
    assert moved.tolist() == [False] * 4 + [True] * 4
    alone = [e for s in paired(range(3)) for e in objective(REGIONS).example(s, np.random.default_rng(0))]
    with torch.no_grad():
        decoder = net.describer(objective(REGIONS).collate(alone))
        beams = generate_ids(decoder, decoder.start, num_beams=3, max_new_tokens=5, num_return_sequences=2)
    assert len(beams) == 6 and (beams[:, 0] == CONFIG.cls_token_id).all()


# -------------------------------------------------------------------------------------------- the noise


def test_regions_that_overlap_a_masked_one_are_masked_with_it():
    boxes = np.array([[0, 0, 0.5, 1], [0.1, 0, 0.5, 1], [0.5, 0, 1, 1], [0.3, 0, 0.8, 1]], dtype=np.float32)
    expected = np.array([[1, 0.8, 0, 0.25], [0.8, 1, 0, 0.2 / 0.7], [0, 0, 1, 0.3 / 0.7], [0.25, 0.2 / 0.7, 0.3 / 0.7, 1]])
    assert np.allclose(overlaps(boxes), expected)
    seen = {tuple(hide_regions(boxes, 0.0, 0.5, np.random.default_rng(n))) for n in range(60)}
    assert seen == {(True, True, False, False), (False, False, True, False), (False, False, False, True)}
    assert (False, False, True, True) in {tuple(hide_regions(boxes, 0.0, 0.4, np.random.default_rng(n))) for n in range(60)}
    far = np.stack([np.arange(12) / 12, np.zeros(12), np.arange(1, 13) / 12, np.ones(12)], axis=1)
    drawn = np.array([hide_regions(far, 0.15, 0.4, np.random.default_rng(n)) for n in range(4000)])
    none = 0.85**12
    assert drawn.any(1).all() and abs(drawn.mean() - (0.15 + none / 12)) < 4 * (0.1275 / drawn.size) ** 0.5


def test_a_quarter_of_a_text_is_removed_in_fragments_that_do_not_touch():
    sizes = []
    for n in range(600):
        gone = fragments(80, 0.25, 8, np.random.default_rng(n))
        edges = np.flatnonzero(np.diff(np.concatenate([[0], gone.astype(int), [0]])))
        lengths = edges[1::2] - edges[::2]
        assert gone.sum() == 20 and lengths.max() <= 8
        sizes += [lengths]
    assert 4 < np.mean([len(s) for s in sizes]) < 7 and set(np.concatenate(sizes).tolist()) == set(range(1, 9))
    assert fragments(2, 0.0, 32, np.random.default_rng(0)).sum() == 1
    for length in range(2, 30):
        assert 1 <= fragments(length, 1.0, 3, np.random.default_rng(length)).sum() <= length


def test_spans_of_words_are_masked_as_a_whole():
    own = objective(TEXT)
    text = Sample("t", {"txt": " ".join(WORDS[:36]).encode()}, 0, "here")
    kinds, count = np.zeros(3), 0
    for n in range(1500):
        (e,) = own.example(text, np.random.default_rng(n))
        (row,) = e.rows
        new = row.input_ids[row.positions]
        assert len(row.targets) == 6 and row.regions is None and row.source is None  # 15 % of 36, rounded up
        kinds += [(new == own.spans.mask_id).sum(), ((new != own.spans.mask_id) & (new != row.targets)).sum(), (new == row.targets).sum()]
        count += 1 + (np.diff(row.positions) > 1).sum()
    shares, spans = kinds / kinds.sum(), count
    assert np.abs(shares - [0.8, 0.1, 0.1]).max() < 4 * (0.16 / spans) ** 0.5
    assert 1.8 < kinds.sum() / spans < 4, "spans of several words"


def test_what_is_written_is_removed_from_what_is_read():
    own = objective(SEQ2SEQ)
    text = Sample("t", {"txt": " ".join(WORDS[:30]).encode()}, 0, "here")
    whole = TOKENIZER.encode(" ".join(WORDS[:30]), add_special_tokens=False)
    for n in range(50):
        (e,) = own.example(text, np.random.default_rng(n))
        (row,) = e.rows
        source, target = row.input_ids[:row.source], row.input_ids[row.source:]
        assert source[0] == target[0] == own.cls_id and source[-1] == row.targets[-1] == own.sep_id
        assert np.array_equal(target[1:], row.targets[:-1]) and np.array_equal(row.positions, np.arange(row.source, len(row.input_ids)))
        assert sorted([*source[1:-1], *target[1:]]) == sorted(whole) and len(target) - 1 == 7  # a quarter of 30
        positions = own.collate([e]).position_ids[0].tolist()
        assert positions == [*range(len(source)), *range(len(target))]


def test_a_pair_is_compared_with_what_belongs_to_it_and_what_does_not():
    own, (e, *_) = examples(CONTRAST, rewrites=2, related=2)
    kinds = [(c.picture == c.text, c.positive) for c in e.candidates]
    # the pair, a caption that says the same, two that do not, another picture, another caption
    assert kinds[:6] == [(True, True), (True, True), (True, False), (True, False), (True, False), (True, False)]
    # two texts and a picture that were retrieved; another text, another picture
    assert sorted(kinds[6:]) == [(False, False)] * 2 + [(False, True)] * 3
    assert len({(c.picture, c.text) for c in e.candidates}) == len(e.candidates)
    alone = {row for c in e.candidates[6:] for row in (c.picture, c.text)}
    for row in alone:  # what was retrieved never sees the other side
        assert (e.rows[row].regions is None) != (len(e.rows[row].input_ids) == 0)
    plain = Sample("p", {"txt": b"w1 w2", **regions(0, 3).fields()}, 0, "here")
    (bare,) = own.example(plain, np.random.default_rng(0))
    assert [c.positive for c in bare.candidates] == [True]
    batch = own.collate([bare, e])
    with torch.no_grad():
        term = UnimoSystem(noise(UnimoForPreTraining(CONFIG)), objective(), 0.1)(batch).terms["contrast"]
    assert torch.isfinite(term.total) and batch.counts == {"examples": 2}


# -------------------------------------------------------------------------------------- what is read by whom


def test_each_task_reads_the_data_that_is_for_it():
    pair, picture, text = {"txt", "json", "regions.npy"}, {"regions.npy", "boxes.npy", "jpg"}, {"tokens.u16", "lengths.u32"}
    found = {task: [o.reads(fields) for fields in (text, picture, pair)] for task, o in objective().by_turn().items()}
    texts, pictures, pairs = [True, False, False], [False, True, False], [False, False, True]
    assert found == {TEXT: texts, SEQ2SEQ: texts, REGIONS: pictures, PAIRS: pairs, CAPTION: pairs, CONTRAST: pairs}
    assert objective().turns == {TEXT: 2, PAIRS: 2, SEQ2SEQ: 1, CAPTION: 1, REGIONS: 1, CONTRAST: 2}
    assert {task for task, o in objective().by_turn().items() if o.needs_partner} == {CONTRAST}


def test_regions_without_classes_are_told_by_their_features():
    made = objective(REGIONS, classes=0)
    found = [e for n in range(4) for e in made.example(sample(n), np.random.default_rng(n))]
    net = noise(UnimoForPreTraining(CONFIG))
    step = UnimoSystem(net, objective(classes=0), 0.1)(made.collate(found))
    assert set(step.terms) == {"mrfr"}


@pytest.mark.parametrize(("settings", "message"), [
    (dict.fromkeys(TASKS, 0), "are all 0"), ({"words": -1}, "words is -1"), ({"overlap": 1.5}, "overlap is 1.5"),
    ({"temperature": 0.0}, "temperature is 0"), ({"max_text_length": 3}, "at least 8 tokens"),
    ({"max_span_length": 0}, "max_span_length is 0"),
])
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        UnimoSettings(**settings)


def test_samples_that_do_not_fit_are_told():
    for task, bad, message in (
        (SEQ2SEQ, Sample("a", {"txt": b"w1"}, 0, "here"), "two tokens or more"),
        (CONTRAST, sample(0, rewrites=["w1"]), "'rewrites' of field 'json' is no mapping"),
        (CONTRAST, sample(0, related=[3]), "'related' in field 'json' is no list of texts"),
        (CAPTION, Sample("a", regions(0, 2).fields(), 0, "here"), "no text"),
        (REGIONS, Sample("a", {"txt": b"w1"}, 0, "here"), "no field 'regions.npy'"),
    ):
        with pytest.raises(BadSample, match=message):
            list(objective(task).example(bad, np.random.default_rng(0)))
    with pytest.raises(UserError, match="max_text_length is 90, the model has"):
        family("unimo").pretraining.build(CONFIG, {"max_text_length": 90}, Context(TOKENIZER))


def test_one_picture_of_several_regions_is_its_mean():
    """[IMG] holds the mean of the regions that are not masked."""
    own = objective(REGIONS)
    (e,) = own.example(sample(3), np.random.default_rng(1))
    (row,) = e.rows
    changed = replace(e, rows=(replace(row, regions=Regions(np.where(row.masked[:, None], 9, row.regions.features).astype(np.float32),
                                                            row.regions.boxes, row.regions.classes)),))
    net = noise(UnimoForPreTraining(CONFIG)).eval()
    with torch.no_grad():
        a, b = (net.trunk.read(own.collate([x])) for x in (e, changed))
    assert torch.equal(a.pictures, b.pictures) and torch.equal(a.regions, b.regions), "what is masked is not seen"


# --------------------------------------------------------------------------------------------- the start


@pytest.mark.parametrize("name", sorted(FAMILIES[0].starts))
def test_it_begins_with_a_roberta_or_a_bert(name):
    shape = {**SHAPE, "type_vocab_size": 2 if name == "bert" else 1}
    start = noise(polymodal.system(name, size="tiny", vocab_size=90, **shape).net).eval()
    adopt = FAMILIES[0].starts[name]
    config = unimo.with_regions(adopt.config(start.config), Context(regions=(WIDTH, CLASSES)))
    assert config.longest_input == start.config.longest_input and config.visual_feat_dim == WIDTH
    net = UnimoForPreTraining(config)
    lines = copy_weights(net, start, FAMILIES[0], name, adopt)
    ids = torch.randint(5, 90, (2, 7))
    with torch.no_grad():
        assert_equal(net.eval().trunk(ids).last_hidden_state, start.trunk(ids).last_hidden_state)
    assert torch.equal(net.head.bias, start.head.bias) and any("trunk.regions" in line for line in lines)
