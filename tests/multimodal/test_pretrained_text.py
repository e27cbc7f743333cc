"""Text towers from text families: a tiny BERT directory written by transformers serves, locked or not."""

from __future__ import annotations

import json
import os

import numpy as np
import open_clip
import pytest
import torch
import transformers
from polymodal.multimodal.clip import CLIP, FAMILIES, CLIPConfig, adapt
from polymodal.multimodal.pairs import Pair
from polymodal.multimodal.pretrained_text import PretrainedText, describe, load_weights, pool_packed
from polymodal.shared.convert import to_ours, to_theirs
from polymodal.shared.errors import UserError
from polymodal.shared.family import Context
from polymodal.shared.packed import side_by_side
from polymodal.shared.settings import build_settings
from polymodal.shared.tokenizer import Tokenizer
from safetensors.torch import save_file

NET = FAMILIES[0].nets[0]
OPEN_CLIP = NET.formats[1]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue", "cat", "dog", "house", "tree", "on", "under", "the", "a"]
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 32}


@pytest.fixture
def directory(tmp_path):
    """A BERT with a vocabulary, as transformers saves it."""
    torch.manual_seed(0)
    path = tmp_path / "encoder"
    config = transformers.BertConfig(vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                     intermediate_size=48, max_position_embeddings=16)
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    return path


def system(directory, settings=None, **overrides):
    config = build_settings(CLIPConfig, {"projection_dim": 20, "text_tower": str(directory), "vision_config": RESNET, **overrides}, "model")
    torch.manual_seed(0)
    return FAMILIES[0].pretraining.build(adapt(config, Context()), settings or {}, Context())


def batch_of(sys, count, seed=0):
    rng = np.random.default_rng(seed)
    size = sys.net.preprocessing.image_size
    return sys.objective.collate([
        Pair(torch.from_numpy(rng.integers(0, 255, (3, size, size), dtype=np.uint8)),
             tuple(sys.objective.tokenizer.encode(" ".join(rng.choice(WORDS[5:], rng.integers(1, 7))))))
        for _ in range(count)])  # fmt: skip


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_tower_gives_the_encoders_states(directory, pooling):
    theirs = transformers.BertModel.from_pretrained(directory).eval()
    tower = PretrainedText(describe(str(directory), pooling)).eval()
    load_weights(tower, str(directory))
    tokens = Tokenizer.load(directory)(["red cat", "a green dog under the tree"])
    with torch.no_grad():
        hidden = theirs(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
        keep = tokens["attention_mask"][..., None].float()
        expected = (hidden * keep).sum(1) / keep.sum(1) if pooling == "mean" else hidden[:, 0]
        padded = tower(tokens["input_ids"], tokens["attention_mask"])
        packed = side_by_side([row[mask.bool()].tolist() for row, mask in zip(tokens["input_ids"], tokens["attention_mask"])])
        rows = tower(packed.input_ids, None, packed.position_ids, lengths=packed.lengths)
    assert torch.allclose(padded, expected, atol=1e-5) and torch.allclose(rows, expected, atol=1e-5)


def test_a_tower_whose_positions_begin_behind_the_padding_id(tmp_path):
    """RoBERTa: 20 rows are 18 positions, and packed texts have the places of padded ones."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "type_vocab_size": 1}
    theirs = transformers.RobertaModel(transformers.RobertaConfig(vocab_size=40, max_position_embeddings=20, **shape)).eval()
    theirs.save_pretrained(tmp_path)
    described = describe(str(tmp_path), "mean")
    assert described.max_position_embeddings == 18
    tower = PretrainedText(described).eval()
    load_weights(tower, str(tmp_path))
    rows = [[0, *range(5, 21), 2], [0, 9, 2]]
    packed, ids = side_by_side(rows), torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=1)
    with torch.no_grad():
        hidden = theirs(ids, (ids != 1).long()).last_hidden_state
        expected = torch.stack([h[:len(r)].mean(0) for h, r in zip(hidden, rows)])
        found = tower(packed.input_ids, None, packed.position_ids, lengths=packed.lengths), tower(ids, (ids != 1).long())
    assert all(torch.allclose(f, expected, atol=1e-5) for f in found)


def test_pooling_a_packed_row():
    hidden = torch.arange(10.0).view(5, 2)
    assert pool_packed(hidden, (2, 3), "mean").tolist() == [[1, 2], [6, 7]]
    assert pool_packed(hidden, (2, 3), "cls").tolist() == [[0, 1], [4, 5]]


@pytest.mark.parametrize("lock", [False, True])
def test_training_from_a_pretrained_tower(directory, lock):
    sys = system(directory, lock_text=lock)
    assert sys.objective.tokenizer.vocab_size == len(WORDS)
    batch = batch_of(sys, 12)
    sys.train()
    before = {n: p.clone() for n, p in sys.net.text_trunk.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in sys.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for update in range(25):
        optimizer.zero_grad()
        total = sys(batch).terms["contrastive"].total
        total.backward()
        assert all(p.grad is not None for p in sys.parameters() if p.requires_grad)
        optimizer.step()
        sys.after_update(update)
        losses.append(total.item() / 12)
    moved = [n for n, p in sys.net.text_trunk.named_parameters() if not torch.equal(p, before[n])]
    assert bool(moved) != lock
    assert losses[-1] < 0.7 * losses[0]


def test_open_clip_loads_the_export(directory, tmp_path, monkeypatch):
    sys = system(directory)
    sys.eval()
    out = tmp_path / "export"
    (out / "text_encoder").mkdir(parents=True)
    assert NET.default_format(sys.net.config).name == "open_clip"
    record = OPEN_CLIP.write(sys.net)
    (out / "open_clip_config.json").write_text(json.dumps(record))
    for name, content in OPEN_CLIP.files(sys.net).items():
        (out / name).write_text(json.dumps(content))
    weights = to_theirs(OPEN_CLIP.rules(sys.net.config), sys.net.state_dict())
    save_file(weights, out / "open_clip_model.safetensors")
    sys.objective.tokenizer.save(out)

    monkeypatch.chdir(out)  # open_clip takes hf_model_name relative to the working directory
    theirs = open_clip.create_model(f"local-dir:{os.curdir}").eval()
    tokens = sys.objective.tokenizer(["red cat", "a green dog under the tree"])
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        text = sys.net.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        image = sys.net.get_image_features(pixels)
        assert torch.allclose(theirs.encode_text(tokens["input_ids"]), text, atol=1e-5 * text.abs().max())
        assert torch.allclose(theirs.encode_image(pixels), image, atol=1e-5 * image.abs().max())

    config = OPEN_CLIP.read(record, out)  # and so do we
    again = CLIP(config).eval()
    again.load_state_dict(to_ours(OPEN_CLIP.rules(config), weights))
    with torch.no_grad():
        assert torch.equal(again.get_text_features(tokens["input_ids"], tokens["attention_mask"]), text)


def test_config_survives_its_json(directory):
    config = system(directory).net.config
    again = CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.text_config == config.text_config and again.vision_config == config.vision_config


def test_towers_that_do_not_serve(directory, tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        describe(str(tmp_path / "nothing"), "mean")
    with pytest.raises(UserError, match=r"model_type 'gpt2'; known: albert, bert, big_bird, distilbert, electra, ernie"):
        describe(str(_with(directory, model_type="gpt2")), "mean")
    with pytest.raises(UserError, match="architectures"):
        describe(str(_with(directory, model_type="bert", architectures=["BertForSomething"])), "mean")
    (directory / "model.safetensors").unlink()
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        system(directory)


def _with(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    return directory


def test_another_tokenizer_is_refused(directory, tmp_path):
    other = Tokenizer.train(["red cat", "green dog"], "word", 20)
    config = adapt(build_settings(CLIPConfig, {"text_tower": str(directory), "vision_config": RESNET}, "model"), Context())
    with pytest.raises(UserError, match="not the one of text_tower"):
        FAMILIES[0].pretraining.build(config, {}, Context(tokenizer=other))


def test_a_locked_projection_keeps_the_encoders_own_space(directory):
    sys = system(directory, lock_text=True, lock_text_projection=True, projection_dim=32)
    batch = batch_of(sys, 6)
    before = sys.net.text_head.weight.clone()
    assert torch.equal(before, torch.eye(32))
    sys(batch).terms["contrastive"].total.backward()
    assert sys.net.text_head.weight.grad is None, "it is the identity and stays so"
    assert all(p.grad is not None for p in sys.net.image_trunk.parameters())
    sys.eval()
    with torch.no_grad():
        states = sys.net.text_trunk(batch.input_ids, None, batch.position_ids, lengths=batch.lengths)
        assert torch.allclose(sys.text_embeds(batch), torch.nn.functional.normalize(states, dim=-1), atol=1e-6)
    with pytest.raises(UserError, match="projection_dim 32"):
        system(directory, lock_text=True, lock_text_projection=True, projection_dim=20)
