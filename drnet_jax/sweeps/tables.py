"""The runs of a sweep one by one, and by the apparent size of what they classified."""

from collections.abc import Iterable, Sequence

import numpy as np

from drnet_jax.reports.comparison import Setting, figures
from drnet_jax.reports.summaries import read_summary
from drnet_jax.sweeps.jobs import minutes
from drnet_jax.sweeps.plan import Job


def runs_table(jobs: Iterable[Job]) -> str:
    """Every run in Markdown, with its minutes and its fixed resolutions.

    Args:
      jobs: of stage 2 or of a single stage, finished.
    """
    lines = [["run", "minutes", "px", "fixed", "oracle", "DRNet", "cost", "hull", "random", "sent"]]
    for job in jobs:
        summary = read_summary(job.workdir)
        assert summary is not None
        found, taken = figures(summary), minutes(job)
        lines.append(
            [
                job.workdir.name,
                "resumed" if taken is None else f"{taken:.1f}",
                "/".join(map(str, summary["resolutions"])),
                " / ".join(_percent(entry["top1"]) for entry in summary["fixed"]),
                _percent(found["oracle"]) if "oracle" in found else "",
                _percent(found["drnet"]),
                f"{found['relative_cost']:.3f}",
                _percent(found["hull"]),
                _percent(found["matched_random"]),
                " / ".join(_percent(share) for share in summary["shares"]),
            ]
        )
    note = "Minutes: of all stages, each with its start and evaluation. Oracle: correct at one "
    return f"**Runs**\n\n{note}resolution at least.\n\n{_table(lines)}"


def size_table(question: str, setting: Setting) -> str:
    """A setting by the apparent size of the objects, in Markdown; empty where it is not known.

    Means over the seeds, which are evaluated on the same images.
    """
    ranges = [summary.get("by_apparent_size") for summary in setting.summaries]
    if not ranges or not all(ranges):
        return ""
    sides = setting.summaries[0]["resolutions"]
    heading = ["side", "images", "sent", "DRNet", "fixed"]
    lines = [heading]
    for entries in zip(*ranges, strict=True):
        sent = np.mean([entry["shares"] for entry in entries], axis=0)
        fixed = np.mean([entry["fixed_top1"] for entry in entries], axis=0)
        lines.append(
            [
                "{}-{} px".format(*entries[0]["pixels"]),
                str(entries[0]["num_images"]),
                " / ".join(map(_percent, sent)),
                _percent(float(np.mean([entry["top1"] for entry in entries]))),
                " / ".join(map(_percent, fixed)),
            ]
        )
    where = "/".join(map(str, sides))
    return f"**{question}: {setting.name}, by apparent size** ({where} px)\n\n{_table(lines)}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    whole = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in whole)
