"""Processes for tests that need one: they begin where torch, Lightning and polymodal are imported, which takes an interpreter seconds.

A server, one for each process of pytest, imports once and forks. Its children are clean otherwise: a session, an environment, a folder and
outputs of their own, nothing computed yet. Tests whose subject is the start of an interpreter or of a launcher use `subprocess`.

    run = polymodal("pretrain", ...)          a command line
    run = call(work, path, 3)                 a function at the top of a test file, with arguments that can be pickled
    both = ranks(2, "pretrain", ...)          as torchrun starts them; also with a function
    run.check().out                           waits; the exit code must be 0
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import inspect
import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

WAIT = 240.0
"""Seconds until a process is taken for one that hangs."""


class Child:
    """A process that runs: what `subprocess.Popen` offers, with outputs in files."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._folder = folder

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return (self._folder / "out").read_text()

    @property
    def err(self) -> str:
        """What it has said on stderr so far."""
        return (self._folder / "err").read_text()

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None and (code := self._folder / "code").exists():
            self.returncode = int(code.read_text())
        return self.returncode

    def wait(self, timeout: float = WAIT) -> int:
        """Its exit code, once it has ended."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise AssertionError(f"still running after {timeout} s: {self.out[-2000:]}\n{self.err[-4000:]}")
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def check(self, timeout: float = WAIT) -> Child:
        """Wait; the exit code must be 0."""
        assert self.wait(timeout) == 0, f"exit code {self.returncode}: {self.out[-2000:]}\n{self.err[-4000:]}"
        return self

    def send_signal(self, number: int) -> None:
        """Send a signal to this process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it and all it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def call(function: Callable[..., None], *arguments: Any, env: Mapping[str, str] | None = None, cwd: Path | None = None,
         server: Server | None = None) -> Child:
    """Run a function of a test file."""
    return (server or _server()).start((inspect.getsourcefile(function), function.__qualname__, arguments), env, cwd)


def polymodal(*words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None, server: Server | None = None) -> Child:
    """Run a command line; `env` comes on top of this process's environment."""
    return (server or _server()).start(("", "", tuple(map(str, words))), env, cwd)


def python(text: str, *words: object, cwd: Path | None = None, server: Server | None = None) -> Child:
    """Run a program, with words after its name."""
    return call(_program, text, tuple(map(str, words)), cwd=cwd, server=server)


def _program(text: str, words: tuple[str, ...]) -> None:
    sys.argv = ["program", *words]
    exec(compile(text, "program", "exec"), {"__name__": "__main__"})


def ranks(count: int, work: Callable[..., None] | str, *arguments: Any, env: Mapping[str, str] | None = None,
          cwd: Path | None = None) -> list[Child]:
    """Run a function or a command line as ranks of one machine, with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    signs = _server().folder / f"signs-{time.monotonic_ns()}"
    signs.mkdir()
    common = {
        "TEST_SIGNS": str(signs), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": "0", **(env or {}),
    }
    each = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    if isinstance(work, str):
        return [polymodal(work, *arguments, env=e, cwd=cwd) for e in each]
    return [call(work, *arguments, env=e, cwd=cwd) for e in each]


def together(children: list[Child], timeout: float = WAIT) -> list[Child]:
    """Wait for ranks; all exit codes must be 0. The others of one that failed are ended, and its words are shown."""
    end = time.monotonic() + timeout
    try:
        while time.monotonic() < end and any(child.poll() is None for child in children) and not any(c.poll() for c in children):
            time.sleep(0.01)
        for child in sorted(children, key=lambda c: not c.poll()):
            child.check(1 if any(c.poll() for c in children) else max(1.0, end - time.monotonic()))
    finally:
        for child in children:
            child.kill()
    return children


def leave_together() -> None:
    """End a process group of gloo, as one of its ranks.

    A rank that leaves while another still talks to it takes that one down, and a barrier is talk too: a rank may pass it while
    another is inside. So each rank leaves a sign after the barrier and waits for the others'.
    """
    import torch.distributed as dist

    signs = Path(os.environ["TEST_SIGNS"])
    dist.barrier()
    (signs / str(dist.get_rank())).touch()
    while len(list(signs.iterdir())) < dist.get_world_size():
        time.sleep(0.01)
    dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------ the server


class Server:
    """One more server where its environment matters to the imports, such as another PYTHONPATH."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="test-processes-"))
        self.count = 0
        env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | dict(env or {})
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
                                        start_new_session=True)

    def stop(self) -> None:
        """End it and what it has started."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, work: tuple[str | None, str, tuple[Any, ...]], env: Mapping[str, str] | None, cwd: Path | None) -> Child:
        """Start a process: a file, the name of a function in it and its arguments; without a file the words of a command line."""
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        request = pickle.dumps((str(folder), work, {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}, str(cwd or Path.cwd())))
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(len(request).to_bytes(8, "little") + request)
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server of processes has died"
        return Child(int(answer), folder)


@cache
def _server() -> Server:
    return Server()


def stop() -> None:
    """End the server, where there is one, and what it has started."""
    if _server.cache_info().currsize:
        _server().stop()
        _server.cache_clear()


def _serve() -> tuple[str | None, str, tuple[Any, ...]] | None:
    """Fork at each request; returns in a child what it must do, and None in the server once nobody asks any more."""
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    folders: dict[int, Path] = {}
    answers = os.dup(1)
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 512)
            while folders:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                folder = folders.pop(pid)
                (folder / "part").write_text(str(os.waitstatus_to_exitcode(status)))
                (folder / "part").rename(folder / "code")
            continue
        header = _read(8)
        if not header:
            for pid in folders:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            return None
        folder, work, env, cwd = pickle.loads(_read(int.from_bytes(header, "little")))
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # kept until the work has begun, where somebody answers it
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
            os.setsid()
            for number, name in ((0, os.devnull), (1, f"{folder}/out"), (2, f"{folder}/err")):
                opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
                os.dup2(opened, number)
                os.close(opened)
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(env)
            os.write(answers, f"{os.getpid()}\n".encode())
            for number in (wake, waker, answers):
                os.close(number)
            return work
        folders[pid] = Path(folder)


def _read(count: int) -> bytes:
    data = b""
    while len(data) < count and (part := os.read(0, count - len(data))):
        data += part
    return data


def _work(file: str | None, name: str, arguments: tuple[Any, ...]) -> None:
    import numpy as np

    np.random.seed()  # noqa: NPY002  (a forked one would repeat its siblings)
    if not file:
        sys.argv = ["polymodal", *arguments]
        return sys.modules["polymodal.pipelines.cli"].main()
    spec = importlib.util.spec_from_file_location("_of_a_process", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)(*arguments)


if __name__ == "__main__":
    import polymodal.pipelines.cli
    import polymodal.pipelines.train.loop
    import pytest  # noqa: F401  (of every test file)

    polymodal.pipelines.cli._register()
    if (todo := _serve()) is None:
        os._exit(0)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        _work(*todo)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        raise
    except Exception:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    # what an interpreter does at its end, but for taking thousands of modules apart
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
