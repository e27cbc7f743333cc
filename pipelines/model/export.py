"""From a run to a directory that the reference library loads."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from ...registry import family
from ...shared.errors import UserError
from ...shared.system import System
from ...shared.tokenizer import Tokenizer
from ..run.directory import open_run_or_checkpoint
from .frontdoor import save, take_over


def export_system(system: System, out: Path, tokenizer: Tokenizer | None, format: str | None = None) -> None:
    """Write the system's networks and tokenizer to `out`, replacing an earlier export in one step."""
    temporary = out.with_name(f".tmp-{out.name}-{uuid.uuid4().hex}")
    try:
        for place, net in system.exports().items():
            save(net, temporary / place, tokenizer=tokenizer, format=format)
        if out.exists():
            old = out.with_name(f".tmp-old-{out.name}-{uuid.uuid4().hex}")
            out.rename(old)
            temporary.rename(out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def export(source: str | Path, out: str | Path, format: str | None = None) -> Path:
    """Write the network of a run (its newest checkpoint) or of one checkpoint to a directory.

    Args:
        source: a run's directory, or `RUN/checkpoints/update-...`.
        out: the directory to write; it must not exist, or be empty.
        format: "transformers", "open_clip", "timm", "polymodal", "gensim" or "glove"; by default the family's own.

    Returns:
        The directory.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not empty; give a new directory")
    run, at = open_run_or_checkpoint(source)
    system = run.system(at)
    take_over(system.net, family(run.described()["system"]), run)
    if out.exists():
        out.rmdir()
    out.parent.mkdir(parents=True, exist_ok=True)
    export_system(system, out, run.tokenizer(), format)
    return out
