"""Host memory that batches are written into, pinned where the runtime can, and their upload."""

import math
import mmap
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from drnet_jax.runtime.progress import log_once

# Of a piece, at least. From memory that is not pinned an H100 got 38 MB in 7 ms, and in four pieces
# in 2.3 ms (docs/performance.md).
_PIECE_BYTES = 2**23
_MOST_PIECES = 4


def piece_sizes(shape: Sequence[int], platform: str) -> tuple[int, ...]:
    """How many images of a batch are uploaded together; they add up to the batch.

    All at once where they are small, and on the CPU, whose memory they are in already.

    Args:
      shape: `[n, h, w, 3]` of the batch, uint8.
      platform: of the device, as `jax.Device` has it.
    """
    most = 1 if platform == "cpu" else min(_MOST_PIECES, shape[0])
    pieces = max(1, min(most, math.prod(shape) // _PIECE_BYTES))
    return tuple(len(rows) for rows in np.array_split(range(shape[0]), pieces))


def upload(images: np.ndarray, sizes: Sequence[int], device: jax.Device) -> tuple[jax.Array, ...]:
    """Starts the upload of a batch `[n, ...]` in pieces of these sizes; it is not waited for."""
    pieces = np.split(images, np.cumsum(sizes)[:-1])
    return tuple(jax.device_put(pieces, SingleDeviceSharding(device)))


class Staging:
    """A place for one batch in host memory.

    The runtime reads it as long as it uploads, on the CPU as long as a program computes: it is to
    be written again once the outputs of the batch are there, and to be kept until then. Pinning
    takes as long as many uploads: make few.

    Args:
      shape: `[n, h, w, 3]` of the batch.
      device: that it is uploaded to.

    Attributes:
      images: of this shape, uint8, to be written.
      pinned: whether the device reads it without the driver's copy; never so on the CPU, which
        needs no upload.
    """

    def __init__(self, shape: Sequence[int], device: jax.Device) -> None:
        # Of whole pages: two places share none, which could not be pinned twice.
        memory = mmap.mmap(-1, math.prod(shape))
        self.images = np.frombuffer(memory, np.uint8).reshape(shape)
        self.pinned = device.platform != "cpu" and _pin(self.images, device.client)
        if self.pinned:
            weakref.finalize(self, _unpin, self.images, device.client)


def _pin(images: np.ndarray, client: Any) -> bool:
    """Pins memory by JAX's `Client.dma_map`; says so where the runtime cannot."""
    try:
        client.dma_map(images.ctypes.data, images.nbytes)
    except (AttributeError, jax.errors.JaxRuntimeError) as error:
        log_once(f"host memory is not pinned, uploads take longer: {error}")
        return False
    return True


def _unpin(images: np.ndarray, client: Any) -> None:
    client.dma_unmap(images.ctypes.data)
