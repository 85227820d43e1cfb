"""Processes that make batches, and the signals that stop the one they work for."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_withheld() -> Iterator[None]:
    """What begins in this block, threads, processes and theirs, never sees a signal to stop.

    Terminals and schedulers send it to all processes; the main one decides what to do about it,
    and ends the others when it has what it needs of them. Signals for this thread wait until the
    end of the block.
    """
    # What a thread or a process begins with is the mask of the thread that started it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        # It would be started with the first worker, and unblocks some of them here.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(index: int, count: int) -> None:
    """Ends a worker, in which this is called, when its parent is killed: nothing else would.

    Args:
      index: of the worker, for Grain.
      count: of the workers, for Grain.
    """
    del index, count
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
