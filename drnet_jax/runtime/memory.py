"""How much memory there is."""

import os
from typing import Any

import jax

GIB = 2**30
# Images are normalised as float32: four bytes for one.
BYTES_A_PIXEL = 3 * (1 + 4)


def device_memory() -> int:
    """Bytes that arrays may take on a device: of the CPU the machine's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(stats.get("bytes_limit", machine))


def size_of(tree: Any) -> int:
    """Bytes of arrays, or of what abstract values describe."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
