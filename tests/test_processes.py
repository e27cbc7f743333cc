"""The processes that tests start are those of a fresh interpreter, but for the imports."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import torch


def tell(word):
    drawn = random.random(), np.random.rand()  # noqa: NPY002
    print(word, os.environ.get("WORD"), Path.cwd(), os.getsid(0) == os.getpid(), threading.active_count(), *drawn)
    print("said", file=sys.stderr)
    sys.exit(int(word))


def test_a_process_has_outputs_an_environment_and_an_exit_code_of_its_own(tmp_path):
    runs = [processes.call(tell, word, env={"WORD": "w"}, cwd=tmp_path) for word in ("3", "3")]
    assert [run.wait() for run in runs] == [3, 3] and [run.err for run in runs] == ["said\n"] * 2
    parts = [run.out.split() for run in runs]
    assert all(part[:5] == ["3", "w", str(tmp_path), "True", "1"] for part in parts)
    assert parts[0][5] != parts[1][5] and parts[0][6] != parts[1][6]
    with pytest.raises(AssertionError, match="exit code 3"):
        runs[0].check()


def gather(path):
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    total = torch.full((2,), float(rank + 1), requires_grad=True)
    total.sum().backward()  # autograd works in a forked process
    found = total.detach().clone()
    torch.distributed.all_reduce(found)
    Path(path, str(rank)).write_text(str(found.tolist()))
    torch.distributed.barrier()


def test_ranks_meet(tmp_path):
    processes.together(processes.ranks(2, gather, tmp_path))
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["[3.0, 3.0]"] * 2


def fail_or_wait():
    if os.environ["RANK"] == "1":
        raise ValueError("of rank 1")
    time.sleep(300)


def test_a_rank_that_fails_ends_the_others():
    runs = processes.ranks(2, fail_or_wait)
    with pytest.raises(AssertionError, match="of rank 1"):
        processes.together(runs)
    assert runs[0].wait(20) == -signal.SIGKILL


def test_a_command_line(tmp_path):
    assert processes.polymodal("systems", "--json").check().out.startswith('{"systems": ')
    missing = processes.polymodal("inspect", "nothing", cwd=tmp_path)
    assert missing.wait() == 2 and missing.err.startswith("error: ")


def test_a_signal_and_a_limit():
    run = processes.call(sleep)
    run.send_signal(signal.SIGINT)
    assert run.wait() == -signal.SIGINT and "KeyboardInterrupt" in run.err
    with pytest.raises(AssertionError, match=r"still running after 0\.1 s"):
        processes.call(sleep).wait(0.1)


def sleep():
    for _ in range(3000):
        time.sleep(0.1)  # a signal that comes just before a sleep is answered after it
