"""What the processor can do, and how this process uses its memory."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch


@cache
def cpu_features() -> Mapping[str, Any]:
    """Names such as `avx512_bf16` and `amx_tile`, as torch sees them; nothing where this torch cannot tell."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def keep_freed_memory() -> bool:
    """Keep what is freed for what comes next, and give it back only at the end; for the whole process.

    glibc gives large blocks back to the system at once. A training step on a CPU frees and takes every activation and gradient anew,
    and the page faults of that take a sixth of its time (docs/performance.md).

    Returns:
        Whether this C library can do that; elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    trim_threshold, mmap_threshold, limit = -1, -3, 2**31 - 1
    return bool(mallopt(trim_threshold, limit) and mallopt(mmap_threshold, limit))
