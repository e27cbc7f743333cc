"""What a model's generation_config.json says, beside transformers, which reads the same directory."""

from __future__ import annotations

import json

import polymodal
import pytest
import torch
import transformers
from polymodal.seq2seq.generation.defaults import options_of, settings_of
from polymodal.seq2seq.generation.generate import generate_ids
from polymodal.shared.errors import UserError
from polymodal.shared.generation_config import FILE, GENERATION
from polymodal.shared.tokenizer import Tokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Pipeline

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ("<|endoftext|>", "<|turn|>")
END, TURN = 256, 257


@pytest.fixture(scope="module")
def byte_tokenizer():
    pipeline = Pipeline(models.BPE(vocab={c: i for i, c in enumerate(LETTERS)}, merges=[]))
    pipeline.pre_tokenizer, pipeline.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    pipeline.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=pipeline, eos_token=SPECIAL[0], bos_token=SPECIAL[0])


@pytest.fixture(scope="module")
def writer(byte_tokenizer, tmp_path_factory):
    """A GPT-2 that writes given tokens behind a prompt of one token, and then the end: what it writes depends on the place alone."""

    def make(ids):
        directory, size = tmp_path_factory.mktemp("writer"), 258
        net = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=size, n_positions=64, n_embd=size, n_layer=1, n_head=1, bos_token_id=END, eos_token_id=END))  # fmt: skip
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.zero_()
            net.transformer.wte.weight.copy_(torch.eye(size))
            for norm in (net.transformer.ln_f, net.transformer.h[0].ln_1, net.transformer.h[0].ln_2):
                norm.weight.fill_(1.0)
            for place in range(64):
                net.transformer.wpe.weight[place, ids[place] if place < len(ids) else END] = 50.0
        net.save_pretrained(directory)
        byte_tokenizer.save_pretrained(directory)
        return directory

    return make


def both(directory, byte_tokenizer, prompt="a", **options):
    """What transformers and we write behind a prompt."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory)
    asked = byte_tokenizer(prompt, return_tensors="pt")
    more = {"tokenizer": byte_tokenizer} if "stop_strings" in options else {}
    ids = theirs.generate(**asked, **{"max_new_tokens": 30, **options}, **more)[0]
    ours = polymodal.generate(polymodal.load(directory), prompt, tokenizer=polymodal.tokenizer(directory),
                              **{"max_new_tokens": 30, **{k: tuple(v) if k == "stop_strings" else v for k, v in options.items()}})
    return byte_tokenizer.decode(ids, skip_special_tokens=True), ours


def change(directory, file=FILE, **values):
    path = directory / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_several_ends_in_either_file(writer, byte_tokenizer):
    """In config.json, too, where there is no generation_config.json; a letter that ends a text belongs to it, a special token does not."""
    ids = [*byte_tokenizer.encode("yes"), TURN, *byte_tokenizer.encode("and on")]
    directory = writer(ids)
    assert both(directory, byte_tokenizer) == ("ayesand on",) * 2
    change(directory, eos_token_id=[END, TURN])
    assert both(directory, byte_tokenizer) == ("ayes",) * 2
    heard = []
    polymodal.generate(polymodal.load(directory), "a", tokenizer=polymodal.tokenizer(directory), stream=heard.append)
    assert "".join(heard) == "yes"
    assert both(directory, byte_tokenizer, eos_token_id=END) == ("ayesand on",) * 2  # what the caller says wins
    change(directory, eos_token_id=[END, byte_tokenizer.encode("e")[0]])
    assert both(directory, byte_tokenizer) == ("aye",) * 2
    again = polymodal.load(directory)
    polymodal.save(again, directory / "again")
    assert json.loads((directory / "again" / FILE).read_text())["eos_token_id"] == [END, byte_tokenizer.encode("e")[0]]
    (directory / FILE).unlink()
    change(directory, "config.json", eos_token_id=[END, TURN])
    assert both(directory, byte_tokenizer) == ("ayes",) * 2
    polymodal.save(polymodal.load(directory), directory / "third")
    assert json.loads((directory / "third" / "config.json").read_text())["eos_token_id"] == [END, TURN]


STOPS = {  # what is written behind "a", the stop strings
    "is a special token": ("yes<|turn|>and on", ["<|turn|>"]),
    "holds a special token": ("yes<|turn|>and on", ["s<|turn|>a"]),
    "ends with a special token": ("yes<|turn|>and on", ["es<|turn|>"]),
    "follows a special token": ("yes<|turn|>and on", ["and"]),
    "straddles tokens": ("yes and on", ["s an"]),
    "begins in the prompt": ("yes and on", ["ay"]),
    "stands in the prompt": ("yes and on", ["a "]),
    "is the prompt": ("yes or no", ["a"]),
    "is not written": ("yes and on", ["yes or"]),
    "two of them": ("yes and on", ["on", "d"]),
    "in one another": ("yes and on", ["s and", "and"]),
    "begins again": ("nonononot", ["nonot"]),
    "is the end": ("yes", ["<|endoftext|>"]),
}


@pytest.mark.parametrize("case", STOPS)
def test_stop_strings_stop_where_transformers_stops(case, writer, byte_tokenizer):
    """transformers' text ends behind the stop string, ours before it."""
    text, stops = STOPS[case]
    directory = writer(byte_tokenizer.encode(text))
    prompt = "a a" if case == "stands in the prompt" else "a"
    if prompt == "a a":  # the text begins at the third place
        directory = writer([0, 0, *byte_tokenizer.encode(text)])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory)
    ids = theirs.generate(**byte_tokenizer(prompt, return_tensors="pt"), max_new_tokens=30, stop_strings=stops, tokenizer=byte_tokenizer)[0]
    spelled = byte_tokenizer.decode(ids)  # with special tokens
    length = len(byte_tokenizer.encode(prompt))
    model, tokenizer = polymodal.load(directory), polymodal.tokenizer(directory)
    ours, listened = [], []
    for found in (ours, listened):
        more = {"stream": listened.append} if found is listened else {}
        out = polymodal.generate(model, prompt, tokenizer=tokenizer, max_new_tokens=30, stop_strings=tuple(stops),
                                 return_full_text=False, **more)  # fmt: skip
        if found is ours:
            ours.append(out)
    met = [s for s in stops if spelled.endswith(s) and len(ids) > length]
    whole = byte_tokenizer.decode(ids, skip_special_tokens=True)[len(prompt) :]
    if met and case != "is the end":
        before = spelled[: min(len(spelled) - len(s) for s in met)]
        whole = before.replace(SPECIAL[1], "")[len(prompt) :]
    assert ours == [whole] == ["".join(listened)]
    assert bool(met) == (case not in ("stands in the prompt", "is the prompt", "is not written"))


@pytest.mark.parametrize("record", [
    {"max_new_tokens": 4}, {"max_length": 7}, {"max_length": 7, "max_new_tokens": 3}, {"max_length": 500}, {"min_new_tokens": 20},
    {"min_length": 20, "max_length": 30}, {"bad_words_ids": [[5], [6, 7]], "suppress_tokens": [1], "max_new_tokens": 9},
    {"forced_eos_token_id": 9, "max_length": 12}, {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "max_new_tokens": 9},
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True, "max_new_tokens": 9, "num_return_sequences": 2},
    {"temperature": 0.0, "top_k": 3, "max_new_tokens": 5}, {"begin_suppress_tokens": [0, 1, 2, 3, 4, 5], "max_new_tokens": 4},
    {"do_sample": False, "use_cache": False, "output_scores": True, "typical_p": 1.0, "max_new_tokens": 4},
], ids=json.dumps)  # fmt: skip
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_what_the_file_says_counts_as_in_transformers(kind, record, tmp_path):
    torch.manual_seed(5)
    if kind == "gpt2":
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=19, n_embd=16, n_layer=1, n_head=2, n_positions=40,
                                              bos_token_id=9, eos_token_id=9, initializer_range=0.6))  # fmt: skip
    else:
        theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(
            vocab_size=19, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, eos_token_id=9, pad_token_id=3, decoder_start_token_id=3,
            initializer_factor=3.0))  # fmt: skip
    theirs.eval().save_pretrained(tmp_path)
    change(tmp_path, **record)
    theirs, ours = type(theirs).from_pretrained(tmp_path), polymodal.load(tmp_path)
    ids = torch.tensor([[10, 11, 12, 13]])
    room = {"max_new_tokens": 36} if record.get("max_length") == 500 and kind == "gpt2" else {}  # behind its positions transformers fails
    default = {} if {"max_length", "max_new_tokens"} & set(record) else {"max_new_tokens": 25}
    if record.get("max_length") == 500 and kind == "t5":
        default = room = {"max_new_tokens": 60}
    assert torch.equal(generate_ids(ours, ids, **default), theirs.generate(ids, **{**default, **room}))


def test_what_cannot_be_done_is_refused_by_name_and_options_win(tmp_path):
    tokenizer = Tokenizer.train(["plain words and so on"] * 3, "byte-bpe", 262)
    polymodal.save(polymodal.system("gpt2", size="tiny", tokenizer=tokenizer).net, tmp_path, tokenizer=tokenizer)
    wrong = {"penalty_alpha": 0.6, "typical_p": 0.9, "novel": 1, "top_k": "many", "num_beams": 2, "do_sample": True}
    (tmp_path / FILE).write_text(json.dumps(wrong))
    model = polymodal.load(tmp_path)
    with pytest.raises(UserError, match=r"generation_config.json .*--ignore-generation-config.*typical_p = 0.9.*novel = 1.*top_k is"):
        polymodal.generate(model, "words", tokenizer=tokenizer)
    assert polymodal.generate(model, "words", tokenizer=tokenizer, ignore_generation_config=True, max_new_tokens=2)
    (tmp_path / FILE).write_text(json.dumps({"num_beams": 2, "do_sample": True, "seed": 5, "top_k": None}))
    model = polymodal.load(tmp_path)
    with pytest.raises(UserError, match="key seed = 5 is unknown"):
        options_of(model, {})
    assert settings_of(model, {"num_beams": 1, "seed": 3}).do_sample
    with pytest.raises(UserError, match=r"beams and draws exclude each other.*generation_config.json says do_sample, num_beams"):
        settings_of(model, {"seed": 3})
    with pytest.raises(UserError, match=r"exclude each other: give num_beams or do_sample$"):
        settings_of(model, {"num_beams": 2, "do_sample": True, "seed": 3})
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(UserError, match="must hold a JSON object"):
        polymodal.load(tmp_path)


def test_every_key_that_transformers_writes_is_in_the_table():
    assert not sorted(set(transformers.GenerationConfig().to_dict()) - set(GENERATION))
    assert {k for k in GENERATION if GENERATION[k].fate == "honoured"} <= set(settings_of(torch.nn.Module(), {}).__dataclass_fields__)


def test_prompts_of_other_lengths_do_not_change_a_text_of_limited_length(tmp_path):
    """max_length counts the prompt: each of several prompts gets what it would get alone."""
    tokenizer = Tokenizer.train(["plain words and so on"] * 3, "byte-bpe", 262)
    torch.manual_seed(3)
    polymodal.save(polymodal.system("gpt2", size="tiny", tokenizer=tokenizer).net, tmp_path, tokenizer=tokenizer)
    (tmp_path / FILE).write_text(json.dumps({"max_length": 12, "min_length": 10}))
    model, texts = polymodal.load(tmp_path), ["plain", "so", "words", "on"]
    together = polymodal.generate(model, texts, tokenizer=tokenizer)
    assert together == [polymodal.generate(model, text, tokenizer=tokenizer) for text in texts]
    with pytest.raises(UserError, match="max_length is 12, prompt included"):
        polymodal.generate(model, "plain words and so on and on", tokenizer=tokenizer)
