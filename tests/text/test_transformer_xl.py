"""Transformer-XL against its paper's formula, written out with loops, and its memory against one pass over the whole text."""

import itertools
import json
import math
import pickle

import numpy as np
import polymodal
import pytest
import torch
from polymodal.pipelines.model import frontdoor
from polymodal.pipelines.model.export import export_system
from polymodal.shared.convert import to_ours, to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import Tokenizer
from polymodal.text._adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from polymodal.text._relative import relative_shift
from polymodal.text.transformer_xl import (
    NETS,
    SegmentObjective,
    SegmentSettings,
    TransfoXLConfig,
    TransfoXLLMHeadModel,
    TransfoXLModel,
    adapt,
)
from torch.nn import functional as F

PLAIN = {"vocab_size": 30, "adaptive": False, "cutoffs": (), "div_val": 1, "d_model": 12, "d_embed": 12, "n_head": 2, "d_head": 5,
         "d_inner": 16, "n_layer": 2, "mem_len": 6, "clamp_len": -1, "same_length": False, "untie_r": False, "dropout": 0.0}
VARIANTS = {
    "plain": {},
    "own biases": {"untie_r": True},
    "pre norm": {"pre_lnorm": True},
    "clamped": {"clamp_len": 4},
    "same length": {"same_length": True},
    "adaptive": {"adaptive": True, "cutoffs": (10, 17)},
    "projected": {"adaptive": True, "cutoffs": (10, 17), "d_embed": 8},
    "projected plain": {"d_embed": 8},
    "narrower clusters": {"adaptive": True, "cutoffs": (10, 17), "d_embed": 8, "div_val": 2},
    "nothing shared": {"adaptive": True, "cutoffs": (10, 17), "d_embed": 8, "div_val": 2, "proj_share_all_but_first": False,
                       "tie_word_embeddings": False, "untie_r": True},
}


def config(**more):
    return TransfoXLConfig(**(PLAIN | more))


def net(seed=0, **more):
    """A language model in fp64 whose weights are large enough that every term matters."""
    torch.manual_seed(seed)
    model = TransfoXLLMHeadModel(config(**more)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def theirs(model):
    return to_theirs(NETS[0].format("transformers").rules(model.config), model.state_dict())


def ids(*shape, seed=1, high=30):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------- the paper, written out


def naive_embedding(w, c, words):
    ends = [0, *c.cutoffs, c.vocab_size]
    rows = []
    for word in words.flatten().tolist():
        cluster = next(i for i in range(len(ends) - 1) if word < ends[i + 1])
        if c.div_val == 1:
            vector = w["transformer.word_emb.emb_layers.0.weight"][word]
            projection = w.get("transformer.word_emb.emb_projs.0")
        else:
            vector = w[f"transformer.word_emb.emb_layers.{cluster}.weight"][word - ends[cluster]]
            projection = w[f"transformer.word_emb.emb_projs.{cluster}"]
        rows.append((vector if projection is None else projection @ vector) * c.d_model**0.5)
    return torch.stack(rows).view(*words.shape, c.d_model)


def distance_vector(c, distance):
    if c.clamp_len > 0:
        distance = min(distance, c.clamp_len)
    # computed in fp32 by the library, as by the references
    steps = torch.arange(0, c.d_model, 2, dtype=torch.float32)
    angles = float(distance) * torch.exp(steps * (-math.log(10000.0) / c.d_model))
    return torch.cat([angles.sin(), angles.cos()]).double()


def naive_layer(w, c, place, x, memory):
    """One layer on one row: x [S, D], memory [M, D]; equations of section 3.3."""
    def normed(name, y):
        return F.layer_norm(y, (c.d_model,), w[f"{place}.{name}.weight"], w[f"{place}.{name}.bias"], c.layer_norm_epsilon)

    prefix = place if c.untie_r else "transformer"
    u, v = (w[f"{prefix}.dec_attn.{n}" if c.untie_r else f"{prefix}.{n}"] for n in ("r_w_bias", "r_r_bias"))
    both = torch.cat([memory, x])
    read = normed("dec_attn.layer_norm", both) if c.pre_lnorm else both
    w_q, w_k, w_v = w[f"{place}.dec_attn.qkv_net.weight"].chunk(3)
    past = len(memory)
    heads = []
    for h in range(c.n_head):
        rows = slice(h * c.d_head, (h + 1) * c.d_head)
        w_r = w[f"{place}.dec_attn.r_net.weight"][rows]
        out = []
        for i in range(len(x)):
            q = w_q[rows] @ read[past + i]
            first = max(0, past + i - c.mem_len + 1) if c.same_length else 0
            scores, values = [], []
            for j in range(first, past + i + 1):
                k, r = w_k[rows] @ read[j], w_r @ distance_vector(c, past + i - j)
                scores.append((q @ k + q @ r + u[h] @ k + v[h] @ r) / c.d_head**0.5)
                values.append(w_v[rows] @ read[j])
            out.append(torch.stack(scores).softmax(0) @ torch.stack(values))
        heads.append(torch.stack(out))
    attended = torch.cat(heads, -1) @ w[f"{place}.dec_attn.o_net.weight"].T
    x = x + attended if c.pre_lnorm else normed("dec_attn.layer_norm", x + attended)
    inner = normed("pos_ff.layer_norm", x) if c.pre_lnorm else x
    inner = F.linear(inner, w[f"{place}.pos_ff.CoreNet.0.weight"], w[f"{place}.pos_ff.CoreNet.0.bias"]).relu()
    inner = F.linear(inner, w[f"{place}.pos_ff.CoreNet.3.weight"], w[f"{place}.pos_ff.CoreNet.3.bias"])
    return x + inner if c.pre_lnorm else normed("pos_ff.layer_norm", x + inner)


def naive_softmax(w, c, hidden):
    """log p [S, V]: the probability of a cluster times that of the word in it."""
    ends = [0, *c.cutoffs, c.vocab_size]

    def part(i):
        if c.div_val == 1:
            weight, bias = (w.get(f"crit.out_layers.0.{n}", w["transformer.word_emb.emb_layers.0.weight"])[ends[i]:ends[i + 1]]
                            for n in ("weight", "bias"))
            shared = w.get("transformer.word_emb.emb_projs.0")
        else:
            weight = w.get(f"crit.out_layers.{i}.weight", w[f"transformer.word_emb.emb_layers.{i}.weight"])
            bias, shared = w[f"crit.out_layers.{i}.bias"], w[f"transformer.word_emb.emb_projs.{i}"]
        return weight, bias, w.get(f"crit.out_projs.{i}", shared)

    def logits(x, weight, bias, projection):
        return (x if projection is None else x @ projection) @ weight.T + bias

    weight, bias, projection = part(0)
    if c.cutoffs:
        weight, bias = torch.cat([weight, w["crit.cluster_weight"]]), torch.cat([bias, w["crit.cluster_bias"]])
    first = logits(hidden, weight, bias, projection).exp()
    first = first / first.sum(-1, keepdim=True)
    words = [first[:, : ends[1]]]
    for i in range(1, len(ends) - 1):
        inside = logits(hidden, *part(i)).exp()
        words.append(first[:, ends[1] + i - 1, None] * inside / inside.sum(-1, keepdim=True))
    return torch.cat(words, -1).log()


def naive(model, segments):
    """Log-probabilities of each segment [B, S, V], with the memory between segments as section 3.2 says."""
    w, c = theirs(model), model.config
    memories = [[torch.zeros(0, c.d_model, dtype=torch.float64)] * c.n_layer for _ in segments[0]]
    outputs = []
    for segment in segments:
        rows = []
        for b, words in enumerate(segment):
            x = naive_embedding(w, c, words)
            for n in range(c.n_layer):
                before = memories[b][n]
                memories[b][n] = torch.cat([before, x])[max(0, len(before) + len(x) - c.mem_len):]
                x = naive_layer(w, c, f"transformer.layers.{n}", x, before)
            rows.append(naive_softmax(w, c, x))
        outputs.append(torch.stack(rows))
    return outputs


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_papers_formula_with_and_without_memory(variant):
    model = net(**VARIANTS[variant])
    segments = [ids(2, n, seed=n) for n in (5, 4, 7, 3)]  # the memory of 6 is empty, part full, and full
    mems = None
    for segment, wanted in zip(segments, naive(model, segments), strict=True):
        out = model(segment, mems)
        torch.testing.assert_close(out.logits, wanted, rtol=1e-9, atol=1e-9)
        mems = out.mems


@pytest.mark.parametrize("variant", ["plain", "clamped", "narrower clusters"])
def test_segments_with_enough_memory_are_one_pass_over_the_text(variant):
    model = net(**VARIANTS[variant], mem_len=40)
    text = ids(3, 40)
    whole = model(text).logits
    mems, parts = None, []
    for segment in text.split([1, 9, 13, 17], 1):
        out = model(segment, mems)
        parts.append(out.logits)
        mems = out.mems
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cut", [(8,) * 5, (1,) * 40, (3, 20, 17)])
def test_with_the_same_length_segments_are_one_pass_with_a_window(cut):
    """Section 3.2: then every token has the same span at every cut; the deepest state depends on n_layer * (mem_len - 1) tokens."""
    model = net(same_length=True, mem_len=7)
    text = ids(2, 40)
    whole = model(text).logits
    mems, parts = None, []
    for segment in text.split(cut, 1):
        out = model(segment, mems)
        parts.append(out.logits)
        mems = out.mems
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-9)
    changed = text.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 30
    moved = (model(changed).logits != whole).any(-1).any(0).nonzero()[:, 0].tolist()
    assert moved == list(range(5, 5 + 2 * 6 + 1))


def test_positions_are_distances_a_text_may_stand_anywhere():
    """Appendix B's shift: entry (i, j) is the score of distance M + i - j, for a memory of any length."""
    for queries, keys in ((1, 1), (4, 4), (3, 8), (1, 5)):
        columns = torch.arange(keys - 1, -1, -1).expand(2, 3, queries, keys).contiguous()
        shifted = relative_shift(columns, keys)
        for i, j in itertools.product(range(queries), range(keys)):
            if j <= keys - queries + i:
                assert (shifted[..., i, j] == keys - queries + i - j).all()
        both = torch.arange(keys - 1, -queries, -1).expand(1, 1, queries, keys + queries - 1).contiguous()  # XLNet: also backwards
        assert relative_shift(both, keys)[0, 0].tolist() == [[keys - queries + i - j for j in range(keys)] for i in range(queries)]


def test_padding_and_the_other_rows_change_nothing():
    model = net()
    long, short = ids(1, 9, seed=3), ids(1, 5, seed=4)
    batch = torch.cat([long, F.pad(short, (0, 4), value=7)])
    keep = torch.arange(9) < torch.tensor([[9], [5]])
    out = model(batch, None, keep)
    for row, alone in enumerate((long, short)):
        one = model(alone)
        torch.testing.assert_close(out.logits[row, : alone.shape[1]], one.logits[0], rtol=1e-9, atol=1e-9)
        follow = ids(1, 4, seed=5)
        mems = type(out.mems)(tuple(s[row:row + 1] for s in out.mems.states), out.mems.keep[row:row + 1])
        torch.testing.assert_close(model(follow, mems).logits, model(follow, one.mems).logits, rtol=1e-9, atol=1e-9)
    assert out.mems.keep.tolist() == [[True] * 6, [False] + [True] * 5]


def test_the_memory_is_detached_and_holds_the_input_of_every_layer():
    model = net()
    out = model.trunk(ids(2, 4), output_hidden_states=True)
    assert not any(s.requires_grad for s in out.mems.states) and out.last_hidden_state.requires_grad
    assert [tuple(s.shape) for s in out.mems.states] == [(2, 6, 12)] * 2
    for state, hidden in zip(out.mems.states, out.hidden_states, strict=False):
        assert torch.equal(state[:, 2:], hidden)
    assert out.mems.keep.tolist() == [[False] * 2 + [True] * 4] * 2
    # what is remembered moves the next segment; its keys and values take part in the gradient, the states do not
    second = model(ids(2, 4, seed=2), out.mems).logits
    assert not torch.allclose(second, model(ids(2, 4, seed=2)).logits)
    weight = model.trunk.layers[0].attention.qkv.weight
    with_memory = torch.autograd.grad(second.square().sum(), weight)[0]
    w, c = theirs(model), model.config
    assert w["transformer.layers.0.dec_attn.qkv_net.weight"].shape == (3 * c.n_head * c.d_head, c.d_model)
    k_rows = slice(c.n_head * c.d_head, 2 * c.n_head * c.d_head)
    alone = torch.autograd.grad(model(ids(2, 4, seed=2)).logits.square().sum(), weight)[0]
    assert not torch.allclose(with_memory[k_rows], alone[k_rows])


def test_the_memory_can_be_set_for_evaluation():
    model = net(mem_len=4)
    text = ids(1, 40)
    model.memory_length = 40
    parts, mems = [], None
    for segment in text.split(8, 1):
        out = model(segment, mems)
        parts.append(out.logits)
        mems = out.mems
    torch.testing.assert_close(torch.cat(parts, 1), net(mem_len=4)(text).logits, rtol=1e-9, atol=1e-9)
    model.memory_length = 3  # a longer memory that is at hand is used once more, then shortened
    assert model(text[:, :5], mems).mems.keep.shape == (1, 3)
    model.memory_length = 0
    assert model(text[:, :5], mems).mems is None
    with pytest.raises(UserError, match="memory_length is -1"):
        model.memory_length = -1


# -------------------------------------------------------------------------------------- the adaptive softmax


@pytest.mark.parametrize(("width", "div_val", "tied"), [(8, 1, True), (6, 1, True), (6, 1, False), (8, 2, True), (8, 2, False)])
@pytest.mark.parametrize("cutoffs", [(), (5,), (5, 11, 12)])
def test_losses_of_the_adaptive_softmax_are_those_of_its_probabilities(width, div_val, tied, cutoffs):
    torch.manual_seed(0)
    embedding = AdaptiveEmbedding(20, width, 8, cutoffs, div_val)
    softmax = AdaptiveSoftmax(embedding, tie_words=tied, tie_projections=tied)
    for parameter in [*embedding.parameters(), *softmax.parameters()]:
        torch.nn.init.normal_(parameter)
    softmax.double()
    hidden = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.cat([torch.arange(20), ids(26, high=20), torch.tensor([-100] * 4)])[torch.randperm(50)]
    log_p = softmax.log_prob(hidden)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(50, dtype=torch.float64))
    wanted = torch.where(targets < 0, 0.0, -log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0])
    torch.testing.assert_close(softmax.nll(hidden, targets), wanted)  # in the order of the input
    loss = softmax.loss(hidden, targets)
    torch.testing.assert_close(loss, wanted.sum())
    parameters = [hidden, *softmax.parameters()]
    for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted.sum(), parameters), strict=True):
        torch.testing.assert_close(a, b)


def test_every_parameter_has_a_gradient_even_where_a_cluster_does_not_occur():
    model = net(**VARIANTS["narrower clusters"])
    hidden = model.trunk(ids(2, 4, high=10)).last_hidden_state
    model.head.loss(hidden.flatten(0, 1), ids(8, high=10)).backward()
    assert all(p.grad is not None for p in model.parameters())


# ------------------------------------------------------------------------------------------------ the rules


def reference_keys(c):
    """The state dict of transformers 4.35's TransfoXLLMHeadModel: names and shapes, tied tensors under every name."""
    heads, ends = c.n_head * c.d_head, [0, *c.cutoffs, c.vocab_size]
    keys = {"transformer.pos_emb.inv_freq": (c.d_model // 2,)}
    sizes = [(c.vocab_size, c.d_embed)] if c.div_val == 1 else [
        (b - a, c.d_embed // c.div_val**i) for i, (a, b) in enumerate(itertools.pairwise(ends))]
    for i, (rows, width) in enumerate(sizes):
        keys |= {f"transformer.word_emb.emb_layers.{i}.weight": (rows, width), f"crit.out_layers.{i}.weight": (rows, width),
                 f"crit.out_layers.{i}.bias": (rows,)}
        if c.div_val > 1 or c.d_embed != c.d_model:
            keys[f"transformer.word_emb.emb_projs.{i}"] = (c.d_model, width)
    for i in range(len(ends) - 1):
        if c.div_val > 1 or c.d_embed != c.d_model:
            keys[f"crit.out_projs.{i}"] = (c.d_model, sizes[min(i, len(sizes) - 1)][1])
    if c.cutoffs:
        keys |= {"crit.cluster_weight": (len(c.cutoffs), c.d_embed), "crit.cluster_bias": (len(c.cutoffs),)}
    if not c.untie_r:
        keys |= {"transformer.r_w_bias": (c.n_head, c.d_head), "transformer.r_r_bias": (c.n_head, c.d_head)}
    for n in range(c.n_layer):
        at = f"transformer.layers.{n}"
        keys |= {f"{at}.dec_attn.qkv_net.weight": (3 * heads, c.d_model), f"{at}.dec_attn.o_net.weight": (c.d_model, heads),
                 f"{at}.dec_attn.r_net.weight": (heads, c.d_model),
                 f"{at}.dec_attn.r_w_bias": (c.n_head, c.d_head), f"{at}.dec_attn.r_r_bias": (c.n_head, c.d_head),
                 f"{at}.pos_ff.CoreNet.0.weight": (c.d_inner, c.d_model), f"{at}.pos_ff.CoreNet.0.bias": (c.d_inner,),
                 f"{at}.pos_ff.CoreNet.3.weight": (c.d_model, c.d_inner), f"{at}.pos_ff.CoreNet.3.bias": (c.d_model,)}
        keys |= {f"{at}.{norm}.layer_norm.{p}": (c.d_model,) for norm in ("dec_attn", "pos_ff") for p in ("weight", "bias")}
    return keys


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_rules_connect_every_key_both_ways(variant):
    model = net(**VARIANTS[variant])
    rules, wanted = NETS[0].format("transformers").rules(model.config), reference_keys(model.config)
    written = theirs(model)
    assert {k: tuple(v.shape) for k, v in written.items()} == {k: wanted[k] for k in written}
    tied = set(wanted) - set(written)
    assert all("out_layers" in k or "out_projs" in k or k.endswith("inv_freq") for k in tied)  # what transformers ties by itself
    state = model.state_dict()
    full = {k: written.get(k, torch.zeros(v)) for k, v in wanted.items()}
    for key in tied - {"transformer.pos_emb.inv_freq"}:
        i = int(key.split(".")[2])
        part = "emb_layers" if "layers" in key else "emb_projs"
        place = f"transformer.word_emb.{part}.{i if model.config.div_val > 1 or 'layers' in key else 0}"
        full[key] = written[f"{place}.weight" if "layers" in key else place]
    for given in (written, full):  # with and without the names of tied tensors
        back = to_ours(rules, given)
        assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)
    with pytest.raises(UserError, match=r"unexpected keys: crit\.other"):
        to_ours(rules, written | {"crit.other": torch.zeros(1)})
    trunk = to_theirs(NETS[1].format("transformers").rules(model.config), model.trunk.state_dict())
    assert {f"transformer.{k}" for k in trunk} == {k for k in written if k.startswith("transformer.")}


@pytest.mark.parametrize("variant", ["plain", "narrower clusters", "nothing shared"])
def test_an_export_loads_here(tmp_path, tok, variant):
    torch.manual_seed(0)
    system = polymodal.system("transformer_xl", size="tiny", tokenizer=tok, **{k: v for k, v in (PLAIN | VARIANTS[variant]).items()
                                                                               if k != "vocab_size"})
    export_system(system, tmp_path / "out", tok)
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (record["model_type"], record["architectures"]) == ("transfo-xl", ["TransfoXLLMHeadModel"])
    shares = VARIANTS[variant].get("proj_share_all_but_first", True)
    assert record["tie_projs"] == [False] + [shares] * len(record["cutoffs"]) and record["attn_type"] == 0
    loaded = polymodal.load(tmp_path / "out")
    assert loaded.config == system.net.config
    batch = ids(2, 7, high=tok.vocab_size)
    torch.testing.assert_close(loaded(batch).logits, system.eval().net(batch).logits)
    frontdoor.save(loaded, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_configs_that_are_not_computed_are_refused():
    record = {"cutoffs": [10, 17], "vocab_size": 30, "d_model": 12, "tie_projs": [False, True, True]}
    assert TransfoXLConfig.from_dict(record).proj_share_all_but_first
    assert not TransfoXLConfig.from_dict(record | {"tie_projs": [False, False, False]}).proj_share_all_but_first
    assert TransfoXLConfig.from_dict(record | {"tie_weight": False}).tie_word_embeddings is False
    assert TransfoXLConfig.from_dict(record).to_dict()["tie_projs"] == [False, True, True]
    for more, message in (({"attn_type": 2}, "attn_type = 2 is not supported"), ({"sample_softmax": 100}, "sample_softmax = 100"),
                          ({"tie_projs": [True, True, True]}, "expected the first false"),
                          ({"tie_projs": [False, True, False]}, "tie_projs"),
                          ({"proj_share_all_but_first": False}, "the two to agree"), ({"ext_len": 3}, "ext_len = 3"),
                          ({"cutoffs": [17, 10]}, "expected ascending ids"), ({"cutoffs": [10, 30]}, "below vocab_size 30"),
                          ({"d_model": 13}, "even number"), ({"adaptive": False}, "adaptive is off"), ({"mem_len": -1}, "mem_len is -1"),
                          ({"div_val": 64}, "leaves nothing"), ({"secret": 3}, "key secret = 3 is unknown")):
        with pytest.raises(UserError, match=message):
            TransfoXLConfig.from_dict(record | more)


def test_initialisation_is_the_references():
    torch.manual_seed(0)
    model = TransfoXLLMHeadModel(config(d_model=64, d_embed=48, d_inner=64, vocab_size=400, adaptive=True, cutoffs=(100,), n_head=8))
    for name, parameter in model.named_parameters():
        if "norm.weight" in name:
            assert abs(float(parameter.detach().mean()) - 1) < 0.01 and 0.01 < float(parameter.detach().std()) < 0.03
        elif name.endswith((".bias", "cluster_bias")) or "biases" in name:
            assert not parameter.any()
        elif parameter.numel() > 1000:
            assert float(parameter.detach().std()) == pytest.approx(0.01 if "projections" in name else 0.02, rel=0.1), name
    torch.manual_seed(0)
    uniform = TransfoXLModel(config(init="uniform", init_range=0.03)).layers[0].feed_forward.up.weight
    assert float(uniform.detach().abs().max()) == pytest.approx(0.03, rel=0.05)


# --------------------------------------------------------------------------------------- data side and system


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(["a small text of some words, again and again"] * 5, "byte-bpe", 270)


def row(number, tokens, high=270):
    data = np.random.default_rng(number).integers(high, size=tokens).astype("<u2")
    return Sample(str(number), {"tokens.u16": data.tobytes(), "lengths.u32": np.array([tokens], "<u4").tobytes()}, number)


def system(tok, seed=0, **more):
    torch.manual_seed(seed)
    built = polymodal.system("transformer_xl", size="tiny", tokenizer=tok, **{k: v for k, v in (PLAIN | more).items() if k != "vocab_size"})
    return built.double()


def batch_of(system, rows, numbers):
    batch = system.objective.collate([e for r in rows for e in system.objective.example(r, np.random.default_rng(0))])
    batch.sample_ids = list(numbers)
    return batch


def test_a_sample_is_a_segment_whose_every_token_is_predicted(tok):
    objective = SegmentObjective(tok, SegmentSettings())
    assert objective.sequential and pickle.loads(pickle.dumps(objective)).max_length is None
    examples = [next(objective.example(row(n, length), np.random.default_rng(0))) for n, length in ((0, 8), (1, 3))]
    batch = objective.collate(examples)
    assert batch.counts == {"targets": 11} and batch.tokens == 11 and not batch.full
    assert batch.keep.sum(1).tolist() == [8, 3] and batch.ids[1, :3].tolist() == examples[1].ids.tolist()
    assert objective.collate(examples[:1]).full
    with pytest.raises(UserError, match="is raw text: use `polymodal pack --tokenize TOKENIZER --block 64 --in-order`"):
        next(objective.example(Sample("x", {"txt": b"a text"}), np.random.default_rng(0)))
    with pytest.raises(UserError, match=r"has 8 tokens and objective\.max_length is 4: pack with --block 4"):
        next(SegmentObjective(tok, SegmentSettings(4)).example(row(0, 8), np.random.default_rng(0)))


@pytest.mark.parametrize("mem_len", [0, 5, 12])
def test_the_system_is_the_formula_on_the_running_text(tok, mem_len):
    """Rows go on from the row of the sample before, wherever it stood; every token is a target once; a new row begins with eos.

    Sample 10 is not in the last batch but one, so 11 begins anew.
    """
    s = system(tok, mem_len=mem_len).eval()
    samples = {i: row(i, 5 if i % 4 else 7) for i in range(20)}
    plan = [[0, 8, 4], [1, 9, 5], [6, 2, 10], [3, 7], [15, 11, 8]]  # order changes, a lane ends, one jumps, one begins again
    carry, losses = None, {}
    for numbers in plan:
        batch = batch_of(s, [samples[i] for i in numbers], numbers)
        step = s(batch, carry)
        first, mems = s._continued(batch, carry)
        hidden = s.net.trunk(s._inputs(batch, first), mems, batch.keep).last_hidden_state
        nll = s.net.head.nll(hidden.flatten(0, 1), batch.ids.flatten()).view(batch.ids.shape)
        torch.testing.assert_close(step.terms["lm"].total, (nll * batch.keep).sum())
        for i, r, keep in zip(numbers, nll, batch.keep, strict=True):
            losses.setdefault(i, r[keep].detach())
        carry = step.carry
        assert carry["ids"] == numbers and carry["last"].tolist() == [samples[i].tokens()[0][-1] for i in numbers]
    for lane in ([0, 1, 2, 3], [8, 9, 10], [4, 5, 6, 7], [15], [11]):
        targets = [torch.tensor(samples[i].tokens()[0]) for i in lane]
        text = torch.cat([torch.tensor([tok.eos_id]), *targets])
        cut = torch.cat(targets).split([len(t) for t in targets])
        segments = [piece[None] for piece in text[:-1].split([len(t) for t in targets])]
        for i, out, target in zip(lane, naive(s.net, segments), cut, strict=True):
            torch.testing.assert_close(losses[i], -out[0].gather(1, target[:, None])[:, 0], rtol=1e-9, atol=1e-9)


def test_the_loss_does_not_depend_on_how_lanes_are_dealt(tok):
    """Any micro-batches, and one carry with the rows of all of them, as after a change of layout."""
    from polymodal.pipelines.run.trees import join_rows

    s = system(tok).eval()
    samples = [[row(lane * 10 + t, 6) for lane in range(4)] for t in range(3)]

    def run(parts):
        carries, total, gradient = {}, 0.0, 0.0
        for t in range(3):
            if t == 2:  # the layout changes
                carries = dict.fromkeys(range(4), join_rows(list(carries.values())))
                parts = [[3, 1], [0], [2]] if len(parts) == 2 else [[0, 1, 2, 3]]
            for p, lanes in enumerate(parts):
                step = s(batch_of(s, [samples[t][lane] for lane in lanes], [lane * 10 + t for lane in lanes]), carries.get(p))
                carries[p] = step.carry
                total += float(step.terms["lm"].total.detach())
                gradient = gradient + torch.autograd.grad(step.terms["lm"].total, s.net.trunk.layers[0].attention.r.weight)[0]
        return total, gradient

    (a, grad_a), (b, grad_b), (c, grad_c) = run([[0, 1, 2, 3]]), run([[0, 2], [1, 3]]), run([[0], [1], [2], [3]])
    assert a == pytest.approx(b, rel=1e-12) and a == pytest.approx(c, rel=1e-12)
    torch.testing.assert_close(grad_a, grad_b)
    torch.testing.assert_close(grad_a, grad_c)


def test_tokens_from_the_future_do_not_leak(tok):
    s = system(tok).eval()
    a, b = row(0, 6), row(1, 6)
    first = s(batch_of(s, [a], [0]))
    changed = row(1, 6)
    changed.fields = {"tokens.u16": np.array([*b.tokens()[0][:-1], 3], "<u2").tobytes()}
    losses = []
    for sample in (b, changed):
        batch = batch_of(s, [sample], [1])
        start, mems = s._continued(batch, first.carry)
        hidden = s.net.trunk(s._inputs(batch, start), mems).last_hidden_state
        losses.append(s.net.head.nll(hidden[0], batch.ids[0]))
    assert torch.equal(losses[0][:-1], losses[1][:-1])


def test_it_learns_a_text_by_heart_and_needs_its_memory(tok):
    """A period of 12 tokens in segments of 4 that differ in their first token only: which one comes stands in the memory."""
    s = system(tok, d_model=32, d_embed=32, d_head=16, d_inner=64, mem_len=8, init_std=0.1).float()
    period = np.array([5, 9, 9, 9, 6, 9, 9, 9, 7, 9, 9, 9], dtype="<u2")

    def segments(t):
        rows = [np.roll(period, -(lane * 5 + t * 4))[:4] for lane in range(4)]
        return batch_of(s, [Sample("", {"tokens.u16": r.tobytes()}) for r in rows], [lane * 1000 + t for lane in range(4)])

    optimizer = torch.optim.Adam(s.parameters(), 3e-3)
    carry = None
    for t in range(240):
        step = s(segments(t), carry)
        carry = step.carry
        (step.terms["lm"].total / 16).backward()
        optimizer.step()
        optimizer.zero_grad()
    s.eval()
    with torch.no_grad():
        known = float(s(segments(240), carry).terms["lm"].total) / 16
        alone = float(s(segments(240)).terms["lm"].total) / 16
        s.net.memory_length = 2  # too short to tell the place
        for t in range(240, 243):
            step = s(segments(t), carry)
            carry = step.carry
        short = float(step.terms["lm"].total) / 16
    assert known < 0.05 < 0.25 < min(alone, short)


def test_settings_and_data_that_do_not_fit(tok):
    with pytest.raises(UserError, match="max_length is 0"):
        polymodal.system("transformer_xl", size="tiny", tokenizer=tok, objective={"max_length": 0})
    from polymodal.shared.family import Context

    assert adapt(TransfoXLConfig(), Context(tok)).cutoffs == () and adapt(TransfoXLConfig(), Context(tok)).vocab_size == tok.vocab_size
    assert adapt(TransfoXLConfig(cutoffs=(100, 200, 1000)), Context(tok)).cutoffs == (100, 200)
