"""The latency table: times by a fake clock, intervals and verdicts by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drnet_jax.evaluation import latency
from drnet_jax.evaluation.intervals import mean_margin
from drnet_jax.evaluation.latency import Latency, time_in_turns
from drnet_jax.evaluation.metrics import hull_weights
from drnet_jax.reports.latency_report import Row, markdown, plot, verdicts


@pytest.fixture
def clock(monkeypatch: Any) -> Callable[[float], None]:
    """What lets time pass."""
    now = [100.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    return sleep


def test_turns(clock: Callable[[float], None]) -> None:
    """Every method sees the same batches, in turns; the first turn does not count."""
    seen: list[tuple[str, int]] = []
    batches = iter(range(100))

    def method(name: str) -> Callable[[int], None]:
        def run(batch: int) -> None:
            seen.append((name, batch))
            clock(10.0 if batch == 0 else batch * (1 if name == "a" else 2))

        return run

    got = time_in_turns(
        [method("a"), method("b")], lambda: next(batches), batch_size=4, repeats=3, seconds=1e9
    )
    assert seen == [(name, batch) for batch in range(4) for name in "ab"]
    assert [entry.seconds for entry in got] == [(1, 2, 3), (2, 4, 6)]


def test_time_is_limited(clock: Callable[[float], None]) -> None:
    got = time_in_turns(
        [lambda _: clock(3.0)], lambda: None, batch_size=1, repeats=1000, seconds=29.0
    )
    # One to warm up and nine more begin within 29 seconds.
    assert len(got[0].seconds) == 9
    got = time_in_turns([lambda _: clock(3.0)], lambda: None, batch_size=1, repeats=99, seconds=0.0)
    assert len(got[0].seconds) == 5


def test_percentiles() -> None:
    got = Latency(32, tuple((1 + np.arange(101)) / 1000))
    assert [got.percentile(p) for p in (50, 95, 99)] == pytest.approx([51, 96, 100])


def test_throughput_is_of_all_batches() -> None:
    """Of every four images one takes a second look: 1, 1, 1 and 9 ms are 3 in the mean."""
    got = Latency(1, (0.001, 0.001, 0.001, 0.009) * 25)
    assert got.mean == pytest.approx(3)
    assert got.percentile(50) == pytest.approx(1)
    middle, low, high = got.throughput
    assert middle == pytest.approx(1000 / 3)
    # A deviation of 8 * sqrt(3 / 16) ms, over the root of 100 images.
    margin = 1.96 * 8 * np.sqrt(3 / 16) / 10
    assert (1000 / low, 1000 / high) == pytest.approx((3 + margin, 3 - margin), abs=0.1)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [(0.5, (0, 0, 1)), (1.5, (0, 0.5, 0.5)), (3.0, (0.5, 0.5, 0)), (9.0, (1, 0, 0))],
)
def test_hull_weights(cost: float, expected: tuple[float, ...]) -> None:
    got = hull_weights(np.array([4.0, 2.0, 1.0]), np.array([0.8, 0.7, 0.4]), cost)
    np.testing.assert_allclose(got, expected)


def row(kind: str, name: str, ms: float, correct: list[int]) -> Row:
    return Row(
        "pixels",
        name,
        kind,
        np.resize(correct, 200).astype(bool),
        None,
        1.0,
        Latency(8, (ms / 1000,) * 5),
    )


LARGE = row("fixed", "fixed 64", 10.0, [1, 1, 1, 0])
SMALL = row("fixed", "fixed 32", 4.0, [1, 1, 0, 0])

MIXTURE = "a mixture of fixed resolutions in the same time"
SLOWER = "slower than every fixed resolution, and"
FASTER = "faster than every fixed resolution, and"


@pytest.mark.parametrize(
    ("ms", "correct", "words"),
    [
        # At 7 ms the mixture has 62.5 %. Of 4 images it is sure of 2, half sure of 1: the gains
        # 0, 0, 0.5, 0 have a deviation of 0.217, over the root of 200 images.
        (7.0, [1, 1, 1, 0], f"better than {MIXTURE} (+12.50 ± 3.01 points): prefer it."),
        # Of 8 images one gains a half and one loses it: a deviation of 0.25.
        (
            7.0,
            [1, 1, 1, 0, 1, 1, 0, 0],
            f"level with {MIXTURE} (+0.00 ± 3.47 points): prefer the mixture, which is simpler.",
        ),
        (7.0, [1, 1, 0, 0], f"worse than {MIXTURE} (-12.50 ± 3.01 points): prefer the mixture."),
        (
            12.0,
            [1, 1, 1, 1],
            f"{SLOWER} better than the most accurate one (+25.00 ± 6.02 points): prefer it where "
            "accuracy is worth its time.",
        ),
        (
            12.0,
            [1, 1, 1, 0],
            f"{SLOWER} level with the most accurate one (+0.00 ± 0.00 points): prefer the fixed "
            "one.",
        ),
        (
            12.0,
            [1, 1, 0, 0],
            f"{SLOWER} worse than the most accurate one (-25.00 ± 6.02 points): prefer the fixed "
            "one.",
        ),
        (
            3.0,
            [1, 1, 1, 0],
            f"{FASTER} better than the fastest one (+25.00 ± 6.02 points): prefer it.",
        ),
        (
            3.0,
            [1, 1, 0, 0],
            f"{FASTER} level with the fastest one (+0.00 ± 0.00 points): prefer it.",
        ),
        (
            3.0,
            [1, 0, 0, 0],
            f"{FASTER} worse than the fastest one (-25.00 ± 6.02 points): prefer it where time is "
            "worth its accuracy.",
        ),
    ],
)
def test_verdicts(ms: float, correct: list[int], words: str) -> None:
    (line,) = verdicts([LARGE, row("adaptive", "adaptive", ms, correct), SMALL])
    assert line == f"- pixels, batch 8: adaptive is {words}"


def test_images_of_one_origin_are_no_evidence_of_their_own() -> None:
    """Ten drawings of every digit, of which all fare alike, have the margin of one of each."""
    single = [LARGE, row("adaptive", "adaptive", 7.0, [1, 1, 1, 0, 1, 1, 0, 0]), SMALL]
    # Not next to each other.
    origin = np.tile(np.arange(200) + 7, 10)
    repeated = [replace(one, correct=np.tile(one.correct, 10), origin=origin) for one in single]
    assert verdicts(repeated) == verdicts(single)
    # What counts the drawings as images: sqrt(10) as small a margin, but for n - 1.
    (line,) = verdicts([replace(one, origin=None) for one in repeated])
    assert "± 1.10 points" in line and "± 3.47 points" in verdicts(single)[0]


def test_margin_of_a_mean() -> None:
    """By hand, and of independent images the usual one."""
    values = np.array([1.0, 3.0, 2.0, 6.0])
    assert mean_margin(values) == pytest.approx(1.96 * values.std(ddof=1) / 2, rel=1e-4)
    assert mean_margin(values, np.array([5, 9, 1, 3])) == pytest.approx(mean_margin(values))
    # Around the mean of 3: -2 and 0, -1 and 3, whose sums are -2 and 2.
    margin = mean_margin(values, np.array([4, 4, 1, 1]))
    assert margin == pytest.approx(1.96 * np.sqrt(2 / 1 * 8) / 4, rel=1e-4)
    assert mean_margin(values, np.zeros(4)) == np.inf


def test_markdown_and_plot(tmp_path: Path) -> None:
    rows = [LARGE, SMALL, row("adaptive", "adaptive", 5.0, [1, 1, 1, 0])]
    text = markdown(rows, "a device")
    assert text.startswith("a device\n")
    assert "| 8 | fixed 64 | 75.00 | 1 | 800 (800 to 800) | 10.00 | 10.00 | 10.00 | 10.00 |" in text
    plot(rows, "a device", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
