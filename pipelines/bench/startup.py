"""Start-up: whole processes, from `exec` to exit, of both sides as after a first start.

Python keeps the bytecode of what it imports. Where it must not (PYTHONDONTWRITEBYTECODE) and the installer made none, every
start compiles torch from its sources, for longer than all else takes. So both sides get a folder for bytecode of their own.

There is no result to compare; before the race every command must end with exit code 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from ...shared.errors import UserError
from ...shared.tokenizer import Tokenizer
from ..crew.pieces import Workers
from ..pack.pack import pack
from ..pack.settings import PackSettings, Reading
from .case import Agreement, Case, Cases, Contender, Options
from .corpus import documents

PEERS = ("transformers", "open_clip")

Command = tuple[str, ...]


def execute(command: Command) -> int:
    """Run a command to its end; its exit code."""
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"`{' '.join(command)}` ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.returncode


def agree(commands: tuple[Command, ...]) -> Agreement:
    """Commands that fail."""
    return Agreement("commands that do not end with exit code 0", sum(execute(c) != 0 for c in commands), 0)


def case(name: str, about: str, commands: dict[str, Command], warmup: int = 1) -> Case:
    """A case of whole processes, by name; the first is ours, the others are for orientation."""
    sides = tuple(Contender(n, partial(tuple, c), execute, same_work=i == 0) for i, (n, c) in enumerate(commands.items()))
    return Case(name, about, "starts", 1, sides, partial(agree, tuple(commands.values())), weigh=False, warmup=warmup)


@contextmanager
def bytecode(folder: Path) -> Generator[None]:
    """Let the processes that are started keep their bytecode under `folder`."""
    changed = {"PYTHONPYCACHEPREFIX": str(folder), "PYTHONDONTWRITEBYTECODE": ""}  # empty: it may be written
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def cases(options: Options) -> Cases:
    """`polymodal --help`, `import polymodal`, and a tiny recipe up to its first update."""
    peer = options.peer("startup", PEERS)
    with TemporaryDirectory() as temporary, bytecode(Path(temporary) / "bytecode"):
        yield from _cases(options, peer, Path(temporary))


def _cases(options: Options, peer: str, folder: Path) -> Cases:
    python = sys.executable
    yield case("help", "`polymodal --help`, beside an empty Python and the import of a peer", {
        "polymodal --help": (python, "-m", "polymodal", "--help"),
        "python -c pass": (python, "-c", "pass"),
        f"import {peer}": (python, "-c", f"import {peer}"),
    })
    yield case("import", "`import polymodal`", {"import polymodal": (python, "-c", "import polymodal")})
    texts = documents(50 if options.quick else 500)
    Tokenizer.train(texts, "byte-bpe", 400).save(folder / "tokenizer")
    (folder / "documents.txt").write_text("\n---\n".join(texts), encoding="utf-8")
    pack([folder / "documents.txt"], folder / "data", PackSettings(Reading(split="---"), tokenizer=folder / "tokenizer", block=128),
         workers=Workers(1))
    run = "import shutil, sys; from polymodal.pipelines.cli import main; shutil.rmtree(sys.argv[5], ignore_errors=True); main()"
    yield case("first update", "`polymodal pretrain gpt2-tiny` with one update, its checkpoint and its export", {
        "polymodal pretrain": (python, "-c", run, "pretrain", "gpt2-tiny", "--data", os.fspath(folder / "data"),
                               "--out", os.fspath(folder / "run"), "--max-updates", "1"),
    })
