"""Every task of encoders, from a file to an answer: pack, finetune, evaluate, use; and bad input."""

from __future__ import annotations

import importlib.util
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.cli import main
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.evaluation.classes import ClassifyTexts
from polymodal.pipelines.evaluation.evaluate import OutputFiles, evaluate
from polymodal.pipelines.evaluation.tasks import Choice, Score, Span, Tag
from polymodal.pipelines.inference.words import tag_texts
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.recipe import recipe
from polymodal.pipelines.train import loop
from polymodal.pipelines.train.inputs import read_context
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import Tokenizer

WORDS = ["red", "green", "blue", "cat", "dog", "house", "tree", "runs", "sleeps", "and", "the", "small", "large", "old", "new"]
SMALL = [f"model.{k}={v}" for k, v in {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                                       "max_position_embeddings": 42}.items()]


def packed(path, name, rows, kind, *, ending="jsonl", on_bad="raise", **reading):
    file = path / f"{name}.{ending}"
    file.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    pack(file, path / name, PackSettings(Reading(kind, **reading), on_bad=on_bad, shuffle=None), workers=Workers(1))
    return DataSet.open(path / name)


def samples_of(data):
    return data.read_many(range(len(data)))


def trained(path, task, data, *, updates=3, more=()):
    """A run of a few updates on the words."""
    Tokenizer.train([" ".join(WORDS) + "."] * 20, "wordpiece", 79).save(path / "tokenizer")
    chosen = recipe("bert-tiny", ["objective={}", f"task={task}", f"max_updates={updates}", "data.global_batch=4", "precision=32",
                                  "accelerator=cpu", "log.tensorboard=false", "optim.freeze=[embed]", *SMALL, *more])
    loop.pretrain(chosen, data, path / "run", eval_data=path / "held", tokenizer=path / "tokenizer", console=Console(quiet=True))
    return path / "run"


def measured(evaluation, run, data, path):
    record = evaluate(evaluation, run, data, output=OutputFiles(predictions=path / "predictions.jsonl"),
                      console=Console(quiet=True))
    assert record["task"] == evaluation.name and record["data"]["measured"] == len(DataSet.open(data))
    return record, [json.loads(line) for line in (path / "predictions.jsonl").read_text().splitlines()]


def refused(path, rows, kind, match, **more):
    with pytest.raises(UserError, match=match) as found:
        packed(path, "bad", rows, kind, **more)
    assert "\n" not in str(found.value) and not (path / "bad").exists()


# ------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize(("task", "rows", "known"), [
    ("score", [{"text": "red", "score": 1}], "loss, regression, regression_chance, pearson, mean/score"),
    ("labels", [{"text": "red", "labels": ["a", "b"]}], "loss, classification, micro_f1, exact_match, f1/a"),
    ("span", [{"question": "q", "context": "red", "answers": []}], "loss, exact_windows, start, start_chance, end, end_chance$"),
    ("tag", [{"words": ["red"], "tags": ["NN"]}], "loss, tagging, tagging_chance, accuracy$")])
def test_a_measure_that_a_task_does_not_have_is_refused_before_the_run(task, rows, known, tmp_path):
    packed(tmp_path, "data", rows, task)
    packed(tmp_path, "held", [{**row, "text": "blue", "context": "blue", "words": ["blue"]} for row in rows], task)
    wrong = "entity_f1" if task == "tag" else "accuracy"
    name = "classify" if task == "labels" else task
    with pytest.raises(UserError, match=f"evaluate.monitor is '{wrong}', which the evaluations of the task {name} of bert do not measure: "
                                        f"set it to one of {known}"):
        trained(tmp_path, name, tmp_path / "data", more=[f"evaluate.monitor={wrong}"])
    assert not (tmp_path / "run").exists()


def test_columns_that_are_not_read_are_named(tmp_path, capsys):
    rows = [{"text": "red", "score": 1, "id": 3, "note": ""}, {"text": "blue", "score": 2, "id": 4}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pack(tmp_path / "rows.jsonl", tmp_path / "out", PackSettings(Reading("score")), workers=Workers(1), console=Console())
    assert "columns that are not read: id (2 records), note (1 records)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("rows", "ending", "problem"), [
    ('{"text": "red", "score": 1, "text": "blue"}\n', "jsonl", "bad.jsonl, line 1: the field 'text' occurs twice in an object"),
    ("text,score,text\nred,1,blue\n", "csv", "the column 'text' occurs twice")])
def test_two_columns_of_one_name_are_refused(rows, ending, problem, tmp_path):
    refused(tmp_path, rows, "score", problem, ending=ending)


# ------------------------------------------------------------------------------------------------ labels


def test_several_labels(tmp_path, monkeypatch, capsys):
    rows = [{"text": f"{a} {b}", "other": a, "labels": sorted({f"l{i % 3}", f"l{i % 2}"})[:i % 4]}
            for i, (a, b) in enumerate(pairwise(WORDS))]
    data = packed(tmp_path, "data", rows, "labels", pair_field="other")
    assert data.index.kind == "labels" and data.index.schema["classes"] == ["l0", "l1", "l2"]
    assert [s.labels() for s in samples_of(data)[:4]] == [[], ["l1"], ["l0", "l2"], ["l0", "l1"]] and samples_of(data)[3].pair() == "cat"
    packed(tmp_path, "held", rows[1:], "labels", pair_field="other")
    run = trained(tmp_path, "classify", tmp_path / "data", more=["evaluate.monitor=micro_f1", "checkpoint.keep_best=true"])
    row = [r for r in loop.Run(run).metrics() if r["split"] == "eval"][-1]
    record, lines = measured(ClassifyTexts(), run, tmp_path / "held", tmp_path)
    assert record["metrics"].keys() == {"micro_f1", "micro_precision", "micro_recall", "macro_f1", "exact_match", "every_label_f1"}
    for name in ("micro_f1", "exact_match"):
        assert row[name] == pytest.approx(record["metrics"][name])
    assert lines[0]["labels"] == ["l1"] and lines[0]["scores"].keys() == {"l0", "l1", "l2"}
    assert json.loads((run / "export" / "config.json").read_text())["problem_type"] == "multi_label_classification"
    again = loop.Run(run).system()
    assert type(again).__name__ == "LabelsSystem" and again.objective.labels == ("l0", "l1", "l2")
    (found,) = command(monkeypatch, capsys, "classify", "--model", str(run), "blue tree", "--json")["results"]
    assert len(found["predictions"]) == 3 and all(0 < p["score"] < 1 for p in found["predictions"])
    packed(tmp_path, "single", [{"text": "red", "topic": "l0"}, {"text": "blue", "topic": "l1"}, {"text": "old", "topic": "l2"}], "text",
           label_field="topic")
    with pytest.raises(UserError, match="no list of names or numbers as 'labels'"):
        evaluate(ClassifyTexts(), run, tmp_path / "single", console=Console(quiet=True))
    with pytest.raises(UserError, match=r"data has several labels for each text and .*single is packed as text: pack both with"):
        read_context([data, DataSet.open(tmp_path / "single")], (), None)


def test_labels_from_csv(tmp_path):
    rows = "sentence,topics\nred cat,a; b\nblue dog,\nold,\"[\"\"b\"\"]\"\n"
    data = packed(tmp_path, "data", rows, "labels", ending="csv", text_field="sentence", label_field="topics", label_separator=";",
                  classes=("b", "a"))
    assert [s.labels() for s in samples_of(data)] == [["a", "b"], [], ["b"]] and data.index.schema["classes"] == ["b", "a"]


@pytest.mark.parametrize(("row", "more", "problem"), [
    ({"text": "a"}, {}, r"no labels in 'labels', the columns are text \(--label-field names the column\)"),
    ({"text": "a", "labels": None}, {}, "no labels in 'labels'"),
    ({"text": "a", "labels": "x;y"}, {}, r"the labels are 'x;y', expected a list \(--label-separator cuts a text\)"),
    ({"text": "a", "labels": "x;;y"}, {"label_separator": ";"}, "the label '', expected a name or a whole number"),
    ({"text": "a", "labels": ["x", 1.5]}, {}, "the label 1.5, expected a name"),
    ({"text": "a", "labels": ["x", "x"]}, {}, "the label 'x' stands twice"),
    ({"text": "a", "labels": ["x"]}, {"classes": ("y",)}, "the label 'x', which --classes does not name"),
    ({"text": " ", "labels": ["x"]}, {}, "an empty text")])
def test_what_are_no_labels(row, more, problem, tmp_path):
    refused(tmp_path, [row], "labels", f"bad.jsonl, line 1: {problem}", **more)
    data = packed(tmp_path, "good", [{"text": "b", "labels": ["y"]}, row], "labels", on_bad="skip", **more)
    assert len(data) == 1 and data.index.schema["skipped"] == 1


def test_options_of_labels_elsewhere(tmp_path):
    refused(tmp_path, [{"text": "a", "label": ["x"]}], "text", "'label' holds a list, expected one class .--kind", label_field="label")
    with pytest.raises(UserError, match="--label-separator cuts cells into several labels: give --kind labels"):
        Reading("score", label_separator=";")
    with pytest.raises(UserError, match="--label-separator is empty"):
        Reading("labels", label_separator="")


# ------------------------------------------------------------------------------------------------- score


def test_scores(tmp_path):
    rows = [{"text": f"{a} {b}", "other": a, "score": i / 2} for i, (a, b) in enumerate(pairwise(WORDS))]
    data = packed(tmp_path, "data", rows, "score", pair_field="other")
    assert data.index.kind == "score" and len(data) == 14
    sample = samples_of(data)[3]
    assert (sample.text(), sample.pair(), sample.score()) == ("cat dog", "cat", 1.5)
    packed(tmp_path, "held", rows[1:], "score", pair_field="other")
    run = trained(tmp_path, "score", tmp_path / "data", more=["evaluate.every=2", "evaluate.monitor=pearson", "checkpoint.keep_best=true"])
    row = max((r for r in loop.Run(run).metrics() if r["split"] == "eval"), key=lambda r: r["pearson"])
    record, lines = measured(Score(), run, tmp_path / "held", tmp_path)
    assert record["metrics"].keys() == {"pearson", "spearman", "rmse"} == record["intervals"].keys()
    assert row["pearson"] == pytest.approx(record["metrics"]["pearson"], abs=1e-3)
    assert row["regression"] == pytest.approx(record["metrics"]["rmse"] ** 2, rel=1e-3)
    assert [line["score"] for line in lines] == [i / 2 for i in range(1, 14)] and isinstance(lines[0]["prediction"], float)
    config = json.loads((run / "export" / "config.json").read_text())
    assert config["problem_type"] == "regression" and config["id2label"] == {"0": "score"}


def test_scores_from_csv_in_any_column(tmp_path):
    data = packed(tmp_path, "data", "sentence,points\nred cat,-1.5\nblue dog,3e0\n", "score", ending="csv", text_field="sentence",
                  label_field="points")
    assert [s.score() for s in samples_of(data)] == [-1.5, 3.0]


@pytest.mark.parametrize("value", ["high", None, True, float("nan"), [1]])
def test_what_is_no_score(value, tmp_path):
    refused(tmp_path, [{"text": "red", "score": 1}, {"text": "blue", "score": value}], "score",
            r"bad.jsonl, line 2: no number in 'score', got .*; the columns are text, score \(--label-field names the column\)")
    data = packed(tmp_path, "good", [{"text": "red", "score": 1}, {"text": "blue", "score": value}], "score", on_bad="skip")
    assert len(data) == 1 and data.index.schema["skipped"] == 1


def test_options_that_an_annotated_kind_does_not_have(tmp_path):
    rows = [{"text": "red", "score": 1}]
    refused(tmp_path, rows, "score", "--target-field names texts that are to be written; these sources are", target_field="x")
    refused(tmp_path, rows, "score", "--classes names classes, and these sources are packed as score", classes=("a",), label_field="score")
    refused(tmp_path, rows, "score", "numbers the classes of pictures in folders", classes=("a",))
    refused(tmp_path, "red\n\nblue\n", "score", r"has the wrong type for --kind score, expected .*jsonl", ending="txt")


# --------------------------------------------------------------------------------------------------- tag

CONLL = """-DOCSTART- -X- O O

red NN B-COL B-COL
cat NN B-ANIMAL B-ANIMAL

# text = the small dog
the\tDT\tO
small\tJJ\tB-ANIMAL
dog\tNN\tI-ANIMAL

"""


def test_tags(tmp_path, monkeypatch, capsys):
    rows = [{"words": [a, b, "the"], "tags": ["B-A", "I-A", "O"] if i % 2 else ["O", "B-B", "O"]}
            for i, (a, b) in enumerate(pairwise(WORDS))]
    data = packed(tmp_path, "data", rows, "tag")
    assert data.index.schema["classes"] == ["B-A", "B-B", "I-A", "O"] and samples_of(data)[1].tags() == (["green", "blue", "the"],
                                                                                                   ["B-A", "I-A", "O"])
    packed(tmp_path, "held", rows[1:], "tag")
    run = trained(tmp_path, "tag", tmp_path / "data", more=["evaluate.monitor=entity_f1", "evaluate.patience=9", "evaluate.every=3"])
    row = [r for r in loop.Run(run).metrics() if r["split"] == "eval"][-1]
    record, lines = measured(Tag(), run, tmp_path / "held", tmp_path)
    assert record["metrics"].keys() == {"entity_f1", "entity_precision", "entity_recall", "accuracy"}
    assert row["accuracy"] == pytest.approx(record["metrics"]["accuracy"])
    assert row["entity_recall"] == pytest.approx(record["metrics"]["entity_recall"])
    assert lines[0]["tags"] == ["B-A", "I-A", "O"] and len(lines[0]["predictions"]) == 3
    (tmp_path / "texts.txt").write_text("red cat.\nthe dog's house, 3.5 红猫\n")
    assert command(monkeypatch, capsys, "tag", "--model", str(run), "blue tree", str(tmp_path / "texts.txt"), "--json")["results"][2][
        "words"] == ["the", "dog's", "house", ",", "3.5", "红", "猫"]
    capsys.readouterr()
    example("tag_names").main(str(run), ["blue tree the"])
    assert capsys.readouterr().out.splitlines()[0] == "blue tree the"


def example(name):
    """A script of the folder examples, imported."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().parents[2] / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(monkeypatch, capsys, *arguments):
    """The last line of what a command prints, read as JSON."""
    monkeypatch.setattr("sys.argv", ["polymodal", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_entities_of_a_text():
    class Fixed:
        with_entities = True

        def answer(self, inputs):
            return [["B-PER", "I-PER", "O", "B-LOC", "O"] for _ in inputs]

    (row,) = tag_texts(Fixed(), ["Anna Lee saw Paris."], batch_size=2, console=Console(quiet=True))
    assert row["entities"] == [{"type": "PER", "text": "Anna Lee", "start": 0, "end": 8},
                               {"type": "LOC", "text": "Paris", "start": 13, "end": 18}]


def test_tags_of_conll_files_and_of_csv(tmp_path):
    data = packed(tmp_path, "conll", CONLL, "tag", ending="conll")
    assert [s.tags() for s in samples_of(data)] == [(["red", "cat"], ["B-COL", "B-ANIMAL"]),
                                                    (["the", "small", "dog"], ["O", "B-ANIMAL", "I-ANIMAL"])]
    rows = "tokens,pos\nred cat,JJ NN\n\"[\"\"the\"\", \"\"dog\"\"]\",DT NN\n"
    data = packed(tmp_path, "csv", rows, "tag", ending="csv", label_field="pos")
    assert [s.tags() for s in samples_of(data)] == [(["red", "cat"], ["JJ", "NN"]), (["the", "dog"], ["DT", "NN"])]


def test_names_of_tags_in_parquet(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    feature = {"feature": {"names": ["O", "B-PER"], "_type": "ClassLabel"}, "_type": "Sequence"}
    table = pa.table({"tokens": [["red", "cat"]], "ner_tags": [[0, 1]]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {"ner_tags": feature}}})}),
                   tmp_path / "t.parquet")
    pack(tmp_path / "t.parquet", tmp_path / "out", PackSettings(Reading("tag")), workers=Workers(1))
    assert samples_of(DataSet.open(tmp_path / "out"))[0].tags() == (["red", "cat"], ["O", "B-PER"])


@pytest.mark.parametrize(("rows", "problem"), [
    ([{"words": ["a", "b"], "tags": ["O"]}], "bad.jsonl, line 1: 2 words and 1 tags: each word needs one"),
    ([{"words": ["a", "b"], "tags": ["O", "I-X"]}], "bad.jsonl, line 1: I-X of word 2 continues nothing: expected B-X before it"),
    ([{"words": [], "tags": []}], "bad.jsonl, line 1: no list of words"),
    ([{"words": 3, "tags": []}], "line 1: the words are '3', expected a list"),
    ([{"text": "a", "tags": ["O"]}], r"line 1: no words in 'words' or 'tokens', the columns are text, tags \(--text-field"),
    ([{"words": ["a"]}], r"line 1: no tags in 'tags' or 'ner_tags', the columns are words \(--label-field names the column\)"),
    ([{"words": ["a"], "tags": [" "]}], "line 1: the tag of word 1 is blank")])
def test_what_is_no_tagged_sentence(rows, problem, tmp_path):
    refused(tmp_path, rows, "tag", problem)


def test_what_is_wrong_in_a_conll_file(tmp_path):
    refused(tmp_path, "red O\ncat\n\n", "tag", "bad.conll, line 2: a word and no tag", ending="conll")
    refused(tmp_path, "red O\n\ncat I-X\n", "tag", "bad.conll, line 3: I-X of word 1 continues nothing", ending="conll")
    refused(tmp_path, "red O\ncat B-X\n", "tag", "line 1: the tag 'B-X', which --classes does not name", ending="conll", classes=("O",))
    data = packed(tmp_path, "good", "red O\ncat\n\ndog O\n", "tag", ending="conll", on_bad="skip")
    assert len(data) == 1 and data.index.schema["skipped"] == 1


# ------------------------------------------------------------------------------------------------ choice


def test_choices(tmp_path):
    rows = [{"text": a, "choices": [b, "old"] if i % 2 else ["new", b, "old"], "label": 1 - i % 2}
            for i, (a, b) in enumerate(pairwise(WORDS))]
    data = packed(tmp_path, "data", rows, "choice")
    assert samples_of(data)[0].choices() == ["new", "green", "old"] and samples_of(data)[0].label() == 1
    packed(tmp_path, "held", rows[1:], "choice")
    run = trained(tmp_path, "choice", tmp_path / "data")
    record, lines = measured(Choice(), run, tmp_path / "held", tmp_path)
    assert record["metrics"]["chance"] == pytest.approx((7 / 2 + 6 / 3) / 13) and 0 <= record["metrics"]["accuracy"] <= 1
    assert len(lines[0]["scores"]) == 2 and len(lines[1]["scores"]) == 3 and lines[0]["label"] == 0


@pytest.mark.parametrize(("row", "problem"), [
    ({"text": "a", "choices": ["b"], "label": 0}, "no list of two or more texts"),
    ({"text": "", "choices": ["a", "b"], "label": 0}, "empty text"),
    ({"text": "a", "choices": ["b", "c"], "label": 2}, "choice 2, there are 2"),
    ({"text": "a", "label": 2}, "no list of texts in 'choices'"),
    ({"text": "a", "choices": ["b", "c"], "label": "c"}, "the right choice is 'c', expected its number, counted from 0"),
    ({"text": "a", "choices": ["b", "c"], "label": -1}, "choice -1, there are 2, counted from 0"),
    ({"text": "a", "choices": ["b", "c"]}, r"no number of the right choice in 'label', the columns are text, choices \(--label-field")])
def test_what_is_no_choice(row, problem, tmp_path):
    refused(tmp_path, [row], "choice", f"bad.jsonl, line 1: .*{problem}")


# -------------------------------------------------------------------------------------------------- span

SQUAD = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": " the red cat  sleeps", "qas": [
    {"id": "1", "question": "who?", "answers": [{"text": "red cat", "answer_start": 5}], "is_impossible": False},
    {"id": "2", "question": "where?", "answers": [], "plausible_answers": [], "is_impossible": True}]}]}]}


def test_spans(tmp_path, monkeypatch, capsys):
    rows = [{"id": i, "question": f"what is {b}", "context": f"the {a} {b} and the old tree " * (1 + i % 2 * 4),
             "answers": {"text": [b], "answer_start": [5 + len(a)]} if i % 5 else {"text": [], "answer_start": []}}
            for i, (a, b) in enumerate(pairwise(WORDS))]
    data = packed(tmp_path, "data", rows, "span")
    question, (answer,) = samples_of(data)[1].answers()
    assert (question, answer.text, answer.start) == ("what is blue", "blue", 10) and samples_of(data)[0].answers()[1] == []
    packed(tmp_path, "held", rows[1:], "span")
    run = trained(tmp_path, "span", tmp_path / "data", more=["evaluate.monitor=exact_windows"])
    record, lines = measured(Span(no_answer_threshold=0.0), run, tmp_path / "held", tmp_path)
    assert record["metrics"].keys() >= {"exact_match", "f1", "f1/answerable", "f1/unanswerable"}
    assert record["settings"]["no_answer_threshold"] == 0.0 and lines[0]["answers"] == ["blue"]
    (tmp_path / "text.txt").write_text("the red cat\nand the dog " * 20)
    result = command(monkeypatch, capsys, "answer", "who sleeps", "the red cat", str(tmp_path / "text.txt"), "--model", str(run),
                     "--show", "2", "--json")["results"]
    assert len(result) == 2 and len(result[1]["answers"]) == 2
    best = result[1]["answers"][0]
    assert (tmp_path / "text.txt").read_text()[best["start"]:].startswith(best["text"]) and best["text"]
    (tmp_path / "texts").mkdir()
    for name, text in (("a.txt", "the red cat sleeps"), ("b.txt", "the old tree " * 30), ("empty.txt", "")):
        (tmp_path / "texts" / name).write_text(text)
    capsys.readouterr()
    example("answer_folder").main(str(run), str(tmp_path / "texts"), "who sleeps")
    lines = [re.fullmatch(r"([+-]\d+\.\d\d)  ([ab])\.txt: (.+) \(character \d+\)", line) for line in capsys.readouterr().out.splitlines()]
    assert all(lines) and sorted(m[2] for m in lines) == ["a", "b"] and float(lines[0][1]) >= float(lines[1][1])
    with pytest.raises(UserError, match="expected a network that was fine-tuned for the task tag"):
        example("tag_names").main(str(run), ["red"])


def test_squad_files_are_read_as_they_are(tmp_path):
    data = packed(tmp_path, "data", json.dumps(SQUAD), "span", ending="json")
    first, second = samples_of(data)
    assert first.answers() == ("who?", [("red cat", 5)]) and second.answers() == ("where?", []) and first.text() == " the red cat  sleeps"
    assert first.json()["id"] == "1"


@pytest.mark.parametrize(("row", "problem"), [
    ({"question": "q", "context": "the cat", "answers": [{"text": "dog", "answer_start": 4}]},
     "the answer 'dog' is not at character 4 of the text, where 'cat' stands"),
    ({"question": "q", "context": " ", "answers": []}, "an empty text"),
    ({"question": "", "context": "c", "answers": []}, "no text as 'question'"),
    ({"question": "q", "context": "c"}, "no answers in 'answers', the columns are question, context"),
    ({"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": []}}, "expected as many texts"),
    ({"question": "q", "answers": []}, "no text in 'text'")])
def test_what_is_no_question(row, problem, tmp_path):
    refused(tmp_path, [row], "span", f"bad.jsonl, line 1: .*{problem}")


def test_what_is_wrong_in_a_squad_file(tmp_path):
    refused(tmp_path, '{"data": [{}]}', "span", r"bad.json is not in SQuAD's format \(KeyError: 'paragraphs'\)", ending="json")
    wrong = json.loads(json.dumps(SQUAD).replace('"answer_start": 5', '"answer_start": 6'))
    refused(tmp_path, json.dumps(wrong), "span", r"question 1 \(article 1, paragraph 1\): the answer 'red cat' is not at", ending="json")
    data = packed(tmp_path, "good", json.dumps(wrong), "span", ending="json", on_bad="skip")
    assert len(data) == 1 and data.index.schema["skipped"] == 1
