"""What a process frees it uses again."""

import subprocess
import sys

import pytest

# Page faults while 64 MiB are taken, written and freed ten times, after the first time.
COUNT = """
import resource, sys
from drnet_jax.runtime.allocator import (keep_freed_memory)
if sys.argv[1] == "keep":
    print(keep_freed_memory())
else:
    print(True)
b"x" * 2**26
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"x" * 2**26
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(way: str) -> tuple[bool, int]:
    command = [sys.executable, "-c", COUNT, way]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return output[0] == "True", int(output[1])


def test_large_blocks_are_touched_anew_only_without_it() -> None:
    available, faults = page_faults("keep")
    if not available:
        pytest.skip("this C library has no mallopt")
    _, as_it_comes = page_faults("stock")
    assert as_it_comes > 100
    assert faults < as_it_comes / 10
