from __future__ import annotations

import builtins
import copy
import errno
import io
import json
import os
from pathlib import Path

import processes
import pytest
import torch
from polymodal.pipelines.run import checkpoint
from polymodal.pipelines.run.optim import OptimSettings, build_optimizer
from polymodal.pipelines.run.trees import flatten, join_rows, unflatten
from polymodal.shared.errors import UserError
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor


def model(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Embedding(11, 16), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 11, bias=False))
    net[3].weight = net[0].weight
    return net


def train(net, optimizer, updates=3):
    for _ in range(updates):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(torch.arange(11)), torch.arange(11)).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lamb", "muon", "sgd", "adagrad"])
def test_model_and_optimizer_continue_as_if_never_stopped(tmp_path, name):
    settings = OptimSettings(name=name, lr=0.01)
    net = model()
    optimizer = build_optimizer(net, settings)
    train(net, optimizer)
    tensors, scalars = checkpoint.optimizer_state(net, optimizer)
    saved = checkpoint.save(tmp_path, 3, {**{f"model/{k}": v for k, v in net.state_dict().items()}, **tensors}, {"optim": scalars})
    again = model(seed=5)
    continued = build_optimizer(again, settings)
    checkpoint.load(saved.path, {f"model/{k}": v for k, v in again.state_dict().items()}, ignore=lambda n: n.startswith("optim/"))
    checkpoint.load_optimizer_state(saved.path, again, continued, json.loads(json.dumps(saved.state()["optim"])))
    train(net, optimizer)
    train(again, continued)
    assert again[3].weight is again[0].weight
    for a, b in zip(net.parameters(), again.parameters()):
        assert torch.equal(a, b)


def test_nothing_is_pickled(tmp_path):
    saved = checkpoint.save(tmp_path, 1, {"x": torch.arange(4.0), "step": torch.tensor(3), "view": torch.zeros(3, 2).T}, {"a": 1})
    assert sorted(p.name for p in saved.path.iterdir()) == ["manifest.json", "shard-00001-model-00001-of-00001.safetensors", "state.json"]
    assert {k: tuple(v[0]) for k, v in checkpoint.stored(saved.path).items()} == {"x": (4,), "step": (), "view": (2, 3)}


def _corrupt(path, kind):
    if kind == "flip":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()


@pytest.mark.parametrize("kind", ["flip", "cut", "missing"])
@pytest.mark.parametrize("victim", ["shard-00001-model-00001-of-00001.safetensors", "state.json", "manifest.json"])
def test_damage_is_found_and_the_newest_good_one_is_used(tmp_path, kind, victim):
    for update in (1, 2):
        checkpoint.save(tmp_path, update, {"x": torch.full((8,), update)}, {"update": update})
    assert checkpoint.newest(tmp_path).update == 2
    _corrupt(tmp_path / "update-00000002" / victim, kind)
    warned = []
    found = checkpoint.newest(tmp_path, warned.append)
    assert found is not None and found.update == 1 and found.state() == {"update": 1}
    assert len(warned) == 1 and "update-00000002 is damaged" in warned[0]
    with pytest.raises(UserError, match="damaged"):
        checkpoint.open_checkpoint(tmp_path / "update-00000002")
    # the run makes update 2 again: the damaged one goes, the new one verifies
    checkpoint.save(tmp_path, 2, {"x": torch.full((8,), 2)}, {"update": 2})
    assert checkpoint.newest(tmp_path).update == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["update-00000001", "update-00000002"]


def test_no_checkpoint(tmp_path):
    assert checkpoint.newest(tmp_path / "nothing") is None
    (tmp_path / ".tmp-update-00000001-abc").mkdir()
    (tmp_path / ".damaged-update-00000001-abc").mkdir()
    assert checkpoint.newest(tmp_path) is None
    checkpoint.clean(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="is not a checkpoint"):
        checkpoint.open_checkpoint(tmp_path)


def test_keep_last_and_keep_every(tmp_path):
    for update in range(1, 11):
        checkpoint.save(tmp_path, update, {"x": torch.zeros(1)}, {})
        checkpoint.prune(tmp_path, keep_last=2, keep_every=4)
    assert [c.update for c in checkpoint.all_checkpoints(tmp_path)] == [4, 8, 9, 10]
    assert not list(tmp_path.glob(".tmp*"))


@pytest.mark.parametrize("where", ["shard", "state.json", "manifest.json"])
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, where):
    checkpoint.save(tmp_path, 1, {"x": torch.ones(8)}, {"update": 1})

    class Full:
        """A file on a full disk: opening works, writing does not."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path_open = Path.open

    def opened(self, mode="r", *args, **kwargs):
        file = path_open(self, mode, *args, **kwargs)
        return Full(file) if "w" in mode and where in self.name else file

    monkeypatch.setattr(Path, "open", opened)
    if where == "shard":
        real_open = io.open

        def plain(file, mode="r", *args, **kwargs):
            handle = real_open(file, mode, *args, **kwargs)
            return Full(handle) if "w" in mode and "shard" in str(file) else handle

        monkeypatch.setattr(builtins, "open", plain)
        monkeypatch.setattr(io, "open", plain)
    with pytest.raises(UserError, match="No space left on device; earlier checkpoints are intact"):
        checkpoint.save(tmp_path, 2, {"x": torch.ones(8) * 2}, {"update": 2})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["update-00000001"]
    assert checkpoint.newest(tmp_path).update == 1


def test_an_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write a checkpoint"):
        checkpoint.save(tmp_path / "file", 1, {"x": torch.ones(1)}, {})


def test_a_checkpoint_that_does_not_fit_lists_the_names(tmp_path):
    saved = checkpoint.save(tmp_path, 1, {"a": torch.ones(2), "b": torch.ones(3)}, {})
    with pytest.raises(UserError, match=r"missing c; unexpected b; a is \(2,\), the model has \(4,\)"):
        checkpoint.load(saved.path, {"a": torch.zeros(4), "c": torch.zeros(1)})


def test_trees():
    value = {"memory": [torch.ones(2, 3), (torch.arange(3), None)], "n": 3, "name": "x"}
    skeleton, tensors = flatten(value, "carry/0")
    empty, slots = unflatten(json.loads(json.dumps(skeleton)))
    assert list(slots) == list(tensors)
    for name, tensor in slots.items():
        tensor.copy_(tensors[name])
    assert torch.equal(empty["memory"][0], value["memory"][0]) and isinstance(empty["memory"][1], tuple)
    assert torch.equal(empty["memory"][1][0], torch.arange(3)) and empty["memory"][1][1] is None
    assert (empty["n"], empty["name"]) == (3, "x")


def as_a_rank(out, action):
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (world,))
    full = torch.arange(15.0).view(5, 3)
    sharded = distribute_tensor(full if action == "save" else torch.zeros(5, 3), mesh, [Shard(0)], src_data_rank=None)
    other = distribute_tensor(full + 1 if action == "save" else torch.zeros(5, 3), mesh, [Shard(0)], src_data_rank=None)
    same = torch.full((4,), 7.0) if action == "save" else torch.zeros(4)
    # only the first rank has a row
    few = distribute_tensor(full[:1] if action == "save" else torch.zeros(1, 3), mesh, [Shard(0)], src_data_rank=None)
    tied = {"few": few.detach(), "tied": few.detach()}
    if action == "save":
        tensors = {"sharded": sharded, "other": other, "same": same, f"mine/{rank}": torch.tensor([rank]), **tied}
        checkpoint.save(out, 5, tensors, {"world": world})
    else:
        found = checkpoint.newest(out)
        checkpoint.load(found.path, {"sharded": sharded, "other": other, "same": same, **tied}, ignore=lambda n: n.startswith("mine/"))
        assert torch.equal(sharded.full_tensor(), full), sharded
        assert torch.equal(other.full_tensor(), full + 1), other
        assert torch.equal(few.full_tensor(), full[:1]), few
        assert torch.equal(same, torch.full((4,), 7.0))
    processes.leave_together()


@pytest.mark.slow
def test_sharded_by_two_ranks_read_by_one_and_three(tmp_path):
    processes.together(processes.ranks(2, as_a_rank, tmp_path / "ck", "save"))
    saved = checkpoint.newest(tmp_path / "ck")
    assert sorted(p.name for p in saved.path.glob("shard-*")) == [f"shard-0000{r}-model-00001-of-00001.safetensors" for r in (1, 2)]
    tensors = {"sharded": torch.zeros(5, 3), "other": torch.zeros(5, 3), "same": torch.zeros(4), "few": torch.zeros(1, 3),
               "mine/0": torch.zeros(1, dtype=torch.int64), "mine/1": torch.zeros(1, dtype=torch.int64)}
    checkpoint.load(saved.path, copy.copy(tensors))
    assert torch.equal(tensors["sharded"], torch.arange(15.0).view(5, 3))
    assert tensors["mine/1"].item() == 1
    processes.together(processes.ranks(3, as_a_rank, tmp_path / "ck", "load"))


def test_tied_tensors_count_once_also_without_an_address():
    for make in (lambda: torch.ones(2), lambda: torch.empty(0, 3), lambda: torch.empty(2, device="meta")):
        one, other = make(), make()
        assert list(checkpoint.without_aliases({"a": one, "tied": one.detach(), "b": other})) == ["a", "b"]


def test_rows_of_several_trees_are_joined():
    def tree(first, count):
        rows = torch.arange(first, first + count)
        return {"ids": list(range(first, first + count)), "layers": (rows[:, None] * 10, [rows * 100]), "width": 3, "none": None, "no": []}

    joined = join_rows([tree(0, 2), None, tree(2, 3)])
    assert joined["ids"] == [0, 1, 2, 3, 4] and joined["width"] == 3 and joined["none"] is None and joined["no"] == []
    assert joined["layers"][0].tolist() == [[0], [10], [20], [30], [40]] and joined["layers"][1][0].tolist() == [0, 100, 200, 300, 400]
    assert isinstance(joined["layers"], tuple) and isinstance(joined["layers"][1], list)
    assert join_rows([]) is None and join_rows([None, None]) is None
    with pytest.raises(AssertionError, match="differ"):
        join_rows([{"width": 3}, {"width": 4}])


def test_a_tensor_in_several_places_is_stored_once():
    shared = torch.arange(3)
    skeleton, tensors = flatten({"0": {"x": shared}, "1": {"x": shared}}, "carry/0")
    assert list(tensors) == ["carry/0/0/x"]
    again, slots = unflatten(json.loads(json.dumps(skeleton)))
    assert list(slots) == ["carry/0/0/x"] and again["0"]["x"] is again["1"]["x"] is slots["carry/0/0/x"]
