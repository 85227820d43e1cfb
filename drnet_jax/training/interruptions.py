"""Signals that ask a training to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the list, so that the loop can save before it stops.

    With several processes it does nothing: they would have to stop at the same step.
    """
    received: list[int] = []
    if jax.process_count() > 1:
        yield received
        return

    def note(number: int, _: FrameType | None) -> None:
        """Keeps the first signal; the second one stops at once."""
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
