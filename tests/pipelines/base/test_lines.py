"""A line ends at a newline only: other separators of Unicode are characters of a text."""

import json

import pytest
from polymodal.pipelines.base.console import Console
from polymodal.pipelines.base.files import lines_of
from polymodal.pipelines.base.inputs import documents
from polymodal.pipelines.base.values import read_names


def test_lines_end_at_newlines_only():
    assert lines_of("a\r\nb\u2028c\n\x0cd") == ["a", "b\u2028c", "\x0cd"]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_a_record_or_line_with_another_separator_is_one_text(tmp_path, mark):
    rows, lines = tmp_path / "rows.jsonl", tmp_path / "lines.txt"
    text = f"tea{mark}pot"
    rows.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in (text, "cup")), encoding="utf-8")
    lines.write_text(f"{text}\ncup\n", encoding="utf-8")
    for file in (rows, lines):
        assert [d.text for d in documents([str(file)], lines=True)] == [text, "cup"]


def test_a_byte_order_mark_is_no_part_of_a_class_name(tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffcat\r\ndog\n", encoding="utf-8")
    assert read_names(str(tmp_path / "names.txt")) == ["cat", "dog"]


def test_the_result_is_one_line_for_every_reader(capsys):
    text = "tea\u2028p\x85o\u2029t é"
    Console(json=True).finish({"text": text})
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 and "é" in out and json.loads(out) == {"text": text}
