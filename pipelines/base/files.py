"""One process at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from ...shared.errors import UserError


def lock_file(file: Path, busy: str) -> IO[str]:
    """Keep other processes from what `file` stands for (they are told `busy`) until it is closed.

    The lock is the kernel's: it ends with this process, however that ends.
    """
    opened = file.open("w")
    try:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)  # lockf: workers forked from here do not inherit it
    except OSError:
        opened.close()
        raise UserError(busy) from None
    return opened
