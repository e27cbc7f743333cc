"""What a process runs on: versions, hardware and command."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ..._version import __version__
from ..base.redact import redact


def describe_environment() -> dict[str, Any]:
    """Versions, hardware and command of this process."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "polymodal": __version__, "python": platform.python_version(), "torch": torch.__version__, "platform": platform.platform(),
        "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus,
        "world_size": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "command": [redact(argument) for argument in sys.argv], "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
