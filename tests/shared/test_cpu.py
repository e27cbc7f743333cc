from __future__ import annotations

import platform
import resource

import processes
import pytest
import torch
from polymodal.shared import cpu


def count_faults(keep):
    kept = keep and cpu.keep_freed_memory()
    for _ in range(12):
        torch.ones(2**24)  # 64 MiB; glibc needs some turns until an aligned block fits where the one before was
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)
    print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_freed_memory_is_used_again():
    def faults(keep: bool) -> tuple[str, int]:
        kept, count = processes.call(count_faults, keep).check().out.split()
        return kept, int(count)

    assert faults(False) > ("False", 1000)
    kept, count = faults(True)
    assert kept == "True" and count < 100


def test_a_library_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda _: object())
    assert cpu.keep_freed_memory() is False
