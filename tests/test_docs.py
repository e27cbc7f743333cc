"""The documentation says what is true: links, files, commands and generated pages, and the examples run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import processes
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FOLDERS = "shared|pipelines|text|vision|seq2seq|multimodal|docs|tests|examples|benchmarks"
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, languages: str) -> list[str]:
    return re.findall(rf"^```(?:{languages})\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M)


SHELL = ("until", "export", "ls", "grep", "wait", "kill", "pkill",  # of docs/laptop_cluster.md, which a slow test runs
         "ray", "cat", "docker", "kubectl", "mkdir", "head", "wc", "cut")


def command_lines(page: Path, languages: str = "sh|console") -> list[list[str]]:
    lines = [line for block in blocks(page, languages) for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := _before_redirection(shlex.split(line, comments=True)))]


def _before_redirection(words: list[str]) -> list[str]:
    return words[: next((i for i, word in enumerate(words) if word in (">", "2>", "2>&1", "|", "&", "<")), len(words))]


# --- links and files


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (page.parent / target).is_file(), target
    for target in re.findall(rf"`((?:{FOLDERS})/[\w/.]*)`", text):
        assert (ROOT / target).exists(), target


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert {str(p.relative_to(DOCS)) for p in PAGES if p.parent.name != "systems" or p.name == "index.md"} == listed


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {target for page in PAGES for target in re.findall(r"\bmake ([a-z-]+)`|^make ([a-z-]+)", page.read_text(), flags=re.M)}
    assert {"demo", "test", "docs"} <= {a or b for a, b in named}
    for target in {a or b for a, b in named}:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


# --- what is read off the code


def test_the_written_pages_are_up_to_date() -> None:
    from polymodal.pipelines.cards.cards import pages

    made = pages()
    for name, text in made.items():
        assert (DOCS / name).is_file() and (DOCS / name).read_text(encoding="utf-8") == text, f"run `make docs`: docs/{name} is old"
    assert {p.name for p in (DOCS / "systems").iterdir()} == {Path(n).name for n in made if n.startswith("systems/")}


def test_cards_tell_true_numbers() -> None:
    """Against a count by hand of the published BERT base with both heads, and against a network that is really built."""
    import polymodal
    from polymodal.pipelines.cards.cards import parameters
    from polymodal.registry import family

    d, v, s, layers, inner = 768, 30522, 512, 12, 3072
    block = 4 * (d * d + d) + 2 * d * inner + inner + d + 4 * d
    trunk = (v + s + 2) * d + 2 * d + layers * block + d * d + d
    heads = d * d + d + 2 * d + v + 2 * d + 2
    assert parameters(family("bert"), "base") == (trunk + heads, trunk + heads)
    assert parameters(family("gpt2"), "tiny")[0] == sum(p.numel() for p in polymodal.system("gpt2", size="tiny").net.parameters())


def test_mask_figures_are_up_to_date_and_show_what_their_code_says() -> None:
    from polymodal.pipelines.cards.mask_figure import CELL, EDGE

    draw = example("draw_masks")
    for name, text in draw.pages().items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, f"run `make docs`: docs/{name} is old"
    assert {p.name for p in (DOCS / "masks").iterdir()} == {f"{f.name}.svg" for f in draw.FIGURES}
    names = {"Mask": draw.Mask, "Layout": draw.Layout, "torch": torch, "attention_mask": ~draw.tokens(12, 13, 14, 15),
             "marked": draw.tokens(0, 8), "table": draw.bigbird(), "allowed": draw.permuted()}
    for figure in draw.FIGURES:
        mask = eval(figure.code, names)
        said = mask.dense(1, draw.LENGTH - mask.offset, draw.LENGTH, torch.device("cpu"))
        drawn = re.findall(r'<rect x="(\d+)" y="(\d+)"', draw.polymodal.draw_mask(figure.title, figure.mask))
        places = {((int(y) - EDGE) // CELL, (int(x) - EDGE) // CELL) for x, y in drawn}
        assert places == {(q, k) for q, k in said[0, 0].nonzero().tolist()}, figure.name


def test_the_page_of_results_is_up_to_date() -> None:
    plot = example("plot_results")
    for name, text in plot.pages().items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, f"run `make docs`: docs/{name} is old"
    assert plot.draw([]).count("<rect") == 1 and plot.draw(plot.results()).count("<rect") == 1 + len(plot.results()) > 5


# --- commands


@cache
def known() -> Any:
    from polymodal.pipelines.cards.reference import commands

    return commands()


def parse(words: list[str]) -> None:
    """Parse one command line with the program's own parser, without running it."""
    name = next((n for n in (" ".join(words[:2]), words[0]) if n in known()), None)
    assert name is not None, f"there is no command {words[0]!r}"
    known()[name].make_context(name, words[len(name.split()):])


def check_line(words: list[str]) -> None:
    if words[0] == "torchrun":
        assert words[words.index("-m") + 1] == "polymodal"
        parse(words[words.index("-m") + 2 :])
    elif words[0] == "polymodal":
        parse(words[1:])
    elif words[0] == "python":
        assert words[1] == "-m" or (ROOT / words[1]).is_file(), words[1]
    else:
        assert words[0] in ("make", "sed", *SHELL), words


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_commands_and_options_exist(page: Path) -> None:
    for words in command_lines(page):
        try:
            check_line(words)
        except Exception as error:
            message = getattr(error, "message", str(error))
            raise AssertionError(f"{shlex.join(words)}: {message}") from None


@pytest.mark.parametrize("command", [[], ["evaluate"], ["tokenizer"]])
def test_a_command_without_its_subcommand_shows_its_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from polymodal.pipelines import cli

    assert cli.run(command) == 2
    said = capsys.readouterr().err
    assert said.startswith(" ".join(["Usage: polymodal", *command])) and "\nCommands:\n" in said and "error" not in said.splitlines()[0]


def test_examples_in_help_keep_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    from polymodal.pipelines import cli

    assert cli.run(["evaluate", "perplexity", "--help"]) == 0
    said = capsys.readouterr().out
    assert "\\b" not in said and "\n  polymodal evaluate perplexity --model RUN --data held-out\n" in said
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert "\\b" not in page and "\b" not in page and "```sh\npolymodal evaluate perplexity --model RUN --data held-out\n" in page


def test_the_check_of_commands_can_fail() -> None:
    for line in ("polymodal pretrian gpt2-tiny", "polymodal pretrain gpt2-tiny --data D --out R --sed 1", "polymodal pretrain gpt2-tiny"):
        with pytest.raises(Exception):  # noqa: B017  (the parser's own kinds)
            check_line(shlex.split(line))


def test_named_recipes_and_keys_exist() -> None:
    from polymodal.pipelines.run.recipe import recipe, recipes

    for page in PAGES:
        for words in command_lines(page):
            verb = next((v for v in ("pretrain", "finetune") if v in words), None)
            if verb is not None:
                named = words[words.index(verb) + 1]
                if named in ("RUN/recipe.yaml", "examples/bag_tiny.yaml") or "model.image_size=18" in words:  # a wrong turn: it is refused
                    continue
                assert named in recipes() or (ROOT / named).is_file(), named
                recipe(str(ROOT / named) if named.endswith(".yaml") else named,
                       [after for before, after in pairwise(words) if before == "--set"])
    training = (DOCS / "training.md").read_text()
    keys = (DOCS / "recipe_keys.md").read_text()
    for key in re.findall(r"`((?:data|optim|schedule|log|evaluate|checkpoint)\.[a-z_]+)`", training + (DOCS / "data.md").read_text()):
        assert f"`{key}`" in keys, key


# --- examples


def test_the_recipe_of_the_examples_builds_on_its_base() -> None:
    from polymodal.pipelines.run.recipe import recipe

    mine, base = recipe(ROOT / "examples/gpt2_narrow.yaml"), recipe("gpt2-tiny")
    assert (mine.model["n_embd"], mine.data.global_batch, mine.optim.lr) == (64, 8, 0.003)
    assert mine.optim.betas == base.optim.betas and mine.system == "gpt2"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "the", "dog", "run", "to", "the", "red", "house"]
    rng = np.random.default_rng(0)
    (tmp_path / "texts.txt").write_text("\n\n".join(" ".join(rng.choice(words, 30)) for _ in range(24)))
    return tmp_path / "texts.txt"


def test_the_example_system_keeps_the_contract(texts: Path, tmp_path: Path) -> None:
    """Two updates with the loop's own pieces: any layout gives the same gradient, and learning lowers the loss."""
    from polymodal.pipelines.crew.pieces import Workers
    from polymodal.pipelines.data.dataset import DataSet
    from polymodal.pipelines.data.layout import BatchLayout
    from polymodal.pipelines.data.stream import Stream
    from polymodal.pipelines.pack.pack import pack
    from polymodal.pipelines.run.optim import OptimSettings, build_optimizer
    from polymodal.pipelines.train.loop import count
    from polymodal.pipelines.train.passes import MicroBatch, Pass, ScaledLoss
    from polymodal.shared.family import Context

    bag = example("bag_of_characters").FAMILIES[0]
    pack([texts], tmp_path / "data", workers=Workers(1))
    results = []
    for micro_batch in (None, 2):
        torch.manual_seed(0)
        system = bag.pretraining.build(bag.config(), {"context": 4, "targets": 16}, Context())
        layout = BatchLayout(8, micro_batch)
        stream = Stream(DataSet.open(tmp_path / "data"), system.objective, layout, seed=0, lanes=2, window=16)
        optimizer = build_optimizer(system, OptimSettings(lr=0.05))
        losses = []
        for update in range(2):
            batches = [stream[update * layout.accumulate + part] for part in range(layout.accumulate)]
            totals = count([Pass(part, 0, batch) for part, batch in enumerate(batches)])
            scale = {name: 1 / total for name, total in totals.items() if total}
            losses.append(0.0)
            for batch in batches:
                loss = ScaledLoss(system)(MicroBatch(batch, None, scale))
                loss.backward()
                losses[-1] += loss.item()
            gradient = torch.cat([p.grad.flatten() for p in system.parameters()])
            optimizer.step()
            optimizer.zero_grad()
            system.after_update(update)
        results.append((losses, gradient))
    (whole, one), (parts, other) = results
    assert whole == pytest.approx(parts, rel=1e-5)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert whole[0] == pytest.approx(np.log(256), rel=0.02), "an untrained model knows nothing"
    assert whole[1] < whole[0] - 0.1


def test_the_example_system_reads_the_shortest_text_and_refuses_none() -> None:
    from polymodal.shared.errors import BadSample
    from polymodal.shared.sample import Sample

    module = example("bag_of_characters")
    objective = module.BagObjective(module.BagSettings(context=3, targets=2))
    (rows,) = objective.example(Sample("a", {"txt": b"x"}), np.random.default_rng(0))
    assert rows.tolist() == [[0, 0, 0, ord("x")]] * 2
    assert objective.describe(rows).rows[0] == ("predict", r"b'\x00\x00\x00' -> 'x'")
    with pytest.raises(BadSample, match="empty"):
        list(objective.example(Sample("a", {"txt": b" "}), np.random.default_rng(0)))


def test_the_script_that_generates(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import polymodal
    from polymodal.shared.tokenizer import Tokenizer

    tok = Tokenizer.train([texts.read_text()], "byte-bpe", 270)
    net = polymodal.system("gpt2", size="tiny", tokenizer=tok, n_embd=16, n_layer=1, n_positions=64).net
    polymodal.save(net, tmp_path / "model", tokenizer=tok)
    example("generate_text").main(str(tmp_path / "model"), "the cat")
    first = capsys.readouterr().out
    assert first.count("the cat") >= 4
    example("generate_text").main(str(tmp_path / "model"), "the cat")
    assert capsys.readouterr().out == first, "the seeds make the draws"


def test_the_scripts_with_examples(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import polymodal
    from polymodal.pipelines.crew.pieces import Workers
    from polymodal.pipelines.pack.pack import pack
    from polymodal.pipelines.pack.settings import PackSettings, Reading
    from polymodal.shared.tokenizer import Tokenizer

    tok = Tokenizer.train([texts.read_text(), "Answer: => \n"], "byte-bpe", 280)
    torch.manual_seed(0)
    net = polymodal.system("gpt2", size="tiny", tokenizer=tok, n_embd=16, n_layer=1, n_positions=192).net
    polymodal.save(net, tmp_path / "model", tokenizer=tok)
    (tmp_path / "pairs.csv").write_text("prompt,answer\nthe cat =>,sat\nthe dog =>,run\n")
    example("generate_with_examples").main(str(tmp_path / "model"), tmp_path / "pairs.csv", "the house =>")
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["0 examples", "1 examples", "2 examples"]
    (tmp_path / "questions.jsonl").write_text("".join(
        json.dumps({"text": f"the {a} saw", "choices": ["the mat", "a red house"], "label": n % 2}) + "\n"
        for n, a in enumerate(["cat", "dog", "mat", "house", "word"])))
    pack(tmp_path / "questions.jsonl", tmp_path / "questions", PackSettings(Reading("choice")), workers=Workers(1))
    example("ask_with_examples").main(str(tmp_path / "model"), str(tmp_path / "questions"))
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said[:3]] == ["0 examples", "1 examples", "4 examples"]
    assert all("guessing reaches 0.500" in line for line in said[:3]) and all(line.startswith("question ") for line in said[3:])


def test_the_script_that_summarizes(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import polymodal
    from polymodal.shared.tokenizer import STYLES, Tokenizer

    tok = Tokenizer.train([texts.read_text()], "unigram", 130, style=STYLES["t5"], max_length=96)
    net = polymodal.system("t5", size="tiny", tokenizer=tok, d_model=16, d_kv=8, d_ff=16).net
    polymodal.save(net, tmp_path / "model", tokenizer=tok)
    example("summarize_text").main(str(tmp_path / "model"), str(texts))
    first = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("round 1, ") for line in first) > 3
    assert not first[-1].startswith("round")


def test_the_scripts_that_summarize_a_folder_and_translate_a_file(texts: Path, tmp_path: Path) -> None:
    import polymodal
    from polymodal.shared.errors import UserError
    from polymodal.shared.tokenizer import STYLES, Tokenizer

    tok = Tokenizer.train([texts.read_text()], "unigram", 30, style=STYLES["albert"], max_length=60)
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64}
    for name, options in (("summaries", {}), ("languages", {"languages": ("old", "new")})):
        net = polymodal.system("mass", size="tiny", tokenizer=tok, **sizes, **options).net
        polymodal.save(net, tmp_path / name, tokenizer=tok)
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for name in ("a.txt", "inner/b.md"):
        (tmp_path / "folder" / name).write_text(texts.read_text()[:200])
    example("summarize_folder").main(str(tmp_path / "summaries"), str(tmp_path / "folder"), str(tmp_path / "out.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [Path(line["source"]).name for line in lines] == ["a.txt", "b.md"] and all("summary" in line for line in lines)

    (tmp_path / "old.txt").write_text("the cat\nthe dog\n")
    given = [str(tmp_path / "languages"), str(tmp_path / "old.txt"), str(tmp_path / "new.txt")]
    with pytest.raises(UserError, match="expected one of old, new"):
        example("translate_file").main(*given, "old", "greek")
    example("translate_file").main(*given, "old", "new")
    assert len((tmp_path / "new.txt").read_text().splitlines()) == 2
    for script, arguments in (("translate_file", given), ("summarize_folder", [str(tmp_path / "summaries"), str(tmp_path / "folder"),
                                                                              str(tmp_path / "out.jsonl")])):
        with pytest.raises(UserError, match="exists: give a new file"):
            example(script).main(*arguments)


def test_the_script_that_tells_copied_tokens_from_others(tmp_path: Path) -> None:
    """The network says "the" wherever it is asked: right where the target has it, and that is in the text."""
    import polymodal
    import torch
    from polymodal.pipelines.crew.pieces import Workers
    from polymodal.pipelines.pack.pack import pack
    from polymodal.pipelines.pack.settings import PackSettings, Reading
    from polymodal.shared.errors import UserError
    from polymodal.shared.tokenizer import STYLES, Tokenizer

    tok = Tokenizer.train(["the cat saw a red house"] * 4, "word", 12, style=STYLES["roberta"])
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64}
    net = polymodal.system("bart", size="tiny", tokenizer=tok, **sizes).net
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith("trunk.decoder.blocks.1.feed_forward_residual.norm"):
                parameter.zero_()  # the state is the bias, and the words' vectors are compared with that
        net.trunk.decoder.blocks[-1].feed_forward_residual.norm.bias.copy_(net.trunk.embed.word.weight[tok.token_to_id("the")] * 100)
    polymodal.save(net, tmp_path / "model", tokenizer=tok)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"text": text, "summary": "the red cat"}) + "\n"
                                                  for text in ("the cat saw", "the house saw a red", "the cat")))
    pack(tmp_path / "pairs.jsonl", tmp_path / "pairs", PackSettings(Reading(target_field="summary")), workers=Workers(1))
    found = example("copied_tokens").main(str(tmp_path / "model"), str(tmp_path / "pairs"))
    assert found["in the text"]["share"] == pytest.approx(6 / 9) and found["elsewhere"]["share"] == pytest.approx(3 / 9)
    assert found["in the text"]["accuracy"] == pytest.approx(3 / 6) and found["elsewhere"]["accuracy"] == 0
    assert found["elsewhere"]["nats"] > found["in the text"]["nats"] > 0
    polymodal.save(polymodal.system("bert", size="tiny", tokenizer=tok).net, tmp_path / "bert", tokenizer=tok)
    with pytest.raises(UserError, match="expected an encoder and a decoder"):
        example("copied_tokens").main(str(tmp_path / "bert"), str(tmp_path / "pairs"))


def test_the_script_that_classifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import polymodal
    from polymodal.shared.tokenizer import STYLES, Tokenizer

    tok = Tokenizer.train(["a photo of a red thing. a drawing of a blue thing."] * 4, "byte-bpe", 280, style=STYLES["clip"])
    net = polymodal.system("clip", size="tiny", tokenizer=tok).net
    polymodal.save(net, tmp_path / "model", tokenizer=tok)
    (tmp_path / "pictures").mkdir()
    for name, colour in (("one.png", "red"), ("two.jpg", "blue")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / "pictures" / name)
    (tmp_path / "pictures/readme.txt").write_text("no picture")
    (tmp_path / "pictures/broken.png").write_text("no picture")
    example("classify_folder").main(str(tmp_path / "model"), str(tmp_path / "pictures"), ["red", "blue"])
    said = capsys.readouterr()
    assert re.fullmatch(r"one\.png: (red|blue) \(0\.\d\d\)\ntwo\.jpg: (red|blue) \(0\.\d\d\)\n", said.out)
    assert "broken.png" in said.err


# --- the deeper ones


def copy_texts(to: Path) -> None:
    shutil.copytree(DOCS, to / "docs")
    shutil.copytree(ROOT / "examples", to / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, to / name)


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_getting_started_runs(tmp_path: Path) -> None:
    copy_texts(tmp_path)
    page = DOCS / "getting_started.md"
    for language, text in re.findall(r"^```(sh|python)\n(.*?)^```", page.read_text(), flags=re.S | re.M):
        if language == "python":
            assert "A sample is" in processes.python(text, cwd=tmp_path).check().out
            continue
        for line in text.splitlines():
            words = shlex.split(line)
            if words[0] == "polymodal":  # the console script itself runs in the tours of the README
                processes.polymodal(*words[1:], cwd=tmp_path).check()
            else:
                run(words, tmp_path)
    assert (tmp_path / "work/gpt2/export/model.safetensors").is_file()
    assert (tmp_path / "work/gpt2-export/config.json").is_file()
    assert (tmp_path / "work/report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_example_system_runs_once_it_lies_in_a_family_folder(tmp_path: Path) -> None:
    """As `docs/writing_a_system.md` says, in a copy of the package; no other file changes."""
    package = tmp_path / "lib" / "polymodal"
    package.mkdir(parents=True)
    for path in ROOT.iterdir():
        if path.name in ("shared", "text", "vision", "seq2seq", "multimodal", "pipelines"):
            shutil.copytree(path, package / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.suffix == ".py" or path.name == "py.typed":
            shutil.copy(path, package / path.name)
    copy_texts(package)
    lines = [line for block in blocks(DOCS / "writing_a_system.md", "console") for line in block.splitlines()]
    for line in lines:
        if line.startswith("sed "):
            subprocess.run(line, shell=True, cwd=package, check=True)
    server = processes.Server({"PYTHONPATH": str(tmp_path / "lib")})
    outputs = []
    for line in lines:
        if not line.startswith("sed "):
            words = shlex.split(line)
            assert words[0] == "polymodal"
            outputs.append(processes.polymodal(*words[1:], cwd=package, server=server).check().out)
    assert re.search(r"^bag +text", outputs[0], flags=re.M)
    assert (package / "work/bag/export/model.safetensors").is_file()
    assert "bits_per_byte" in (package / "work/bag/metrics.jsonl").read_text()
    assert "->" in outputs[-1]
    for block in blocks(DOCS / "writing_a_system.md", "python"):
        said = processes.python(block, cwd=package, server=server).check().out
        assert float(said.split("(")[-1].split(",")[0]) > 0
    server.stop()
