"""Batches for the steps, not too far ahead of the device."""

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import jax

from drnet_jax.data.pipeline import TrainBatch

# Steps that are handed to the device before the host waits for them.
_IN_FLIGHT = 2


class BatchFeed:
    """Takes the batches of the steps, and measures how long the device waits for them.

    Args:
      batches: on the devices.
    """

    def __init__(self, batches: Iterator[TrainBatch]) -> None:
        self._batches = batches
        self._losses: deque[Any] = deque(maxlen=_IN_FLIGHT)
        self._waited = 0.0

    def next(self) -> TrainBatch:
        """The next batch, once the step before the last one is computed."""
        if len(self._losses) == _IN_FLIGHT:
            # Else batches would pile up on the device, ahead of the steps.
            jax.block_until_ready(self._losses[0])
        asked = time.perf_counter()
        batch = next(self._batches)
        # Only if the device had nothing left to do meanwhile did it wait for this.
        if self._losses and self._losses[-1].is_ready():
            self._waited += time.perf_counter() - asked
        return batch

    def started(self, loss: jax.Array) -> None:
        """Notes that a step is handed to the device.

        Args:
          loss: of the step, which may still be computed.
        """
        self._losses.append(loss)

    def take_waited(self) -> float:
        """Seconds that the device waited since the last call; waits until all steps are done."""
        jax.block_until_ready(list(self._losses))
        waited, self._waited = self._waited, 0.0
        self._losses.clear()
        return waited
