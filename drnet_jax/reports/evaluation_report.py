"""`report.html`: an evaluation as one page that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drnet_jax.checkpoints.answers import agreement
from drnet_jax.checkpoints.config_history import comparable
from drnet_jax.checkpoints.restore import TrainedModel
from drnet_jax.config import default_config, flatten, network_in_words
from drnet_jax.data.decode import CorruptImageError
from drnet_jax.data.eval_view import eval_image
from drnet_jax.data.sources import Source
from drnet_jax.evaluation.logits import Logits
from drnet_jax.evaluation.metrics import EvalRecords, hull_top1
from drnet_jax.reports.cards import CardMaker, Pixels, hardest
from drnet_jax.reports.conversion import conversion_section
from drnet_jax.reports.pages import render
from drnet_jax.reports.plots import classes_plot, cost_plot, needed_plot, sizes_plot, training_plot
from drnet_jax.reports.tables import as_good_as_largest, named
from drnet_jax.runtime.files import write_text
from drnet_jax.runtime.metric_writer import read_metrics

# The table by class is folded up beyond this.
_FEW_CLASSES = 40
_CONTROLS = {
    "hull": "hull of the fixed sizes, same cost",
    "uniform_random": "random, uniform",
    "matched_random": "random, DRNet's shares",
    "cascade": "confidence cascade",
    "margin_cascade": "margin cascade",
    "oracle": "oracle: smallest that is correct",
}


def write_report(
    path: Path,
    summary: Mapping[str, Any],
    trained: TrainedModel,
    logits: Logits,
    records: EvalRecords,
    pixels: Pixels,
    *,
    gallery: int,
) -> None:
    """Writes the page.

    Args:
      path: of the file.
      summary: what `eval.json` holds.
      trained: the model.
      logits: of the evaluated split.
      records: of the same images, with the choices.
      pixels: an image of the split at a resolution.
      gallery: images to show per resolution, at most.
    """
    resolutions = trained.model.resolutions
    glances = trained.model.glances
    maker = CardMaker(logits, records, resolutions, trained.classes, pixels, glances=glances)
    chosen = summary["top1"] is not None and len(resolutions) > 1
    shown = gallery if chosen else 0
    content = {
        "several": len(resolutions) > 1,
        "title": trained.origin.resolve().name,
        "summary": summary,
        "agreement": agreement(summary["config"]),
        "verdict": summary.get("controls", {}).get("verdict"),
        "as_good": as_good_as_largest(summary) if "controls" in summary else None,
        "glance": glance(logits.weight, resolutions) if glances and chosen else None,
        "facts": facts(summary, trained),
        "conversion": conversion_section(summary, len(trained.classes)),
        "table": table(summary),
        "plots": plots(summary, trained.origin),
        "classes": sorted(summary.get("by_class", []), key=lambda row: row["top1"]),
        "few_classes": len(summary.get("by_class", [])) <= _FEW_CLASSES,
        "sections": maker.sections(shown) if shown else [],
        "hardest": maker.cards(hardest(records, shown)) if shown else [],
        "changed": changed(summary["config"]),
        "config": json.dumps(summary["config"], indent=1, sort_keys=True),
    }
    write_text(path, render("report.html", content))


def pictures(source: Source) -> Pixels:
    """The images of a source at any resolution, `[r, r, 3]` uint8, resized on the host."""

    def picture(index: int, resolution: int) -> np.ndarray | None:
        """By index in the source and side in pixels; None if it cannot be read any more."""
        try:
            return eval_image(source, index, resolution)
        except (CorruptImageError, OSError):
            return None

    return picture


def glance(weight: np.ndarray, resolutions: Sequence[int]) -> str:
    """What the choice of a model that glances means, in words.

    Args:
      weight: `[m]`, of the first look's logits in every answer, see `models.glance.mixed`.
      resolutions: in pixels, largest first.
    """
    *larger, smallest = resolutions
    words = (
        f"Every image is classified at {smallest} px first, and a choice of {smallest} px is this "
        "first look's answer. Another choice is a second look, and costs both. Fixed sizes and "
        "cascades have no first look."
    )
    if not weight.any():
        return words
    weights = ", ".join(f"{w:.2f} at {r} px" for w, r in zip(weight[:-1], larger, strict=True))
    return f"{words} The second look's logits have the first's added, times {weights}."


def facts(summary: Mapping[str, Any], trained: TrainedModel) -> dict[str, str]:
    """The figures at the head of the page."""
    largest = summary["fixed"][0]
    network = network_in_words(trained.config["model.name"], trained.config["model.pruning_rates"])
    found = {
        "Model": f"{network}, {trained.stage} step {trained.step}",
        "Data": f"{summary['config']['data.name']}, {summary['split']} split",
        "Images": f"{summary['num_images']:,}",
        f"Fixed {largest['resolution']} px": f"{100 * largest['top1']:.2f} %",
    }
    if summary["top1"] is not None and len(summary["fixed"]) > 1:
        cost = summary["gmacs"] / largest["gmacs"]
        found["DRNet"] = f"{100 * summary['top1']:.2f} %"
        found["Cost"] = f"{summary['gmacs']:.4g} GMACs, {cost:.2f} of {largest['resolution']} px"
        found["Lambda"] = f"{summary['lambda']:.4g}"
    if summary.get("num_corrupt"):
        found["Left out, corrupt"] = f"{summary['num_corrupt']:,}"
    return found


def table(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """DRNet and what it is compared with: name, top-1, GMACs, and DRNet minus it, in %."""
    controls = summary.get("controls")
    known = controls["intervals"] if controls else {}
    rows = [
        {
            "name": f"fixed {entry['resolution']} px",
            "top1": 100 * entry["top1"],
            "ends": [100 * end for end in entry["interval"]],
            "gmacs": entry["gmacs"],
            "minus": _percent(known.get(f"drnet - {entry['resolution']} px")),
        }
        for entry in summary["fixed"]
    ]
    if controls is None:
        if summary["top1"] is not None and len(summary["fixed"]) > 1:
            name, cost = "hull of the fixed sizes, same cost", summary["gmacs"]
            rows.append({"name": "DRNet", "top1": 100 * summary["top1"], "gmacs": cost})
            rows.append({"name": name, "top1": 100 * hull_top1(dict(summary), cost), "gmacs": cost})
        return rows
    for name, label in {"drnet": "DRNet", **_CONTROLS}.items():
        interval = known[name]
        rows.append(
            {
                "name": named(name, label, controls),
                "top1": 100 * interval["value"],
                "ends": [100 * interval["low"], 100 * interval["high"]],
                "gmacs": controls["gmacs"].get(name, summary["gmacs"]),
                "minus": _percent(known.get(f"drnet - {name}")),
            }
        )
    return rows


def _percent(interval: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if interval is None else {end: 100 * value for end, value in interval.items()}


def plots(summary: Mapping[str, Any], origin: Path) -> dict[str, Any]:
    """The pictures of the page by name; those that there is nothing to draw for are None."""
    lines = read_metrics(origin / "metrics.jsonl")
    several, classes = len(summary["fixed"]) > 1, summary.get("by_class", [])
    return {
        "cost": cost_plot(summary),
        "needed": needed_plot(summary) if "controls" in summary else None,
        "classes": classes_plot(summary) if several and len(classes) > 1 else None,
        "sizes": sizes_plot(summary) if summary.get("by_apparent_size") else None,
        "training": training_plot(lines, summary),
    }


def changed(config: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Fields that are not at their default: name, value, default."""
    default, config = comparable(flatten(default_config())), comparable(config)
    return [
        (name, value, default.get(name))
        for name, value in sorted(config.items())
        if value != default.get(name)
    ]
