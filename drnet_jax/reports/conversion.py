"""Before and after a conversion: what `report.html` says of a run that began with weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from drnet_jax.config import what_is_trained
from drnet_jax.evaluation.metrics import hull_top1

_STEPS = {
    "outputs": "outputs of the imported network",
    "head": "head",
    "pretrain": "training",
    "joint": "first look",
    "calibration": "calibration",
    "timing": "timing",
}
_CASCADES = {"cascade": "confidence cascade", "margin_cascade": "margin cascade"}


def conversion_section(summary: Mapping[str, Any], num_classes: int) -> dict[str, Any] | None:
    """What the template shows; None of a run that began with random weights, as far as is known.

    Args:
      summary: what `eval.json` holds.
      num_classes: of the data.
    """
    noted = summary.get("conversion")
    # Without the figures before, the file was removed and holds later minutes only.
    if noted is None or "before" not in noted:
        return None
    timed = noted.get("times", {"milliseconds": [], "setting": "", "lambda": None})
    times = timed["milliseconds"]
    # The choice that was timed may be another than the evaluated one.
    adaptive = [
        time["adaptive"] if timed["lambda"] == summary["lambda"] else None for time in times
    ]
    return {
        "words": _words(summary, noted, num_classes),
        "batch_sizes": [entry["batch_size"] for entry in times],
        "rows": [*_fixed_rows(summary, noted, times), *_other_rows(summary, adaptive)],
        "notes": [
            *_timing(timed["setting"]),
            *_left_out(timed.get("left_out", [])),
            *_minutes(noted.get("seconds", {})),
        ],
    }


def _left_out(batch_sizes: Sequence[int]) -> list[str]:
    """Batch sizes that there was no time for."""
    if not batch_sizes:
        return []
    named = ", ".join(map(str, batch_sizes))
    return [f"Not timed within benchmark.max_seconds: batch {named}."]


def _words(summary: Mapping[str, Any], noted: Mapping[str, Any], num_classes: int) -> str:
    """The head, what was trained, and among which classes the figures are."""
    trained = {
        "all": "all of the network",
        "last_two_stages": "its last two stages and the head",
        "last_stage": "its last stage and the head",
        "batch_norm": "BatchNorm and the head",
        "smaller_batch_norm": "BatchNorm at the smaller sizes, nothing of the largest",
        "head": "the head alone",
    }[what_is_trained(summary["config"]["pretrain.train"], noted["labels"])]
    if noted["new_head"]:
        head = "A new head was fitted to the imported network's features"
    else:
        head = "The head is the weights' own"
        if noted["outputs"] != num_classes:
            head += (
                f", {num_classes} of its {noted['outputs']} classes: every figure, before and "
                "after, is among those"
            )
    return f"{head}. Trained: {trained}."


def _fixed_rows(
    summary: Mapping[str, Any], noted: Mapping[str, Any], times: list[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    no_figures: list[Any] = [None] * len(summary["fixed"])
    before = noted["before"].get(summary["split"], {}).get("fixed", no_figures)
    return [
        {
            "name": f"fixed {entry['resolution']} px",
            "before": None if old is None else 100 * old["top1"],
            **_row(summary, entry["top1"], entry["gmacs"]),
            "ms": [time["fixed"][index] for time in times],
        }
        for index, (entry, old) in enumerate(zip(summary["fixed"], before, strict=True))
    ]


def _other_rows(summary: Mapping[str, Any], adaptive: list[float | None]) -> list[dict[str, Any]]:
    """Without times but for the choice's, `adaptive` by batch size."""
    if summary["top1"] is None or len(summary["fixed"]) == 1:
        return []
    gmacs, no_times = summary["gmacs"], [None] * len(adaptive)
    rows = [
        {
            "name": "adaptive",
            **_row(summary, summary["top1"], gmacs),
            "ms": adaptive,
        },
        {
            "name": "hull of the fixed sizes",
            **_row(summary, hull_top1(dict(summary), gmacs), gmacs),
            "ms": no_times,
        },
    ]
    controls: Mapping[str, Any] = summary.get("controls", {})
    for name, label in _CASCADES.items() if controls else ():
        value, spent = controls["intervals"][name]["value"], controls["gmacs"][name]
        rows.append({"name": label, **_row(summary, value, spent), "ms": no_times})
    return [{"before": None, **row} for row in rows]


def _row(summary: Mapping[str, Any], top1: float, gmacs: float) -> dict[str, float]:
    """Top-1 in %, GMACs, and these over the largest resolution's."""
    return {"after": 100 * top1, "gmacs": gmacs, "share": gmacs / summary["fixed"][0]["gmacs"]}


def _timing(setting: str) -> list[str]:
    return [f"Milliseconds: mean, images in memory. {setting}"] if setting else []


def _minutes(seconds: Mapping[str, float]) -> list[str]:
    if not seconds:
        return []
    parts = [f"{_STEPS[name]} {value / 60:.1f}" for name, value in seconds.items()]
    return [f"{sum(seconds.values()) / 60:.1f} minutes, this evaluation aside: {', '.join(parts)}"]
