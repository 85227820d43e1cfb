"""Signals that ask a training to stop, and the step at which all processes of it do."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import numpy as np
from jax.experimental import multihost_utils


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


def asked_of_any(received: Sequence[int]) -> bool:
    """Whether any process of the run was asked to stop, so that all stop at the same step.

    All of them have to ask, so they do where they wait for their devices anyway.
    """
    return bool(multihost_utils.process_allgather(np.bool_(bool(received))).any())
