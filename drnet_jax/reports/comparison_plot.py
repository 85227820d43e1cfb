"""Accuracy over cost of several settings, as a picture."""

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drnet_jax.reports.comparison import Setting
from drnet_jax.reports.svg import COLOURS, GREY, MARKERS


def comparison_figure(questions: Mapping[str, Sequence[Setting]]) -> Figure:
    """A panel a question: every setting with its interval, its seeds as points, and the first
    one's fixed sizes."""
    shown = {question: finished(found) for question, found in questions.items()}
    shown = {question: found for question, found in shown.items() if found}
    columns = min(3, len(shown)) or 1
    lines = ceil(len(shown) / columns) or 1
    figure = Figure(figsize=(4.8 * columns, 4.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, (question, found) in zip(panels, shown.items(), strict=False):
        _panel(panel, found)
        panel.set_title(question)
    for panel in panels[len(shown) :]:
        panel.remove()
    return figure


def finished(found: Sequence[Setting]) -> list[Setting]:
    """Those of which a run is finished."""
    return [setting for setting in found if setting.summaries]


def _panel(panel: Axes, found: Sequence[Setting]) -> None:
    fixed = [summary["fixed"] for summary in found[0].summaries]
    cost = np.array([entry["gmacs"] for entry in fixed[0]])
    top1 = np.mean([[entry["top1"] for entry in entries] for entries in fixed], axis=0)
    panel.plot(cost / cost[0], 100 * top1, "--s", color=GREY, markersize=4, label="fixed")
    for number, setting in enumerate(found):
        interval = setting.interval("drnet")
        error = None
        if not np.isnan(interval.low):
            low, high = max(interval.low, 0), min(interval.high, 1)
            error = 100 * np.array([[interval.value - low], [high - interval.value]])
        colour = COLOURS[number % len(COLOURS)]
        costs = setting.values("relative_cost")
        panel.plot(costs, 100 * setting.values("drnet"), ".", color=colour, alpha=0.5, ms=4)
        panel.errorbar(
            costs.mean(),
            100 * interval.value,
            yerr=error,
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            linestyle="",
            capsize=3,
            label=setting.name,
        )
    panel.set(xlabel="GMACs over the largest size's", ylabel="top-1, %")
    panel.legend(fontsize=8, loc="best")
