"""Signals that ask a training to stop, and the step at which all processes of it do."""

import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from drnet_jax.runtime.sharding import batch_sharding, replicated_sharding

# Steps until a vote is counted: by then it is computed, and nobody waits for it.
_LATE = 2


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP in the list, so that the loop can save before it stops.

    A terminal that is closed sends SIGHUP; where that is ignored (`nohup`), it stays so.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        """Notes the signal; a second Ctrl-C stops at once."""
        # Shell and system both send the others.
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Votes:
    """Whether to stop: one process decides alone, several at the same step.

    Of several, each says at every step whether it was asked to stop. The devices count that behind
    the step, so that every process reads the same count two steps later.

    Args:
      mesh: the devices of all processes.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._sharding = batch_sharding(mesh)
        self._any = jax.jit(jnp.any, out_shardings=replicated_sharding(mesh))
        self._cast: deque[jax.Array] = deque()

    def stop(self, asked: bool) -> bool:
        """Whether to stop now; all processes ask, once a step.

        Args:
          asked: this process was asked to.
        """
        if jax.process_count() == 1:
            return asked
        own = np.full(jax.local_device_count(), asked)
        votes = jax.make_array_from_process_local_data(self._sharding, own)
        self._cast.append(self._any(votes))
        return len(self._cast) > _LATE and bool(self._cast.popleft())

    def stop_at_last(self, asked: bool) -> bool:
        """As `stop`, after the last step: it waits for the others."""
        return bool(multihost_utils.process_allgather(np.bool_(asked)).any())
