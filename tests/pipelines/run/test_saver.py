"""Checkpoints written beside the training: what is saved, what fails, and kills at any moment."""

from __future__ import annotations

import errno
import os
import threading

import processes
import pytest
import torch
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.chunks import _ALIGN, Chunk, Staging, _layout, divide
from polymodal.pipelines.run.saver import Saver
from polymodal.shared.errors import UserError


def tensors(value):
    return {"weight": torch.full((64, 3), float(value)), "step": torch.tensor(value), "half": torch.full((5,), value, dtype=torch.bfloat16),
            "flag": torch.tensor([True, False]), "none": torch.zeros(0, 4)}


def stored(directory, update):
    slots = {name: torch.zeros_like(t) for name, t in tensors(0).items()}
    checkpoint.load(directory / checkpoint.name_of(update), slots)
    return slots


@pytest.fixture
def disk(monkeypatch):
    """A disk that is slow (until `go` is set) or full (while `full` is set)."""
    go, full, began = threading.Event(), threading.Event(), threading.Event()
    real = checkpoint.write

    def write(path, chunks):
        began.set()
        assert go.wait(20)
        if full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, chunks)

    monkeypatch.setattr(checkpoint, "write", write)

    class Disk:
        pass

    disk = Disk()
    disk.go, disk.full, disk.began = go, full, began
    yield disk
    go.set()


def test_the_loop_goes_on_and_the_copy_is_what_is_saved(tmp_path, disk):
    saver = Saver(tmp_path, asynchronous=True)
    now = tensors(1)
    after = []
    saver.save(1, now, {"update": 1}, after=lambda: after.append(checkpoint.newest(tmp_path).update))
    assert disk.began.wait(20) and checkpoint.newest(tmp_path) is None and after == []
    for tensor in now.values():
        tensor.zero_()  # the next update
    second = threading.Thread(target=lambda: saver.save(2, tensors(2), {"update": 2}, wait=True))
    second.start()
    second.join(0.05)
    assert second.is_alive(), "a second one was begun beside the first"
    disk.go.set()
    second.join(20)
    assert after == [1] and [c.update for c in checkpoint.all_checkpoints(tmp_path)] == [1, 2]
    for update in (1, 2):
        assert checkpoint.open_checkpoint(tmp_path / checkpoint.name_of(update)).state() == {"update": update}
        for name, tensor in tensors(update).items():
            assert torch.equal(stored(tmp_path, update)[name], tensor), name
    assert not list(tmp_path.glob(".tmp-*"))


def test_without_it_the_checkpoint_stands_at_once(tmp_path):
    now = tensors(1)
    Saver(tmp_path).save(1, now, {})
    assert checkpoint.newest(tmp_path).update == 1
    beside, at_once = Saver(tmp_path / "a", asynchronous=True), checkpoint.save(tmp_path / "b", 1, now, {})
    beside.save(1, now, {})
    beside.wait()
    shard = "shard-00001-model-00001-of-00001.safetensors"
    assert (tmp_path / "a" / at_once.path.name / shard).read_bytes() == (at_once.path / shard).read_bytes()


def test_the_same_update_is_not_written_again(tmp_path, disk):
    disk.go.set()
    saver, after = Saver(tmp_path, asynchronous=True), []
    saver.save(1, tensors(1), {}, after=lambda: after.append(1))
    saver.wait()
    disk.began.clear()
    saver.save(1, tensors(1), {}, after=lambda: after.append(2), wait=True)
    assert not disk.began.is_set() and after == [1, 2]


def test_a_full_disk_is_told_at_the_next_contact_and_the_run_may_go_on(tmp_path, disk):
    disk.go.set()
    saver = Saver(tmp_path, asynchronous=True)
    saver.save(1, tensors(1), {})
    saver.wait()
    disk.full.set()
    saver.save(2, tensors(2), {})
    with pytest.raises(UserError, match="No space left on device; earlier checkpoints are intact"):
        saver.save(3, tensors(3), {})
    assert [p.name for p in tmp_path.iterdir()] == ["update-00000001"] and checkpoint.newest(tmp_path).update == 1
    disk.full.clear()
    saver.save(3, tensors(3), {})
    saver.wait()
    assert checkpoint.newest(tmp_path).update == 3


def test_the_end_waits_and_tells_what_went_wrong(tmp_path, disk):
    disk.full.set()
    threading.Timer(0.05, disk.go.set).start()
    with pytest.raises(UserError, match="No space left"), Saver(tmp_path, asynchronous=True) as saver:
        saver.save(1, tensors(1), {})
    with pytest.raises(ZeroDivisionError) as caught, Saver(tmp_path, asynchronous=True) as saver:
        saver.save(1, tensors(1), {})
        print(1 / 0)
    assert "No space left" in caught.value.__notes__[0]
    disk.full.clear()
    with pytest.raises(ZeroDivisionError), Saver(tmp_path, asynchronous=True) as saver:
        saver.save(1, tensors(1), {})
        print(1 / 0)
    assert checkpoint.newest(tmp_path).update == 1, "an error elsewhere does not lose the checkpoint under way"


def test_what_fails_after_the_checkpoint_is_told_too(tmp_path):
    def broken():
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    saver = Saver(tmp_path, asynchronous=True)
    saver.save(1, tensors(1), {}, after=broken)
    with pytest.raises(UserError, match="Permission denied"):
        saver.wait()
    assert checkpoint.newest(tmp_path).update == 1


def test_the_copy_lies_in_memory_that_is_used_again():
    staging = Staging()
    chunks = [Chunk(name, (0,) * t.dim(), t) for name, t in (tensors(1) | {"view": torch.arange(12.0).view(3, 4).T}).items()]
    first = staging.copy(chunks)
    for chunk, copy in zip(chunks, first, strict=True):
        assert torch.equal(copy.data, chunk.data) and copy.data.is_contiguous() and copy.data.data_ptr() % _ALIGN == 0
        assert copy.data.numel() == 0 or copy.data.data_ptr() != chunk.data.data_ptr()
    again = staging.copy(chunks[:3])
    assert [c.data.data_ptr() for c in again] == [c.data.data_ptr() for c in first[:3]]
    larger = staging.copy([Chunk("x", (0,), torch.ones(10**6))])
    assert torch.equal(larger[0].data, torch.ones(10**6))


def test_large_tensors_get_chunks_of_their_own():
    big = 200 * 2**20
    places, lengths = _layout([big, 10, big, 2 * big, 0])
    assert places == [(0, 0), (0, big), (1, 0), (2, 0), (3, 0)] and lengths == [big + _ALIGN, big, 2 * big, 0]


def test_every_piece_has_one_writer_and_all_write_about_as_much():
    same = [[f"w{i}", [0], 100 + i] for i in range(40)]
    own = [[[f"mine/{rank}", [0], 10]] for rank in range(3)]
    shares = divide([same + own[0], same + own[1], same + own[2]])
    everything = {checkpoint.json.dumps(place) for place in [*same, *own[0], *own[1], *own[2]]}
    assert sorted(key for share in shares for key in share) == sorted(everything)
    assert all(checkpoint.json.dumps(own[rank][0]) in shares[rank] for rank in range(3))
    loads = [sum(checkpoint.json.loads(key)[2] for key in share) for share in shares]
    assert max(loads) - min(loads) <= 140
    # a shard of the same tensor is another chunk
    assert [len(s) for s in divide([[["w", [0, 0], 8]], [["w", [2, 0], 8]]])] == [1, 1]


KILLS = """
import os, random, signal, sys, time, traceback, torch, torch.distributed as td
from pathlib import Path
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.saver import Saver
out, world, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
sizes = {f"w{i}": 200_000 + i for i in range(6)}

def train(rank, meet):
    if world > 1:
        td.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    now = {name: torch.zeros(n) for name, n in sizes.items()} | {f"mine/{rank}": torch.zeros(50_000)}
    start = checkpoint.newest(out)
    update = 0 if start is None else start.update
    saver = Saver(out, asynchronous=True)
    while True:
        update += 1
        for tensor in now.values():
            tensor.fill_(update)
            time.sleep(0.0005)
        saver.save(update, now, {"update": update}, after=lambda: checkpoint.prune(out, 2))

def start(rank, meet):
    pid = os.fork()
    if pid == 0:
        try:
            train(rank, meet)
        except BaseException:
            traceback.print_exc(file=open(out / f"rank-{rank}.log", "w"))
        os._exit(1)
    return pid

draw = random.Random(seed)
newest, inside, between = 0, 0, 0
for number in range(400):
    meet = out / f"meet-{number}"
    ranks = [start(rank, meet) for rank in range(world)]
    end = time.monotonic() + 60
    while (top := max((c.update for c in checkpoint.all_checkpoints(out)), default=0)) <= newest:
        assert time.monotonic() < end and os.waitpid(-1, os.WNOHANG)[0] == 0, "no checkpoint is made"
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.05))
    victim = draw.choice([*ranks, None])
    if victim is not None:  # one rank first: the others notice, or not yet
        os.kill(victim, signal.SIGKILL)
        time.sleep(draw.uniform(0, 0.03))
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)  # one that has ended is not waited for yet
    for pid in ranks:
        os.waitpid(pid, 0)
    left = [p.name for p in out.glob(".tmp-update-*")]
    inside, between = inside + bool(left), between + (not left)
    found = checkpoint.all_checkpoints(out)
    for there in found:
        assert checkpoint.damage(there.path) is None, (there.path, checkpoint.damage(there.path))
        assert there.state() == {"update": there.update}
        names = {name: torch.zeros(n) for name, n in sizes.items()} | {f"mine/{r}": torch.zeros(50_000) for r in range(world)}
        checkpoint.load(there.path, names)
        for name, tensor in names.items():
            assert bool((tensor == there.update).all()), f"{there.path.name}: {name} holds {tensor.unique()[:5]}"
    assert found[-1].update >= top, "a checkpoint that stood is gone"
    newest = found[-1].update
    checkpoint.clean(out)
    if number + 1 >= kills and inside >= 3:
        break
assert inside >= 3, (inside, between)
print(f"{number + 1} kills, {inside} of them inside a write, {newest} updates")
"""


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_kill_at_any_moment_leaves_whole_checkpoints_only(tmp_path, world):
    processes.python(KILLS, tmp_path, world, 0, 12).check()


RANKS = """
import errno, os, sys, torch, torch.distributed as td, torch.distributed.checkpoint
from pathlib import Path
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from polymodal.pipelines.run import checkpoint
from polymodal.shared.errors import UserError
from polymodal.pipelines.run.saver import Saver
torch.set_num_threads(1)
out, other = Path(sys.argv[1]), os.fork()
rank = 0 if other else 1
td.init_process_group("gloo", init_method=f"file://{out / 'meet'}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
full = torch.arange(15.0).view(5, 3)
now = {"sharded": distribute_tensor(full, mesh, [Shard(0)]), "row": distribute_tensor(full[:1], mesh, [Shard(0)]), "same": full + 1,
       f"mine/{rank}": torch.full((3,), rank)}
saver = Saver(out / "ck", asynchronous=True)
saver.save(1, now, {"update": 1})
for name in ("sharded", "row"):
    now[name].to_local().zero_()
now["same"].zero_()
for _ in range(20):  # the loop's own collectives, while the thread has its
    td.all_reduce(torch.ones(3))
saver.wait()
found = checkpoint.newest(out / "ck")
for name in ("sharded", "row"):
    again = {name: torch.zeros(now[name].shape)}
    checkpoint.load(found.path, again, ignore=lambda n: n != name)
    assert torch.equal(again[name], full[: len(again[name])]), again
again = {"same": torch.zeros(5, 3)}
checkpoint.load(found.path, again, ignore=lambda n: n != "same")
assert torch.equal(again["same"], full + 1), again
real = checkpoint.write
def broken(path, chunks):
    if rank == 1:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return real(path, chunks)
checkpoint.write = broken
saver.save(2, now, {})
try:
    saver.save(3, now, {})
    raise AssertionError("rank 1 had no room and nobody said so")
except UserError as error:
    assert "No space left on device (rank 1); earlier checkpoints are intact" in str(error), error
td.barrier()
assert [p.name for p in (out / "ck").iterdir()] == ["update-00000001"]
checkpoint.write = real
saver.save(4, now | {"more": torch.ones(2)}, {}, wait=True)  # other names: the work is divided anew
assert "more" in checkpoint.stored(checkpoint.newest(out / "ck").path)
td.destroy_process_group()
assert other == 0 or os.waitpid(other, 0)[1] == 0, "rank 1 failed"
"""


@pytest.mark.slow
def test_two_ranks_save_beside_the_loop_and_fail_together(tmp_path):
    processes.python(RANKS, tmp_path).check()
