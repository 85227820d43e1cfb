"""`--mode=report`: several evaluated runs on one page, those of one configuration together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.checkpoints.config_history import comparable
from drnet_jax.checkpoints.training_lock import other_training
from drnet_jax.config import RESUMABLE_FIELDS, ConfigError
from drnet_jax.reports.comparison import (
    COLUMNS,
    NOTE,
    Setting,
    markdown,
    rows,
    to_json,
)
from drnet_jax.reports.comparison_plot import comparison_figure
from drnet_jax.reports.comparison_warnings import warnings
from drnet_jax.reports.pages import render
from drnet_jax.reports.summaries import read_summary
from drnet_jax.reports.svg import page_style, to_svg
from drnet_jax.runtime.environment import environment
from drnet_jax.runtime.files import check_writable, write_json, write_text
from drnet_jax.runtime.progress import log

# What differs between the seeds of a setting, or does not change what is trained.
_NOT_A_SETTING = (
    *("seed", "pretrain.init_from", "joint.init_from", "stages"),
    *RESUMABLE_FIELDS,
)


def compare_runs(config: ConfigDict, workdir: Path) -> list[Setting]:
    """Writes `comparison.html` and `comparison.json` of the runs in `report.runs`.

    Runs whose configurations differ in the seed only are one setting. Settings are called by what
    differs between them.

    Args:
      config: with `report.runs`, workdirs.
      workdir: where the page goes.

    Raises:
      ConfigError: no runs are given, one is given twice, or two have the same setting and seed.
      CheckpointError: one of them is not evaluated, its `eval.json` is damaged, or it has no
        trained predictor.
      OSError: `workdir` cannot be written to.
    """
    paths = [Path(run) for run in config.report.runs]
    if not paths:
        raise ConfigError("report.runs is empty: --config.report.runs=\"('runs/a', 'runs/b')\"")
    _check_once(paths)
    check_writable(workdir)
    summaries = {path: _summary(path) for path in paths}
    found = group(summaries)
    names = {id(summary): setting.name for setting in found for summary in setting.summaries}
    runs = [
        {
            "workdir": str(path),
            "setting": names[id(summary)],
            "seed": summary["config"]["seed"],
            "top1": 100 * summary["top1"],
            "gmacs": summary["gmacs"],
            "verdict": summary.get("controls", {}).get("verdict", "not compared with controls"),
        }
        for path, summary in summaries.items()
    ]
    notes = warnings(list(summaries.values()))
    with page_style():
        plot = to_svg(comparison_figure({"": found}), "Top-1 over cost by setting")
    content = {
        "title": workdir.resolve().name,
        "rows": rows(found),
        "columns": COLUMNS,
        "note": NOTE,
        "runs": runs,
        "plot": plot,
        "warnings": notes,
        "environment": environment(),
    }
    page = workdir / "comparison.html"
    write_text(page, render("comparison.html", content))
    figures = {name: content[name] for name in ("runs", "warnings", "environment")}
    write_json(workdir / "comparison.json", {**figures, **to_json({"settings": found})})
    log(markdown({"settings": found}))
    for note in notes:
        log(f"warning: {note}")
    log(f"wrote {page} and comparison.json")
    return found


def _check_once(paths: Sequence[Path]) -> None:
    """Stops if two paths lead to the same run, by links too."""
    first: dict[Path, Path] = {}
    for path in paths:
        other = first.setdefault(path.resolve(), path)
        if other is not path:
            raise ConfigError(
                f"report.runs names one run twice, as {other} and {path}: give it once"
            )


def _summary(path: Path) -> dict[str, Any]:
    summary = read_summary(path)
    if summary is None:
        raise CheckpointError(
            f"report.runs names {path}, which has no eval.json: run --mode=eval --workdir={path}"
        )
    if summary["top1"] is None or len(summary["resolutions"]) < 2:
        raise CheckpointError(f"{path} has no trained predictor: nothing to compare")
    if other := other_training(path):
        step, stage = summary.get("checkpoint_step"), summary.get("stage")
        log(f"{other}: its eval.json is of step {step} of {stage}")
    return summary


def group(summaries: Mapping[Path, dict[str, Any]]) -> list[Setting]:
    """The settings, in the order in which they first come up.

    Runs belong to one setting if they differ in the seed, in the workdir of the stage 1 they start
    from (but not in whether stage 1 itself starts from another run's), in which of the two stages
    they ran, or in fields that change neither what is trained nor on which images it is evaluated:
    their means would be of different things.

    Raises:
      ConfigError: two runs have the same setting and seed.
    """
    configs = {path: _setting(summary) for path, summary in summaries.items()}
    fields = sorted({name for config in configs.values() for name in config})
    differ = [name for name in fields if len({str(c.get(name)) for c in configs.values()}) > 1]
    settings: dict[str, list[dict[str, Any]]] = {}
    for path, summary in summaries.items():
        name = ", ".join(f"{field}={configs[path].get(field)}" for field in differ)
        settings.setdefault(name or summary["config"]["data.name"], []).append(summary)
    for name, members in settings.items():
        members.sort(key=lambda summary: summary["config"]["seed"])
        seeds = [summary["config"]["seed"] for summary in members]
        if len(set(seeds)) < len(seeds):
            raise ConfigError(f"report.runs names {name} twice at seeds {seeds}")
    return [Setting(name, tuple(members)) for name, members in settings.items()]


def _setting(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What runs of one setting have in common: fields of the configuration, and the data."""
    identities = summary.get("identities", {})
    # What changes the images or the choices that the figures are of. An eval.json of an earlier
    # version does not identify its images: those of another directory may be others.
    evaluated = ("budget.",) if identities else ("budget.", "data.dir")
    found = {
        name: value
        for name, value in comparable(summary["config"]).items()
        if name.startswith(evaluated) or not name.startswith(_NOT_A_SETTING)
    }
    found |= {f"{split} images": identity for split, identity in identities.items()}
    # An unfinished training is another one; an earlier version does not say which.
    found["finished"] = summary.get("finished")
    # Which of the two stages ran in a workdir does not tell settings apart, but one for both does.
    found["single stage"] = summary.get("stage") == "single"
    # Every seed may have another run to start from; random weights are another beginning.
    found["stage 1 from another run"] = bool(summary["config"].get("pretrain.init_from"))
    return found | {"split": summary["split"], "images": summary["num_images"]}
