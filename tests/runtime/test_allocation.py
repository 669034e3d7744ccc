"""Freed memory is kept: pytest tests/test_allocation.py"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Makes and frees a block of 40 MiB, 20 times, and prints how often the system gave a new page. Left
# to itself, glibc never keeps more than 32 MiB.
PROGRAM = """
import ctypes, resource, sys
from transformer.runtime.allocation import reuse_freed_memory
if sys.argv[1] == "keep":
    reuse_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block = ctypes.c_void_p(libc.malloc(40 << 20))
    ctypes.memset(block, 1, 40 << 20)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(way: str) -> int:
    program = [sys.executable, "-c", PROGRAM, way]
    return int(subprocess.run(program, cwd=ROOT, capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has mallopt")
def test_freed_blocks_are_used_again() -> None:
    assert page_faults("keep") < page_faults("plain") / 4
