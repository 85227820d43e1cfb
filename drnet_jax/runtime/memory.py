"""How much memory there is."""

import os
from typing import Any

import jax
from ml_collections import ConfigDict

from drnet_jax.config import ConfigError, get_field

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


def check_batches(config: ConfigDict, image_size: tuple[int, int]) -> None:
    """Checks that the images of a batch fit, of evaluation, inference and benchmark.

    Args:
      config: the whole configuration.
      image_size: height and width of the images.

    Raises:
      ConfigError: they alone take more than all the memory.
    """
    memory, (height, width) = device_memory(), image_size
    for name in ("eval.batch_size", "inference.buckets", "benchmark.batch_sizes"):
        value = get_field(config, name)
        largest = value if isinstance(value, int) else max(value)
        needed = largest * height * width * BYTES_A_PIXEL
        if needed > memory:
            raise ConfigError(
                f"{name}={value}: {largest} images of {width}x{height} px take "
                f"{needed / GIB:.1f} GiB, and there are {memory / GIB:.1f}; lower it"
            )
