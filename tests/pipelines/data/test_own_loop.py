"""`polymodal.stream`: the exact order on any ranks and workers, resumed from one integer; and the weaker promise without an index."""

from __future__ import annotations

import io
import json
import re
import tarfile
import warnings
from pathlib import Path

import numpy as np
import polymodal
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from polymodal.pipelines.data.index import build_index
from polymodal.shared.errors import UserError
from torch.utils.data import DataLoader

COUNT = 37


def write(folder, numbers, name="a.tar", damaged=()):
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w") as tar:
        for n in numbers:
            picture = io.BytesIO()
            Image.new("RGB", (4, 3), (n, 0, 0)).save(picture, "PNG")
            fields = {"png": picture.getvalue() if n not in damaged else b"no picture", "txt": f"text {n}".encode(),
                      "cls": str(n).encode(), "json": json.dumps({"n": n}).encode()}
            for ending, data in fields.items():
                entry = tarfile.TarInfo(f"{n:03d}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "data"
    write(folder, range(20), "a.tar")
    write(folder, range(20, COUNT), "b.tar")
    build_index(folder)
    return folder


def numbers(**options):
    """A stream of the samples' numbers."""
    return polymodal.stream(options.pop("source"), **{"lanes": 6, "window": 4, "fields": "cls", "transform": first} | options)


def first(item):
    return item[0]


def items(batches):
    return [n for batch in batches for n in batch.tolist()]


def test_a_sample_is_a_dictionary_as_webdataset_gives_it(data):
    found = next(iter(polymodal.stream(data, shuffle=False)))
    assert found.pop("png").getpixel((0, 0)) == (0, 0, 0)
    assert found == {"__key__": "000", "__url__": str(data / "a.tar"), "__index__": 0, "txt": "text 0", "cls": 0, "json": {"n": 0}}
    pixels, text = next(iter(polymodal.stream(data, shuffle=False, decode="rgb", fields=("jpg;png", "txt"))))
    assert isinstance(pixels, np.ndarray) and pixels.shape == (3, 4, 3) and pixels.flags.writeable and text == "text 0"
    assert next(iter(polymodal.stream(data, shuffle=False, decode=None)))["cls"] == b"0"


def test_an_epoch_has_each_sample_once_and_the_next_another_order(data):
    one, two = (list(numbers(source=data, epochs=1, seed=seed)) for seed in (0, 1))
    assert sorted(one) == sorted(two) == list(range(COUNT)) and one != two
    twice = list(numbers(source=data, epochs=2))
    assert twice[:COUNT] == one and sorted(twice[COUNT:]) == list(range(COUNT)) and twice[COUNT:] != one
    later = numbers(source=data, epochs=2)
    later.set_epoch(1)
    assert list(later) == twice[COUNT:]
    assert list(numbers(source=data, epochs=1, shuffle=False)) == list(range(COUNT))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4))
def test_any_ranks_may_go_on_from_any_state(data, runs):
    """Each of the runs has other ranks and batches and goes on where the one before was left; together they read the order, once."""
    expected = list(numbers(source=data, epochs=3))
    seen, state = [], None
    for world, size, steps in runs:
        ranks = []
        for rank in range(world):
            loader = numbers(source=data, epochs=3, rank=rank, world_size=world).loader(size, steps=steps)
            if state is not None:
                loader.load_state_dict(state)
            ranks.append((items(loader), loader.state_dict()))
        state = ranks[0][1]
        assert all(other == state for _, other in ranks)
        seen += [n for row in zip(*(mine for mine, _ in ranks), strict=True) for n in row]
    assert seen == expected[:len(seen)] and state["position"] == len(seen)


def test_workers_change_nothing_and_three_ranks_go_on_as_one(data):
    """Three ranks with two workers each, then one process without: every sample once."""
    expected = list(numbers(source=data, epochs=1))
    parts = []
    for rank in range(3):
        loader = numbers(source=data, epochs=1, rank=rank, world_size=3).loader(2, num_workers=2, steps=3)
        parts.append(items(loader))
        assert loader.state_dict()["position"] == 18, "what workers prepared ahead does not count"
    alone = numbers(source=data, epochs=1)
    alone.load_state_dict(loader.state_dict())
    assert [n for row in zip(*parts, strict=True) for n in row] + list(alone) == expected
    assert list(alone) == [] and alone.state_dict()["position"] == COUNT


def test_the_end_of_the_last_epoch(data):
    """37 samples on 2 ranks: one has a sample more, or with drop_last neither."""
    for drop_last, counts in ((False, [19, 18]), (True, [18, 18])):
        streams = [numbers(source=data, epochs=1, rank=rank, world_size=2, drop_last=drop_last) for rank in range(2)]
        assert [len(list(s)) for s in streams] == counts
        assert [s.loader(5, num_workers=0).samples is s for s in streams] == [True, True]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("world", "size"), [(2, 5), (3, 4), (4, 3), (5, 8), (4, 16)])
def test_ranks_agree_about_the_state_to_the_end_of_an_uneven_epoch(data, world, size, drop_last):
    """After each batch that all of them have, and at the end, where some have a sample or a whole batch less."""
    states, seen = [], []
    for rank in range(world):
        loader = numbers(source=data, epochs=1, rank=rank, world_size=world, drop_last=drop_last).loader(size)
        mine = []
        for batch in loader:
            seen += batch.tolist()
            mine.append(loader.state_dict()["position"])
        states.append(mine)
        assert loader.state_dict()["position"] == COUNT and list(loader) == []
    assert sorted(seen) == list(range(COUNT)) or (drop_last and len(set(seen)) == len(seen) == COUNT - COUNT % world)
    assert all(len(set(row)) == 1 for row in zip(*states)), states

    alone = [numbers(source=data, epochs=1, rank=rank, world_size=world, drop_last=drop_last) for rank in range(world)]
    assert sum(len(list(s)) for s in alone) == len(seen) and {s.state_dict()["position"] for s in alone} == {COUNT}
    # an iteration that ends for its steps goes on from there, whether or not this rank had more
    first_steps = [numbers(source=data, epochs=1, rank=rank, world_size=world, drop_last=drop_last).loader(size, steps=1)
                   for rank in range(world)]
    assert all(len(list(loader)) == 1 for loader in first_steps)
    assert {loader.state_dict()["position"] for loader in first_steps} == {min(world * size, COUNT)}


def test_a_plain_loader_reads_everything_once_but_has_no_state_with_workers(data):
    plain = numbers(source=data, epochs=1)
    assert items(DataLoader(plain, 5)) == list(numbers(source=data, epochs=1)) and plain.state_dict()["position"] == COUNT
    stream = numbers(source=data, epochs=1)
    assert sorted(items(DataLoader(stream, 5, num_workers=2))) == list(range(COUNT))
    with pytest.raises(UserError, match=r"use stream\(\.\.\.\)\.loader"):
        stream.state_dict()
    stream.set_epoch(0)
    with pytest.raises(UserError, match=r"use stream\(\.\.\.\)\.loader"):
        stream.state_dict()
    kept = numbers(source=data, epochs=1, shuffle=False)
    again = DataLoader(kept, 5, num_workers=1, persistent_workers=True)
    assert items(again) == list(range(COUNT))
    kept.load_state_dict({**numbers(source=data, shuffle=False).state_dict(), "position": 30})
    assert items(again) == list(range(30, COUNT)), "workers that stay see the new state"


def test_ranks_come_from_the_launcher(data, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert list(numbers(source=data, epochs=1)) == list(numbers(source=data, epochs=1, rank=0, world_size=1))[1::2]


def test_bad_samples(tmp_path):
    write(tmp_path / "data", range(12), damaged=(3, 4, 5, 8))
    build_index(tmp_path / "data")
    pictures = {"source": tmp_path / "data", "epochs": 1, "shuffle": False, "fields": ("cls", "png")}
    with pytest.raises(UserError, match=r"sample '003' of a\.tar.*on_bad='skip'"):
        list(numbers(**pictures))
    with pytest.raises(UserError, match=r"sample '003' of a\.tar.*on_bad='skip'"):
        list(numbers(**pictures).loader(4, num_workers=1))
    good = [n for n in range(12) if n not in (3, 4, 5, 8)]
    assert list(numbers(**pictures, on_bad="skip")) == good
    loader = numbers(**pictures, on_bad="skip").loader(3, num_workers=2)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2], [0], [6, 7], [9, 10, 11]], "batches stay where they are"
    assert loader.state_dict()["position"] == 12
    ranks = [numbers(**pictures, on_bad="skip", rank=rank, world_size=2).loader(1, steps=2) for rank in range(2)]
    ranks[0].load_state_dict({**ranks[0].state_dict(), "position": 2})
    ranks[1].load_state_dict({**ranks[1].state_dict(), "position": 2})
    assert [items(loader) for loader in ranks] == [[2, 6], [0, 6]], "a neighbour stands in where a whole batch is bad"
    assert [loader.state_dict()["position"] for loader in ranks] == [6, 6]


def test_mistakes_are_told(data, tmp_path):
    for options, message in (
        ({"epochs": 0}, "epochs is 0"), ({"on_bad": "stop"}, "on_bad is 'stop'"), ({"decode": "jpg"}, "decode is 'jpg'"),
        ({"source": tmp_path / "none"}, "none"), ({"source": tmp_path}, "polymodal index"),
    ):
        with pytest.raises(UserError, match=message):
            numbers(**{"source": data} | options)
    with pytest.raises(UserError, match="no field 'mp3'"):
        next(iter(polymodal.stream(data, fields="mp3")))
    with pytest.raises(UserError, match="rank is 2 of world_size 2"):
        next(iter(numbers(source=data, rank=2, world_size=2)))
    with pytest.raises(UserError, match=r"cannot make a batch.*collate_fn"):
        next(iter(polymodal.stream(data).loader(2)))
    with pytest.raises(UserError, match="num_workers is -1"):
        numbers(source=data).loader(2, num_workers=-1)
    stream = numbers(source=data)
    with pytest.raises(UserError, match="of another order: seed was 0 and is 1"):
        numbers(source=data, seed=1).load_state_dict(stream.state_dict())
    with pytest.raises(UserError, match="position is -1"):
        stream.load_state_dict({**stream.state_dict(), "position": -1})


# ------------------------------------------------------------------------------------------ without an index


@pytest.fixture
def tars(tmp_path):
    write(tmp_path, range(20), "0.tar")
    write(tmp_path, range(20, COUNT), "1.tar")
    return str(tmp_path / "{0..1}.tar")


def weak(source, **options):
    with pytest.warns(UserWarning, match="has no index.*no state to continue from"):
        return numbers(source=source, **options)


def test_tars_without_an_index_give_every_sample_and_say_what_they_lack(tars):
    stream = weak(tars, epochs=1)
    one = list(stream)
    assert sorted(one) == list(range(COUNT)) and one != sorted(one)
    assert sorted(items(stream.loader(4, num_workers=2))) == list(range(COUNT))
    assert len(list(weak(tars).loader(4, steps=30))) == 30
    for use in (stream.state_dict, lambda: stream.load_state_dict({})):
        with pytest.raises(UserError, match="polymodal index"):
            use()
    stream.set_epoch(0)
    assert list(stream) == one
    assert list(weak([tars], epochs=1, shuffle=False)) == list(range(COUNT))
    assert list(weak(tars, epochs=1, shuffle=False, rank=1, world_size=2)) == list(range(20, COUNT))
    with pytest.raises(UserError, match="2 shards are dealt"):
        list(weak(tars, rank=2, world_size=3))


def test_commands_run_only_where_that_is_allowed(tars):
    command = "pipe:cat " + tars.replace("{0..1}", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="allow_pipe=True"):
            numbers(source=command)
        for source, message in ((tars.replace("0..1", "0..2"), r"2\.tar: no such file"), ("s3://bucket/a.tar", "polymodal index")):
            with pytest.raises(UserError, match=message):
                numbers(source=source)
        with pytest.raises(UserError, match="drop_last and cache"):
            numbers(source=tars, drop_last=True)
    assert list(weak(command, epochs=1, shuffle=False, allow_pipe=True)) == list(range(20))
    whole = Path(tars.replace("{0..1}", "0")).read_bytes()
    members = 512 * (1 + 1) * 4  # four files of less than a block, each behind its header
    for cut, message in ((whole[:3 * members], "it was cut; fetch it again"), (whole[:900], "cannot be read")):
        Path(tars.replace("{0..1}", "0")).write_bytes(cut)
        with pytest.raises(UserError, match=message) as told:
            list(weak(tars, epochs=1).loader(4, num_workers=1))
        assert "Traceback" not in str(told.value)
    Path(tars.replace("{0..1}", "0")).write_bytes(whole)
    with pytest.raises(UserError, match=r"pipe:head -c 900.* cannot be read"):
        list(weak(command.replace("cat", "head -c 900"), epochs=1, allow_pipe=True))


# ------------------------------------------------------------------------------------------------- the page


def test_the_page_s_loops_run(tmp_path, monkeypatch):
    """Each block of docs/own_loop.md, on pictures with captions."""
    page = (Path(polymodal.__file__).parent / "docs" / "own_loop.md").read_text()
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "000000.tar", "w") as tar:
        for n in range(30):
            picture = io.BytesIO()
            Image.new("RGB", (8, 8), (n, 0, 0)).save(picture, "JPEG")
            for ending, content in (("jpg", picture.getvalue()), ("txt", b"a caption")):
                entry = tarfile.TarInfo(f"{n:03d}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    build_index(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.S | re.M)
    assert len(blocks) == 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks:
            exec(compile(block, "own_loop.md", "exec"), {"__name__": "__main__"})
