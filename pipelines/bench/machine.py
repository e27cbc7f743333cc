"""What a benchmark must say about the machine: what it is, how fast it multiplies, how memory is counted."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ...shared.errors import UserError

PEERS = ("transformers", "open_clip_torch", "webdataset", "tokenizers", "numpy", "timm")
MIB = 1 << 20


@dataclass(frozen=True)
class Memory:
    """Memory around some steps. On a CPU resident memory, on CUDA what torch allocated."""

    before_mib: float
    """Held when the steps began: weights, data, libraries."""
    peak_mib: float
    """The most that was held while they ran."""

    @property
    def step_mib(self) -> float:
        """What the steps added at their peak: gradients, optimizer state, activations."""
        return self.peak_mib - self.before_mib


def watch_memory(work: Callable[[], object], device: str) -> Memory:
    """Run `work` and say what memory it needed.

    On Linux the kernel's high-water mark is reset first, and memory that the allocator had kept for
    later is given back, or reuse would hide what the work needs. Elsewhere the mark is the whole process's.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return Memory(before / MIB, torch.cuda.max_memory_allocated() / MIB)
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        work()
        return Memory(before / MIB, _status("VmHWM") / MIB)
    before = _max_resident()
    work()
    return Memory(before / MIB, _max_resident() / MIB)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))


def _max_resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def synchronize(device: str) -> None:
    """Wait until the device has done everything that was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()


def cpu_time() -> float:
    """Seconds of CPU time of this process's threads and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def use_threads(count: int) -> None:
    """Make a fresh process use as many threads as the one that started it."""
    torch.set_num_threads(count)


def matmul_rate(device: str, dtype: torch.dtype, *, size: int | None = None, quick: bool = False) -> float:
    """FLOP/s of square matrix products on this machine: the best of several, after a warm-up.

    The best, because it stands for what the hardware can do; other work on the machine only lowers it.
    """
    size = size or (256 if quick else 8192 if device == "cuda" else 2048)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    best = float("inf")
    for _ in range(2 if quick else 8):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


PUBLISHED = (
    ("H100 PCIe", 756e12), ("H100 NVL", 835e12), ("H100", 989e12), ("H200", 989e12), ("A100", 312e12), ("B200", 2250e12),
    ("L40S", 362e12), ("L4", 121e12),
)
"""Dense bf16 (and fp16) FLOP/s of cards by words of their name, the first that fits: data sheets, halved where they count sparsity.

H100: SXM 989, PCIe 756, NVL 835 (https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet); H200: 989
(https://www.nvidia.com/en-us/data-center/h200/); A100: 312 (https://www.nvidia.com/en-us/data-center/a100/); B200: 2250
(https://www.nvidia.com/en-us/data-center/dgx-b200/, an eighth of it); L40S: 362; L4: 121 (https://www.nvidia.com/en-us/data-center/l4/).
"""


def published_rate(card: str) -> float | None:
    """The dense bf16 FLOP/s that a card's data sheet says; None where the card is not in the table."""
    words = card.replace("-", " ").split()
    return next((rate for name, rate in PUBLISHED if set(name.split()) <= set(words)), None)


def fast_bfloat16(device: str) -> bool:
    """Whether the hardware multiplies bf16 faster than fp32; without it bf16 is not worth a measurement."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = _cpuinfo("flags").split()
    return "amx_bf16" in flags or "avx512_bf16" in flags


def need(package: str) -> Any:
    """Import a peer, quietly, or tell the user how to get it."""
    try:
        module = import_module(package)
    except ImportError:
        raise UserError(f"this benchmark runs beside {package}, which is not installed: pip install {package}") from None
    if package == "transformers":
        logging: Any = module.logging
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    return module


def describe(device: str) -> dict[str, Any]:
    """The machine and the software, for the head of a results file."""
    cuda = device == "cuda"
    return {
        "processor": torch.cuda.get_device_name() if cuda else _cpuinfo("model name") or platform.processor() or platform.machine(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if cuda else torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(_memory(device) / 2**30, 1),
        "fast_bfloat16": fast_bfloat16(device),
        "published_bfloat16_flops": (published_rate(torch.cuda.get_device_name()) or "unknown") if cuda else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "peers": {name: found for name in PEERS if (found := _version(name))},
        "load_average": load_average(),
    }


def load_average() -> list[float]:
    """Processes that ran or waited in the last 1, 5 and 15 minutes: above the cores, others were at work too."""
    return [round(v, 2) for v in os.getloadavg()] if hasattr(os, "getloadavg") else [0.0] * 3


def _memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpuinfo(field: str) -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
