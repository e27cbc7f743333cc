"""Texts as they are written: whole characters, stop strings, and the same text as without a listener."""

from dataclasses import replace

import polymodal
import pytest
import torch
from polymodal.seq2seq.generation.generate import generate, generate_texts
from polymodal.seq2seq.generation.options import GenerationSettings
from polymodal.seq2seq.generation.streamer import RowStreamer
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import STYLES, Tokenizer
from scripted import Script, scripted

TEXT = "naïve Ωmega 🦊🦊, and so on.\nA second line 日本"


@pytest.fixture(scope="module")
def bytewise():
    return Tokenizer.train(["plain words and so on"] * 3, "byte-bpe", 262)  # every other character takes several tokens


def test_pieces_are_whole_characters_and_make_the_text(bytewise):
    ids = bytewise.encode(TEXT, add_special_tokens=False)
    assert len(ids) > len(TEXT)
    row = RowStreamer(bytewise, bytewise.encode("before "))
    found = [row.push(i) for i in ids]
    assert "".join(found) + row.finish() == TEXT == row.text
    assert not any("\ufffd" in piece for piece in found)
    assert sum(map(bool, found)) > 30, "each character comes as soon as it is whole"
    cut = RowStreamer(bytewise)
    fox = bytewise.encode("a🦊", add_special_tokens=False)
    assert [cut.push(i) for i in fox[:-1]] == ["a", "", "", ""][:len(fox) - 1] and "\ufffd" in cut.finish()


def test_a_listener_hears_what_is_returned(bytewise):
    heard = []
    model = scripted(bytewise, "x" + TEXT)
    out = generate(model, "x", tokenizer=bytewise, max_new_tokens=200, stream=heard.append)
    assert out == "x" + "".join(heard) == "x" + TEXT
    assert out == generate(model, "x", tokenizer=bytewise, max_new_tokens=200)


@pytest.mark.parametrize(("stops", "want"), [
    ((".\n",), "naïve Ωmega 🦊🦊, and so on"), (("\nA", "🦊,"), "naïve Ωmega 🦊"), (("second line 日本!",), TEXT), (("本",), TEXT[:-1]),
    (("n",), ""), (("and", "an"), "naïve Ωmega 🦊🦊, "), (("on.\nB", "so on.\nA s"), "naïve Ωmega 🦊🦊, and ")])
def test_stop_strings_end_a_text_before_them(bytewise, stops, want):
    model = scripted(bytewise, "x" + TEXT)
    heard = []
    arguments = {"tokenizer": bytewise, "max_new_tokens": 200, "stop_strings": stops, "return_full_text": False}
    assert generate(model, "x", **arguments) == want
    assert generate(model, "x", stream=heard.append, **arguments) == want == "".join(heard)
    assert generate(model, ["x", "y"], **arguments) == [want, want]


def test_a_stop_ends_the_work_too(bytewise):
    model = scripted(bytewise, "x" + TEXT)
    steps = []
    plain = model.next_logits
    model.next_logits = lambda *a: (steps.append(1), plain(*a))[1]
    generate(model, "x", tokenizer=bytewise, max_new_tokens=200, stop_strings=("naï",))
    assert len(steps) <= 5


def test_real_decoders_stream_the_same_text():
    corpus = ["the quick brown fox jumps over the lazy dog", "she sells sea shells by the sea shore"] * 4
    corpus += [f"word{c}{d}" for c in "abcdefghij" for d in "klmnopqrst"]
    cases = [("gpt2", Tokenizer.train(corpus, "byte-bpe", 290)),
             ("t5", Tokenizer.train(corpus, "unigram", 150, style=STYLES["t5"]))]
    for name, tok in cases:
        torch.manual_seed(0)
        model = polymodal.system(name, size="tiny", tokenizer=tok).net.eval()
        for seed in range(4):
            heard = []
            arguments = {"tokenizer": tok, "max_new_tokens": 40, "do_sample": True, "top_k": 0, "seed": seed, "eos_token_id": -1,
                         "return_full_text": False}
            text = polymodal.generate(model, "the quick brown", stream=heard.append, **arguments)
            assert "".join(heard) == text == polymodal.generate(model, ["the quick brown", "by"], **arguments)[0]
            assert len(heard) > 3 and "extra_id" not in text


def test_several_texts_for_a_prompt(bytewise):
    torch.manual_seed(0)
    model = polymodal.system("gpt2", size="tiny", tokenizer=bytewise).net.eval()
    settings = GenerationSettings(num_beams=3, num_return_sequences=2, max_new_tokens=6)
    found = generate_texts(model, ["words", "and so"], bytewise, settings)
    assert [len(f) for f in found] == [2, 2]
    assert all(f[0].score >= f[1].score for f in found)
    flat = polymodal.generate(model, ["words", "and so"], tokenizer=bytewise, num_beams=3, num_return_sequences=2, max_new_tokens=6)
    assert flat == [text + w.text for text, several in zip(["words", "and so"], found) for w in several]
    assert generate_texts(model, [], bytewise, settings) == []


def test_mistakes(bytewise):
    model = scripted(bytewise, TEXT)
    for arguments, message in (({"stream": print, "num_beams": 2}, "one beam"), ({"num_beams": 2, "stop_strings": ("a",)}, "one beam"),
                               ({"num_return_sequences": 2, "do_sample": True}, "list with the one"), ({"batch_size": 0}, "batch_size")):
        with pytest.raises(UserError, match=message):
            generate(model, "x", tokenizer=bytewise, **arguments)
    with pytest.raises(UserError, match="one prompt"):
        generate(model, ["x", "y"], tokenizer=bytewise, stream=print)
    with pytest.raises(UserError, match="for texts"):
        generate(model, torch.tensor([[1]]), tokenizer=bytewise, stop_strings=("a",))
    with pytest.raises(TypeError, match="beams"):
        generate(model, "x", tokenizer=bytewise, beams=2)


@pytest.mark.parametrize("stop", [(), ("now",)])
def test_spaces_before_marks_go_while_a_text_is_written(stop):
    """With `clean_up_tokenization_spaces`, the pieces join to the text that is returned, and to what decoding gives."""
    plain = Tokenizer.train(["plain words do n't end , or so . It 's now !"] * 3, "byte-bpe", 270)
    tok = Tokenizer(plain._pipeline, replace(plain.framing, clean_up=True))
    text = " words do n't end , or so . It 's now !"
    script = Script(tok.encode("plain" + text, add_special_tokens=False), tok.vocab_size, tok.eos_id)
    heard = []
    options = GenerationSettings(max_new_tokens=80, stop_strings=stop)
    (streamed,) = generate_texts(script, ["plain"], tok, options, stream=heard.append)[0]
    wanted = tok.decode(tok.encode(text, add_special_tokens=False))
    assert wanted == " words don't end, or so. It's now!"
    assert "".join(heard) == streamed.text == (wanted.partition("now")[0] if stop else wanted)
    assert generate_texts(script, ["plain"], tok, options)[0][0].text == streamed.text
