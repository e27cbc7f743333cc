"""What a sample's decoders make of fields that are odd, damaged or hostile: a value, or a bad sample."""

import io
import json

import numpy as np
import pytest
from polymodal.shared.errors import BadSample
from polymodal.shared.sample import Sample


def label(**fields):
    return Sample("a", {name: value if isinstance(value, bytes) else json.dumps(value).encode() for name, value in fields.items()}).label()


@pytest.mark.parametrize(("fields", "expected"), [
    ({"cls": b"7"}, 7), ({"cls": b" 7\n"}, 7), ({"cls": b"007"}, 7), ({"cls": b"-1"}, -1), ({"json": {"label": 3}}, 3),
    ({"json": {"cls": 3}}, 3), ({"json": {"label": 4, "cls": 3}}, 4), ({"json": {"label": "5"}}, 5), ({"json": {"label": 2.0}}, 2),
    ({"cls": b"1", "json": {"label": 2}}, 1), ({"json": b'{"label": 9223372036854775807}'}, 2**63 - 1),
])
def test_a_class_is_a_whole_number(fields, expected):
    found = label(**fields)
    assert found == expected and type(found) is int


@pytest.mark.parametrize("fields", [
    {"cls": b"9" * 5000}, {"cls": b"1.9"}, {"cls": b""}, {"cls": b"1_0"}, {"cls": b"\xd9\xa1"}, {"cls": b"\xff"}, {"cls": b"9" * 19},
    {"json": b'{"label": %s}' % (b"9" * 5000)}, {"json": b'{"label": 1e999}'}, {"json": b'{"label": -1e999}'}, {"json": b'{"label": NaN}'},
    {"json": {"label": 1.9}}, {"json": {"label": True}}, {"json": {"label": False}}, {"json": {"label": None}}, {"json": {"label": [1]}},
    {"json": {"label": 2**63}}, {"json": {"label": 10**30}}, {"json": {"label": 1e300}}, {"json": {"label": "1.0"}}, {"json": {}},
    {"txt": b"1"}, {"cls": b"\x1e3"},
])
def test_what_is_no_whole_number_is_a_bad_sample(fields):
    with pytest.raises(BadSample, match="'a'"):
        label(**fields)


@pytest.mark.parametrize("content", [b'{"text": %s}' % (b"9" * 5000), b'{"a": 1', b"\xff", b"[" * 100_000, b"3", b"null", b'"text"',
                                     b'{"text": "\\ud800"}', b"\x00\x00\x00{"])
def test_json_that_cannot_be_read_is_a_bad_sample(content):
    sample = Sample("a", {"json": content})
    for decode in (sample.text, sample.target, sample.label):
        with pytest.raises(BadSample):
            decode()


def test_an_array_is_one_array_without_objects():
    def saved(save, *values):
        file = io.BytesIO()
        save(file, *values)
        return Sample("a", {"x.npy": file.getvalue()})

    assert saved(np.save, np.eye(2)).array("x.npy").tolist() == [[1, 0], [0, 1]]
    for sample in (saved(np.savez, np.eye(2)), saved(np.save, np.array([{}], dtype=object)), Sample("a", {"x.npy": b""})):
        with pytest.raises(BadSample):
            sample.array("x.npy")


def test_a_partner_is_looked_for_once_and_when_asked():
    other, asked = Sample("b", {}), []
    sample = Sample("a", {})
    assert sample.partner is None
    sample.pair_with(lambda: asked.append(1) or other)
    assert not asked
    assert sample.partner is other and sample.partner is other and len(asked) == 1
    sample.pair_with(lambda: None)
    assert sample.partner is None
