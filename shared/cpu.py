"""What the processor can do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch


@cache
def cpu_features() -> Mapping[str, Any]:
    """Names such as `avx512_bf16` and `amx_tile`, as torch sees them; nothing where this torch cannot tell."""
    return getattr(torch.cpu, "get_capabilities", dict)()
