"""Signals that ask a training to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import jax


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP in the list, so that the loop can save before it stops.

    A terminal that is closed sends SIGHUP; where that is ignored (`nohup`), it stays so. With
    several processes this does nothing: they would have to stop at the same step.
    """
    received: list[int] = []
    if jax.process_count() > 1:
        yield received
        return

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
