from __future__ import annotations

import json
import os

import processes
import torch
from polymodal.shared import dist


def gather():
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    full = torch.arange(10, dtype=torch.float64).view(5, 2).sin()
    mine = full[:3] if rank == 0 else full[3:]
    mine = mine.clone().requires_grad_(True)
    everyone = dist.all_gather_with_grad(mine)
    (mine @ everyone.T).exp().sum().backward()
    total = dist.all_reduce_sum(torch.tensor([rank + 1, 5]))
    print(json.dumps({"rows": everyone.tolist(), "grad": mine.grad.tolist(), "sum": total.tolist(),
                      "json": dist.gather_json({"rank": rank, "x": "y" * rank}), "rank": dist.rank(), "world": dist.world_size()}))


def test_identity_without_a_process_group():
    x = torch.ones(2, 3, requires_grad=True)
    assert dist.all_gather_with_grad(x) is x
    assert dist.all_reduce_sum(x) is x
    assert (dist.rank(), dist.world_size(), dist.gather_json(3)) == (0, 1, [3])


def test_two_ranks_gather_uneven_rows_with_the_gradient_of_the_whole():
    out = [json.loads(run.out) for run in processes.together(processes.ranks(2, gather))]
    full = torch.arange(10, dtype=torch.float64).view(5, 2).sin().requires_grad_(True)
    (full @ full.T).exp().sum().backward()
    assert full.grad is not None
    for r, got in enumerate(out):
        assert got["rows"] == full.tolist()
        assert got["sum"] == [3, 10]
        assert got["json"] == [{"rank": 0, "x": ""}, {"rank": 1, "x": "y"}]
        assert (got["rank"], got["world"]) == (r, 2)
    torch.testing.assert_close(torch.tensor(out[0]["grad"] + out[1]["grad"], dtype=torch.float64), full.grad)
