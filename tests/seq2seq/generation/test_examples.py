"""Examples before a prompt: what the model reads, what has no room, where a text ends, and what is refused."""

import json

import polymodal
import pytest
import torch
from polymodal.pipelines import cli
from polymodal.seq2seq.generation.examples import BETWEEN, Examples, ending
from polymodal.seq2seq.generation.generate import generate_texts
from polymodal.seq2seq.generation.options import GenerationSettings
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer

PAIRS = [("sea otter =>", "loutre de mer"), ("mint =>", "menthe"), ("cheese =>", "fromage")]


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train([" ".join(word for pair in PAIRS for word in pair) + BETWEEN + "Question: Answer:\n"] * 5, "byte-bpe", 290)


@pytest.fixture(scope="module")
def net(tok):
    torch.manual_seed(0)
    return polymodal.system("gpt2", size="tiny", tokenizer=tok, n_embd=32, n_positions=64, initializer_range=0.3).net.eval()


@pytest.fixture(scope="module")
def folder(tok, net, tmp_path_factory):
    if not any(c.name == "embed" for c in cli.app.registered_commands):
        cli._register()
    folder = tmp_path_factory.mktemp("examples")
    polymodal.save(net, folder / "model", tokenizer=tok)
    (folder / "pairs.jsonl").write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in PAIRS))
    return folder


def settings(new=4, **more):
    return GenerationSettings(max_new_tokens=new, **more)


def test_what_the_model_reads(tok, net):
    (found,) = Examples(PAIRS[:2], "Question: {prompt}\nAnswer:").before(["cheese"], net, tok, settings())
    assert found.text == ("Question: sea otter =>\nAnswer: loutre de mer\n\nQuestion: mint =>\nAnswer: menthe\n\n"
                          "Question: cheese\nAnswer:")
    assert found.shown == "Question: cheese\nAnswer:" and found.shots == 2


@pytest.mark.parametrize("new", [1, 20, 40, 55])
def test_the_first_examples_that_have_room_are_taken(new, tok, net):
    """As many as an exact count allows, and what is read leaves room for the new tokens."""
    examples = Examples(PAIRS * 4)
    (found,) = examples.before(["mint =>"], net, tok, settings(new))
    texts = ["".join([*(f"{p} {a}\n\n" for p, a in (PAIRS * 4)[:n]), "mint =>"]) for n in range(13)]
    fitting = [n for n, text in enumerate(texts) if len(tok.encode(text)) <= 64 - new]
    assert found.shots == max(fitting) < 12 and found.text == texts[found.shots]
    assert examples.lacking([found]) == f"1 of 1 prompts have room for fewer than the 12 examples; the fewest is {found.shots}"
    assert generate_texts(net, [found.text], tok, settings(new))
    assert Examples(PAIRS[:1]).lacking(Examples(PAIRS[:1]).before(["mint =>"], net, tok, settings(4))) == ""


def test_the_python_call_is_the_long_prompt_and_ends_with_a_blank_line(tok, net):
    text = polymodal.generate(net, "cheese =>", tokenizer=tok, max_new_tokens=8, examples=PAIRS[:2])
    whole = "sea otter => loutre de mer\n\nmint => menthe\n\ncheese =>"
    expected = polymodal.generate(net, whole, tokenizer=tok, max_new_tokens=8, stop_strings=(BETWEEN,), return_full_text=False)
    assert text == "cheese =>" + expected
    assert ending(settings()).stop_strings == (BETWEEN,)
    assert ending(settings(stop_strings=("x",))).stop_strings == ("x",) and not ending(settings(num_beams=2)).stop_strings
    with pytest.warns(UserWarning, match="1 of 1 prompts have room for fewer than the 30 examples"):
        polymodal.generate(net, "mint =>", tokenizer=tok, max_new_tokens=8, examples=PAIRS * 10)


@pytest.mark.parametrize(("pairs", "template", "message"), [
    ([], "{prompt}", "there are no examples"), ([("a", "b"), ("c", " ")], "{prompt}", "example 2 has a blank prompt or answer"),
    (PAIRS, "Question:", "template is 'Question:', expected one with {prompt}"),
])  # fmt: skip
def test_examples_that_are_none(pairs, template, message):
    with pytest.raises(UserError, match=message.replace("{", r"\{")):
        Examples(pairs, template)


def test_what_cannot_have_examples(tok, net):
    t5 = polymodal.system("t5", size="tiny", vocab_size=290).net
    with pytest.raises(UserError, match="examples stand before what a language model such as GPT-2 continues, and T5"):
        polymodal.generate(t5, "a", tokenizer=tok, examples=PAIRS)
    with pytest.raises(UserError, match="examples are for texts"):
        polymodal.generate(net, torch.ones(1, 2, dtype=torch.long), examples=PAIRS)
    with pytest.raises(UserError, match="template is for examples"):
        polymodal.generate(net, "a", tokenizer=tok, template="x {prompt}")


def run(capsys, *arguments):
    code = cli.run([str(a) for a in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command(folder, tok, net, capsys, tmp_path):
    given = ("--model", folder / "model", "--examples", folder / "pairs.jsonl", "--template", r"{prompt}\n", "--max-new-tokens", 5)
    code, out, err = run(capsys, "generate", "mint =>", "cheese =>", *given, "--json")
    assert code == 0, err
    results = json.loads(out.splitlines()[-1])["results"]
    asked = Examples(PAIRS, "{prompt}\n").before(["mint =>", "cheese =>"], net, tok, settings(5))
    written = generate_texts(net, [a.text for a in asked], tok, ending(settings(5)))
    assert results == [{"prompt": a.shown, "shots": a.shots, "continuation": w.text, "text": a.shown + w.text,
                        "finish_reason": w.finish_reason, "prompt_tokens": len(tok.encode(a.text, add_special_tokens=False)),
                        "completion_tokens": w.completion_tokens} for a, (w,) in zip(asked, written)]
    code, _, err = run(capsys, "generate", "mint =>", "cheese =>", *given, "--out", tmp_path / "out.jsonl")
    assert code == 0, err
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == results
    code, _, err = run(capsys, "generate", "mint =>", *given[:-1], 50)
    assert code == 0 and "1 of 1 prompts have room for fewer than the 3 examples" in err


@pytest.mark.parametrize(("name", "content", "message"), [
    ("none.jsonl", None, "expected a file that ends in .jsonl"), ("pairs.txt", "a\n", "expected a file that ends in .jsonl"),
    ("other.csv", "prompt,text\na,b\n", "line 2: expected texts in 'prompt' and 'answer'; its fields are prompt, text"),
    ("empty.jsonl", "", "there are no examples"), ("broken.jsonl", "{\n", "line 1 is not JSON"),
])  # fmt: skip
def test_files_that_hold_no_examples(name, content, message, folder, capsys, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    code, _, err = run(capsys, "generate", "a", "--model", folder / "model", "--examples", tmp_path / name)
    assert code == 2 and message in " ".join(err.split()) and len(err.strip().splitlines()) == 1


def test_a_template_without_examples_is_refused(folder, capsys):
    code, _, err = run(capsys, "generate", "a", "--model", folder / "model", "--template", "x {prompt}")
    assert code == 2 and "--template is for the prompts behind --examples" in err
