"""The front door: by name, in types and on devices; wrong directories are told apart. That every network comes back is in `contract`."""

import json

import polymodal
import pytest
import torch
from polymodal.registry import families
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import STYLES, Tokenizer
from transformers import AutoTokenizer


def test_systems_lists_what_the_registry_holds():
    listed = polymodal.systems()
    assert [s.name for s in listed] == list(families())
    bert = next(s for s in listed if s.name == "bert")
    assert (bert.folder, bert.year) == ("text", 2018) and {"tiny", "small", "base"} <= set(bert.sizes)
    assert all("tiny" in s.sizes and s.paper and s.url.startswith("http") and s.objective for s in listed)
    json.dumps([s.to_dict() for s in listed])


def test_a_system_by_name():
    system = polymodal.system("bert", size="tiny", num_hidden_layers=3)
    assert system.net.config.num_hidden_layers == 3 and system.net.architecture == "BertForPreTraining"
    with pytest.raises(UserError, match="tokenizer="):
        system.objective.example(None, None)
    assert sum(p.numel() for p in polymodal.system("gpt2", size="tiny", vocab_size=100).net.parameters()) < 10**6
    for arguments, message in (((("brt",), {}), "did you mean bert"), ((("bert",), {"size": "huge"}), "no size 'huge'"),
                               ((("bert",), {"size": "tiny", "hiden_size": 3}), "did you mean hidden_size")):
        with pytest.raises(UserError, match=message):
            polymodal.system(*arguments[0], **arguments[1])


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    tok = Tokenizer.train(["some words to train a vocabulary on"] * 3, "byte-bpe", 270)
    polymodal.save(polymodal.system("gpt2", size="tiny", tokenizer=tok).net, tmp_path / "model", tokenizer=tok)
    return tmp_path / "model"


def test_types_and_devices(saved):
    assert {p.dtype for p in polymodal.load(saved, dtype="bfloat16").parameters()} == {torch.bfloat16}
    half = polymodal.load(saved, dtype=torch.float16)
    polymodal.save(half, saved.parent / "half")
    assert json.loads((saved.parent / "half" / "config.json").read_text())["dtype"] == "float16"
    assert next(polymodal.load(saved.parent / "half").parameters()).dtype == torch.float32
    with pytest.raises(UserError, match="dtype"):
        polymodal.load(saved, dtype="int8")


def test_saving_over_the_loaded_directory_keeps_its_tokenizer(saved):
    before = polymodal.tokenizer(saved).fingerprint
    model = polymodal.load(saved)
    torch.nn.init.zeros_(model.trunk.embed.position.weight)
    polymodal.save(model, saved)
    assert polymodal.tokenizer(saved).fingerprint == before
    assert polymodal.load(saved).trunk.embed.position.weight.abs().max() == 0


def test_a_save_that_fails_leaves_what_was_there(saved, monkeypatch):
    from polymodal.pipelines.model import weights

    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    model = polymodal.load(saved)
    torch.nn.init.zeros_(model.trunk.embed.position.weight)

    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        polymodal.save(model, saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_directories_that_hold_no_model(tmp_path, saved):
    cases = {"empty": "is not a model directory", "other": "model_type 'mamba'; known:", "head": "architectures \\['GPT2ForCheese'\\]",
             "broken": "not JSON", "weightless": "holds no weights", "cut": "damaged"}
    record = json.loads((saved / "config.json").read_text())
    for name in cases:
        (tmp_path / name).mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps({"model_type": "mamba"}))
    (tmp_path / "head/config.json").write_text(json.dumps({**record, "architectures": ["GPT2ForCheese"]}))
    (tmp_path / "broken/config.json").write_text("{")
    (tmp_path / "weightless/config.json").write_text(json.dumps(record))
    (tmp_path / "cut/config.json").write_text(json.dumps(record))
    (tmp_path / "cut/model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:-100])
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            polymodal.load(tmp_path / name)
    with pytest.raises(UserError, match="there is no model directory"):
        polymodal.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="there is no model directory"):
        polymodal.load(saved / "config.json")
    with pytest.raises(UserError, match="no format 'timm'"):
        polymodal.save(polymodal.load(saved), tmp_path / "x", format="timm")
    with pytest.raises(UserError, match="known system"):
        polymodal.save(torch.nn.Linear(1, 1), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("name", "kind", "size", "positions"), [
    ("bert", "wordpiece", 45, 40), ("roberta", "byte-bpe", 270, 42), ("gpt2", "byte-bpe", 270, 40), ("clip", "byte-bpe", 270, 16),
    ("t5", "bpe", 125, None),
])
def test_the_saved_tokenizer_says_how_long_an_input_may_be(tmp_path, name, kind, size, positions):
    """`model_max_length`: transformers cuts by it, and a text of that length can be read; what a text encodes to stays."""
    tok = Tokenizer.train(["some words to train a vocabulary on"] * 3, kind, size, style=STYLES[name])
    fields = {"bert": "max_position_embeddings", "roberta": "max_position_embeddings", "gpt2": "n_positions"}
    config = {fields[name]: positions} if name in fields else {}
    net = polymodal.system(name, size="tiny", tokenizer=tok, **config).net.eval()
    polymodal.save(net, tmp_path, tokenizer=tok)
    again, theirs = polymodal.tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == tok.fingerprint and tok.max_length is None
    text = "words " * 300
    assert again.encode(text) == tok.encode(text)
    if positions is None:  # they are relative: any length
        assert again.max_length is None and theirs.model_max_length > 10**9
        return
    wanted = net.config.text_config.max_position_embeddings if name == "clip" else positions - ((tok.pad_id or 0) + 1) * (name == "roberta")
    assert again.max_length == theirs.model_max_length == wanted
    ids = theirs(text, truncation=True, return_tensors="pt")["input_ids"]
    assert ids.shape == (1, wanted) and torch.equal(ids, again(text)["input_ids"])
    with torch.no_grad():
        net.get_text_features(ids) if name == "clip" else net(input_ids=ids)
