"""`polymodal generate --out`: every prompt has its texts once, also after kills; the file is whole or not there."""

import json

import polymodal
import pytest
import torch
from polymodal.pipelines import cli
from polymodal.pipelines.base.files import read_json_lines
from polymodal.pipelines.inference import generated
from polymodal.shared.tokenizer import Tokenizer

PROMPTS = ["the cat sat", "a dog", "the end of a long day far away", "some more words", "a", "the dog sat", "far"]
OPTIONS = ("--max-new-tokens", "5", "--do-sample", "--seed", "3", "--batch-size", "2")


@pytest.fixture(scope="module", autouse=True)
def commands():
    if not any(c.name == "embed" for c in cli.app.registered_commands):
        cli._register()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "gpt2"
    torch.manual_seed(0)
    bpe = Tokenizer.train([*PROMPTS, "some more words"] * 5, "byte-bpe", 280)
    polymodal.save(polymodal.system("gpt2", size="tiny", tokenizer=bpe).net, directory, tokenizer=bpe)
    return directory


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS), "utf-8")
    return path


def run(capsys, *arguments):
    code = cli.run([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the command handles it."""


def stopped_after(monkeypatch, batches):
    """Let a run die right after it has written its n-th batch."""
    real = generated.generate_texts

    def dying(*arguments, keep, **options):
        done = []

        def kept(batch):
            keep(batch)
            done.append(batch)
            if len(done) == batches:
                raise Killed

        return real(*arguments, keep=kept, **options)

    monkeypatch.setattr(generated, "generate_texts", dying)


@pytest.mark.parametrize("several", [1, 2])
def test_a_killed_run_goes_on_with_no_text_lost_and_none_twice(model, prompts, tmp_path, capsys, monkeypatch, several):
    command = ("generate", prompts, "--model", model, *OPTIONS, "--num-return-sequences", several)
    code, out, err = run(capsys, *command, "--json")
    assert code == 0, err
    expected = json.loads(out.splitlines()[-1])["results"]
    assert len(expected) == several * len(PROMPTS)

    file = tmp_path / "texts.jsonl"
    left = tmp_path / ".texts.jsonl.parts" / "texts.jsonl"
    for _ in range(2):  # two kills; the second also leaves half a line
        with monkeypatch.context() as patch:
            stopped_after(patch, 1)
            with pytest.raises(Killed):
                run(capsys, *command, "--out", file)
        assert not file.exists()
    assert len(lines(left)) == 4, "two batches of two"
    left.write_bytes(left.read_bytes()[:-7])
    known = len(read_json_lines(left))
    assert known == 3

    code, out, err = run(capsys, *command, "--out", file)
    assert code == 0, err
    assert f"{known} of {len(PROMPTS)} prompts have their texts" in out and f"{len(expected)} texts: {file}" in out
    assert lines(file) == expected
    assert not left.parent.exists()


def test_another_command_starts_again(model, prompts, tmp_path, capsys, monkeypatch):
    file = tmp_path / "texts.jsonl"
    with monkeypatch.context() as patch:
        stopped_after(patch, 1)
        with pytest.raises(Killed):
            run(capsys, "generate", prompts, "--model", model, *OPTIONS, "--out", file)
    assert lines(tmp_path / ".texts.jsonl.parts" / "texts.jsonl")
    other = ("generate", prompts, "--model", model, "--max-new-tokens", "5")
    code, out, err = run(capsys, *other, "--out", file)
    assert code == 0 and "from a run that was stopped" not in out, err
    code, out, _ = run(capsys, *other, "--json")
    assert lines(file) == json.loads(out.splitlines()[-1])["results"]


def test_the_weights_are_part_of_what_goes_on(model, prompts, tmp_path, capsys, monkeypatch):
    file = tmp_path / "texts.jsonl"
    with monkeypatch.context() as patch:
        stopped_after(patch, 1)
        with pytest.raises(Killed):
            run(capsys, "generate", prompts, "--model", model, *OPTIONS, "--out", file)
    other = tmp_path / "other"
    net = polymodal.load(model)
    with torch.no_grad():
        net.trunk.embed.word.weight.add_(torch.randn(net.trunk.embed.word.weight.shape))
    polymodal.save(net, other, tokenizer=polymodal.tokenizer(model))
    code, out, err = run(capsys, "generate", prompts, "--model", other, *OPTIONS, "--out", file)
    assert code == 0 and "from a run that was stopped" not in out, err


def test_mistakes_are_told_before_the_model_is_loaded(model, tmp_path, capsys):
    (tmp_path / "folder.jsonl").mkdir()
    for out, message in (("texts.txt", "must end in .jsonl"), ("none/texts.jsonl", "there is no folder"), ("folder.jsonl", "is a folder")):
        code, _, err = run(capsys, "generate", "the", "--model", tmp_path / "no-model", "--out", tmp_path / out)
        assert code == 2 and message in err and err.count("\n") == 1


def test_a_prompt_that_does_not_fit_leaves_nothing(model, tmp_path, capsys):
    code, _, err = run(capsys, "generate", "the " * 500, "--model", model, "--out", tmp_path / "texts.jsonl")
    assert code == 2 and "positions" in err
    assert not list(tmp_path.glob(".texts*"))


@pytest.mark.parametrize("command", ["generate", "embed", "classify"])
def test_a_device_that_is_not_there_is_told_by_all_commands(command, model, capsys):
    code, _, err = run(capsys, command, "the", "--model", model, "--device", "cuda:99")
    assert code == 2 and "--device cuda:99 cannot be used" in err and err.count("\n") == 1
