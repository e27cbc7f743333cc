"""XLNet writes what transformers' `generate` writes, with one step for each token; what of that is its own."""

from types import SimpleNamespace

import polymodal
import pytest
import torch
import transformers
from parity import noise, saved
from polymodal.pipelines.evaluation.perplexity import Perplexity
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.shared.attention.cache import KVCache
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import STYLES, Tokenizer

TINY = {"vocab_size": 23, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48, "mem_len": None}
NEW = 14


@pytest.fixture(scope="module", params=[1, 2])
def nets(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("xlnet")
    theirs = noise(transformers.XLNetLMHeadModel(transformers.XLNetConfig(**TINY)), seed=request.param, scale=0.4)
    with torch.no_grad():  # so that what is written depends on what is read
        theirs.transformer.mask_emb.mul_(0.05)
        for name, p in theirs.named_parameters():
            p.mul_(2.0 if name.endswith((".o", ".v", "word_embedding.weight")) else 0.1 if name.endswith("bias") and p.dim() == 1 else 1.0)
    theirs.save_pretrained(folder)
    return theirs, polymodal.load(folder)


def prompts(batch, length, seed=0):
    return torch.randint(6, 23, (batch, length), generator=torch.Generator().manual_seed(seed))


def ended(rows, start, end=2):
    """Rows of ids up to the end; behind it, both sides fill in."""
    return [row[:start] + (tail[:tail.index(end) + 1] if end in (tail := row[start:]) else tail) for row in rows.tolist()]


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
                                     {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3}], ids=str)
def test_tokens_are_the_references(nets, length, options):
    theirs, ours = nets
    ids = prompts(3, length)
    want = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, **options)
    got = generate_ids(ours, ids, max_new_tokens=NEW, **options)
    assert ended(got, length) == ended(want, length)
    if not options and length == 9:
        assert len({tuple(row[length:]) for row in got.tolist()}) > 1, "the probe is blind: prompts do not matter"


def test_without_a_cache_all_tokens_see_each_other(nets):
    """As in the reference without its memory: then what is written is another text, and every token is read again in each step."""
    theirs, ours = nets
    ids = prompts(3, 7)
    want = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, use_mems=False)
    assert ended(generate_ids(ours, ids, max_new_tokens=NEW, use_cache=False), 7) == ended(want, 7)


def test_logits_of_each_step_are_the_references(nets):
    theirs, ours = nets
    ids = prompts(2, 12)
    cache, mems = KVCache(TINY["n_layer"], 12), None
    with torch.no_grad():
        for length in range(5, 13):
            inputs = theirs.prepare_inputs_for_generation(ids[:, :length], past_key_values=mems)
            out = theirs(**inputs)
            mems = out.mems
            start = max(0, length - 2) if length > 5 else 0
            cache.rewind(start)
            found = ours.next_logits(ids[:, start:length], None, torch.arange(start, length).expand(2, -1), cache)
            assert float((found - out.logits[:, -1]).abs().max() / out.logits.abs().max()) < 1e-5


def test_a_token_costs_one_step_of_two_tokens_and_a_place(nets):
    _, ours = nets
    read, plain = [], ours.next_logits
    ours.next_logits = lambda ids, *rest: (read.append(tuple(ids.shape)), plain(ids, *rest))[1]
    try:
        generate_ids(ours, prompts(2, 9), max_new_tokens=6, eos_token_id=-1)
    finally:
        del ours.next_logits
    assert read == [(2, 9)] + [(2, 2)] * 5


def test_prompts_of_different_lengths_are_continued_as_alone(nets):
    _, ours = nets
    ids = prompts(3, 9)
    keep = torch.ones_like(ids)
    keep[1, :4], keep[2, :8] = 0, 0
    for options in ({}, {"num_beams": 3}):
        together = ended(generate_ids(ours, ids, keep, max_new_tokens=NEW, **options), 9)
        for row, mask, found in zip(ids, keep, together, strict=True):
            alone = row[mask.bool()][None]
            (own,) = ended(generate_ids(ours, alone, max_new_tokens=NEW, **options), alone.shape[1])
            assert found[9:] == own[alone.shape[1]:]


def test_all_of_the_text_is_remembered(tmp_path):
    """The reference forgets what lies before its last `mem_len` states."""
    saved("XLNetLMHeadModel", transformers.XLNetConfig(**{**TINY, "mem_len": 4, "reuse_len": 2}), tmp_path / "short")
    short = polymodal.load(tmp_path / "short")
    short.config = polymodal.text.xlnet.XLNetConfig(**{**TINY, "mem_len": None})
    polymodal.save(short, tmp_path / "long")
    long = polymodal.load(tmp_path / "long")
    ids = prompts(2, 9)
    assert generate_ids(polymodal.load(tmp_path / "short"), ids, max_new_tokens=NEW).tolist() == generate_ids(
        long, ids, max_new_tokens=NEW).tolist()


def test_texts_end_where_documents_end_in_pretraining():
    tokenizer = Tokenizer.train(["ka mo ti su ren sol an es"] * 9, "word", 17, style=STYLES["xlnet"])
    system = polymodal.system("xlnet", size="tiny", tokenizer=tokenizer, d_model=32, d_inner=48)
    eod = tokenizer.token_to_id("<eod>")
    assert system.objective.end_id == eod == system.net.config.eos_token_id == system.net.decoder_info.eos_token_id
    with torch.no_grad():
        system.net.head.bias[tokenizer.token_to_id("sol")] = 50
    assert polymodal.generate(system.net, "ka mo", tokenizer=tokenizer, max_new_tokens=3, eos_token_id=-1) == "ka mo sol sol sol"
    assert isinstance(polymodal.generate(system.net, "", tokenizer=tokenizer, max_new_tokens=3), str)


def test_evaluations_of_other_networks_are_refused(nets):
    """Its tokens see those behind them, and it fills no masks."""
    model = nets[1]
    subject = SimpleNamespace(model=model, source=str(model.origin.directory), tokenizer=SimpleNamespace(mask_id=6))
    with pytest.raises(UserError, match="holds a XLNetLMHeadModel; a sliding window needs a causal language model"):
        Perplexity(window=8).measures(subject)
    with pytest.raises(UserError, match="predicts no masked words"):
        Perplexity(pseudo=True).measures(subject)
