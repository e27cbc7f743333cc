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


def test_a_run_without_a_seed_keeps_the_one_it_drew(model, prompts, tmp_path, capsys, monkeypatch):
    file, command = tmp_path / "texts.jsonl", ("generate", prompts, "--model", model, "--max-new-tokens", "5", "--top-p", "0.9")
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        with pytest.raises(Killed):
            run(capsys, *command, "--batch-size", 2, "--out", file)
    code, _, err = run(capsys, *command, "--batch-size", 2, "--out", file)
    found = lines(file)
    (seed,) = {line["seed"] for line in found}
    assert code == 0, err
    code, out, err = run(capsys, *command, "--seed", seed, "--json")
    assert json.loads(out.splitlines()[-1])["results"] == found, err


def test_lines_come_as_texts_are_done(model, prompts, tmp_path, capsys, monkeypatch):
    command = ("generate", prompts, "--model", model, *OPTIONS)
    code, out, _ = run(capsys, *command, "--json")
    report = json.loads(out.splitlines()[-1])
    assert code == 0 and report["seconds"] > 0
    code, out, err = run(capsys, *command, "--json-lines")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [line["number"] for line in found] != sorted(line["number"] for line in found), "the longest prompts come first"
    told = [{k: v for k, v in line.items() if k != "number"} for line in sorted(found, key=lambda line: line["number"])]
    assert told == report["results"], err
    real = commands_batches(monkeypatch, 1)
    with pytest.raises(Killed):
        run(capsys, *command, "--json-lines")
    assert len(capsys.readouterr().out.splitlines()) == 2 and real


def commands_batches(monkeypatch, batches):
    """Let a command die after its n-th batch."""
    from polymodal.seq2seq.generation import generate

    real, done = generate.write, []

    def dying(*arguments):
        if len(done) == batches:
            raise Killed
        done.append(1)
        return real(*arguments)

    monkeypatch.setattr(generate, "write", dying)
    return real


def test_a_line_tells_reason_tokens_and_log_probabilities(model, tmp_path, capsys):
    code, out, err = run(capsys, "generate", "the cat sat", "--model", model, "--max-new-tokens", 3, "--logprobs", 2, "--json")
    assert code == 0, err
    (told,) = json.loads(out.splitlines()[-1])["results"]
    tok = polymodal.tokenizer(model)
    assert told["finish_reason"] == "length" and told["completion_tokens"] == 3 and "seed" not in told and "cut_tokens" not in told
    assert told["prompt_tokens"] == len(tok.encode("the cat sat", add_special_tokens=False))
    assert [set(t) for t in told["logprobs"]] == [{"token", "id", "logprob", "top"}] * 3
    assert all(t["top"][0] == {k: t[k] for k in ("token", "id", "logprob")} for t in told["logprobs"]), "greedy: the most probable one"
    code, out, err = run(capsys, "generate", "the " * 500, "--model", model, "--max-new-tokens", 3, "--truncate", "--json")
    (told,) = json.loads(out.splitlines()[-1])["results"]
    assert code == 0 and told["cut_tokens"] > 0 and "1 of 1 texts continue a prompt without its beginning" in err


@pytest.mark.parametrize(("options", "message"), [
    (("--logprobs", 2), "--logprobs is told by"), (("--json", "--json-lines"), "leave all but one out"),
    (("--no-do-sample", "--temperature", 2), "temperature is for draws"), (("--length-penalty", 2), "of beams")])
def test_options_without_an_effect_are_refused(model, capsys, options, message):
    code, _, err = run(capsys, "generate", "the", "--model", model, *options)
    assert code == 2 and message in err and err.count("\n") == 1


def test_the_same_file_from_python(model, prompts, tmp_path, capsys, monkeypatch):
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    code, _, err = run(capsys, "generate", prompts, "--model", model, "--max-new-tokens", 5, "--top-p", 0.8, "--seed", 3, "--out", theirs)
    assert code == 0, err
    net, tok = polymodal.load(model), polymodal.tokenizer(model)
    arguments = {"tokenizer": tok, "max_new_tokens": 5, "top_p": 0.8, "seed": 3}
    with monkeypatch.context() as patch:
        stopped_after(patch, 1)
        with pytest.raises(Killed):
            polymodal.generate_file(net, PROMPTS, ours, batch_size=2, **arguments)
    assert lines(tmp_path / ".ours.jsonl.parts" / "texts.jsonl") and not ours.exists()
    assert polymodal.generate_file(net, PROMPTS, ours, **arguments) == len(PROMPTS)
    assert lines(ours) == lines(theirs)
    with pytest.raises(polymodal.shared.errors.UserError, match="prepacked"):
        polymodal.generate_file(polymodal.load(model, quantize="int8"), PROMPTS, ours, **arguments)
