"""Texts with annotations: with their words, for pretraining by words, or samples of a task, whose annotations lie in the field `json`.

    kind    columns                                                            fields of the sample
    labels  text (--text-field), perhaps a second one (--pair-field), labels   txt, pair.txt, json: labels
    words   words or tokens (--text-field), perhaps tags or ner_tags           txt, units.u8
    score   text (--text-field), perhaps a second one (--pair-field), score    txt, pair.txt, json: score
    tag     words or tokens (--text-field), tags or ner_tags                   json: words, tags
    choice  text (--text-field), choices, label                                txt, json: choices, label
    span    question, context (--text-field), answers                          txt, json: question, answers, id

`--label-field` names the column of labels, scores, tags, answers, or of the right choice. As csv has no lists, words and tags may be texts
with spaces between them, labels with a separator (`--label-separator`), and these and choices the text of a JSON list. Tags are also read
from CoNLL files: a word on each line, its tag in the last column, a blank line behind each sentence; of kind words the tags may be missing,
and those that are there must mark entities. Answers are lists of mappings (text, answer_start), or a mapping of two lists; SQuAD's json
files hold them, too.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ...shared.errors import BadSample, UserError
from ...shared.sample import PAIR_FIELD, UNITS_FIELD, Sample
from ...shared.unicode import half_character, is_blank
from ...text.choice import labelled as labelled_choices
from ...text.entities import are_entities, breaks_off
from ..base.files import lines_of, open_bytes
from ..base.tables import Place, class_names, pick
from .cells import Record, cell_of, columns_of, identity, text_record
from .segment import joined
from .settings import Reading

Row = dict[str, Any]
WORDS, TAGS = ("words", "tokens"), ("tags", "ner_tags")
"""The columns of words and of their tags, where the options name none; the first that is there."""
_BY_SPACES = (str.split, ", or words with spaces between them")
LABELS = "labels"
"""The column of labels, where no option names one."""


class _Asked(Row):
    """A row that knows which of its columns were asked for."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.names: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a column."""
        self.names.add(key)
        return super().get(key, default)


def annotated(kind: str, row: Row, reading: Reading, where: Place | str, unread: Counter[str] | None = None) -> Record | BadSample:
    """The sample of a row, for one of `MAKERS`; `unread` counts the columns that it does not read, by name."""
    asked = _Asked(row)
    try:
        made = MAKERS[kind](asked, reading, where)
    except BadSample as error:
        return error
    if unread is not None:
        unread.update(row.keys() - asked.names)
    return made


def named_classes(path: Path, reading: Reading) -> Callable[[Row], Row]:
    """Puts names in the place of the numbers of tags or labels, where a parquet file says what they stand for (a list of ClassLabel)."""
    for column in (reading.label_field,) if reading.label_field else TAGS if reading.kind == "tag" else (LABELS,):
        if (names := class_names(path, column)) is not None:
            return partial(_named, column, names)
    return lambda row: row


def _named(column: str, names: Sequence[str], row: Row) -> Row:
    """The row with names in the place of the numbers in a column that holds a list."""
    given = row[column]
    if not isinstance(given, list):
        return row
    return {**row, column: [names[n] if isinstance(n, int) and 0 <= n < len(names) else n for n in given]}


def _text(row: Row, name: str, where: Place | str) -> bytes:
    """A text's bytes."""
    cell = cell_of(row, name, where)
    part = cell if isinstance(cell, BadSample) else text_record(cell, where)
    if isinstance(part, BadSample):
        raise part
    data = part.fields["txt"]
    assert isinstance(data, bytes)
    return data


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode("utf-8")


def _score(row: Row, reading: Reading, where: Place | str) -> Record:
    """A text or pair with its score."""
    name = reading.label_field or "score"
    value = pick(row, name)
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadSample(f"{where}: no number in {name!r}, got {str(value)[:40]!r}; {columns_of(row)} (--label-field names the column)")
    texts = _texts(row, reading, where)
    return Record("", {**texts, "json": _json({"score": number})}, identity(texts["txt"]))


def _labels(row: Row, reading: Reading, where: Place | str) -> Record:
    """A text or pair with its labels, perhaps none."""
    given = _column(row, (reading.label_field or LABELS,), "labels", where, "--label-field")
    between = reading.label_separator
    cut = None if between is None else lambda text: text.split(between) if text.strip() else []
    names = [str(name) if type(name) is int else name for name in _list(given, "labels", where, cut, " (--label-separator cuts a text)")]
    if wrong := [name for name in names if not isinstance(name, str) or is_blank(name)]:
        raise BadSample(f"{where}: the label {wrong[0]!r}, expected a name or a whole number")
    names = [name.strip() for name in names]
    if reason := next((found for name in names if (found := half_character(name))), None):
        raise BadSample(f"{where}: holds {reason}; convert the file to UTF-8")
    _known(names, reading, "label", where)
    texts = _texts(row, reading, where)
    fields = {**texts, "json": _json({"labels": names})}
    _checked(fields, Sample.labels, where)
    return Record("", {**fields}, identity(texts["txt"]), tuple(names))


def _texts(row: Row, reading: Reading, where: Place | str) -> dict[str, bytes]:
    """A text and perhaps the second one of its pair, as fields."""
    return {key: _text(row, column, where) for key, column in (("txt", reading.text_field), (PAIR_FIELD, reading.pair_field)) if column}


def _known(names: Sequence[str], reading: Reading, what: str, where: Place | str) -> None:
    """Refuse names of classes that are not in the list of all, where that is given."""
    if reading.classes is not None and (strange := sorted(set(names) - set(reading.classes))):
        raise BadSample(f"{where}: the {what} {strange[0]!r}, which --classes does not name")


def _column(row: Row, names: Sequence[str], what: str, where: Place | str, option: str = "") -> Any:
    """The value of the first of the columns that is there."""
    for name in names:
        if (value := pick(row, name)) is not None:
            return value
    hint = f" ({option} names the column)" if option else ""
    raise BadSample(f"{where}: no {what} in {' or '.join(map(repr, names))}, {columns_of(row)}{hint}")


def _list(value: Any, what: str, where: Place | str, cut: Callable[[str], list[str]] | None = None, hint: str = "") -> list[Any]:
    """A list, also as JSON text, or what `cut` makes of another text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):  # words then, or refused below
            value = json.loads(value)
    if isinstance(value, str) and cut is not None:
        value = cut(value)
    if not isinstance(value, list):
        raise BadSample(f"{where}: the {what} are {str(value)[:40]!r}, expected a list{hint}")
    return value


def _checked(fields: Mapping[str, bytes], read: Callable[[Sample], Any], where: Place | str) -> None:
    """Refuse what `read` would refuse of the sample, with its place in the file."""
    try:
        read(Sample("", fields))
    except BadSample as error:
        raise BadSample(f"{where}: {str(error).split(': ', 1)[1]}") from None


def _tagged(row: Row, reading: Reading, where: Place | str, *, optional: bool = False) -> tuple[list[str], list[str] | None]:
    """Words and their tags; where they are `optional` and not there, words alone."""
    name = reading.text_field
    given = (name, *WORDS) if name != "text" or (name in row and isinstance(row[name], list)) else WORDS
    words = _list(_column(row, given, "words", where, "--text-field"), "words", where, *_BY_SPACES)
    columns = (reading.label_field,) if reading.label_field else TAGS
    is_tagged = not optional or reading.label_field is not None or any(pick(row, name) is not None for name in columns)
    tags = _column(row, columns, "tags", where, "--label-field") if is_tagged else ["O"] * len(words)
    names: list[Any] = [str(t) if type(t) is int else t for t in _list(tags, "tags", where, *_BY_SPACES)]
    if reason := next((found for part in (*words, *names) if isinstance(part, str) and (found := half_character(part))), None):
        raise BadSample(f"{where}: holds {reason}; convert the file to UTF-8")
    _checked({"json": _json({"words": words, "tags": names})}, Sample.tags, where)
    if blank := [n for n, name in enumerate(names, 1) if not name.strip()]:
        raise BadSample(f"{where}: the tag of word {blank[0]} is blank")
    _known(names, reading, "tag", where)
    if reason := breaks_off(names):
        raise BadSample(f"{where}: {reason}")
    return words, names if is_tagged else None


def _tag(row: Row, reading: Reading, where: Place | str) -> Record:
    """Words and their tags."""
    words, names = _tagged(row, reading, where)
    assert names is not None
    data = _json({"words": words, "tags": names})
    return Record("", {"json": data}, identity(data), tuple(dict.fromkeys(names)))


def _words(row: Row, reading: Reading, where: Place | str) -> Record:
    """A text with its words, and with its entities where there are tags."""
    words, names = _tagged(row, reading, where, optional=True)
    if names is not None and not are_entities(names) and (strange := sorted(set(names) - {"O"})):
        raise BadSample(f"{where}: the tag {strange[0]!r} marks no entity, expected O and tags such as B-PER (BIO or BIOES); for words "
                        "alone, leave the tags out (columns tags, ner_tags and --label-field)")
    text, units = joined([word.strip() for word in words], names)
    data = text.encode("utf-8")
    return Record("", {"txt": data, UNITS_FIELD: units}, identity(data))


def conll(path: Path, *, tagged: bool = True) -> Iterator[tuple[str, Row | BadSample]]:
    """The sentences of a CoNLL file, each with its place; without `tagged`, lines may be words alone."""
    with open_bytes(path) as file:
        data = file.read()
    try:
        lines = lines_of(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it first") from None
    rows: list[list[str]] = []
    begin, problem = 0, ""
    for number, line in enumerate([*lines, ""], 1):
        cells = line.strip().split("\t") if "\t" in line else line.split()
        if cells and (cells[0] == "-DOCSTART-" or (line.startswith("# ") and " = " in line)):
            continue
        if cells:
            begin = begin or number
            rows.append(cells)
            if len(cells) < 2 and (tagged or len(rows[0]) > 1):
                problem = problem or f"{path}, line {number}: a word and no tag, expected the word first and its tag last"
            elif len(rows[0]) < 2 <= len(cells):
                problem = problem or f"{path}, line {number}: a word with a tag, and the words before have none"
        elif rows:
            tags = {"tags": [r[-1] for r in rows]} if len(rows[0]) > 1 else {}
            yield f"{path}, line {begin}", BadSample(problem) if problem else {"words": [r[0] for r in rows], **tags}
            rows, begin, problem = [], 0, ""


def _choice(row: Row, reading: Reading, where: Place | str) -> Record:
    """A text with its choices."""
    text = _text(row, reading.text_field, where)
    choices = _list(_column(row, ("choices",), "list of texts", where), "choices", where)
    label = _column(row, (reading.label_field or "label",), "number of the right choice", where, "--label-field")
    if not re.fullmatch(r"\s*-?[0-9]{1,9}(\.0*)?\s*", str(label), re.ASCII):
        raise BadSample(f"{where}: the right choice is {str(label)[:40]!r}, expected its number, counted from 0")
    fields = {"txt": text, "json": _json({"choices": choices, "label": label})}
    _checked(fields, labelled_choices, where)
    return Record("", {**fields}, identity(text))


def _span(row: Row, reading: Reading, where: Place | str) -> Record:
    """A question about a text. The text stays as it is: answers count its characters."""
    name = "context" if reading.text_field == "text" and "context" in row else reading.text_field
    _text(row, name, where)
    context = str(pick(row, name)).encode("utf-8")
    given = _column(row, (reading.label_field or "answers",), "answers", where, "--label-field")
    if isinstance(given, str):
        with suppress(ValueError, RecursionError):  # refused below
            given = json.loads(given)
    if isinstance(given, Mapping):
        texts, starts = given.get("text"), given.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise BadSample(f"{where}: the answers are {str(given)[:60]!r}, expected as many texts ('text') as places ('answer_start')")
        given = [{"text": t, "answer_start": n} for t, n in zip(texts, starts, strict=True)]
    kept = {"id": number} if isinstance(number := row.get("id"), (str, int)) else {}
    fields = {"txt": context, "json": _json({"question": row.get("question"), "answers": given, **kept})}
    _checked(fields, Sample.answers, where)
    return Record("", {**fields}, identity(context))


def squad(path: Path) -> Iterator[tuple[str, Row | BadSample]]:
    """The questions of a SQuAD file (versions 1.1 and 2.0), each with its place."""
    with open_bytes(path) as file:
        data = file.read()
    try:
        for number, article in enumerate(json.loads(data)["data"], 1):
            for which, paragraph in enumerate(article["paragraphs"], 1):
                for asked in paragraph["qas"]:
                    answers = [] if asked.get("is_impossible") else [{k: a[k] for k in ("text", "answer_start")} for a in asked["answers"]]
                    yield (f"{path}, question {asked['id']} (article {number}, paragraph {which})",
                           {"question": asked["question"], "context": paragraph["context"], "answers": answers, "id": asked["id"]})
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not in SQuAD's format ({type(error).__name__}: {error}): expected data, paragraphs, context, qas, id, "
                        "question, answers; for other data give a table (jsonl, csv, parquet)") from None


MAKERS: Mapping[str, Callable[[Row, Reading, Place | str], Record]] = {
    "words": _words, "labels": _labels, "score": _score, "tag": _tag, "choice": _choice, "span": _span}
"""What makes a sample of a row, by `--kind`."""
FILES: Mapping[str, Callable[[Path], Iterator[tuple[str, Row | BadSample]]]] = {
    "tag": conll, "words": partial(conll, tagged=False), "span": squad}
"""What reads files that are no tables, where a kind has such."""
