"""Compilation of several networks: in parallel, in order, and only as long as there is time."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from drnet_jax.inference import programs
from drnet_jax.inference.programs import compile_all, compile_programs


class Lowered:
    """Stands for a lowered program, whose executable is its name."""

    def __init__(self, name: Any, wait: Callable[[], Any] = lambda: None) -> None:
        self._name = name
        self._wait = wait

    def compile(self) -> Any:
        self._wait()
        return self._name


class Network:
    """Stands for a `PlacedNetwork`; it notes what is lowered, and by which thread."""

    image_shape = (8, 8, 3)

    def __init__(self, name: str, log: list[Any], wait: Callable[[], Any] = lambda: None) -> None:
        self._name = name
        self._log = log
        self._wait = wait

    def lower(self, bucket: int) -> Any:
        assert threading.current_thread() is threading.main_thread()
        self._log.append((self._name, bucket))
        return Lowered((self._name, bucket), self._wait)


class Inline:
    """A pool of no thread: the clock of a test then passes in one order."""

    def __init__(self, threads: int | None) -> None:
        del threads

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, *, cancel_futures: bool) -> None:
        del cancel_futures


@pytest.fixture
def clock(monkeypatch: Any) -> Iterator[list[Any]]:
    """A log, each entry of which takes a second."""
    log: list[Any] = []
    monkeypatch.setattr(programs.time, "monotonic", lambda: float(len(log)))
    monkeypatch.setattr(programs, "ThreadPoolExecutor", Inline)
    yield log


def test_all_networks_and_buckets_are_compiled_at_once(monkeypatch: Any) -> None:
    """Each waits for all the others; lowering stays in this thread."""
    monkeypatch.setattr(programs.os, "cpu_count", lambda: 6)
    together = threading.Barrier(6, timeout=20)
    networks: Any = [Network(name, [], together.wait) for name in "ab"]
    found = compile_programs(networks, [(4, 1, 2), (1, 2, 4)])
    assert [program.executables for program in found] == [
        {size: (name, size) for size in (1, 2, 4)} for name in "ab"
    ]


def test_an_error_does_not_wait_for_the_rest(monkeypatch: Any) -> None:
    monkeypatch.setattr(programs.os, "cpu_count", lambda: 1)
    compiled = []

    def fail() -> None:
        raise MemoryError("of the compiler")

    def take() -> None:
        time.sleep(0.02)
        compiled.append(1)

    waits = [fail, *[take] * 50]
    with pytest.raises(MemoryError, match="of the compiler"):
        compile_all([(n, Lowered(n, wait)) for n, wait in enumerate(waits)])
    assert len(compiled) < 50


# Each lowered program takes a second: of (a, b) at 8, 1 and 4, in this order.
@pytest.mark.parametrize(
    ("until", "buckets", "lowered"),
    [
        (math.inf, (1, 4, 8), 6),
        # The first bucket is compiled whatever the time, and one program is lowered in vain.
        (0.0, (8,), 3),
        (4.5, (1, 8), 5),
        # 4 for one of the networks is no use.
        (5.5, (1, 8), 6),
        (6.5, (1, 4, 8), 6),
    ],
)
def test_a_bucket_is_of_all_networks_or_of_none(
    until: float, buckets: tuple[int, ...], lowered: int, clock: list[Any]
) -> None:
    networks: Any = [Network(name, clock) for name in "ab"]
    found = compile_programs(networks, [(8, 1, 4)] * 2, until)
    assert [program.buckets for program in found] == [buckets] * 2
    expected = [(name, size) for size in (8, 1, 4) for name in "ab"]
    assert clock == expected[:lowered]


def test_networks_with_buckets_of_their_own(clock: list[Any]) -> None:
    networks: Any = [Network(name, clock) for name in "ab"]
    found = compile_programs(networks, [(4, 1, 2), (16, 1, 8, 4, 2)], 0.0)
    # The first of either, which b has both of.
    assert [program.buckets for program in found] == [(4,), (4, 16)]
    assert clock[:3] == [("a", 4), ("b", 4), ("b", 16)]


def test_what_is_compiled_is_kept(clock: list[Any]) -> None:
    networks: Any = [Network(name, clock) for name in "ab"]
    known = compile_programs(networks, [(1,), (1,)])
    clock.clear()
    found = compile_programs(networks, [(4, 1), (4, 1)], 0.5, known)
    # In time for none.
    assert [program.buckets for program in found] == [(1,), (1,)]
    clock.clear()
    found = compile_programs(networks, [(4, 1), (4, 1)], known=known)
    assert clock == [("a", 4), ("b", 4)]
    assert [program.buckets for program in found] == [(1, 4)] * 2
    assert found[1].executables[1] is known[1].executables[1]
