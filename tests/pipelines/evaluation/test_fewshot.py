"""`polymodal evaluate fewshot`: likelihoods beside transformers', prompts, drawn examples, and what does not fit."""

import json

import pytest
import torch
import transformers
from parity import saved
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.cli import main
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.evaluation.evaluate import EvaluationSettings, OutputFiles, evaluate
from polymodal.pipelines.evaluation.fewshot import SCORES, FewShot
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer

COLOURS = ["red", "green", "blue", "old gold"]
THINGS = ["cat", "dog", "house", "tree", "boat", "song"]
ROWS = [{"text": f"the {thing} that was seen {n} times is", "choices": COLOURS[: 2 + n % 3], "label": n % 2}
        for n, thing in enumerate(THINGS)]


def packed(folder, name, rows):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pack(folder / f"{name}.jsonl", folder / name, PackSettings(Reading("choice"), shuffle=None), workers=Workers(1))
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Questions, and models of transformers with 128 and 48 positions."""
    folder = tmp_path_factory.mktemp("fewshot")
    packed(folder, "data", ROWS)
    packed(folder, "train", [{**row, "text": row["text"].replace("seen", "heard")} for row in ROWS])
    tok = Tokenizer.train([" ".join([row["text"], *COLOURS, "Answer:"]) for row in ROWS] * 4, "byte-bpe", 300)
    for name, positions in (("model", 128), ("short", 48)):
        config = transformers.GPT2Config(vocab_size=tok.vocab_size, n_embd=32, n_layer=2, n_head=2, n_positions=positions,
                                         eos_token_id=tok.eos_id, bos_token_id=tok.eos_id)
        saved("GPT2LMHeadModel", config, folder / name)
        tok.save(folder / name)
    return folder


def measured(folder, how, model="model", data="data", seed=None):
    out = folder / "asked.jsonl"
    record = evaluate(how, folder / model, folder / data, EvaluationSettings(device="cpu", seed=seed), console=Console(quiet=True),
                      output=OutputFiles(predictions=out, overwrite=True))
    return record, [json.loads(line) for line in out.read_text().splitlines()]


def test_likelihoods_are_those_of_transformers(folder):
    record, lines = measured(folder, FewShot((0, 2)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tok = transformers.AutoTokenizer.from_pretrained(folder / "model")

    def likelihood(before, after):
        ids, start = tok(before + after, return_tensors="pt")["input_ids"], len(tok(before)["input_ids"])
        assert ids[0, :start].tolist() == tok(before)["input_ids"]
        with torch.no_grad():
            scores = theirs(ids).logits[0].double().log_softmax(-1)
        chosen = [float(scores[place - 1, ids[0, place]]) for place in range(start, ids.shape[1])]
        return sum(chosen), len(chosen)

    assert len(lines) == 2 * len(ROWS) and {line["asked_shots"] for line in lines} == {0, 2}
    for line in lines:
        row = ROWS[line["index"]]
        assert line["prompt"].endswith(f"{row['text']}\nAnswer:") and line["prompt"].count("Answer:") == line["shots"] + 1
        assert line["label"] == row["label"]
        found = [likelihood(line["prompt"], f" {choice}") for choice in row["choices"]]
        alone = [likelihood("Answer:", f" {choice}")[0] for choice in row["choices"]]
        expected = {"sum": [s for s, _ in found], "per_token": [s / n for s, n in found],
                    "normalised": [s - a for (s, _), a in zip(found, alone)]}
        for name in SCORES:
            assert line["scores"][name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5)
            assert line["predictions"][name] == max(range(len(found)), key=expected[name].__getitem__)
    for shots in (0, 2):
        part = [line for line in lines if line["asked_shots"] == shots]
        for name in SCORES:
            hits = sum(line["predictions"][name] == line["label"] for line in part)
            assert record["metrics"][f"{shots}-shot/accuracy_{name}"] == pytest.approx(hits / len(part))
        assert record["metrics"][f"{shots}-shot/mean_shots"] == shots
    assert record["metrics"]["0-shot/chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)


def test_examples_are_drawn_by_the_seed_and_are_not_the_question(folder):
    how = FewShot((1, 3))
    (_, lines), (_, again), (_, other) = (measured(folder, how, seed=seed) for seed in (0, 0, 1))
    assert lines == again and [line["prompt"] for line in lines] != [line["prompt"] for line in other]
    texts = {row["text"]: row for row in ROWS}
    for line in lines:
        blocks = [block.split("\nAnswer:") for block in line["prompt"].split("\n\n")]
        asked = [text for text, _ in blocks]
        assert len(set(asked)) == line["shots"] + 1 and blocks[-1][1] == ""
        assert all(answer == f" {texts[text]['choices'][texts[text]['label']]}" for text, answer in blocks[:-1])
    few, many = ({line["index"]: line["prompt"] for line in lines if line["shots"] == n} for n in (1, 3))
    assert all(many[index].startswith(few[index].split("\n\n")[0]) for index in few)
    _, lines = measured(folder, FewShot((2,), str(folder / "train")))
    assert all(line["prompt"].count("heard") == 2 and line["prompt"].count("seen") == 1 for line in lines)


def test_examples_without_room_are_left_out_and_counted(folder):
    record, lines = measured(folder, FewShot((5,)), model="short")
    taken = [line["shots"] for line in lines]
    assert max(taken) < 5 and min(taken) > 0
    assert record["metrics"]["5-shot/mean_shots"] == pytest.approx(sum(taken) / len(taken))
    assert record["details"]["5-shot/shots"] == {"asked": 5, "samples_with_fewer": len(ROWS)}
    packed(folder, "long", [{**ROWS[0], "text": "tree " * 200}, ROWS[1]])
    with pytest.raises(UserError, match=r"tokens without any example, the model has 128 positions.*--on-bad skip"):
        measured(folder, FewShot((0,)), data="long")


@pytest.mark.parametrize(("how", "message"), [
    ({"shots": (-1,)}, "shots are -1"), ({"shots": (2, 2)}, "different numbers"), ({"template": "Q:"}, "template is 'Q:'")])
def test_impossible_settings(how, message):
    with pytest.raises(UserError, match=message):
        FewShot(**how)


def test_what_cannot_be_asked(folder):
    with pytest.raises(UserError, match=r"6 shots are asked for, and .* has 5 samples"):
        measured(folder, FewShot((6,)))
    saved("BertForMaskedLM", transformers.BertConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                                     intermediate_size=32), folder / "masked")
    with pytest.raises(UserError, match="needs a causal language model such as GPT-2: fine-tune others for the task choice"):
        measured(folder, FewShot(), model="masked")


def test_the_command(folder, monkeypatch, capsys):
    out = folder / "record.json"

    def command(*more):
        monkeypatch.setattr("sys.argv", ["polymodal", "evaluate", "fewshot", "--model", str(folder / "model"), "--data",
                                         str(folder / "data"), "--device", "cpu", *more])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    code, shown = command("--shots", "0,2", "--out", str(out), "--template", "Q: {text}\\nA:", "--alone", "A:")
    assert not code and "2-shot/accuracy_normalised" in shown.out
    assert json.loads(out.read_text())["settings"]["template"] == "Q: {text}\nA:"
    code, shown = command("--shots", "one")
    assert code == 2 and "--shots is 'one', expected numbers such as 0,1,8" in shown.err
