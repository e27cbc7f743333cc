"""Reformer: hashes, what is near, reversible layers, texts of any length, generation, and what it can do that local attention cannot."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from polymodal.pipelines.plan.rehearsal import rehearse
from polymodal.pipelines.run.optim import OptimSettings
from polymodal.registry import family
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.shared.errors import UserError
from polymodal.shared.family import Context
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer
from polymodal.text._hashing import LONELY, Nearby, attend_nearby, bucket_factors, buckets, order_by, rotation
from polymodal.text._reversible import reversible
from polymodal.text._sorted import Rows
from polymodal.text.next_token import CausalSettings
from polymodal.text.reformer import HashedBatch, HashedObjective, ReformerModelWithLMHead, ReformerSystem
from polymodal.text.reformer_config import ReformerConfig

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 2, "attention_head_size": 8, "feed_forward_size": 48,
         "axial_pos_shape": (8, 16), "axial_pos_embds_dim": (12, 20), "max_position_embeddings": 128, "lsh_attn_chunk_length": 8,
         "local_attn_chunk_length": 4, "attn_layers": ("local", "lsh", "lsh"), "num_hashes": 2, "is_decoder": True, "axial_norm_std": 0.3,
         "initializer_range": 0.2, "hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0}


def config(**more):
    return ReformerConfig(**(SMALL | more))


def model(**more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ReformerModelWithLMHead(config(**more)).double().eval()


def ids(*shape, seed=1, high=50):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def batch_of(lengths, seed=0, high=50):
    row = ids(1, sum(lengths), seed=seed, high=high)
    places = torch.cat([torch.arange(n) for n in lengths])[None]
    return HashedBatch(counts={"targets": sum(lengths)}, tokens=sum(lengths), input_ids=row, position_ids=places, lengths=tuple(lengths),
                       targets=ids(sum(lengths), seed=seed + 1, high=high), seeds=tuple(range(7, 7 + len(lengths))))


# ---------------------------------------------------------------------------------------------- hashing


def test_equal_vectors_share_a_bucket_and_opposite_ones_do_not():
    x = torch.randn(1, 2, 40, 8, generator=torch.Generator().manual_seed(0))
    for factors in ((8,), (4, 4), (2, 8, 4)):
        turned = torch.stack([rotation(n, 2, 8, 3, factors) for n in range(1)])
        found = buckets(x, turned, factors)
        assert found.shape == (1, 2, 3, 40) and int(found.min()) >= 0 and int(found.max()) < np.prod(factors)
        assert torch.equal(found, buckets(3 * x, turned, factors)) and not (found == buckets(-x, turned, factors)).any()


def test_buckets_are_drawn_evenly_and_near_vectors_share_them_more_often():
    """10^5 random rotations, one for each head: chi square with 15 degrees of freedom at 0.001; two vectors of a cosine of 0.9, 0.5, 0."""
    heads, generator = 100_000, torch.Generator().manual_seed(3)
    turned = rotation(5, heads, 8, 1, (16,))[None]
    x = torch.eye(8)[0].expand(1, heads, 1, 8)
    found = buckets(x, turned, (16,)).flatten()
    rotated = turned[0, :, 0, 0]
    assert torch.equal(found, torch.cat([rotated, -rotated], -1).argmax(-1)), "the paper's hash"
    counts = torch.bincount(found, minlength=16).double()
    assert float(((counts - heads / 16) ** 2).sum() / (heads / 16)) < 37.70
    noise = torch.randn(1, heads, 1, 8, generator=generator)
    noise[..., 0] = 0
    noise = F.normalize(noise, dim=-1)
    mixed = [c * x + (1 - c * c) ** 0.5 * noise for c in (0.9, 0.5, 0.0)]
    shares = [float((found == buckets(vectors, turned, (16,)).flatten()).double().mean()) for vectors in mixed]
    assert shares[0] > 0.4 > shares[1] > 0.12 > shares[2] and shares[2] == pytest.approx(1 / 16, abs=3.29 * (1 / 16 / heads) ** 0.5)


def test_the_number_of_buckets_and_of_products():
    """About two buckets for each chunk; the numbers of products for a token grow as the logarithm of the length."""
    assert [bucket_factors(64 * n, 64) for n in (1, 2, 3, 64, 65, 1000)] == [(2,), (4,), (4,), (128,), (128,), (32, 32)]
    for power in range(6, 40):
        factors = bucket_factors(1 << power, 64)
        assert np.prod(factors, dtype=object) == 2 ** (power - 5) and max(factors) <= 128 and sum(factors) <= 128 * (power // 7 + 1)


def test_tokens_are_sorted_by_bucket_then_place_and_padding_is_last():
    found = torch.tensor([[[[2, 0, 2, 1, 0, 3]]]])
    assert order_by(found, None).tolist() == [[[1, 4, 3, 0, 2, 5]]]
    assert order_by(found, torch.tensor([[True] * 4 + [False] * 2])).tolist() == [[[1, 3, 0, 2, 4, 5]]]


# ------------------------------------------------------------------------------------------- attention


def dense(q, k, v, order, near, keep):
    """The same as one softmax for each token over the keys of all rounds, token by token."""
    out = torch.zeros_like(v)
    batch, heads, length, size = v.shape
    for b, h in np.ndindex(batch, heads):
        places = (torch.arange(length) if order is None else order[b, h].long()).view(-1, near.chunk)
        scores, seen = [[] for _ in range(length)], [[] for _ in range(length)]
        for c, chunk in enumerate(places):
            keys = torch.cat([places[(c + n) % len(places)] for n in range(-near.before, near.after + 1)]).tolist()
            for i in chunk.tolist():
                for j in keys:
                    if (near.causal and j > i) or (keep is not None and not keep[b, j]):
                        continue
                    seen[i].append(j)
                    scores[i].append(q[b, h, i] @ k[b, h, j] / size**0.5 - (LONELY if near.alone and i == j else 0))
        for i in range(length):
            if seen[i]:
                out[b, h, i] = torch.stack(scores[i]).softmax(0) @ v[b, h, seen[i]]
    return out


@pytest.mark.parametrize(("rounds", "before", "after", "causal", "alone"), [
    (0, 1, 0, True, False), (0, 1, 1, False, False), (0, 0, 0, True, False), (1, 1, 0, True, True), (3, 1, 0, True, True),
    (2, 1, 1, False, True), (2, 2, 0, True, True)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kernel", [True, False])
def test_attention_and_its_gradient_are_one_softmax_over_all_rounds(rounds, before, after, causal, alone, padded, kernel, monkeypatch):
    """By torch's kernel, and in tiles of two chunks."""
    if not kernel:
        monkeypatch.setattr("polymodal.text._hashing.is_short_half", lambda q, size: True)
        monkeypatch.setattr("polymodal.text._hashing.TILE", 2 * 4 * 4 * (before + 1 + after))
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(2, 2, 16, 6, generator=generator, dtype=torch.float64) for _ in range(4))
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    keep = torch.arange(16) < torch.tensor([[16], [11]]) if padded else None
    order = order_by(torch.randint(4, (2, 2, rounds, 16), generator=generator), keep) if rounds else None
    near = Nearby(4, before, after, causal, alone)
    found, expected = attend_nearby(q, k, v, order, near, keep), dense(q, k, v, order, near, keep)
    rows = torch.ones(2, 16, dtype=torch.bool) if keep is None else keep
    g = g * rows[:, None, :, None]  # nobody reads what stands at padding
    torch.testing.assert_close(found * (g != 0), expected * (g != 0), rtol=1e-9, atol=1e-9)
    for a, b in zip(torch.autograd.grad(found, (q, k, v), g), torch.autograd.grad(expected, (q, k, v), g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_dropout_drops_the_share_and_the_backward_pass_has_the_same_draws():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 2, 64, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    near, order = Nearby(16, 1, 0, causal=False, alone=True), order_by(torch.randint(4, (2, 2, 2, 64), generator=generator), None)
    v = torch.eye(64, dtype=torch.float64).expand(2, 2, -1, -1).requires_grad_()  # so that the output is the weights

    def run():
        torch.manual_seed(5)
        return attend_nearby(q, k, v, order, near, dropout=0.25)

    whole = attend_nearby(q, k, v, order, near)
    weights = [run() for _ in range(2)]
    assert torch.equal(*weights)
    torch.manual_seed(6)
    kept = sum(attend_nearby(q, k, v, order, near, dropout=0.25).detach() for _ in range(200)) / 200
    assert float(((kept - whole).abs().mean() / whole.mean()).detach()) < 0.1 and not torch.allclose(weights[0], whole)
    g = torch.randn(weights[0].shape, generator=generator, dtype=torch.float64)
    (d_v,) = torch.autograd.grad(run(), v, g)
    torch.testing.assert_close(d_v, weights[0].detach().transpose(2, 3) @ g)


# ------------------------------------------------------------------------------------------- reversible


@pytest.mark.parametrize("piece", [0, 5])
def test_gradients_and_dropout_are_those_of_layers_that_keep_everything(piece):
    net = model(hidden_dropout_prob=0.3, lsh_attention_probs_dropout_prob=0.2, local_attention_probs_dropout_prob=0.2,
                chunk_size_feed_forward=piece).trunk.train()
    x = torch.randn(2, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    of_rows = Rows(None, *net._rotations(32, [1, 2], x.device))

    def halves():
        return [half for block in net.blocks for half in block.halves(of_rows, piece)]

    def plain(x):
        a = b = x
        for half in halves():
            a, b = b, a + torch.cat([half.function(part, []) for part in half.parts(b)], 1)
        return torch.cat([a, b], -1)

    found = []
    for run in (lambda x: reversible(x, halves()), plain):
        net.zero_grad()
        leaf = x.clone().requires_grad_()
        torch.manual_seed(3)
        out = run(leaf)
        after = torch.rand(1)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
        found.append([out, leaf.grad, after, *(p.grad.clone() for block in net.blocks for p in block.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    torch.manual_seed(4)
    assert not torch.allclose(reversible(x, halves()), found[0][0]), "there is no dropout"


def test_frozen_layers_have_no_gradient_and_the_others_the_same():
    nets = [model().train() for _ in range(2)]
    nets[1].trunk.layers[1].requires_grad_(False)
    for net in nets:
        net(ids(2, 32)).logits.square().sum().backward()
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert b.grad is None if ".layers.1." in name else torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize(("piece", "chunk"), [(7, 0), (0, 9), (16, 16)])
def test_chunks_change_neither_the_loss_nor_its_gradient(piece, chunk):
    found = []
    for more in ({}, {"chunk_size_feed_forward": piece, "chunk_size_lm_head": chunk}):
        system = ReformerSystem(model(**more), HashedObjective.__new__(HashedObjective)).train()
        total = system(batch_of((32, 20))).terms["lm"].total
        total.backward()
        found.append([total, *(p.grad for p in system.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_layers():
    """What is kept for the backward pass of 4, 8 and 16 layers: of a layer more, the order of its tokens alone, 4 bytes for each round."""
    kept = {}
    for layers in (4, 8, 16):
        with torch.device("meta"):
            c = config(attn_layers=("local", "lsh") * (layers // 2), axial_pos_shape=(32, 32), max_position_embeddings=1024,
                       feed_forward_size=64, hidden_dropout_prob=0.1, lsh_attn_chunk_length=64, local_attn_chunk_length=64)
            net = ReformerModelWithLMHead(c)
        weights = 4 * sum(p.numel() for block in net.trunk.blocks for p in block.parameters())
        system = ReformerSystem(net, HashedObjective.__new__(HashedObjective))
        found = rehearse(system, [[batch_of((1024, 1024))]], OptimSettings(name="adamw"), passes=1, precision="32")
        kept[layers] = found.activations - weights  # the gradients of all layers come together
    stream, order = 4 * 32 * 2048, 4 * 2 * 2 * 2048  # bytes x width x tokens, bytes x heads x rounds x tokens
    assert kept[4] > 4 * stream, "nothing was counted"
    states = 2 * 5056  # of the generator before both halves
    assert kept[16] - kept[8] <= 4 * order + 8 * states + 4096 and kept[8] - kept[4] <= 2 * order + 4 * states + 4096, kept
    assert kept[16] < 1.1 * kept[4], kept


# --------------------------------------------------------------------------------------- texts of any length


@pytest.mark.parametrize("decodes", [True, False])
def test_a_text_does_not_depend_on_padding_or_on_its_neighbours(decodes):
    net = model().trunk if decodes else model(is_decoder=True).trunk
    if not decodes:
        net = type(net)(config(is_decoder=False, lsh_num_chunks_after=1, local_num_chunks_after=1)).double().eval()
    lengths = (3, 33, 4, 128, 40, 33)
    texts = [ids(1, n, seed=n + k) for k, n in enumerate(lengths)]
    seeds = tuple(range(len(lengths)))
    alone = [net(text, seeds=[seed]).last_hidden_state for text, seed in zip(texts, seeds)]
    row = net(torch.cat(texts, 1), lengths=lengths, seeds=seeds).last_hidden_state
    torch.testing.assert_close(row, torch.cat(alone, 1), rtol=1e-9, atol=1e-9)
    for side in ("right", "left"):
        padded = torch.stack([F.pad(t[0], (0, 128 - t.shape[1]) if side == "right" else (128 - t.shape[1], 0), value=9) for t in texts])
        mask = torch.stack([F.pad(torch.ones(n), (0, 128 - n) if side == "right" else (128 - n, 0)) for n in lengths])
        out = net(padded, mask, seeds=seeds).last_hidden_state
        torch.testing.assert_close(out[mask.bool()], row[0], rtol=1e-9, atol=1e-9)
        assert not out[~mask.bool()].any()


def test_rotations_come_from_the_seeds_and_from_nothing_else():
    net, text = model(), ids(1, 64)
    state = torch.get_rng_state()
    first, again, other = (net(text, seeds=[n]).logits for n in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(state, torch.get_rng_state())
    assert torch.equal(net(text).logits, net(text, seeds=[0]).logits)
    fixed = model(hash_seed=3)
    assert torch.equal(fixed(text, seeds=[1]).logits, fixed(text, seeds=[2]).logits)
    net.trunk.num_hashes = 4
    assert not torch.equal(net(text, seeds=[1]).logits, first)


def test_examples_bring_their_seeds():
    tok = Tokenizer.train(["ka mo ti ren sol"] * 9, "byte-bpe", 265, style=STYLES["gpt2"])
    sample = Sample("0", {"txt": b"ka mo ti ren sol " * 20}, 0)

    def drawn(*key):
        return [e.seed for e in HashedObjective(tok, 16).example(sample, np.random.default_rng(key))]

    assert drawn(1) == drawn(1) and len(set(drawn(1)) | set(drawn(2))) == 2 * len(drawn(1)) > 8
    examples = list(HashedObjective(tok, 16).example(sample, np.random.default_rng(1)))
    assert HashedObjective(tok, 16).collate(examples).seeds == tuple(drawn(1))


# --------------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize("kinds", [("local", "local"), ("lsh", "local")])
def test_generation_is_that_of_whole_texts_where_no_token_is_hashed(kinds):
    net = model(attn_layers=kinds, lsh_attn_chunk_length=8 if "lsh" not in kinds else 64, local_attn_chunk_length=4)
    prompt = ids(2, 9)
    out = generate_ids(net, prompt, max_new_tokens=20, eos_token_id=-1)
    expected = prompt
    for _ in range(20):
        logits = net(expected, torch.ones_like(expected)).logits[:, -1] if "lsh" not in kinds else net(expected).logits[:, -1]
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(out, expected)


def test_generation_with_a_cache_and_padding_is_that_without():
    net = model()
    prompt, mask = ids(2, 30), torch.ones(2, 30)
    mask[1, :11] = 0
    out = generate_ids(net, prompt, mask, max_new_tokens=12, eos_token_id=-1)
    assert torch.equal(out, generate_ids(net, prompt, mask, max_new_tokens=12, eos_token_id=-1, use_cache=False))
    assert torch.equal(out[1:, 11:], generate_ids(net, prompt[1:, 11:], max_new_tokens=12, eos_token_id=-1))
    with pytest.raises(UserError, match="128"):
        generate_ids(net, ids(1, 120), max_new_tokens=20, eos_token_id=-1)


# --------------------------------------------------------------------------------------------------- errors


def test_texts_that_are_too_long_and_configs_that_make_no_sense():
    with pytest.raises(UserError, match="a text has 129 tokens, and the model has positions for 128"):
        model()(ids(1, 129))
    for wrong, message in (
        ({"axial_pos_embds_dim": (12, 21)}, "expected a sum of hidden_size, 32"), ({"axial_pos_shape": (8,)}, "expected two numbers"),
        ({"attn_layers": ("lsh", "far")}, "expected lsh or local"), ({"attn_layers": ()}, "expected lsh or local"),
        ({"num_buckets": 5}, "even number"), ({"num_buckets": (4, 3)}, "even number"), ({"lsh_num_chunks_after": 1}, "expected 0"),
        ({"lsh_attn_chunk_length": 0}, "at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            config(**wrong)
    with pytest.raises(UserError, match="num_hidden_layers is 4 and attn_layers has 2 entries"):
        ReformerConfig.from_dict({"attn_layers": ["lsh", "local"], "num_hidden_layers": 4})
    assert ReformerModelWithLMHead(config(is_decoder=False)).config == config()
    with pytest.raises(UserError, match="max_length is 200, the model has 128 positions"):
        family("reformer").pretraining.create(config(), CausalSettings(max_length=200), Context(net_only=True))


# ------------------------------------------------------------------------------------------------ copying


@pytest.mark.slow
def test_what_stands_far_back_is_copied_where_local_attention_cannot():
    """48 of 96 tokens again, each to be told at the place where the other half has it: 3 local layers of 8 tokens see 32 back."""

    def accuracy(kinds):
        torch.manual_seed(0)
        c = config(attn_layers=kinds, vocab_size=9, axial_pos_shape=(2, 48), axial_pos_embds_dim=(16, 48), hidden_size=64,
                   attention_head_size=16, lsh_attn_chunk_length=8, local_attn_chunk_length=8, num_hashes=4, axial_norm_std=0.5,
                   initializer_range=0.1)
        net, generator = ReformerModelWithLMHead(c).train(), torch.Generator().manual_seed(1)
        optimizer, found = torch.optim.Adam(net.parameters(), 4e-3), []
        for update in range(120):
            words = torch.randint(1, 9, (8, 48), generator=generator)
            logits = net(torch.cat([words, torch.zeros_like(words)], 1), seeds=range(8 * update, 8 * update + 8)).logits[:, 48:]
            found.append(float((logits.argmax(-1) == words).float().mean()))
            optimizer.zero_grad()
            F.cross_entropy(logits.flatten(0, 1), words.flatten()).backward()
            optimizer.step()
        return np.mean(found[-10:])

    assert accuracy(("local",) * 3) < 0.2 and accuracy(("lsh",)) > 0.9
