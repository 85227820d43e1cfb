"""How a benchmark keeps its time: by a fake clock, what begins when, and what is left out."""

from types import SimpleNamespace
from typing import Any

import pytest

from drnet_jax import benchmark
from tests.small_run import small_config

# Seconds that compiling for a batch size takes, and timing it.
COMPILING = {1: 10.0, 8: 20.0, 32: 30.0}


class Engine:
    """Compiled for batches up to a size, as far as there was time."""

    times = None

    def __init__(self, clock: list[float], up_to: int, until: float) -> None:
        self.late = clock[0] > until and up_to > 1
        clock[0] += 0 if self.late else COMPILING[up_to]

    def is_ready(self, batch_size: int) -> bool:
        return not self.late

    def lacking(self, batch_size: int) -> list[int]:
        return []


@pytest.mark.parametrize(
    ("max_seconds", "timing", "measuring", "timed", "untils"),
    [
        # Timing may take 2 x 4 s. Then twice as long as it took.
        (600.0, 5.0, 0.0, [1, 8, 32], [592, 590, 590]),
        (600.0, 50.0, 0.0, [1, 8, 32], [592, 500, 500]),
        # After the second timing it is too late to compile for 32: 130 > 200 - 100.
        (200.0, 50.0, 0.0, [1, 8], [192, 100, 100]),
        # Compiled in time for 8, but measuring its buckets takes all that was left.
        (150.0, 5.0, 200.0, [1], [142, 140]),
        (0.0, 5.0, 0.0, [1], [-8, -10]),
    ],
)
def test_what_begins_in_time(
    max_seconds: float,
    timing: float,
    measuring: float,
    timed: list[int],
    untils: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    asked: list[float] = []

    def made(*_: Any, up_to: int, until: float) -> Engine:
        asked.append(until)
        return Engine(clock, up_to, until)

    def extended(self: Engine, up_to: int, until: float) -> Engine:
        asked.append(until)
        return Engine(clock, up_to, until)

    def measure(methods: Any, pool: Any, size: int, config: Any) -> list[int]:
        clock[0] += timing
        return [size]

    def measured(config: Any, engine: Engine) -> Engine:
        clock[0] += measuring
        return engine

    monkeypatch.setattr(Engine, "extended", extended, raising=False)
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for name, stand_in in {
        "array_classifier": made,
        "picture_pool": lambda source: None,
        "_methods": lambda *_: [],
        "_measure": measure,
        "measured": measured,
    }.items():
        monkeypatch.setattr(benchmark, name, stand_in)
    config = small_config(
        **{
            "benchmark.batch_sizes": (32, 1, 8),
            "benchmark.seconds": 4.0,
            "benchmark.max_seconds": max_seconds,
        }
    )
    given: Any = SimpleNamespace(image_size=(32, 32))
    rows, _, left_out = benchmark._time_all(config, given, given, given, {})
    assert rows == timed
    assert asked == untils
    assert left_out.batch_sizes == [size for size in (1, 8, 32) if size not in timed]
