"""Damaged and hostile input: every reader gives a clear error, in bounded memory and time, and writes nothing.

Each test damages something valid (bytes of a file, values of a JSON file) and lets the reader have it. Allowed are a result,
a `UserError` and, for single samples, a `BadSample`; anything else is a defect. Hashes are made to fit where the one who wrote
the data could have done so too.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import tarfile
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.index import INDEX, Index, build_index, idx_name
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.recipe import recipe
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.sample import Sample

TRIALS = int(os.environ.get("FUZZ_TRIALS", "60"))
fuzz = settings(max_examples=TRIALS, deadline=None, derandomize="FUZZ_TRIALS" not in os.environ, database=None,
                phases=(Phase.explicit, Phase.generate),
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.large_base_example])
MEMORY = 64 << 20

JUNK = st.sampled_from([None, True, -1, 0, 3, 10**30, 2**63, -(2**63), 1.5, float("nan"), "", "x", "../../etc/passwd",
                        "a" * 1000, [], {}, [1], {"a": 1}])


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with a few places cut, overwritten, repeated or filled."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(out) - 1)))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            del out[at:]
        elif kind == 1:
            new = draw(st.binary(min_size=1, max_size=16))
            out[at : at + len(new)] = new
        elif kind == 2:
            out[at:at] = out[at : at + draw(st.integers(1, 600))]
        elif kind == 3:
            out[at : at + draw(st.integers(1, 12))] = b"\xff" * draw(st.integers(1, 12))
        else:
            del out[at : at + draw(st.integers(1, 600))]
    return bytes(out)


@st.composite
def twisted(draw: st.DrawFn, value: object) -> object:
    """A JSON value with a few of its parts replaced, removed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        place, key = None, None
        inner = value
        while isinstance(inner, (dict, list)) and inner and (place is None or draw(st.booleans())):
            place = inner
            key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else list(range(len(inner)))))
            inner = inner[key]
        if place is None:
            return copy.deepcopy(draw(JUNK))
        if draw(st.integers(0, 3)) == 0:
            del place[key]
        else:
            place[key] = copy.deepcopy(draw(JUNK))
    return value


@contextmanager
def harmless(folder: Path, *allowed: type[Exception]):
    """Only these errors, no file written, little memory."""
    before = set(folder.rglob("*"))
    tracemalloc.start()
    try:
        yield
    except (UserError, *allowed) as error:
        assert 10 < len(str(error)) < 5000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY, f"{peak >> 20} MiB"
    assert set(folder.rglob("*")) == before


# --- shards ----------------------------------------------------------------------------------------------------------


def archive(kind: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for i in range(3):
            for name, data in ((f"{i:03d}.txt", b"a text"), (f"{'long' * 40}{i}.json", b'{"a": 1}')):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def with_size(field: bytes) -> bytes:
    """A tar whose first member says a size of its own, with a checksum that fits."""
    data = bytearray(archive(tarfile.GNU_FORMAT))
    data[124:136] = field
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


@fuzz
@given(st.one_of(damaged(archive()), damaged(archive(tarfile.GNU_FORMAT))))
@example(with_size(b"\xff" * 12))  # minus one
@example(with_size(b"\xff" * 10 + b"\xfe\x00"))  # minus 512: back to where it stands
@example(with_size(b"\x80" + b"\x7f" * 11))
def test_a_damaged_tar_is_told(tmp_path_factory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("tar")
    (folder / "000000.tar").write_bytes(data)
    try:
        with harmless(folder):
            build_index(folder)
            raise StopIteration
    except StopIteration:  # it can be read: then every sample can
        opened = DataSet.open(folder)
        for found in opened.read_many(range(len(opened))):
            assert isinstance(found, Sample)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for i in range(2):
        (folder / f"{i:06d}.tar").write_bytes(archive())
    build_index(folder)
    return folder


@fuzz
@given(st.data())
def test_a_twisted_index_is_told(indexed: Path, data: st.DataObject) -> None:
    record = data.draw(twisted(json.loads((indexed / INDEX).read_text())))
    with harmless(indexed):
        index = Index.from_json(json.dumps(record), "index.json")
        assert index.samples == len(json.dumps(record)) or index.samples > 0
    text = data.draw(damaged((indexed / INDEX).read_bytes()))
    with harmless(indexed):
        Index.from_json(text, "index.json")


@fuzz
@given(st.data())
def test_a_data_set_with_twisted_index_and_side_files_is_told(indexed: Path, tmp_path_factory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("copy")
    record = json.loads((indexed / INDEX).read_text())
    for shard in record["shards"]:
        (folder / shard["name"]).write_bytes((indexed / shard["name"]).read_bytes())
        side = (indexed / idx_name(shard["name"])).read_bytes()
        if data.draw(st.booleans()):
            side = data.draw(damaged(side))
        shard["idx_sha256"] = hashlib.sha256(side).hexdigest()
        (folder / idx_name(shard["name"])).write_bytes(side)
    if data.draw(st.booleans()):
        record = data.draw(twisted(record))
    (folder / INDEX).write_text(json.dumps(record))
    with harmless(folder):
        opened = DataSet.open(folder)
        assume(len(opened) < 1000)
        for found in opened.read_many(range(len(opened))):
            assert isinstance(found, (Sample, BadSample))
        assert len(opened.fingerprint) == 64


# --- samples ---------------------------------------------------------------------------------------------------------


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)).save(file, kind)
    return file.getvalue()


FIELDS = {"txt": "Größe".encode(), "json": b'{"text": "a", "label": 3}', "cls": b"7", "tokens.u16": bytes(range(20)),
          "lengths.u32": (4).to_bytes(4, "little") + (6).to_bytes(4, "little"), "x.npy": npy(np.eye(3)), "jpg": picture("jpeg"),
          "png": picture("png"), "webp": picture("webp")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FIELDS)
@fuzz
@given(data=st.data())
def test_a_damaged_field_is_a_bad_sample(tmp_path: Path, name: str, data: st.DataObject) -> None:
    fields = dict(FIELDS) if name == "lengths.u32" else {name: FIELDS[name]}
    fields[name] = data.draw(st.one_of(damaged(FIELDS[name]), st.binary(max_size=64)))
    sample = Sample("a", fields)
    read = {"txt": sample.text, "json": sample.json, "cls": sample.label, "tokens.u16": sample.tokens, "lengths.u32": sample.tokens,
            "x.npy": lambda: sample.array("x.npy")}.get(name, sample.image)
    with harmless(tmp_path, BadSample):
        read()


RECORD = {"text": "a", "caption": "b", "text_pair": "c", "target": "d", "label": 3, "cls": 2}
NUMBERS = st.sampled_from(["9" * 5000, "1e999", "-1e999", "NaN", "Infinity", "1.9", "true", "0x1", "-0", "1e3", "9" * 30, '"7"',
                           '"\\ud800"', "[]"])


@fuzz
@given(st.data())
def test_every_decoder_gives_a_value_or_a_bad_sample(tmp_path: Path, data: st.DataObject) -> None:
    """Any fields, read by every decoder: a value of the promised type that fits into a batch, or a bad sample."""
    record = json.dumps(data.draw(twisted(RECORD)))
    for name in RECORD:  # numbers that json.dumps does not write
        if data.draw(st.booleans()):
            record = record.replace(f'"{name}": "{RECORD[name]}"', f'"{name}": {data.draw(NUMBERS)}')
            record = record.replace(f'"{name}": {RECORD[name]},', f'"{name}": {data.draw(NUMBERS)},')
    fields = {"json": record.encode()}
    for name in data.draw(st.lists(st.sampled_from([*FIELDS, "pair.txt", "target.txt", "tokens.u32"]), unique=True)):
        fields[name] = data.draw(st.one_of(NUMBERS.map(str.encode), st.binary(max_size=32), st.just(FIELDS.get(name, b"text"))))
    sample = Sample("a", fields)
    decoders = {sample.text: str, sample.pair: (str, type(None)), sample.target: str, sample.json: dict, sample.label: int,
                sample.image: Image.Image, sample.pixels: np.ndarray, sample.tokens: tuple, (lambda: sample.array("x.npy")): np.ndarray}
    for decode, kind in decoders.items():
        with harmless(tmp_path, BadSample):
            value = decode()
            assert isinstance(value, kind)
            if isinstance(value, int):
                assert not isinstance(value, bool) and torch.tensor([value]).dtype == torch.int64
            if isinstance(value, str):
                value.encode("utf-8")


# --- recipes, checkpoints, models ------------------------------------------------------------------------------------


@fuzz
@given(st.data())
def test_a_twisted_recipe_is_told(tmp_path_factory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("recipe")
    whole = recipe(data.draw(st.sampled_from(["gpt2-tiny", "clip-tiny", "bert-tiny"])))
    if data.draw(st.booleans()):
        text = json.dumps(data.draw(twisted(whole.to_dict()))).encode()
    else:
        text = data.draw(damaged(whole.to_yaml().encode()))
    (folder / "recipe.yaml").write_bytes(text)
    with harmless(folder):
        recipe(folder / "recipe.yaml")


def test_a_recipe_cannot_blow_up(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(97 + i)}: &{chr(97 + i)} [{', '.join([f'*{chr(96 + i)}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "bomb.yaml").write_text("base: gpt2-tiny\nmodel:\n  " + "\n  ".join(lines) + "\n")
    with harmless(tmp_path):
        recipe(tmp_path / "bomb.yaml")
        pytest.fail("such a recipe was taken")
    (tmp_path / "deep.yaml").write_text("model: " + "[" * 1500 + "]" * 1500)
    with pytest.raises(UserError, match="deep"):  # not under `harmless`: tracing memory takes minutes in deep recursion
        recipe(tmp_path / "deep.yaml")
    (tmp_path / "code.yaml").write_text("base: !!python/object/apply:os.system ['touch hacked']\n")
    with harmless(tmp_path):
        recipe(tmp_path / "code.yaml")
        pytest.fail("such a recipe was taken")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> checkpoint.Checkpoint:
    tensors = {"model/a": torch.arange(6.0).reshape(2, 3), "model/b": torch.ones(3, dtype=torch.int64)}
    return checkpoint.save(tmp_path_factory.mktemp("checkpoints"), 10, tensors, {"update": 10, "text": "a"})


@settings(fuzz, max_examples=max(TRIALS // 3, 10))
@given(st.data())
def test_a_damaged_checkpoint_is_told(saved: checkpoint.Checkpoint, tmp_path_factory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("checkpoints") / saved.path.name
    folder.mkdir()
    files = {p.name: p.read_bytes() for p in saved.path.iterdir()}
    name = data.draw(st.sampled_from(sorted(files)))
    files[name] = data.draw(damaged(files[name]))
    fits = data.draw(st.booleans())
    if fits and name != checkpoint.MANIFEST:  # by someone who can make hashes
        manifest = json.loads(files[checkpoint.MANIFEST])
        manifest["files"][name] = {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
        files[checkpoint.MANIFEST] = json.dumps(manifest).encode()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    into = {"model/a": torch.zeros(2, 3), "model/b": torch.zeros(3, dtype=torch.int64)}
    with harmless(folder):
        found = checkpoint.open_checkpoint(folder)
        found.state()
        checkpoint.load(found.path, into)


@fuzz
@given(st.data())
def test_a_twisted_manifest_is_told(saved: checkpoint.Checkpoint, tmp_path_factory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("checkpoints") / saved.path.name
    folder.mkdir()
    for p in saved.path.iterdir():
        (folder / p.name).write_bytes(p.read_bytes())
    (folder / checkpoint.MANIFEST).write_text(json.dumps(data.draw(twisted(json.loads((folder / checkpoint.MANIFEST).read_text())))))
    with harmless(folder):
        checkpoint.open_checkpoint(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    import polymodal

    folder = tmp_path_factory.mktemp("model")
    polymodal.save(polymodal.system("gpt2", size="tiny", n_embd=8, n_layer=1, n_head=1, vocab_size=50, n_positions=16,
                                    bos_token_id=1, eos_token_id=1).net, folder)
    return folder


@settings(fuzz, max_examples=max(TRIALS // 3, 10))
@given(st.data())
def test_a_damaged_model_is_told(model: Path, tmp_path_factory, data: st.DataObject) -> None:
    import polymodal

    folder = tmp_path_factory.mktemp("model")
    files = {p.name: p.read_bytes() for p in model.iterdir() if p.is_file()}
    name = data.draw(st.sampled_from(sorted(files)))
    if name.endswith(".json") and data.draw(st.booleans()):
        record = data.draw(twisted(json.loads(files[name])))
        sizes = [v for v in record.values() if isinstance(v, (int, float))] if isinstance(record, dict) else []
        assume(all(abs(v) < 1e6 for v in sizes))  # a config may ask for any size; that is the user's memory
        files[name] = json.dumps(record).encode()
    else:
        files[name] = data.draw(damaged(files[name]))
    for file, content in files.items():
        (folder / file).write_bytes(content)
    with harmless(folder):
        polymodal.load(folder)
