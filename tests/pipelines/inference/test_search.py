"""`polymodal search` and `polymodal.search`: the nearest by vectors that `embed` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polymodal
import pytest
import torch
from PIL import Image
from polymodal.multimodal.clip import CLIP, CLIPConfig
from polymodal.pipelines import cli
from polymodal.pipelines.inference import search as module
from polymodal.pipelines.inference.embedded import Embedded, Maker, maker_file, write
from polymodal.pipelines.inference.search import Exact, Graph
from polymodal.shared.errors import UserError
from polymodal.shared.settings import build_settings
from polymodal.shared.tokenizer import STYLES, Tokenizer

TEXTS = ["a red dog", "the blue house", "green cats are green", "a cat", "the house of dogs"]
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A BERT, another one, a CLIP and a ViT."""
    root = tmp_path_factory.mktemp("models")
    words = Tokenizer.train([*TEXTS, "red"] * 2, "wordpiece", 56)
    for seed, name in enumerate(("bert", "other")):
        torch.manual_seed(seed)
        polymodal.save(polymodal.system("bert", size="tiny", tokenizer=words, **TOWER).net, root / name, tokenizer=words)
    pieces = Tokenizer.train(TEXTS, "byte-bpe", 270, style=STYLES["clip"])
    text = {**TOWER, "vocab_size": pieces.vocab_size, "max_position_embeddings": 16, "eos_token_id": pieces.eos_id}
    vision = {**TOWER, "image_size": 16, "patch_size": 8}
    net = CLIP(build_settings(CLIPConfig, {"projection_dim": 8, "text_config": text, "vision_config": vision}, "model")).eval()
    polymodal.save(net, root / "clip", tokenizer=pieces)
    polymodal.save(polymodal.system("vit", size="tiny", **vision).net, root / "vit")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def run(capsys, *arguments):
    code = cli.run([*map(str, arguments)])
    return code, *capsys.readouterr()


def embedded(models, model, inputs, out):
    assert cli.run(["embed", *map(str, inputs), "--model", str(models / model), "--out", str(out)]) == 0
    return out


def test_texts_find_texts(models, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    file = embedded(models, "bert", [tmp_path / "texts.txt"], tmp_path / "v.npy")
    net, tok = polymodal.load(models / "bert"), polymodal.tokenizer(models / "bert")
    vectors = polymodal.embed(net, TEXTS, tok)
    queries = ["a dog", "the blue house"]
    code, out, err = run(capsys, "search", file, *queries, "--top", 3, "--json")
    assert code == 0, err
    answer = json.loads(out.splitlines()[-1])
    wanted = polymodal.embed(net, queries) @ vectors.T  # the tokenizer lies with the model
    for query, result, row in zip(queries, answer["results"], wanted, strict=True):
        best = row.sort(descending=True)
        assert result["text"] == query and [n["row"] for n in result["nearest"]] == best.indices[:3].tolist()
        assert [n["text"] for n in result["nearest"]] == [TEXTS[i] for i in best.indices[:3]]
        np.testing.assert_allclose([n["cosine"] for n in result["nearest"]], best.values[:3], rtol=1e-5)
    assert answer["results"][1]["nearest"][0]["text"] == "the blue house"
    assert polymodal.search(file, queries, model=net, top=3) == [r["nearest"] for r in answer["results"]]
    assert len(polymodal.search(file, ["a"], top=99)[0]) == len(TEXTS) and polymodal.search(file, []) == []

    code, out, _ = run(capsys, "search", file, "the blue house", "--top", 1)
    assert code == 0 and out == "1.0000  the blue house\n"


def test_lengths_do_not_count(models, tmp_path):
    """Vectors that were left as long as they are (`--raw`) are compared by their angles."""
    assert cli.run(["embed", *TEXTS, "--model", str(models / "bert"), "--raw", "--out", str(tmp_path / "raw.npy")]) == 0
    file = embedded(models, "bert", TEXTS, tmp_path / "unit.npy")
    raw, unit = (polymodal.search(f, ["a dog"])[0] for f in (tmp_path / "raw.npy", file))
    assert [r["row"] for r in raw] == [u["row"] for u in unit]
    np.testing.assert_allclose([r["cosine"] for r in raw], [u["cosine"] for u in unit], rtol=1e-5)


def test_a_clip_finds_both_ways(models, photos, tmp_path, capsys):
    pictures = embedded(models, "clip", [photos], tmp_path / "pictures.npy")
    texts = embedded(models, "clip", TEXTS, tmp_path / "texts.npy")
    net, tok = polymodal.load(models / "clip"), polymodal.tokenizer(models / "clip")
    paths = sorted(photos.iterdir())
    seen, read = polymodal.embed(net, paths), polymodal.embed(net, TEXTS, tok)
    for file, query, scores in ((pictures, TEXTS[0], read[:1] @ seen.T), (pictures, paths[2], seen[2:3] @ seen.T),
                                (texts, paths[2], seen[2:3] @ read.T)):
        code, out, err = run(capsys, "search", file, query, "--json")
        assert code == 0, err
        (result,) = json.loads(out.splitlines()[-1])["results"]
        assert [n["row"] for n in result["nearest"]] == scores[0].argsort(descending=True).tolist()
        assert result["nearest"] == polymodal.search(file, [query])[0]
    assert polymodal.search(pictures, [paths[2]], top=1)[0][0]["image"] == str(paths[2])
    assert polymodal.search(pictures, [Image.open(paths[1])], top=1)[0][0]["row"] == 1


def test_a_data_set_is_found_by_its_keys(models, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    assert cli.run(["pack", str(tmp_path / "texts.txt"), "--out", str(tmp_path / "data")]) == 0
    file = tmp_path / "v.npy"
    arguments = ["embed", "--model", models / "bert", "--out", file, "--data", tmp_path / "data", "--workers", 1]
    assert cli.run([*map(str, arguments)]) == 0
    keys = [json.loads(line) for line in file.with_suffix(".keys.jsonl").read_text().splitlines()]
    for row in polymodal.search(file, ["a cat"])[0]:
        assert {k: row[k] for k in ("row", "sample", "key")} == keys[row["row"]]
    capsys.readouterr()
    code, out, _ = run(capsys, "search", file, "a cat", "--top", 1)
    assert code == 0 and keys[0]["key"][:3] in out


def test_other_vectors_are_refused(models, photos, tmp_path, capsys):
    file = embedded(models, "bert", TEXTS, tmp_path / "v.npy")
    capsys.readouterr()

    def refused(*arguments, like):
        code, out, err = run(capsys, "search", *arguments)
        assert code == 2 and not out and len(err.splitlines()) == 1 and like in err, err

    refused(file, "a dog", "--model", models / "other", like="was made by another model (weights ")
    refused(file, photos / "a.png", like="holds vectors of texts, and BertForPreTraining has no vectors of pictures")
    refused(tmp_path / "none.npy", "a dog", like="there is no file of vectors")
    refused(file, "a dog", "--method", "guess", like="the method is 'guess', expected exact or hnsw")
    refused(file, photos / "a.png", "a dog", like="the inputs are pictures and texts")
    other = tmp_path / "tok"
    Tokenizer.train(["a dog " * 3, "blue"], "wordpiece", 18).save(other)
    refused(file, "a dog", "--tokenizer", other, like="another tokenizer")
    pictures = embedded(models, "vit", [photos], tmp_path / "p.npy")
    capsys.readouterr()
    refused(pictures, "a dog", like="holds vectors of pictures, and ViT has no vectors of texts")

    np.save(tmp_path / "own.npy", np.eye(3, dtype=np.float32))
    refused(tmp_path / "own.npy", "a dog", like="does not say which model made it")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(file, "a dog", like="it was changed or replaced")
    file.write_bytes(content)
    keys = file.with_suffix(".keys.jsonl")
    keys.write_text(keys.read_text().splitlines()[0] + "\n")
    refused(file, "a dog", like="has no line for row 1")
    record = json.loads(maker_file(file).read_text())
    maker_file(file).write_text(json.dumps({**record, "model": str(tmp_path / "gone")}))
    refused(file, "a dog", like="say with --model where it is now")
    maker_file(file).write_text("[]")
    refused(file, "a dog", like="has no readable v.model.json")
    with pytest.raises(UserError, match="all of one kind, got PosixPath, str"):
        polymodal.search(pictures, ["a", Path("b.png")])
    with pytest.raises(UserError, match="queries is one text"):
        polymodal.search(pictures, "a")


def random_file(path, count, width, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    write(path, [f"text {i}" for i in range(count)], vectors, Maker("text", "none", "0"))
    return Embedded.open(path)


def test_blocks_change_nothing(tmp_path, monkeypatch):
    """The same as one sort of all cosines, wherever a block ends; of equal ones the first comes first."""
    found = random_file(tmp_path / "v.npy", 50, 6)
    vectors = np.concatenate([found.vectors, found.vectors[:3] * 2])
    write(tmp_path / "v.npy", ["x"] * 53, vectors, found.maker)
    found = Embedded.open(tmp_path / "v.npy")
    unit = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=-1)
    queries = torch.nn.functional.normalize(torch.randn(7, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    wanted = (queries.double() @ unit.double().T).sort(dim=1, descending=True, stable=True)
    for block, together in ((1000, 1000), (7, 3)):
        monkeypatch.setattr(module, "_BLOCK", block)
        monkeypatch.setattr(module, "_QUERIES", together)
        scores, rows = Exact(found).nearest(queries, 20)
        torch.testing.assert_close(scores, wanted.values[:, :20].float())
        chosen = (queries.double()[:, None] * unit.double()[rows]).sum(-1)
        torch.testing.assert_close(chosen, scores.double())
        assert all(len(set(row)) == 20 for row in rows.tolist())
    vectors[4, 1] = np.nan
    write(tmp_path / "v.npy", ["x"] * 53, vectors, found.maker)
    with pytest.raises(UserError, match=r"row 4 of .* is not finite"):
        Exact(Embedded.open(tmp_path / "v.npy")).nearest(queries, 2)


def test_a_graph_finds_nearly_all_and_is_kept(tmp_path):
    pytest.importorskip("faiss")
    found = random_file(tmp_path / "v.npy", 3000, 16)
    queries = torch.nn.functional.normalize(torch.randn(50, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    said: list[str] = []
    scores, rows = Graph(found, said.append).nearest(queries, 10)
    exact_scores, exact = Exact(found).nearest(queries, 10)
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), exact.tolist(), strict=True)])
    assert share > 0.97 and len(said) == 1
    same = rows == exact
    torch.testing.assert_close(scores[same], exact_scores[same])
    (file,) = tmp_path.glob("*.hnsw")
    before = file.stat().st_mtime_ns
    assert torch.equal(Graph(found, said.append).nearest(queries, 10)[1], rows)
    assert file.stat().st_mtime_ns == before and len(said) == 1
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged: remove it"):
        Graph(found)
    again = random_file(tmp_path / "v.npy", 200, 16, seed=1)  # other vectors under the same name
    Graph(again)
    assert len(list(tmp_path.glob("*.hnsw"))) == 1


def test_without_faiss_the_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install '?faiss-cpu.*; the method exact needs nothing"):
        Graph(random_file(tmp_path / "v.npy", 3, 2))
