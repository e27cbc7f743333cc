"""ELMo against its formulas written out in plain loops, its memory against one pass, and its files as bilm-tf has them."""

import functools
import json
import pickle

import numpy as np
import polymodal
import pytest
import torch
from polymodal.pipelines.model import frontdoor
from polymodal.shared.convert import to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text._characters import character_ids
from polymodal.text._lstm import LSTM, Steps
from polymodal.text._mix import ScalarMix
from polymodal.text.elmo import ALLENNLP, Elmo, ElmoConfig, ElmoSettings, WordsObjective
from torch import nn

SMALL = {"vocab_size": 30, "hidden_size": 6, "cell_size": 9, "filters": ((1, 3), (2, 4), (4, 5)), "embedding_size": 4, "cutoffs": (),
         "max_characters_per_token": 10, "cell_clip": 0.4, "proj_clip": 0.15}
SENTENCES = (["a", "cat", "sat"], ["naïve", "extraordinarily", "so"], ["猫"])


def net(seed=0, **more):
    """In fp64, with weights so large that the limits are met."""
    torch.manual_seed(seed)
    model = Elmo(ElmoConfig(**(SMALL | more))).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.6)
    return model


# -------------------------------------------------------------------------------- the paper, written out in loops


def naive_characters(word, length):
    data = word.encode()[: length - 2] if isinstance(word, str) else b""
    middle = list(data) if isinstance(word, str) else [word]
    return [258, *middle, 259] + [260] * (length - 2 - len(middle))


def naive_vector(w, c, word):
    """One word through the convolutions (maxima, then the activation), the highways as TensorFlow has them, and the projection."""
    table = w["char_embed"]
    ids = naive_characters(word, c.max_characters_per_token)
    found = []
    for number, (width, count) in enumerate(c.filters):
        kernel, bias = w[f"CNN/W_cnn_{number}"][0], w[f"CNN/b_cnn_{number}"]
        sums = [bias + sum(table[ids[p + k]] @ kernel[k] for k in range(width)) for p in range(len(ids) - width + 1)]
        highest = torch.stack([max(here[n] for here in sums) for n in range(count)])
        found.append(highest.relu() if c.hidden_act == "relu" else highest.tanh())
    x = torch.cat(found)
    for k in range(c.num_highway_layers):
        made = x @ w[f"CNN_high_{k}/W_transform"] + w[f"CNN_high_{k}/b_transform"]
        made = made.relu() if c.hidden_act == "relu" else made.tanh()
        gate = (x @ w[f"CNN_high_{k}/W_carry"] + w[f"CNN_high_{k}/b_carry"]).sigmoid()
        x = gate * made + (1 - gate) * x
    return x @ w["CNN_proj/W_proj"] + w["CNN_proj/b_proj"]


def clipped(x, limit):
    return x.clamp(-limit, limit) if limit else x


def naive_direction(w, c, direction, xs, states):
    """Words one by one: TensorFlow's kernel over [x; h], gates i, g, f, o, 1 added to f. `states` goes on, (h, c) of each layer."""
    outputs = []
    for x in xs:
        here = []
        for n in range(c.num_hidden_layers):
            at = f"RNN_{direction}/RNN/MultiRNNCell/Cell{n}/LSTMCell"
            h, cell = states[n]
            i, g, f, o = (torch.cat([x, h]) @ w[f"{at}/W_0"] + w[f"{at}/B"]).chunk(4)
            cell = clipped(i.sigmoid() * g.tanh() + (f + 1.0).sigmoid() * cell, c.cell_clip)
            h = clipped((o.sigmoid() * cell.tanh()) @ w[f"{at}/W_P_0"], c.proj_clip)
            states[n] = (h, cell)
            x = h + x if n and c.use_skip_connections else h
            here.append(x)
        outputs.append(here)
    return outputs


def fresh(c):
    return [(torch.zeros(c.hidden_size).double(), torch.zeros(c.cell_size).double()) for _ in range(c.num_hidden_layers)]


def naive_sentence(model, words):
    """The L + 1 layers [S, 2 D] of one sentence between its ends."""
    w, c = to_theirs(ALLENNLP.rules(model.config), model.state_dict()), model.config
    xs = [naive_vector(w, c, word) for word in (256, *words, 257)]
    ahead = naive_direction(w, c, 0, xs, fresh(c))
    back = naive_direction(w, c, 1, xs[::-1], fresh(c))[::-1]
    layers = [torch.stack([torch.cat([x, x]) for x in xs])]
    layers += [torch.stack([torch.cat([a[n], b[n]]) for a, b in zip(ahead, back)]) for n in range(c.num_hidden_layers)]
    return [layer[1:-1] for layer in layers]


def padded(model, sentences=SENTENCES):
    longest = max(map(len, sentences))
    ids = np.zeros((len(sentences), longest, model.config.max_characters_per_token), dtype=np.int64)
    for row, words in zip(ids, sentences):
        row[: len(words)] = model.characters(words)
    return torch.from_numpy(ids), torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sentences])


@pytest.mark.parametrize("variant", [{}, {"use_skip_connections": False}, {"hidden_act": "tanh"}, {"cell_clip": 0.0, "proj_clip": 0.0},
                                     {"num_hidden_layers": 3, "num_highway_layers": 1}, {"num_hidden_layers": 1}])
def test_the_layers_are_those_of_the_formulas(variant):
    model = net(**variant)
    out = model(*padded(model))
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1 and out.last_hidden_state is out.hidden_states[-1]
    for row, words in enumerate(SENTENCES):
        for layer, wanted in zip(out.hidden_states, naive_sentence(model, words), strict=True):
            torch.testing.assert_close(layer[row, : len(words)], wanted, rtol=1e-9, atol=1e-9)
            assert not layer[row, len(words):].any()


def test_the_limits_are_met_in_that_comparison():
    model, hit = net(), []
    layer = model.forwards.layers[0]
    layer.register_forward_hook(lambda module, given, made: hit.append((made[0].abs() == 0.15).float().mean()))
    model(*padded(model))
    assert 0.05 < float(hit[0]) < 0.95


def test_sentences_that_are_read_together_do_not_touch_each_other():
    model = net()
    words = [w for s in SENTENCES for w in s]
    different = sorted(set(words))
    found = model.states(torch.from_numpy(model.characters(different)), [len(s) for s in SENTENCES],
                         torch.tensor([different.index(w) for w in words]))
    alone = [model.states(torch.from_numpy(model.characters(s)), [len(s)]) for s in SENTENCES]
    for layer, parts in zip(found, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(layer, torch.cat(parts), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------ the LSTM


def by_autograd(layer, rows, states):
    """The same layer, row by row and step by step, with autograd's own gradients; and h and c behind each row."""
    found, ends = [], []
    for x, h, c in zip(rows, *states, strict=True):
        for token in x:
            gates = layer.input_linearity.weight @ token + layer.state_linearity.weight @ h + layer.state_linearity.bias
            i, f, g, o = gates.chunk(4)
            c = clipped(i.sigmoid() * g.tanh() + (f + 1).sigmoid() * c, layer.limits[0])
            h = clipped(layer.state_projection.weight @ (o.sigmoid() * c.tanh()), layer.limits[1])
            found.append(h)
        ends.append((h, c))
    return torch.stack(found), [torch.stack(part) for part in zip(*ends)]


@pytest.mark.parametrize("limits", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
@pytest.mark.parametrize("lengths", [(3, 1, 4, 1), (2, 2), (1,), (2, 0, 3)])
def test_gradients_of_the_lstm_are_autograds(limits, lengths):
    torch.manual_seed(0)
    layer = LSTM(5, 3, 7, cell_clip=limits[0], proj_clip=limits[1]).double()
    nn.init.normal_(layer.state_linearity.bias)
    x = torch.randn(sum(lengths), 5).double().requires_grad_()
    state = tuple(torch.randn(len(lengths), n).double().mul_(0.1).requires_grad_() for n in (3, 7))
    steps = Steps.of(lengths, x.device)
    out, after = layer(x[steps.order], steps, state)
    out = out[steps.places]
    wanted, ends = by_autograd(layer, x.split(list(lengths)), state)
    inputs, pairs = [x, *state, *layer.parameters()], list(zip((out, *after), (wanted, *ends), strict=True))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for chosen in (pairs[:1], pairs[2:], pairs):  # the states alone, the last cells alone, all
        totals = []
        for way in (0, 1):
            torch.manual_seed(1)
            totals.append(sum((pair[way] * torch.randn(pair[way].shape).double()).sum() for pair in chosen))
        for a, b in zip(*(torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True) for total in totals), strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-9, atol=1e-12)


def test_a_row_in_pieces_is_one_row():
    torch.manual_seed(1)
    layer = LSTM(4, 3, 5, cell_clip=0.5, proj_clip=0.5).double()
    x = torch.randn(2, 9, 4).double()
    whole = layer(x.flatten(0, 1)[(s := Steps.of((9, 9), x.device)).order], s)[0][s.places].view(2, 9, 3)
    state, parts = None, []
    for piece in x.split([2, 6, 1], 1):
        steps = Steps.of((piece.shape[1],) * 2, x.device)
        out, state = layer(piece.flatten(0, 1)[steps.order], steps, state)
        parts.append(out[steps.places].view(2, -1, 3))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-12)


def test_rows_are_read_from_both_ends():
    steps = Steps.of((3, 1, 2), torch.device("cpu"))
    assert steps.sizes == (3, 2, 1) and steps.order.tolist() == [0, 4, 3, 1, 5, 2]
    back = Steps.of((3, 1, 2), torch.device("cpu"), backwards=True)
    assert back.order.tolist() == [2, 5, 3, 1, 4, 0] and back.order[back.places].tolist() == list(range(6))


def test_half_precision_is_close_and_cells_stay_in_fp32():
    torch.manual_seed(0)
    layer = LSTM(16, 16, 32, cell_clip=3.0, proj_clip=3.0)
    x, steps = torch.randn(40, 16), Steps.of((10,) * 4, torch.device("cpu"))
    exact, _ = layer(x, steps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, (_, c) = layer(x, steps)
    assert out.dtype == c.dtype == torch.float32
    torch.testing.assert_close(out, exact, rtol=0.05, atol=0.02)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


# ---------------------------------------------------------------------------------------- characters and mix


def test_characters_are_bytes_between_marks():
    ids = character_ids(["ab", "é" * 9, ""], 8)
    assert ids.tolist() == [[258, 97, 98, 259, 260, 260, 260, 260], [258, *"ééé".encode(), 259], [258, 259] + [260] * 6]


def test_what_is_not_read_behind_the_longest_word_changes_nothing():
    """Reading two short words alone cuts the filling away; with a long one beside them it is all there."""
    model = net(max_characters_per_token=40)
    short = torch.from_numpy(model.characters(["a", "bc"]))
    both = torch.cat([short, torch.from_numpy(model.characters(["x" * 60]))])
    torch.testing.assert_close(model.embed(short), model.embed(both)[:2], rtol=1e-12, atol=1e-12)


def test_the_mix_is_a_weighted_mean():
    mix = ScalarMix(3).double()
    states = [torch.randn(2, 4, 5).double() for _ in range(3)]
    torch.testing.assert_close(mix(states), sum(states) / 3)
    with torch.no_grad():
        mix.scalars.copy_(torch.tensor([0.5, -1.0, 2.0]))
        mix.gamma.fill_(1.7)
    weights = np.exp([0.5, -1.0, 2.0]) / np.exp([0.5, -1.0, 2.0]).sum()
    torch.testing.assert_close(mix(states), 1.7 * sum(float(a) * s for a, s in zip(weights, states)))
    normed = ScalarMix(3, layer_norm=True).double()
    keep = torch.tensor([[True] * 4, [True, True, False, False]])
    there = [s[keep] for s in states]
    wanted = sum((s - t.mean()) / (t.var(unbiased=False) + 1e-12).sqrt() for s, t in zip(states, there)) / 3
    torch.testing.assert_close(normed(states, keep), wanted)


# ----------------------------------------------------------------------------------------------- the data side


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(["the cat sat on the mat and the dog ran off to a far away land"] * 3, "word", 40)


def example(tok, text, index=0):
    ids = np.array(tok.encode(text, add_special_tokens=False) if isinstance(text, str) else text, dtype="<u2")
    return Sample(f"{index}", {"tokens.u16": ids.tobytes()}, index, "here")


def batch_of(objective, *samples):
    batch = objective.collate([e for s in samples for e in objective.example(s, np.random.default_rng(0))])
    batch.samples, batch.sample_ids = len(samples), [s.index for s in samples]
    return batch


def system(tok, **more):
    torch.manual_seed(0)
    made = polymodal.system("elmo", size="tiny", tokenizer=tok, **({k: v for k, v in SMALL.items() if k != "vocab_size"} | more)).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made.eval()


def naive_loss(made, rows):
    """Both sums of the losses of consecutive rows of one text, word by word, with the states going on."""
    model, head, tok = made.net.trunk, made.net.head, made.objective.tokenizer
    w, c = to_theirs(ALLENNLP.rules(model.config), model.state_dict()), made.net.config
    names = {i: t for t, i in tok.vocabulary().items()}

    @functools.cache
    def vector(token, end):
        return naive_vector(w, c, end if token == c.eos_token_id else names[token])

    def loss(state, target):
        return -head.log_prob(state)[target]

    ahead, back, last, sums = fresh(c), fresh(c), c.eos_token_id, []
    for ids in rows:
        forward = naive_direction(w, c, 0, [vector(t, 256) for t in [last, *ids[:-1]]], ahead)
        backward = naive_direction(w, c, 1, [vector(t, 257) for t in ids[:0:-1]], back)
        targets = [c.bos_token_id if t == c.eos_token_id else t for t in ids[-2::-1]]
        sums.append((sum(loss(h[-1], t) for h, t in zip(forward, ids, strict=True)),
                     sum((loss(h[-1], t) for h, t in zip(backward, targets, strict=True)), torch.zeros(()).double())))
        last = ids[-1]
    return sums


@pytest.mark.parametrize("more", [{}, {"cutoffs": (5, 12), "div_val": 2}])
def test_the_loss_with_states_that_go_on_is_that_of_the_formulas(tok, more):
    made = system(tok, **more)
    eos = tok.eos_id
    rows = [tok.encode("the cat sat on"), [*tok.encode("mat"), eos, *tok.encode("a dog"), eos], tok.encode("the"),
            tok.encode("off to a far")]
    other = [tok.encode("far away"), tok.encode("land"), [eos, eos, 7], tok.encode("and the")]
    carry, wanted = None, [naive_loss(made, text) for text in (rows, other)]
    for n in range(len(rows)):
        both = [(100, other[n]), (0, rows[n])] if n % 2 else [(0, rows[n]), (100, other[n])]  # the rows change places
        batch = batch_of(made.objective, *(example(tok, ids, base + n) for base, ids in both))
        step = made(batch, carry)
        carry = step.carry
        for name, side in (("forward", 0), ("backward", 1)):
            torch.testing.assert_close(step.terms[name].total, sum(text[n][side] for text in wanted), rtol=1e-9, atol=1e-9)
        assert batch.counts == {"targets": len(rows[n]) + len(other[n]), "backward_targets": len(rows[n]) + len(other[n]) - 2}
    assert not any(t.requires_grad for direction in carry["states"] for pair in direction for t in pair)
    without = made(batch).terms["forward"].total
    assert abs(float((without - step.terms["forward"].total).detach())) > 1e-3  # the states matter


def test_a_row_that_continues_nothing_begins_anew(tok):
    made = system(tok)
    first = made(batch_of(made.objective, example(tok, "the cat sat", 3), example(tok, "on the mat", 9)))
    alone = made(batch_of(made.objective, example(tok, "a dog ran", 20)))
    continued = made(batch_of(made.objective, example(tok, "off to a", 4), example(tok, "a dog ran", 20)), first.carry)
    goes_on = made(batch_of(made.objective, example(tok, "off to a", 4)), first.carry)
    for name in ("forward", "backward"):
        torch.testing.assert_close(continued.terms[name].total, alone.terms[name].total + goes_on.terms[name].total)


def test_only_rows_of_whole_words_are_taken(tok):
    config = ElmoConfig(**(SMALL | {"vocab_size": 400}))
    pieces = Tokenizer.train(["a small text of words"] * 5, "wordpiece", 36)
    with pytest.raises(UserError, match="this tokenizer has pieces of words: train one with"):
        WordsObjective(pieces.framed({"eos": "[SEP]"}, "$A:0", "$A:0 $B:0"), config, ElmoSettings())
    with pytest.raises(UserError, match="needs special tokens for eos"):
        WordsObjective(pieces, config, ElmoSettings())
    objective = pickle.loads(pickle.dumps(WordsObjective(tok, config, ElmoSettings(max_length=3))))
    with pytest.raises(UserError, match="is raw text: use `polymodal pack --tokenize"):
        next(objective.example(Sample("a", {"txt": b"the cat"}, 0, "here"), np.random.default_rng(0)))
    with pytest.raises(UserError, match=r"has 4 tokens and objective\.max_length is 3"):
        next(objective.example(example(tok, "the cat sat on"), np.random.default_rng(0)))
    with pytest.raises(UserError, match="max_length is 1"):
        ElmoSettings(max_length=1)


# ------------------------------------------------------------------------------------------------ files


def test_allennlps_files_are_read_and_written(tmp_path):
    """A directory as bilm-tf writes it: names, orders and shapes by hand, not by our rules."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    options = {
        "lstm": {"use_skip_connections": True, "projection_dim": 6, "cell_clip": 3, "proj_clip": 3, "dim": 9, "n_layers": 2},
        "char_cnn": {"activation": "relu", "filters": [[1, 3], [2, 4]], "n_highway": 1, "embedding": {"dim": 4}, "n_characters": 262,
                     "max_characters_per_token": 50},
    }
    shapes = {"char_embed": (261, 4), "CNN/W_cnn_0": (1, 1, 4, 3), "CNN/b_cnn_0": (3,), "CNN/W_cnn_1": (1, 2, 4, 4), "CNN/b_cnn_1": (4,),
              "CNN_high_0/W_transform": (7, 7), "CNN_high_0/b_transform": (7,), "CNN_high_0/W_carry": (7, 7), "CNN_high_0/b_carry": (7,),
              "CNN_proj/W_proj": (7, 6), "CNN_proj/b_proj": (6,)}
    for d in range(2):
        for n in range(2):
            at = f"RNN_{d}/RNN/MultiRNNCell/Cell{n}/LSTMCell"
            shapes |= {f"{at}/W_0": (12, 36), f"{at}/B": (36,), f"{at}/W_P_0": (9, 6)}
    given = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    source = tmp_path / "published"
    source.mkdir()
    (source / "options.json").write_text(json.dumps(options))
    with h5py.File(source / "elmo_small_weights.hdf5", "w") as file:
        for name, array in given.items():
            file.create_dataset(name, data=array)
    model = polymodal.load(source)
    assert (model.architecture, model.config.cell_size, model.config.filters) == ("Elmo", 9, ((1, 3), (2, 4)))
    c = model.config
    w = {name: torch.from_numpy(array).double() for name, array in given.items()}
    xs = [naive_vector(w, c, word) for word in (256, "some", "words", 257)]
    ahead, back = naive_direction(w, c, 0, xs, fresh(c)), naive_direction(w, c, 1, xs[::-1], fresh(c))[::-1]
    out = model.double()(*padded(model, (["some", "words"],)))
    for n in range(2):
        wanted = torch.stack([torch.cat([a[n], b[n]]) for a, b in zip(ahead, back)])[1:-1]
        torch.testing.assert_close(out.hidden_states[n + 1][0], wanted, rtol=1e-9, atol=1e-9)
    frontdoor.save(model.float(), tmp_path / "again", format="allennlp")
    with h5py.File(tmp_path / "again" / "weights.hdf5") as file:
        names = []
        file.visititems(lambda name, entry: names.append(name) if isinstance(entry, h5py.Dataset) else None)
        assert set(names) == set(given) and all(np.array_equal(file[name][()], given[name]) for name in names)
    written = json.loads((tmp_path / "again" / "options.json").read_text())
    assert written == options


@pytest.mark.parametrize(("change", "message"), [
    ({"lstm": {"dim": 9}}, "lstm.projection_dim is missing"),
    ({"char_cnn": {"n_characters": 261}}, "n_characters is 261, expected 262"),
    ({"char_cnn": {"n_characters": 262, "filters": [[1, "a"]]}}, "expected pairs of a width and a number"),
])
def test_options_that_say_too_little_are_refused(tmp_path, change, message):
    (tmp_path / "options.json").write_text(json.dumps({"lstm": {}, "char_cnn": {}} | change))
    with pytest.raises(UserError, match=message):
        polymodal.load(tmp_path)


def test_damaged_weights_are_refused(tmp_path):
    pytest.importorskip("h5py")
    model = Elmo(ElmoConfig(**SMALL))
    frontdoor.save(model, tmp_path / "a", format="allennlp")
    (tmp_path / "a" / "weights.hdf5").write_bytes((tmp_path / "a" / "weights.hdf5").read_bytes()[:2000])
    with pytest.raises(UserError, match="is damaged or no HDF5 file"):
        polymodal.load(tmp_path / "a")
    (tmp_path / "a" / "weights.hdf5").unlink()
    with pytest.raises(UserError, match=r"holds no weights: expected one file called weights\.hdf5"):
        polymodal.load(tmp_path / "a")


def test_the_published_models_shapes():
    """93.6 million parameters (AllenNLP's table of models), without softmax; its row of zeros for padding is not here."""
    with torch.device("meta"):
        model = Elmo(ElmoConfig())
    assert sum(p.numel() for p in model.parameters()) == 93_600_864 - 16


@pytest.mark.parametrize(("more", "message"), [
    ({"filters": ()}, "filters are \\[\\]"), ({"filters": ((0, 3),)}, "filters are"), ({"max_characters_per_token": 3}, "at least 4"),
    ({"cutoffs": (40,)}, "cutoffs are"), ({"hidden_act": "swoosh"}, "hidden_act"), ({"eos_token_id": 30}, "eos_token_id is 30"),
    ({"cutoffs": (5, 9), "div_val": 8}, "leaves nothing"), ({"cell_clip": -1.0}, "cell_clip is -1"),
])
def test_configs_that_cannot_be_built_are_refused(more, message):
    with pytest.raises(UserError, match=message):
        ElmoConfig(**(SMALL | more))
