"""The cache: what is used stays, what is written is whole, the dead and the hung block nobody."""

import fcntl
import json
import multiprocessing
import os
import threading
import time

import pytest
from polymodal.pipelines.data.remote.cache import Cache
from polymodal.pipelines.data.remote.fetch import Stopped


def put(cache, name, size, used=None):
    """A file of the cache; `used`: when, in seconds since 1970."""
    with cache.writing(name, size, 1.0) as writing:
        fits, _ = cache.make_room(name, size)
        writing.part.write(bytes(size))
        os.close(writing.publish())
    if used is not None:
        os.utime(cache.folder / name, (used, used))
    return fits


def names(cache):
    return sorted(p.name for p in cache.folder.iterdir() if not p.name.startswith(".room"))


def test_the_longest_unused_goes_first(tmp_path):
    cache = Cache(tmp_path, 1000)
    for name, used in (("a", 30), ("b", 10), ("c", 20)):
        assert put(cache, name, 300, used)
    os.close(cache.open("b"))  # which counts as use
    assert (tmp_path / "b").stat().st_mtime > 1000
    assert put(cache, "d", 300, 40) and names(cache) == ["a", "b", "d"]
    os.utime(tmp_path / "b", (50, 50))  # uses within one tick of the clock have no order
    assert cache.touch("a") and not cache.touch("c") and cache.open("c") is None
    assert put(cache, "e", 700) and names(cache) == ["a", "e"]


def test_what_is_open_stays_and_the_limit_gives_way(tmp_path):
    cache = Cache(tmp_path, 1000)
    put(cache, "a", 500, 1)
    put(cache, "b", 400, 2)
    opened = cache.open("a")
    os.utime(tmp_path / "a", (1, 1))
    assert cache.make_room("x", 500) == (True, 1) and names(cache) == [".x.part.json", "a"]
    (tmp_path / ".x.part.json").unlink()
    assert cache.make_room("x", 600) == (False, 0) and names(cache) == ["a"]
    os.close(opened)
    assert cache.make_room("x", 600) == (True, 1)


def test_what_is_being_written_stays_and_has_its_room(tmp_path):
    cache = Cache(tmp_path, 1000)
    with cache.writing("a", 800, 1.0) as writing:
        assert cache.make_room("a", 800) == (True, 0)
        writing.part.write(b"x" * 100)
        writing.file.flush()
        assert cache.make_room("b", 300) == (False, 0)  # 800 are promised
        assert cache.make_room("b", 200) == (True, 0)
        writing.part.write(b"x" * 700)
        os.close(writing.publish())
    assert (tmp_path / "a").stat().st_size == 800 and not (tmp_path / ".a.part").exists()


def test_parts_of_the_dead_are_removed_for_room(tmp_path):
    (tmp_path / ".old.part").write_bytes(bytes(500))
    (tmp_path / ".old.part.json").write_text(json.dumps({"size": 900, "tag": ""}))
    assert Cache(tmp_path, 1000).make_room("new", 600) == (True, 1) and names(Cache(tmp_path)) == [".new.part.json"]


def test_the_disk_is_not_filled(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    put(cache, "a", 300, 1)
    usage = type("Usage", (), {"free": 999, "total": 20_000})
    monkeypatch.setattr("polymodal.pipelines.data.remote.cache.shutil.disk_usage", lambda folder: usage)
    assert cache.make_room("x", 0) == (True, 1)  # a twentieth stays free: 1000 bytes
    assert cache.make_room("x", 1) == (False, 0)


def test_a_part_is_continued_with_its_tag_and_an_empty_one_is_not_left(tmp_path):
    cache = Cache(tmp_path)
    with pytest.raises(KeyError), cache.writing("a", 10, 1.0) as writing:
        writing.part.restart("v1")
        writing.part.write(b"01234")
        raise KeyError
    with cache.writing("a", 10, 1.0) as writing:
        assert (writing.part.size, writing.part.tag) == (5, "v1")
        writing.part.write(b"56789")
        os.close(writing.publish())
    assert (tmp_path / "a").read_bytes() == b"0123456789" and names(cache) == ["a"]
    with pytest.raises(KeyError), cache.writing("b", 10, 1.0):
        raise KeyError
    assert names(cache) == ["a"]
    (tmp_path / ".c.part").write_bytes(b"of unknown origin")
    with cache.writing("c", 10, 1.0) as writing:
        assert writing.part.size == 0


def test_those_who_wait_get_what_another_made(tmp_path):
    cache = Cache(tmp_path)
    outcomes = []

    def other():
        with cache.writing("a", 3, 10.0) as writing:
            outcomes.append(writing)

    with cache.writing("a", 3, 10.0) as writing:
        threads = [threading.Thread(target=other) for _ in range(3)]
        for thread in threads:
            thread.start()
        writing.part.write(b"abc")
        os.close(writing.publish())
    for thread in threads:
        thread.join()
    assert outcomes == [None] * 3 and names(cache) == ["a"]


def _hold(path, ready):
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ready.set()
        time.sleep(600)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the right to make `a` and does nothing."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / ".a.part", ready), daemon=True)
    process.start()
    assert ready.wait(20)
    yield process
    process.kill()
    process.join()


def test_the_hung_do_not_block(tmp_path, holder):
    cache = Cache(tmp_path)
    with cache.writing("a", 3, 0.1) as writing:
        assert writing.path.name != ".a.part"
        writing.part.write(b"abc")
        os.close(writing.publish())
    assert (tmp_path / "a").read_bytes() == b"abc"
    with cache.writing("a", 3, 0.1) as again:
        assert again is None


def test_the_dead_do_not_block_and_waiting_can_be_stopped(tmp_path, holder):
    cache, stop = Cache(tmp_path), threading.Event()
    stop.set()
    with pytest.raises(Stopped), cache.writing("a", 3, 60.0, stop):
        pass
    holder.kill()
    holder.join()
    with cache.writing("a", 3, 60.0) as writing:
        assert writing.path.name == ".a.part"
