"""A model and its tokenizer, brought together: the same line wherever they do not belong together."""

import json

import polymodal
import pytest
import torch
from polymodal.multimodal.zero_shot import ZeroShotClassifier
from polymodal.pipelines import cli
from polymodal.pipelines.inference.embed import embed
from polymodal.pipelines.model.open import open_text_model
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer

TEXTS = ["the cat sat on a mat", "a dog ran far away", "the end"] * 5
LINE = r"the tokenizer has \d+ entries, the model's word table \d+ rows: .*resize_token_embeddings"


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Directories of models beside which a tokenizer with one more token lies."""
    folder = tmp_path_factory.mktemp("larger")
    for name, kind, style in (("gpt2", "byte-bpe", "gpt2"), ("bert", "wordpiece", "bert"), ("clip", "byte-bpe", "clip"),
                              ("t5", "bpe", "t5")):
        torch.manual_seed(0)
        options = {"style": polymodal.shared.tokenizer.STYLES[style]}
        tokenizer = Tokenizer.train(TEXTS, kind, {"byte-bpe": 270, "wordpiece": 40, "bpe": 130}[kind], **options)
        polymodal.save(polymodal.system(name, size="tiny", tokenizer=tokenizer).net, folder / name, tokenizer=tokenizer)
        file = folder / name / "tokenizer.json"
        record = json.loads(file.read_text())
        new = {"id": tokenizer.vocab_size, "content": "<new>", "special": True, "normalized": False, "lstrip": False, "rstrip": False,
               "single_word": False}
        record["added_tokens"].append(new)
        file.write_text(json.dumps(record))
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    pack(folder / "texts.txt", folder / "data", PackSettings())
    return folder


@pytest.mark.parametrize("name", ["gpt2", "bert", "clip", "t5"])
def test_a_tokenizer_with_more_entries_than_the_model_has_words(larger, name):
    with pytest.raises(UserError, match=LINE):
        open_text_model(str(larger / name), None, "cpu")
    model, tokenizer = polymodal.load(larger / name), polymodal.tokenizer(larger / name)
    calls = {"gpt2": [lambda: polymodal.generate(model, "the cat", tokenizer=tokenizer),
                      lambda: polymodal.summarize(model, "the cat", tokenizer=tokenizer, max_new_tokens=2)],
             "bert": [lambda: embed(model, ["the cat"], tokenizer)],
             "clip": [lambda: embed(model, ["the cat"], tokenizer), lambda: ZeroShotClassifier(model, tokenizer, ["cat", "dog"])],
             "t5": [lambda: polymodal.generate(model, ["the cat"], tokenizer=tokenizer, num_beams=2)]}
    for call in calls[name]:
        with pytest.raises(UserError, match=LINE):
            call()


@pytest.mark.parametrize("arguments", [
    ("generate", "the <new> cat", "--model", "gpt2"), ("summarize", "the <new> cat. And more.", "--model", "gpt2"),
    ("embed", "the <new> cat", "--model", "bert"), ("embed", "--data", "data", "--model", "bert", "--out", "v.npy"),
    ("evaluate", "perplexity", "--model", "gpt2", "--data", "data", "--window", "16"),
    ("evaluate", "perplexity", "--model", "gpt2", "--data", "data"),
    ("evaluate", "perplexity", "--model", "bert", "--data", "data", "--pseudo"),
], ids=lambda a: " ".join(a[:2]))  # fmt: skip
def test_every_command_says_so(larger, arguments, capsys, monkeypatch):
    monkeypatch.chdir(larger)
    if not any(c.name == "embed" for c in cli.app.registered_commands):
        cli._register()
    assert cli.run(list(arguments)) == 2
    error = capsys.readouterr().err
    assert "entries, the model's word table" in error and error.count("error:") == 1


def test_a_smaller_tokenizer_is_right(larger):
    """Tables are often padded to a round number of rows."""
    model, small = polymodal.load(larger / "gpt2"), Tokenizer.train(TEXTS, "byte-bpe", 265)
    assert polymodal.generate(model, "the", tokenizer=small, max_new_tokens=1).startswith("the")
