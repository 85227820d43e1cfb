"""The latency table as Markdown and as a picture, and verdicts in words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from drnet_jax.evaluation.intervals import mean_margin
from drnet_jax.evaluation.latency import Latency
from drnet_jax.evaluation.metrics import hull_weights
from drnet_jax.runtime.files import replacing

# Okabe and Ito's colours, which the colour-blind tell apart.
_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#999999")
_ADAPTIVE_COLOURS = ("#D55E00", "#000000", "#8B4513", "#5D3A9B")
# Of an adaptive method, by its time among those of the fixed resolutions: what its accuracy is
# compared with, and what follows where it is better, level or worse.
_COMPARED = {
    "slower": "slower than every fixed resolution, and {} the most accurate one",
    "between": "{} a mixture of fixed resolutions in the same time",
    "faster": "faster than every fixed resolution, and {} the fastest one",
}
_ADVICE = {
    ("slower", "better than"): "prefer it where accuracy is worth its time",
    ("slower", "level with"): "prefer the fixed one",
    ("slower", "worse than"): "prefer the fixed one",
    ("between", "better than"): "prefer it",
    ("between", "level with"): "prefer the mixture, which is simpler",
    ("between", "worse than"): "prefer the mixture",
    ("faster", "better than"): "prefer it",
    ("faster", "level with"): "prefer it",
    ("faster", "worse than"): "prefer it where time is worth its accuracy",
}


@dataclass(frozen=True)
class Row:
    """One method at one batch size.

    Attributes:
      input: `'pixels'`, images in memory, or `'jpeg'`, with decoding and cropping.
      name: of the method.
      kind: `'fixed'`, `'adaptive'` or `'dense'`.
      correct: `[n]` bool, what it gets right of the calibration split.
      origin: `[n]` of these images, see `EvalRecords`.
      gmacs: mean cost per image.
      latency: what was measured.
    """

    input: str
    name: str
    kind: str
    correct: np.ndarray
    origin: np.ndarray | None
    gmacs: float
    latency: Latency

    @property
    def top1(self) -> float:
        """Fraction, on the calibration split."""
        return float(self.correct.mean())

    def figures(self) -> dict[str, Any]:
        """Its entry in `table.json`; times in ms per batch."""
        throughput, low, high = self.latency.throughput
        return {
            "input": self.input,
            "batch_size": self.latency.batch_size,
            "method": self.name,
            "top1": self.top1,
            "gmacs": self.gmacs,
            "images_per_second": throughput,
            "images_per_second_interval": [low, high],
            "mean_ms": self.latency.mean,
            "p50_ms": self.latency.percentile(50),
            "p95_ms": self.latency.percentile(95),
            "p99_ms": self.latency.percentile(99),
            "repeats": len(self.latency.seconds),
        }


@dataclass(frozen=True)
class LeftOut:
    """What there was no time for.

    Attributes:
      max_seconds: that there were.
      batch_sizes: that are not timed.
      buckets: by batch size, those that it was timed without.
    """

    max_seconds: float
    batch_sizes: list[int]
    buckets: dict[int, list[int]]

    def figures(self) -> dict[str, Any]:
        """Its entry in `table.json`."""
        buckets = {str(size): sizes for size, sizes in self.buckets.items() if sizes}
        return {"batch_sizes": self.batch_sizes, "buckets": buckets}

    def words(self) -> str:
        """What it is; empty: nothing."""
        parts = [f"batch {size}" for size in self.batch_sizes]
        parts += [
            f"at batch {size} the buckets {'/'.join(map(str, sizes))}"
            for size, sizes in self.buckets.items()
            if sizes
        ]
        over = f"left out, as benchmark.max_seconds={self.max_seconds:g} were over: "
        return over + ", ".join(parts) if parts else ""


def markdown(rows: Sequence[Row], setting: str) -> str:
    """A table per input, and the verdicts."""
    lines = [setting]
    titles = {"pixels": "Images in memory", "jpeg": "With JPEG decoding and cropping"}
    for name, title in titles.items():
        lines += ["", f"{title}:", ""]
        lines.append(
            "| batch | | top-1, % | GMACs | images/s (95 %) | mean, ms | p50 | p95 | p99 |"
        )
        lines.append("|---|---|---|---|---|---|---|---|---|")
        lines += [_line(row) for row in rows if row.input == name]
    return "\n".join([*lines, "", *verdicts(rows), ""])


def _line(row: Row) -> str:
    throughput, low, high = row.latency.throughput
    percentiles = [row.latency.percentile(percent) for percent in (50, 95, 99)]
    times = " | ".join(f"{ms:.2f}" for ms in (row.latency.mean, *percentiles))
    return (
        f"| {row.latency.batch_size} | {row.name} | {100 * row.top1:.2f} | {row.gmacs:.4g} | "
        f"{throughput:.0f} ({low:.0f} to {high:.0f}) | {times} |"
    )


def verdicts(rows: Sequence[Row]) -> list[str]:
    """For every batch size and input: what the fixed resolutions reach in the same mean time.

    The margin is the 95 % one of the accuracies, over the images or, where they are known, their
    origins; the times count as exact.
    """
    return [line for group in _groups(rows) for line in _verdicts(group)]


def _groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    keys = dict.fromkeys((row.input, row.latency.batch_size) for row in rows)
    for key in keys:
        yield [row for row in rows if (row.input, row.latency.batch_size) == key]


def _verdicts(group: Sequence[Row]) -> Iterator[str]:
    fixed = [row for row in group if row.kind == "fixed"]
    times = np.array([row.latency.mean for row in fixed])
    correct = np.stack([row.correct for row in fixed], axis=1).astype(float)
    where = f"{group[0].input}, batch {group[0].latency.batch_size}"
    for row in group:
        if row.kind != "adaptive":
            continue
        time = row.latency.mean
        weights = hull_weights(times, correct.mean(0), time)
        # Paired over the images of the calibration split, or over their origins.
        gains = 100 * (row.correct - correct @ weights)
        # Plus zero: never "-0.00".
        gain, margin = round(gains.mean(), 2) + 0.0, mean_margin(gains, row.origin)
        accuracy = "level with"
        if abs(gain) > margin:
            accuracy = "better than" if gain > 0 else "worse than"
        speed = "slower" if time > times.max() else "faster" if time < times.min() else "between"
        words, advice = _COMPARED[speed].format(accuracy), _ADVICE[speed, accuracy]
        yield f"- {where}: {row.name} is {words} ({gain:+.2f} ± {margin:.2f} points): {advice}."


def plot(rows: Sequence[Row], setting: str, path: Path) -> None:
    """Images per second by batch size, a line per method with its interval, a panel per input."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = {"pixels": "images in memory", "jpeg": "with JPEG decoding and cropping"}
    for panel, (kind, title) in zip(axes, titles.items(), strict=True):
        shown = [row for row in rows if row.input == kind]
        for name, style in _styles(shown).items():
            _draw(panel, [row for row in shown if row.name == name], name, style)
        panel.set(xscale="log", yscale="log", xlabel="batch size", title=title)
        sizes = sorted({row.latency.batch_size for row in shown})
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:,.0f}")
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("images a second")
    axes[0].legend(frameon=False)
    figure.suptitle(setting, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Colour and line of every method: adaptive ones are solid and strong."""
    adaptive = dict.fromkeys(row.name for row in rows if row.kind == "adaptive")
    others = dict.fromkeys(row.name for row in rows if row.kind != "adaptive")
    styles: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(adaptive):
        colour = _ADAPTIVE_COLOURS[number % len(_ADAPTIVE_COLOURS)]
        styles[name] = {"color": colour, "linewidth": 2.5, "marker": "o"}
    for number, name in enumerate(others):
        colour = _COLOURS[number % len(_COLOURS)]
        styles[name] = {"color": colour, "linestyle": "--", "marker": "s", "markersize": 4}
    return styles


def _draw(panel: Any, rows: Sequence[Row], name: str, style: dict[str, Any]) -> None:
    figures = [row.latency.throughput for row in rows]
    middle = [throughput for throughput, _, _ in figures]
    error = [[m - low for m, low, _ in figures], [high - m for m, _, high in figures]]
    sizes = [row.latency.batch_size for row in rows]
    panel.errorbar(sizes, middle, yerr=error, label=name, capsize=3, **style)
