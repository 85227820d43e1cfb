"""The plots of a report, from `eval.json` and `metrics.jsonl`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from drnet_jax.config import STAGE_TITLES
from drnet_jax.evaluation.metrics import hull_weights
from drnet_jax.reports.svg import COLOURS, GREY, page_style, to_svg

Summary = Mapping[str, Any]
# Points of a curve, at most: more would make the page heavy, not the picture better.
_MOST_POINTS = 300
_WIDTH = 4.6


def cost_plot(summary: Summary) -> Markup:
    """Accuracy over cost: the fixed sizes and their hull, and whatever `eval.json` has beside."""
    with page_style():
        figure = Figure(figsize=(_WIDTH, 4.6), layout="constrained")
        panel = figure.add_subplot()
        fixed = summary["fixed"]
        costs = np.array([entry["gmacs"] for entry in fixed])
        top1 = np.array([entry["top1"] for entry in fixed])
        line = np.linspace(costs.min(), costs.max(), 101)
        hull = [100 * float(hull_weights(costs, top1, cost) @ top1) for cost in line]
        panel.plot(line, hull, "--", color=GREY, label="hull of the fixed sizes", zorder=1)
        _points(panel, costs, top1, np.array([e["interval"] for e in fixed]), GREY, "s", "fixed")
        for entry in fixed:
            panel.annotate(
                str(entry["resolution"]),
                (entry["gmacs"], 100 * entry["top1"]),
                textcoords="offset points",
                xytext=(6, -12),
                fontsize=8,
                color=GREY,
            )
        if summary.get("controls"):
            _controls(panel, summary["controls"])
        elif summary["top1"] is not None and len(fixed) > 1:
            panel.plot(summary["gmacs"], 100 * summary["top1"], "*", ms=13, label="DRNet")
        panel.set(xlabel="GMACs an image, predictor and first look included", ylabel="top-1, %")
        panel.xaxis.set_major_locator(MaxNLocator(5))
        figure.legend(loc="outside lower center", ncols=2)
        return to_svg(figure, "Top-1 over cost")


def _controls(panel: Axes, controls: Mapping[str, Any]) -> None:
    known, gmacs = controls["intervals"], controls["gmacs"]
    styles = {
        "cascade_curve": (COLOURS[4], "confidence cascade"),
        "margin_cascade_curve": (COLOURS[5], "margin cascade"),
        "lambda_curve": (COLOURS[0], "DRNet, other lambda"),
    }
    for name, (colour, label) in styles.items():
        curve = np.array(controls[name])
        curve = curve[np.argsort(curve[:, 1], kind="stable")]
        panel.plot(curve[:, 1], 100 * curve[:, 2], color=colour, lw=1.5, label=label, zorder=2)
        low, high = 100 * curve[:, 3], 100 * curve[:, 4]
        panel.fill_between(curve[:, 1], low, high, color=colour, alpha=0.15, lw=0)
    marks = {
        "uniform_random": ("random, uniform", COLOURS[3], "v"),
        "matched_random": ("random, DRNet's shares", COLOURS[1], "^"),
        "cascade": ("confidence cascade, same cost", COLOURS[4], "D"),
        "margin_cascade": ("margin cascade, same cost", COLOURS[5], "d"),
        "oracle": ("oracle", COLOURS[2], "P"),
        "drnet": ("DRNet", COLOURS[0], "*"),
    }
    for name, (label, colour, marker) in marks.items():
        ends = np.array([[known[name]["low"], known[name]["high"]]])
        value = np.array([known[name]["value"]])
        _points(panel, np.array([gmacs[name]]), value, ends, colour, marker, label)


def _points(
    panel: Axes,
    costs: np.ndarray,
    top1: np.ndarray,
    ends: np.ndarray,
    colour: str,
    marker: str,
    label: str,
) -> None:
    """Points `[p]` with the ends `[p, 2]` of their intervals."""
    error = 100 * np.abs(ends.T - top1)
    size = {"*": 13, "s": 5}.get(marker, 7)
    panel.errorbar(
        *(costs, 100 * top1),
        yerr=error,
        fmt=marker,
        color=colour,
        markersize=size,
        capsize=2,
        elinewidth=1,
        label=label,
        zorder=3,
    )


def needed_plot(summary: Summary) -> Markup:
    """Shares of the resolutions: chosen, and needed (the smallest that is correct)."""
    counts = np.array(summary["controls"]["chosen_by_needed"])
    sizes = [f"{size} px" for size in summary["resolutions"]]
    chosen = [*(100 * counts.sum(axis=1) / counts.sum()), 0]
    needed = 100 * counts.sum(axis=0) / counts.sum()
    with page_style():
        figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
        panel = figure.add_subplot()
        place = np.arange(len(needed))
        for offset, values, name in ((-0.2, chosen, "chosen"), (0.2, needed, "needed")):
            colour = COLOURS[0] if name == "chosen" else COLOURS[2]
            bars = panel.bar(place + offset, values, 0.38, color=colour, label=name)
            panel.bar_label(bars, [f"{value:.0f}" if value else "" for value in values], padding=2)
        panel.set_xticks(place, [*sizes, "none is correct"])
        panel.set_ylabel("of the images, %")
        panel.grid(axis="x", visible=False)
        panel.margins(y=0.12)
        figure.legend(loc="outside lower center", ncols=2)
        return to_svg(figure, "Shares of the resolutions, chosen and needed")


def classes_plot(summary: Summary) -> Markup:
    """Every class as a point: DRNet's top-1 over the largest resolution's."""
    with page_style():
        figure = Figure(figsize=(_WIDTH, 4.4), layout="constrained")
        panel = figure.add_subplot()
        ours = [100 * row["top1"] for row in summary["by_class"]]
        largest = [100 * row["fixed_top1"][0] for row in summary["by_class"]]
        lowest = min(*ours, *largest)
        panel.axline((lowest, lowest), slope=1, color=GREY, linestyle="--", lw=1)
        size = float(np.clip(4000 / len(ours), 9, 60))
        panel.scatter(largest, ours, s=size, color=COLOURS[0], alpha=0.6, linewidths=0)
        name = f"top-1 at {summary['resolutions'][0]} px, %"
        panel.set(xlabel=name, ylabel="DRNet's top-1, %")
        return to_svg(figure, "DRNet's top-1 over the largest resolution's, by class")


def sizes_plot(summary: Summary) -> Markup:
    """Where images of each apparent size are sent."""
    rows = summary["by_apparent_size"]
    with page_style():
        figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
        panel = figure.add_subplot()
        names = ["{}-{}".format(*row["pixels"]) for row in rows]
        bottom = np.zeros(len(rows))
        for index, size in enumerate(summary["resolutions"]):
            shares = np.array([100 * row["shares"][index] for row in rows])
            colour = COLOURS[index % len(COLOURS)]
            panel.bar(names, shares, 0.7, bottom, color=colour, label=f"to {size} px")
            bottom += shares
        panel.set(xlabel="apparent size, px", ylabel="of the images, %")
        panel.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=min(5, len(summary["resolutions"])))
        return to_svg(figure, "Chosen resolution by apparent size")


def training_plot(lines: Sequence[Mapping[str, Any]], summary: Summary) -> Markup | None:
    """Loss, accuracy and, of what trains the choice, shares and cost over the epochs.

    None without any line.
    """
    steps = [line for line in lines if "loss" in line]
    if not steps:
        return None
    stages = list(dict.fromkeys(line["stage"] for line in steps))
    choosing = [line for line in steps if "shares" in line]
    with page_style():
        figure = Figure(figsize=(_WIDTH, 5.4 if choosing else 3), layout="constrained")
        panels = figure.subplots(2 if choosing else 1, 2, squeeze=False)
        for number, stage in enumerate(stages):
            own = _thinned([line for line in steps if line["stage"] == stage])
            epochs = [line["epoch"] for line in own]
            label = STAGE_TITLES[stage]
            colour = COLOURS[number]
            panels[0, 0].plot(epochs, [line["loss"] for line in own], color=colour, label=label)
            accuracy = [100 * line["accuracy"] for line in own]
            panels[0, 1].plot(epochs, accuracy, color=colour, label=label)
        panels[0, 0].set(title="training loss", xlabel="epoch")
        panels[0, 1].set(title="training top-1, %", xlabel="epoch")
        panels[0, 1].legend()
        if choosing:
            _choices(panels[1], _thinned(choosing), summary["resolutions"])
        return to_svg(figure, "Training curves")


def _choices(panels: Sequence[Axes], lines: Sequence[Any], resolutions: Sequence[int]) -> None:
    stage = STAGE_TITLES[lines[0]["stage"]]
    epochs = [line["epoch"] for line in lines]
    for index, size in enumerate(resolutions):
        shares = [100 * line["shares"][index] for line in lines]
        panels[0].plot(epochs, shares, color=COLOURS[index % len(COLOURS)], label=f"{size} px")
    panels[0].set(title=f"{stage}: shares, %", xlabel="epoch")
    panels[0].legend()
    for name, style in (("gmacs_argmax", "-"), ("gmacs_sampled", "--")):
        values = [line[name] for line in lines]
        label = "largest score" if name == "gmacs_argmax" else "sampled"
        panels[1].plot(epochs, values, style, color=COLOURS[1], label=label)
    panels[1].set(title=f"{stage}: GMACs", xlabel="epoch")
    panels[1].legend()


def _thinned(lines: Sequence[Any]) -> list[Any]:
    stride = -(-len(lines) // _MOST_POINTS)
    return list(lines[::stride])
