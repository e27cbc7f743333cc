"""CoVe against the paper written out in plain loops, what generation keeps of it, and what others read of it."""

import polymodal
import pytest
import torch
from polymodal.seq2seq.cove import CoveConfig, CoveForTranslation
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.seq2seq.teacher_forcing import Seq2SeqExample, packed_pairs
from polymodal.shared.attention.cache import KVCache
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text._readers import reader_of, trunk_of
from torch import nn

START, END = 2, 3
TEXTS, TARGETS = ([5, 9, 6, 3], [7, 3], [4, 4, 8, 10, 3]), ([6, 3], [8, 9, 4, 3], [5, 3])


def net(seed=0, **more):
    torch.manual_seed(seed)
    model = CoveForTranslation(CoveConfig(**({"vocab_size": 11, "hidden_size": 6, "dropout": 0.0} | more))).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


# -------------------------------------------------------------------------------- the paper, written out in loops


def lstm_step(weight, bias, x, state):
    h, c = state
    i, f, g, o = (weight @ torch.cat([x, h]) + bias).chunk(4)
    c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def naive_encoder(w, layers, ids):
    """The memory, a row a word; and of each layer both directions' last states."""
    rows = [w["trunk.embed.weight"][i] for i in ids]
    all_layers, ends = [[torch.cat([x, x]) for x in rows]], []
    for n in range(layers):
        ways = []
        for way in ("forwards", "backwards"):
            at = f"trunk.lstm.{way}.{n}"
            weight = torch.cat([w[f"{at}.input_linearity.weight"], w[f"{at}.state_linearity.weight"]], 1)
            nothing = torch.zeros(weight.shape[0] // 4).double()
            state, found = (nothing, nothing), []
            for x in rows if way == "forwards" else rows[::-1]:
                state = lstm_step(weight, w[f"{at}.state_linearity.bias"], x, state)
                found.append(state[0])
            ways.append((found if way == "forwards" else found[::-1], state))
        rows = [torch.cat(pair) for pair in zip(ways[0][0], ways[1][0])]
        ends.append(tuple(torch.cat([ways[0][1][k], ways[1][1][k]]) for k in (0, 1)))
        all_layers.append(rows)
    return rows, ends, all_layers


def naive_logits(w, layers, ids, target):
    """Of each place of a target."""
    memory, states, _ = naive_encoder(w, layers, ids)
    attended, found = torch.zeros(len(memory[0])).double(), []
    for token in [START, *target[:-1]]:
        x = torch.cat([w["decoder.embed.weight"][token], attended])
        for n in range(layers):
            states[n] = lstm_step(w[f"decoder.cells.{n}.linear.weight"], w[f"decoder.cells.{n}.linear.bias"], x, states[n])
            x = states[n][0]
        query = w["decoder.query.weight"] @ x + w["decoder.query.bias"]
        scores = [m @ query for m in memory]
        parts = [torch.exp(s) for s in scores]
        seen = sum(p / sum(parts) * m for p, m in zip(parts, memory))
        attended = torch.tanh(w["decoder.joined.weight"] @ torch.cat([seen, x]) + w["decoder.joined.bias"])
        found.append(w["head.weight"] @ attended + w["head.bias"])
    return torch.stack(found)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_loss_logits_and_gradients_are_the_papers(layers):
    model = net(num_hidden_layers=layers)
    w = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    wanted = sum(nn.functional.cross_entropy(naive_logits(w, layers, x, y), torch.tensor(y), reduction="sum")
                 for x, y in zip(TEXTS, TARGETS))
    system = polymodal.system("cove", size="tiny", vocab_size=11, hidden_size=6, num_hidden_layers=layers, dropout=0.0)
    system.double().net.load_state_dict(model.state_dict())
    batch = packed_pairs([Seq2SeqExample(torch.tensor(x).numpy(), torch.tensor(y).numpy()) for x, y in zip(TEXTS, TARGETS)], START)
    for training in (False, True):
        system.train(training)
        found = system(batch).terms["lm"].total
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    grads = torch.autograd.grad(found, list(system.net.parameters()))
    for name, ours, theirs in zip(w, grads, torch.autograd.grad(wanted, list(w.values())), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")
    for x, y in zip(TEXTS, TARGETS):
        logits = model(torch.tensor([x]), decoder_input_ids=torch.tensor([[START, *y[:-1]]])).logits[0]
        torch.testing.assert_close(logits, naive_logits(w, layers, x, y), rtol=1e-9, atol=1e-11)


def padded(texts, left=False):
    longest = max(map(len, texts))
    rows = [([0] * (longest - len(t)) + t, [0] * (longest - len(t)) + [1] * len(t)) if left else
            (t + [0] * (longest - len(t)), [1] * len(t) + [0] * (longest - len(t))) for t in texts]
    return tuple(torch.tensor(part) for part in zip(*rows))


def test_what_others_read_are_the_layers_of_the_encoder_alone():
    model = net()
    w = dict(model.named_parameters())
    ids, mask = padded(TEXTS)
    hidden = model.trunk(ids, mask, output_hidden_states=True).hidden_states
    for row, text in enumerate(TEXTS):
        for layer, wanted in zip(hidden, naive_encoder(w, 2, text)[2], strict=True):
            torch.testing.assert_close(layer[row, :len(text)], torch.stack(wanted), rtol=1e-9, atol=1e-11)
            assert not layer[row, len(text):].any()


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3, "seed": 1}])
def test_generation_remembers_what_reading_again_finds(options):
    """The states in the cache, against the whole target read anew for every token; padding on either side of a text is not seen."""
    model = net(seed=4)
    for left in (False, True):
        ids, mask = padded(TEXTS, left)
        found = generate_ids(model, ids, mask, max_new_tokens=7, **options)
        again = generate_ids(model, ids, mask, max_new_tokens=7, use_cache=False, **options)
        assert torch.equal(found, again) and len(set(map(tuple, found.tolist()))) > 1
        if not options:
            for row, text in zip(found.tolist(), TEXTS):
                alone = [START]
                while len(alone) < len(row) and (len(alone) == 1 or alone[-1] != END):
                    alone.append(int(naive_logits(dict(model.named_parameters()), 2, text, [*alone[1:], 0])[-1].argmax()))
                assert row == alone + [0] * (len(row) - len(alone))


def test_a_cache_holds_the_last_state():
    cache = KVCache(2, 4)
    for step in range(3):
        for layer in (0, 1):
            cache.append(layer, torch.full((2, 1, 1, 3), 10.0 * layer + step), torch.full((2, 1, 1, 3), -1.0 - step))
        cache.advance(1)
    k, v = cache.last(1)
    assert torch.equal(k, torch.full((2, 3), 12.0)) and torch.equal(v, torch.full((2, 3), -3.0))


def test_the_papers_network_has_its_shapes():
    with torch.device("meta"):
        model = CoveForTranslation(CoveConfig())
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["trunk.embed.weight"] == (50000, 300) and shapes["trunk.lstm.forwards.1.input_linearity.weight"] == (1200, 600)
    assert shapes["decoder.cells.0.linear.weight"] == (2400, 300 + 600 + 600) and shapes["head.weight"] == (50000, 600)
    with pytest.raises(UserError, match="hidden_size is 7, expected an even number"):
        CoveConfig(hidden_size=7)


def test_a_saved_encoder_gives_features_and_the_network_translates(tmp_path):
    tok = Tokenizer.train(["thou art a stone", "you are a stone"], "word", 20, style=STYLES["plain"])
    torch.manual_seed(0)
    built = polymodal.system("cove", size="tiny", tokenizer=tok, hidden_size=8)
    polymodal.save(built.net, tmp_path / "cove", tokenizer=tok)
    tagger = polymodal.system("features", size="tiny", companions={"features": tmp_path / "cove"}, classes=("a", "b"), dropout=0.0).eval()
    source = tagger.companions["features"]
    reader = reader_of(source)
    assert (reader.width, reader.layers) == (8, 3)
    states = reader.states(trunk_of(source.net), reader.collate([["a", "stone"], ["thou"]]), [2, 1])
    alone = built.eval().net.trunk(torch.tensor([tok.encode("a stone")]), output_hidden_states=True).hidden_states
    for layer, other in zip(states, alone, strict=True):
        torch.testing.assert_close(layer[:2], other[0])
    assert [len(tags) for tags in tagger.net.tag([["a", "stone"], ["thou"]])] == [2, 1]
    assert isinstance(polymodal.translate(polymodal.load(tmp_path / "cove"), "thou art", tokenizer=tok, max_new_tokens=4), str)
