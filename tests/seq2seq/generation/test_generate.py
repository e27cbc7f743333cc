"""Searching and choosing beside transformers' `generate`: the same nets, prompts and arguments, token for token."""

import dataclasses

import polymodal
import pytest
import torch
import transformers
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.seq2seq.generation.options import FilledOptions, GenerationSettings
from polymodal.seq2seq.generation.sampling import ScoreRules, draw, uniform_draws, warp
from polymodal.shared.errors import UserError
from transformers.generation import logits_process as reference

SEEDS = (0, 1, 2)
END = 7


def pair(directory, kind, seed):
    """A reference net with lively weights and a small vocabulary, and ours from its files."""
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=19, n_embd=16, n_layer=2, n_head=2, n_positions=48, bos_token_id=END,
                                         eos_token_id=END, pad_token_id=3)
        theirs = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.T5Config(vocab_size=19, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=3,
                                       eos_token_id=END, pad_token_id=3, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        theirs = transformers.T5ForConditionalGeneration(config)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if kind == "t5":
            theirs.lm_head.weight = torch.nn.Parameter(torch.zeros(19, 16))
        for name, p in theirs.named_parameters():
            norm = "ln_" in name or "layer_norm" in name
            p.copy_(torch.randn(p.shape, generator=g) * 0.4 + (1.0 if norm and name.endswith("weight") else 0.0))
        if kind == "gpt2":  # or one token has it all, and no text ends
            theirs.transformer.wpe.weight.mul_(4.0)
            word = theirs.transformer.wte.weight[END]
            theirs.transformer.ln_f.weight.mul_(0.3)
            theirs.transformer.ln_f.bias.add_(1.2 * word / word.square().sum())
        else:
            theirs.lm_head.weight.mul_(0.3)
            theirs.lm_head.weight[END].mul_(3.0)
    theirs.eval().save_pretrained(directory)
    return theirs, polymodal.load(directory)


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    return {(kind, seed): pair(tmp_path_factory.mktemp(kind), kind, seed) for kind in ("gpt2", "t5") for seed in SEEDS}


def prompts(batch, seed, length=6):
    g = torch.Generator().manual_seed(100 + seed)
    ids = torch.randint(8, 19, (batch, length), generator=g)  # no end, no padding token
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, :1 + (row + seed) % 4] = 0
    return ids.masked_fill(mask == 0, END), mask  # transformers counts padding in n-grams: the end can never continue one


def ended(rows, start):
    """Rows of ids up to the end; transformers fills with other ids behind it."""
    return [row[:start] + (tail[:tail.index(END) + 1] if END in (tail := row[start:]) else tail) for row in rows.tolist()]


def assert_same(nets, kind, seed, batch, **arguments):
    theirs, ours = nets[kind, seed]
    ids, mask = prompts(batch, seed)
    if arguments.get("no_repeat_ngram_size") == 1:
        mask = torch.ones_like(mask)  # there the padding would forbid the end
        ids = ids.masked_fill(ids == END, 8)
    want = theirs.generate(input_ids=ids, attention_mask=mask, max_new_tokens=14, do_sample=False, **arguments)
    got = generate_ids(ours, ids, mask, max_new_tokens=14, **arguments)
    start = ids.shape[1] if kind == "gpt2" else 1
    assert ended(got, start) == ended(want, start)
    return got[:, start:]


CASES = [
    {}, {"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.6}, {"min_new_tokens": 9},
    {"repetition_penalty": 0.7, "no_repeat_ngram_size": 3},
    *({"num_beams": k} for k in (2, 4)),
    *({"num_beams": 4, "length_penalty": p} for p in (0.0, 0.6, 2.0, -1.0)),
    *({"num_beams": 4, "early_stopping": e, "length_penalty": p} for e in (True, "never") for p in (0.6, 1.0, 2.0)),
    *({"num_beams": 2, "no_repeat_ngram_size": n} for n in (1, 2, 3)),
    {"num_beams": 3, "repetition_penalty": 1.4}, {"num_beams": 4, "min_new_tokens": 6},
    {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True},
    {"num_beams": 4, "no_repeat_ngram_size": 3, "length_penalty": 0.6, "min_new_tokens": 4, "repetition_penalty": 1.2},
    {"suppress_tokens": [9, 12, 15]}, {"begin_suppress_tokens": [8, 9, 10, 11, 12]},
    {"bad_words_ids": [[9], [10, 11], [END], [12, 12, 13]]},
    {"forced_eos_token_id": END, "min_new_tokens": 14}, {"forced_bos_token_id": 11, "begin_suppress_tokens": [11, 12, 13]},
    {"min_length": 11}, {"num_beams": 3, "bad_words_ids": [[9], [8, 10]], "suppress_tokens": [14]},
    {"num_beams": 3, "renormalize_logits": True, "suppress_tokens": [8, 9, 10]}, {"num_beams": 3, "forced_eos_token_id": [END]},
]


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("arguments", CASES, ids=lambda a: " ".join(f"{k}={v}" for k, v in a.items()) or "greedy")
def test_tokens_equal_the_references(nets, kind, arguments):
    for seed, batch in zip(SEEDS, (1, 3, 4)):
        assert_same(nets, kind, seed, batch, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize("arguments", CASES, ids=lambda a: " ".join(f"{k}={v}" for k, v in a.items()) or "greedy")
def test_tokens_equal_the_references_for_more_prompts(nets, kind, arguments):
    for seed in SEEDS:
        assert_same(nets, kind, seed, 9, **arguments)


def test_the_cases_are_no_idle_ones(nets):
    """Rows end at different places, and every argument changes some row."""
    def texts(kind, **arguments):
        return [row for s in SEEDS for row in ended(generate_ids(nets[kind, s][1], *prompts(9, s), max_new_tokens=14, **arguments), 1)]

    changed = [("length_penalty", 2.0), ("early_stopping", True), ("no_repeat_ngram_size", 2), ("repetition_penalty", 1.4),
               ("min_new_tokens", 6), ("num_beams", 1), ("num_beams", 2)]
    for kind in ("gpt2", "t5"):
        plain = texts(kind, num_beams=4)
        assert len({len(row) for row in plain}) >= 4
        for name, value in changed:
            assert texts(kind, **{"num_beams": 4, name: value}) != plain, name


def test_scores_of_beams_equal_the_references(nets, monkeypatch):
    from polymodal.seq2seq.generation import batch as module

    for kind in ("gpt2", "t5"):
        theirs, ours = nets[kind, 0]
        ids, mask = prompts(3, 0)
        arguments = {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.6, "max_new_tokens": 10}
        want = theirs.generate(input_ids=ids, attention_mask=mask, return_dict_in_generate=True, output_scores=True, **arguments)
        got = module.generate_batch(ours, ids, mask, GenerationSettings(**arguments), []).scores
        torch.testing.assert_close(got, want.sequences_scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_cached_equals_uncached_and_neighbours_do_not_matter(nets, kind):
    for seed in SEEDS:
        ours = nets[kind, seed][1]
        ids, mask = prompts(4, seed)
        start = ids.shape[1] if kind == "gpt2" else 1
        for arguments in ({}, {"num_beams": 3}, {"num_beams": 4, "no_repeat_ngram_size": 2, "early_stopping": True},
                          {"do_sample": True, "seed": 3, "num_return_sequences": 2}):
            together = generate_ids(ours, ids, mask, max_new_tokens=12, **arguments)
            assert torch.equal(together, generate_ids(ours, ids, mask, max_new_tokens=12, use_cache=False, **arguments))
            copies = arguments.get("num_return_sequences", 1)
            for row in range(4):
                prompt = ids[row:row + 1, int((mask[row] == 0).sum()):]
                alone = generate_ids(ours, prompt, max_new_tokens=12, first_stream=row, **arguments)
                skip = prompt.shape[1] if kind == "gpt2" else 1
                assert ended(alone[:, skip:], 0) == ended(together[row * copies:(row + 1) * copies, start:], 0)


def test_beams_read_the_prompt_and_its_memory_once(nets, monkeypatch):
    """A prompt is one row at first, and the encoder's keys are never copied."""
    from polymodal.shared.attention.cache import KVCache

    ours = nets["t5", 0][1]
    rows, caches = [], []
    forward, make = ours.trunk.decoder.forward, KVCache.__init__

    def watched(x, *args, **kwargs):
        rows.append(len(x))
        return forward(x, *args, **kwargs)

    def made(self, *args):
        caches.append(self)
        make(self, *args)

    monkeypatch.setattr(ours.trunk.decoder, "forward", watched)
    monkeypatch.setattr(KVCache, "__init__", made)
    generate_ids(ours, *prompts(2, 0), num_beams=3, max_new_tokens=5)
    assert rows[0] == 2 and set(rows[1:]) == {6}
    (cache,) = caches
    assert cache.buffer.shape[1] == 6
    assert {layer.cross[0].shape[0] for layer in cache.layers} == {2}


# ------------------------------------------------------------------------------------------ rules and draws


WARPS = [({"temperature": 0.7}, [reference.TemperatureLogitsWarper(0.7)]), ({"top_k": 5}, [reference.TopKLogitsWarper(5)]),
         ({"top_p": 0.6}, [reference.TopPLogitsWarper(0.6)]), ({"min_p": 0.2}, [reference.MinPLogitsWarper(0.2)]),
         ({"min_p": 1.0}, [reference.MinPLogitsWarper(1.0)]),
         ({"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
          [reference.TemperatureLogitsWarper(1.3), reference.TopKLogitsWarper(12), reference.TopPLogitsWarper(0.9),
           reference.MinPLogitsWarper(0.05)])]


@pytest.mark.parametrize(("settings", "steps"), WARPS, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_the_tokens_that_stay_are_the_references(settings, steps):
    logits = 3 * torch.randn(400, 40, generator=torch.Generator().manual_seed(0))
    want = logits.clone()
    for step in steps:
        want = step(torch.zeros(400, 1, dtype=torch.long), want)
    got = warp(logits, GenerationSettings(**{"top_k": 0, **settings}))
    assert torch.equal(got, want)
    assert got.isfinite().any(-1).all()


@pytest.mark.parametrize("settings", [{"min_p": 0.3}, {"top_k": 3, "min_p": 0.1}, {"top_p": 0.8, "temperature": 0.9}])
def test_draws_follow_the_distribution(settings):
    n = 20_000
    logits = torch.tensor([1.0, 2.5, 0.3, 2.0, -1.0, 1.7]).expand(n, -1)
    warped = warp(logits, GenerationSettings(**{"top_k": 0, **settings}))
    got = torch.bincount(draw(warped, uniform_draws([(5, row) for row in range(n)], 1)[:, 0]), minlength=6) / n
    expected = warped[0].softmax(-1)
    assert ((got == 0) == (expected == 0)).all()
    assert ((got - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt()).all()


def test_several_draws_of_a_prompt_are_different_and_repeat(nets):
    ours = nets["gpt2", 0][1]
    ids, mask = prompts(2, 0)
    arguments = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": 12, "eos_token_id": -1}
    first, again, other = (generate_ids(ours, ids, mask, seed=s, **arguments) for s in (0, 0, 1))
    assert first.shape == (8, 18) and torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first[:, :6], ids.repeat_interleave(4, 0))
    assert len({tuple(row) for row in first.tolist()}) == 8


def test_padding_makes_no_ngram():
    """The padded row forbids what the bare one does, although its padding is the token 5 that ends it."""
    settings = GenerationSettings(no_repeat_ngram_size=2)
    bare, padded = torch.tensor([[5, 6, 5]]), torch.tensor([[5, 5, 5, 6, 5]])
    keep = torch.tensor([[False, False, True, True, True]])
    scores = torch.zeros(1, 9)
    one, two = ScoreRules(settings, 3, 9, None, ())(scores, bare), ScoreRules(settings, 5, 9, keep, ())(scores, padded)
    assert torch.equal(one, two) and one[0].isinf().nonzero().tolist() == [[6]]
    assert not ScoreRules(settings, 3, 9, keep[:, 1:4], ())(scores, padded[:, 1:4]).isinf().any()  # nothing twice yet


def test_options_are_the_fields_of_the_settings():
    assert set(FilledOptions.__annotations__) == {f.name for f in dataclasses.fields(GenerationSettings)}
    kinds = {f.name: f.type for f in dataclasses.fields(GenerationSettings)}
    assert {name: getattr(value, "__forward_arg__", value) for name, value in FilledOptions.__annotations__.items()} == kinds


@pytest.mark.parametrize(("arguments", "message"), [
    ({"num_beams": 0}, "num_beams is 0"), ({"num_beams": 2, "do_sample": True}, "exclude"),
    ({"num_beams": 2, "num_return_sequences": 3}, "at most num_beams"), ({"num_return_sequences": 2}, "do_sample or num_beams"),
    ({"no_repeat_ngram_size": -1}, "no_repeat"), ({"min_p": 1.5}, "min_p"), ({"min_new_tokens": -1}, "min_new"),
    ({"min_new_tokens": 9, "max_new_tokens": 5}, "more than max_new_tokens"), ({"min_new_tokens": 44}, "positions"),
    ({"early_stopping": "soon"}, "early_stopping"), ({"early_stopping": 1}, "early_stopping"),
    ({"stop_strings": ("a",)}, "for texts"), ({"stop_strings": ("",), "num_beams": 2}, "(?s)empty.*one beam")])
def test_impossible_requests_are_refused(nets, arguments, message):
    with pytest.raises(UserError, match=message):
        generate_ids(nets["gpt2", 0][1], *prompts(2, 0), **arguments)
