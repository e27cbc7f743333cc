"""What is told of a text beside itself: why it ended, tokens, seed, log-probabilities; cut prompts; options that ask for draws."""

import math

import polymodal
import pytest
import torch
import transformers
from polymodal.seq2seq.generation.defaults import settings_of
from polymodal.seq2seq.generation.generate import generate_texts
from polymodal.seq2seq.generation.options import GenerationSettings
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import STYLES, Tokenizer
from scripted import scripted

WORDS = ["the quick brown fox jumps over the lazy dog", "she sells sea shells by the sea shore", "naïve 🦊 words"] * 4


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(WORDS, "byte-bpe", 290)


@pytest.fixture(scope="module")
def gpt2(tok, tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("gpt2")
    polymodal.save(polymodal.system("gpt2", size="tiny", tokenizer=tok).net, directory, tokenizer=tok)
    return directory


@pytest.fixture(scope="module")
def model(gpt2):
    return polymodal.load(gpt2)


def detailed(model, prompts, tok, **options):
    return polymodal.generate(model, prompts, tokenizer=tok, details=True, **options)


def test_log_probabilities_are_those_of_the_model(model, gpt2, tok):
    """Beside transformers, teacher-forced: also where the text was drawn at another temperature, with penalties and padding."""
    theirs = transformers.GPT2LMHeadModel.from_pretrained(gpt2)
    prompts = ["the quick brown", "she", "naïve 🦊"]
    found = detailed(model, prompts, tok, temperature=0.7, top_k=20, repetition_penalty=1.3, max_new_tokens=12, seed=3, logprobs=4,
                     eos_token_id=-1)
    assert len({w.text for w in found}) == 3
    for prompt, written in zip(prompts, found):
        ids = tok.encode(prompt, add_special_tokens=False)
        assert written.prompt_tokens == len(ids) and written.completion_tokens == len(written.logprobs) == 12
        new = [t.id for t in written.logprobs]
        with torch.no_grad():
            want = theirs(torch.tensor([ids + new])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(torch.tensor([t.logprob for t in written.logprobs]), want[torch.arange(12), new], rtol=1e-4, atol=1e-5)
        best = want.topk(4)
        torch.testing.assert_close(torch.tensor([[v for _, _, v in t.top] for t in written.logprobs]), best.values, rtol=1e-4, atol=1e-5)
        assert all(sum(math.exp(v) for _, _, v in t.top) <= 1 + 1e-6 for t in written.logprobs)


def test_the_tokens_spell_the_text(tok):
    """Each token as the text that it adds; parts of characters and special tokens as they stand in the vocabulary."""
    net = scripted(tok, "xthe 🦊 fox")
    (written,) = detailed(net, "x", tok, logprobs=0, max_new_tokens=30)
    assert written.finish_reason == "stop" and written.text == "the 🦊 fox"
    tokens = [t.token for t in written.logprobs]
    assert tokens[-1] == tok.id_to_token(tok.eos_id) and "fox" in "".join(tokens) and tokens[0] == "the"
    assert written.completion_tokens == len(tokens) == 1 + len(tok.encode("the 🦊 fox", add_special_tokens=False))
    assert all(not t.top for t in written.logprobs)


def test_why_a_text_ended_and_how_many_tokens_it_has(tok):
    net = scripted(tok, "xthe fox. and on")
    every = len(tok.encode("the fox. and on", add_special_tokens=False))
    cases = [({}, "stop", every + 1), ({"max_new_tokens": 4}, "length", 4), ({"max_new_tokens": every + 1}, "stop", every + 1),
             ({"max_new_tokens": every}, "length", every), ({"stop_strings": ("fox",)}, "stop", None),
             ({"stop_strings": ("wolf",), "max_new_tokens": 4}, "length", 4), ({"num_beams": 3}, "stop", every + 1),
             ({"num_beams": 3, "max_new_tokens": 4}, "length", 4), ({"forced_eos_token_id": tok.eos_id, "max_new_tokens": 4}, "length", 4)]
    for options, reason, count in cases:
        (written,) = detailed(net, "x", tok, **{"max_new_tokens": 40, **options})
        assert written.finish_reason == reason, options
        assert count is None or written.completion_tokens == count, options
        assert written.prompt_tokens == 1 and written.seed is None and written.cut_tokens == 0
    (stopped,) = detailed(net, "x", tok, stop_strings=("fox",), max_new_tokens=40)
    assert stopped.text == "the " and stopped.completion_tokens < every


def test_a_text_is_drawn_again_with_the_seed_that_is_told(model, tok):
    prompts = ["the quick", "she sells sea", "by"]
    first = detailed(model, prompts, tok, temperature=1.0, top_k=0, max_new_tokens=8, num_return_sequences=2, batch_size=2)
    seeds = {w.seed for w in first}
    assert len(first) == 6 and len(seeds) == 1 and None not in seeds
    again = detailed(model, prompts, tok, temperature=1.0, top_k=0, max_new_tokens=8, num_return_sequences=2, seed=seeds.pop())
    assert [w.text for w in again] == [w.text for w in first]
    other = detailed(model, prompts, tok, temperature=1.0, top_k=0, max_new_tokens=8, num_return_sequences=2)
    assert [w.text for w in other] != [w.text for w in first]


def test_a_long_prompt_keeps_its_end(model, tok):
    positions = model.decoder_info.max_positions
    prompt = "the quick brown fox " * positions
    ids = tok.encode(prompt, add_special_tokens=False)
    for options, new in (({"max_new_tokens": 7}, 7), ({}, 50), ({"min_new_tokens": 60}, 60)):
        long, short = detailed(model, [prompt, "she"], tok, truncate=True, **options)
        assert (long.prompt_tokens, long.cut_tokens) == (positions - new, len(ids) - positions + new)
        assert short.cut_tokens == 0 and short.prompt_tokens == len(tok.encode("she", add_special_tokens=False))
    kept = tok.decode(ids[-(positions - 7):])
    assert tok.encode(kept, add_special_tokens=False) == ids[-(positions - 7):]
    assert detailed(model, kept, tok, max_new_tokens=7)[0].text == detailed(model, prompt, tok, max_new_tokens=7, truncate=True)[0].text
    with pytest.raises(UserError, match="positions"):
        detailed(model, prompt, tok, max_new_tokens=7)
    with pytest.raises(UserError, match="leave nothing"):
        detailed(model, prompt, tok, max_new_tokens=positions, truncate=True)


def test_encoder_decoders_tell_the_same():
    tok = Tokenizer.train([*WORDS, *(f"word{c}{d}" for c in "abcdefghij" for d in "klmnopqrst")], "unigram", 150, style=STYLES["t5"])
    torch.manual_seed(0)
    model = polymodal.system("t5", size="tiny", tokenizer=tok).net.eval()
    prompts = ["the quick brown", "by"]
    found = detailed(model, prompts, tok, max_new_tokens=6, eos_token_id=-1, logprobs=2)
    for prompt, written in zip(prompts, found):
        assert written.prompt_tokens == len(tok.encode(prompt)) and written.completion_tokens == 6 == len(written.logprobs)
        new = torch.tensor([[t.id for t in written.logprobs]])
        start = torch.cat([torch.tensor([[model.config.decoder_start_token_id]]), new[:, :-1]], 1)
        with torch.no_grad():
            want = model(input_ids=torch.tensor([tok.encode(prompt)]), decoder_input_ids=start).logits[0].log_softmax(-1)
        torch.testing.assert_close(torch.tensor([t.logprob for t in written.logprobs]), want[torch.arange(6), new[0]], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="answers whole texts"):
        detailed(model, prompts, tok, truncate=True)


@pytest.mark.parametrize(("options", "drawn"), [
    ({}, False), ({"seed": 3}, False), ({"temperature": 0.8}, True), ({"top_p": 0.9}, True), ({"top_k": 40}, True), ({"min_p": 0.1}, True),
    ({"temperature": 0}, False), ({"do_sample": False, "temperature": 1.0, "top_k": 50}, False), ({"do_sample": True}, True)])
def test_options_of_draws_ask_for_draws(model, options, drawn):
    assert settings_of(model, options).do_sample is drawn


@pytest.mark.parametrize(("options", "message"), [
    ({"do_sample": False, "temperature": 0.8}, "temperature is for draws, and do_sample is False"),
    ({"num_beams": 4, "top_p": 0.9}, "top_p is for draws, and num_beams is 4"), ({"top_p": 0.9, "temperature": 0}, "temperature is 0"),
    ({"length_penalty": 0.6}, "length_penalty is of beams"), ({"early_stopping": True}, "early_stopping is of beams"),
    ({"logprobs": 3, "num_beams": 2}, "one beam"), ({"logprobs": 21}, "from 0 to 20"), ({"logprobs": 1}, "details=True")])
def test_what_would_have_no_effect_is_refused(model, tok, options, message):
    with pytest.raises(UserError, match=message):
        polymodal.generate(model, "the", tokenizer=tok, **options)


def test_texts_that_are_not_asked_for_details_are_as_before(model, tok):
    plain = generate_texts(model, ["the", "she sells"], tok, GenerationSettings(max_new_tokens=5))
    assert [several[0].text for several in plain] == polymodal.generate(model, ["the", "she sells"], tokenizer=tok, max_new_tokens=5,
                                                                        return_full_text=False)
    with pytest.raises(UserError, match="for texts"):
        polymodal.generate(model, torch.tensor([[1]]), logprobs=1)
