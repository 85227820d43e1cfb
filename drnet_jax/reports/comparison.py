"""Several runs side by side: settings, each at one seed or more, from their `eval.json`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drnet_jax.checkpoints.answers import agreement
from drnet_jax.evaluation.intervals import Interval, over_seeds
from drnet_jax.evaluation.metrics import hull_top1, matched_random_top1
from drnet_jax.reports.summaries import read_summary


@dataclass(frozen=True)
class Setting:
    """The same configuration at k seeds.

    Attributes:
      name: what to call it.
      summaries: `[k]`, of the finished runs' `eval.json`, in the order of the seeds.
    """

    name: str
    summaries: tuple[dict[str, Any], ...]

    @property
    def seeds(self) -> list[int]:
        """Of the runs."""
        return [summary["config"]["seed"] for summary in self.summaries]

    def values(self, name: str) -> np.ndarray:
        """`[k]`: one of `figures`, of every run."""
        return np.array([figures(summary)[name] for summary in self.summaries])

    def interval(self, name: str) -> Interval:
        """Its mean over the seeds; of one seed, its interval over the images if it has one."""
        values = self.values(name)
        if len(values) > 1:
            return over_seeds(values)
        known = self.summaries[0].get("controls", {}).get("intervals", {}).get(name)
        if known is None or known["low"] is None:
            return Interval(float(values[0]), float("nan"), float("nan"))
        return Interval(**known)


def figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """What runs are compared by: fractions, and the cost over the largest resolution's.

    Args:
      summary: an `eval.json`, of a model with a trained predictor.
    """
    largest = summary["fixed"][0]
    hull = hull_top1(dict(summary), summary["gmacs"])
    random = matched_random_top1(dict(summary))
    found = {
        "drnet": summary["top1"],
        "gmacs": summary["gmacs"],
        "relative_cost": summary["gmacs"] / largest["gmacs"],
        "largest": largest["top1"],
        "smallest": summary["fixed"][-1]["top1"],
        "hull": hull,
        "matched_random": random,
        "drnet - hull": summary["top1"] - hull,
        "drnet - matched_random": summary["top1"] - random,
    }
    controls = summary.get("controls", {})
    for name, interval in controls.get("intervals", {}).items():
        found[name] = float("nan") if interval["value"] is None else interval["value"]
    for name, chosen in controls.get("as_good_as_largest", {}).items():
        gmacs = float("nan") if chosen["gmacs"] is None else chosen["gmacs"]
        found[f"{name} as good at"] = gmacs / largest["gmacs"]
    return found


def settings(runs: Mapping[str, Iterable[Path]]) -> list[Setting]:
    """By the name of a setting, its finished runs among these workdirs; there may be none."""
    found = []
    for name, workdirs in runs.items():
        summaries = [summary for w in workdirs if (summary := read_summary(w)) is not None]
        summaries.sort(key=lambda summary: summary["config"]["seed"])
        found.append(Setting(name, tuple(summaries)))
    return found


def difference(setting: Setting, other: Setting, name: str) -> Interval:
    """Mean difference of a figure over the seeds that both have; NaN ends with fewer than two.

    Raises:
      ValueError: they have no seed in common.
    """
    mine = dict(zip(setting.seeds, setting.values(name), strict=True))
    theirs = dict(zip(other.seeds, other.values(name), strict=True))
    common = sorted(mine.keys() & theirs.keys())
    if not common:
        raise ValueError(f"{setting.name} and {other.name} have no seed in common")
    values = np.array([mine[seed] - theirs[seed] for seed in common])
    if len(values) > 1:
        return over_seeds(values)
    return Interval(float(values[0]), float("nan"), float("nan"))


def same_images(setting: Setting, other: Setting) -> bool:
    """Whether two settings, each with a run, are evaluated on the same images and labels."""
    names = ("split", "num_images", "identities")
    mine, theirs = setting.summaries[0], other.summaries[0]
    if _labels_of(mine) != _labels_of(theirs):
        return False
    return all(mine.get(name) == theirs.get(name) for name in names)


def _labels_of(summary: Mapping[str, Any]) -> str:
    """The weights whose answers are the labels; empty where the images have labels."""
    config = summary["config"]
    return str(config["convert.weights"]) if agreement(config) else ""


def shares(setting: Setting) -> np.ndarray:
    """`[m]`: how often each resolution was chosen, mean over the seeds."""
    return np.mean([summary["shares"] for summary in setting.summaries], axis=0)


def points(interval: Interval, *, sign: bool = False) -> str:
    """A fraction in % with half the width of its interval."""
    text = f"{100 * interval.value:{'+' if sign else ''}.1f}"
    if np.isnan(interval.low):
        return text
    return f"{text} ± {50 * (interval.high - interval.low):.1f}"


COLUMNS = (
    *("", "seeds", "px", "largest", "DRNet", "minus the first", "cost", "minus hull"),
    *("minus random", "minus cascade", "as good at", "sent there, %"),
)
NOTE = (
    "Top-1 in %, differences in points. Cost: multiply-adds with the predictor, over the largest "
    "resolution's. Hull: of the fixed resolutions, at the same cost; random: a choice with the "
    "same shares; cascade: smallest first, stop when sure, at the same cost, by the largest "
    "probability or by its margin (m), whichever is better. As good at: the least cost at which "
    "DRNet is no worse than the largest resolution on the calibration split. ±: half of the 95 % "
    "interval, by Student's t over the seeds, or by bootstrap over the images, or over their "
    "origins where those are known, where there is one seed."
)


def rows(found: Sequence[Setting]) -> list[list[str]]:
    """The cells of `COLUMNS` for every setting; differences are paired with the first one."""
    return [_row(setting, found[0]) for setting in found]


def _row(setting: Setting, first: Setting) -> list[str]:
    if not setting.summaries:
        return [setting.name, "not finished", *[""] * (len(COLUMNS) - 2)]
    change = ""
    paired = set(setting.seeds) & set(first.seeds) and same_images(setting, first)
    if setting is not first and paired:
        change = points(difference(setting, first, "drnet"), sign=True)
    return [
        setting.name,
        str(len(setting.seeds)),
        "/".join(map(str, setting.summaries[0]["resolutions"])),
        points(Interval(float(setting.values("largest").mean()), np.nan, np.nan)),
        points(setting.interval("drnet")),
        change,
        f"{setting.values('relative_cost').mean():.3f}",
        points(setting.interval("drnet - hull"), sign=True),
        points(setting.interval("drnet - matched_random"), sign=True),
        _cascade(setting),
        _as_good(setting),
        "/".join(f"{100 * share:.0f}" for share in shares(setting)),
    ]


def _cascade(setting: Setting) -> str:
    """Minus the better cascade; empty where a run was not compared with one."""
    marks = {"drnet - cascade": "", "drnet - margin_cascade": " m"}
    known = [name for name in marks if _has(setting, name)]
    if not known:
        return ""
    best = min(known, key=lambda name: setting.values(name).mean())
    return points(setting.interval(best), sign=True) + marks[best]


def _as_good(setting: Setting) -> str:
    """The mean cost; how many of the runs have one, where not all have."""
    if not _has(setting, "drnet as good at"):
        return ""
    costs = setting.values("drnet as good at")
    reached = costs[~np.isnan(costs)]
    if not len(reached):
        return "no cost"
    few = f" ({len(reached)} of {len(costs)})" if len(reached) < len(costs) else ""
    return f"{reached.mean():.3f}{few}"


def _has(setting: Setting, name: str) -> bool:
    return all(name in figures(summary) for summary in setting.summaries)


def markdown(questions: Mapping[str, Sequence[Setting]]) -> str:
    """A table a question."""
    parts = [NOTE + "\n"]
    for question, found in questions.items():
        lines = [list(COLUMNS), ["---"] * len(COLUMNS), *rows(found)]
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        parts.append(f"**{question}**\n\n{table}")
    return "\n".join(parts)


def to_json(questions: Mapping[str, Sequence[Setting]]) -> dict[str, Any]:
    """By question and setting, the figures of every seed."""
    return {
        question: {
            setting.name: [
                {
                    "seed": summary["config"]["seed"],
                    "shares": summary["shares"],
                    "fixed": summary["fixed"],
                    "by_apparent_size": summary.get("by_apparent_size"),
                    **{n: None if np.isnan(v) else v for n, v in figures(summary).items()},
                }
                for summary in setting.summaries
            ]
            for setting in found
        }
        for question, found in questions.items()
    }
