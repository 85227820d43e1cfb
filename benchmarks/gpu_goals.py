"""The figures of `gpu.py` that there are goals for, from the rows of its jobs."""

from collections.abc import Callable, Iterable, Sequence
from operator import ge, le
from typing import Any, NamedTuple

from benchmarks.gpu_plan import KINDS
from benchmarks.rows import Row


class Goal(NamedTuple):
    """A figure beside its goal.

    Attributes:
      text: the figure in words.
      goal: its goal in words; empty: there is none.
      missed: whether it is missed; a figure that was not run misses nothing.
    """

    text: str
    goal: str = ""
    missed: bool = False


def in_words(goal: Goal) -> str:
    """A part of the last line."""
    if not goal.goal:
        return goal.text
    missed = ", missed" if goal.missed else ""
    return f"{goal.text} (goal {goal.goal}{missed})"


def judge(rows: Sequence[Row]) -> list[Goal]:
    """All figures; those without a row are `not run`."""
    adaptive = [row for row in rows if row["job"] in KINDS]
    parts = [row for row in rows if row["job"].startswith("parts: ")]
    training = {row["unit"]: row for row in rows if row["job"] == "training"}
    shares = [_streamed(row) / row["macs_saved"] for row in adaptive if row["batch"] >= 256]
    saved = [_streamed(row) for row in adaptive if row["batch"] >= 64]
    singles = [row["ms"]["fused uploaded"] for row in adaptive if row["batch"] == 1]
    over = [row["over_parts"] for row in parts if row["batch"] >= 32]
    mfu = [row["mfu"] for row in training.values() if row["unit"] == "joint"]
    return [
        _worst("time saved of the MACs saved from batch 256", shares, min, 0.9, "{:.0%}"),
        _worst("time saved from batch 64", saved, min, 0.0, "{:.1%}"),
        _worst("batch 1, mean of ten calls in a row", singles, max, 1.5, "{:.2f} ms"),
        _worst("fused over the sum of its parts", over, max, 1.05, "{:.3f}"),
        _worst("MFU of the joint step", mfu, min, 0.45, "{:.1%}"),
        Goal(_training(training)),
        Goal(_flags(rows)),
        *(Goal(_trained(name, rows)) for name in ("demo", "imagenette")),
    ]


def _streamed(row: Row) -> float:
    """The share of the time that is saved, from host memory to results there, of many batches."""
    saved: float = row["time_saved"]["fused streamed"]
    return saved


def _worst(
    name: str,
    values: Sequence[float | None],
    worst: Callable[[Iterable[float]], float],
    goal: float,
    form: str,
) -> Goal:
    """The worst of some values, by `min` or `max`, beside what it is to reach or not to exceed."""
    sign, reaches = (">=", ge) if worst is min else ("<=", le)
    known = [value for value in values if value is not None]
    wanted = f"{sign} {form.format(goal)}"
    if not known:
        return Goal(f"{name} {'unknown' if values else 'not run'}", wanted)
    value = worst(known)
    return Goal(f"{name} {form.format(value)}", wanted, not reaches(value, goal))


def _training(found: dict[str, Row]) -> str:
    """Images a second of every unit."""
    if not found:
        return "training not run"
    rates = (f"{unit} {row['images_a_second']:.0f}" for unit, row in found.items())
    return f"training, images/s: {', '.join(rates)}"


def _flags(rows: Sequence[Row]) -> str:
    """What each set of flags makes of the fused program's time, over that without."""
    plain = {row["unit"]: row for row in rows if row["job"] == "glance"}
    tried: dict[str, list[str]] = {}
    for row in rows:
        if row["job"].startswith("flags: ") and row["unit"] in plain:
            ratio = row["ms"]["fused"] / plain[row["unit"]]["ms"]["fused"]
            name = row["job"].removeprefix("flags: ")
            tried.setdefault(name, []).append(f"{ratio:.2f} at batch {row['unit']}")
    if not tried:
        return "flags not run"
    return "time with flags over without: " + ", ".join(
        f"{name} {' and '.join(ratios)}" for name, ratios in tried.items()
    )


def _trained(name: str, rows: Sequence[Row]) -> str:
    """A run of the program."""
    row: Any = next((row for row in rows if row["job"] == name), None)
    if row is None:
        return f"{name} not run"
    took = "resumed" if row["seconds"] is None else f"{row['seconds']:.0f} s"
    largest = f"{100 * row['fixed'][0]['top1']:.1f} %"
    return f"{name}: {took}, top-1 {100 * row['top1']:.1f} % (largest size alone {largest})"
