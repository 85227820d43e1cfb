"""The tables that an evaluation prints."""

from collections.abc import Mapping
from typing import Any

from drnet_jax.checkpoints.answers import agreement
from drnet_jax.evaluation.metrics import hull_top1, matched_random_top1
from drnet_jax.runtime.progress import log

_CASCADES = {"cascade": "confidence cascade", "margin_cascade": "margin cascade"}
_CONTROLS = {**_CASCADES, "oracle": "oracle"}
# Of the names, with a margin cascade through five sizes.
_WIDTH = 36


def print_tables(summary: dict[str, Any]) -> None:
    """Prints what was reached, at which cost, beside what needs no predictor."""
    largest = summary["fixed"][0]

    def row(name: str, top1: float, gmacs: float) -> str:
        """One line: top-1 in %, GMACs, and these over the largest resolution's."""
        relative = gmacs / largest["gmacs"]
        return f"{name:<{_WIDTH}}{100 * top1:8.2f}{gmacs:12.5f}{relative:10.2f}"

    log(f"\n{summary['num_images']} images of the {summary['split']} split")
    if said := agreement(summary["config"]):
        log(said)
    log(f"{'':<{_WIDTH}}{'top-1 %':>8}{'GMACs':>12}{'of largest':>12}".rstrip())
    for entry in summary["fixed"]:
        log(row(f"fixed {entry['resolution']}", entry["top1"], entry["gmacs"]))
    if len(summary["fixed"]) == 1:
        return
    if summary["top1"] is None:
        log("no predictor is trained yet: stage 1 gives the fixed resolutions only")
        return
    log(row("DRNet (with predictor)", summary["top1"], summary["gmacs"]))
    log(row("hull of fixed, same cost", hull_top1(summary, summary["gmacs"]), summary["gmacs"]))
    log(row("random, same shares", matched_random_top1(summary), summary["gmacs_classifier"]))
    controls: dict[str, Any] = summary.get("controls", {})
    if controls:
        figures = {name: entry["value"] for name, entry in controls["intervals"].items()}
        for name, label in _CONTROLS.items():
            log(row(named(name, label, controls), figures[name], controls["gmacs"][name]))
    chosen = zip(summary["resolutions"], summary["shares"], strict=True)
    log("shares: " + ", ".join(f"{size} px {100 * share:.1f} %" for size, share in chosen))
    if controls:
        _print_verdicts(summary, controls)
    if "by_apparent_size" in summary:
        _print_by_apparent_size(summary)


def named(name: str, label: str, controls: Mapping[str, Any]) -> str:
    """What to call a control: the margin cascade with the sizes that it runs."""
    if name != "margin_cascade":
        return label
    return f"{label}, {'/'.join(map(str, controls['cascade_sizes'][name]))}"


def _print_verdicts(summary: dict[str, Any], controls: dict[str, Any]) -> None:
    log("\nDRNet's top-1 is")
    for words in controls["verdicts"].values():
        log(f"  {words}")
    log(as_good_as_largest(summary))


def as_good_as_largest(summary: Mapping[str, Any]) -> str:
    """At which cost DRNet and the cascades are as accurate as the largest resolution, in words."""
    largest = summary["fixed"][0]
    parts = []
    for name, label in {"drnet": "DRNet", **_CASCADES}.items():
        found = summary["controls"]["as_good_as_largest"][name]
        if found["gmacs"] is None:
            parts.append(f"{label} at no setting")
            continue
        cost = found["gmacs"] / largest["gmacs"]
        value, low, high = (100 * found["minus_largest"][end] for end in ("value", "low", "high"))
        change = f"{value:+.2f} points here, {low:+.2f} to {high:+.2f}"
        parts.append(f"{label} at {cost:.2f} of its cost ({change})")
    size = largest["resolution"]
    return f"As good as {size} px on the calibration split: {'; '.join(parts)}"


def _print_by_apparent_size(summary: dict[str, Any]) -> None:
    shares = "".join(f"{f'to {size} px':>10}" for size in summary["resolutions"])
    fixed = "".join(f"{f'at {size}':>8}" for size in summary["resolutions"])
    log(f"\n{'digit side':<12}{'images':>8}{shares}{'DRNet %':>10}{fixed}")
    for row in summary["by_apparent_size"]:
        low, high = row["pixels"]
        log(
            f"{f'{low}-{high} px':<12}{row['num_images']:>8}"
            + "".join(f"{100 * share:>9.1f}%" for share in row["shares"])
            + f"{100 * row['top1']:>10.1f}"
            + "".join(f"{100 * top1:>8.1f}" for top1 in row["fixed_top1"])
        )
