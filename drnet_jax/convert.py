"""`--mode=convert`: from a weight file and a folder of pictures to an adaptive classifier."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from drnet_jax.benchmark import restore_and_benchmark, timing_setting
from drnet_jax.budgets.calibration import BudgetError
from drnet_jax.budgets.solve import solve
from drnet_jax.calibrate import restore_and_calibrate
from drnet_jax.checkpoints.conversion import (
    conversion_path,
    note_conversion,
    read_conversion,
    timed,
)
from drnet_jax.checkpoints.restore import find_model
from drnet_jax.checkpoints.training_lock import training_lock
from drnet_jax.config import BUDGETS, budget_name, flatten
from drnet_jax.config_checks import check_config
from drnet_jax.data.datasets import eval_view
from drnet_jax.data.settings import data_settings
from drnet_jax.evaluate import restore_and_evaluate
from drnet_jax.evaluation.inputs import logits_key
from drnet_jax.reports.latency_report import Row
from drnet_jax.runtime.progress import log
from drnet_jax.train import train_stages

# How choices are timed, beside on which device and of which model.
_TIMING_FIELDS = (
    *("benchmark.batch_sizes", "benchmark.repeats", "benchmark.seconds", "benchmark.max_seconds"),
    "inference.",
)


def convert(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains from `convert.weights`, resuming from `workdir`, calibrates, times and evaluates.

    Its parts are those of the other modes, and leave the same files: an ordinary run.

    Returns:
      What was written to `<workdir>/eval.json`.

    Raises:
      ConfigError, DataError, WeightsError, CheckpointError, TrainingError, OSError: see
        `train_and_evaluate`, `restore_and_calibrate` and `restore_and_benchmark`.
      BudgetError: the budget cannot be kept; the report is written all the same, without it.
    """
    # Before there is a lock file.
    check_config(config, jax.device_count(), "convert")
    with training_lock(workdir):
        train_stages(_without_budget(config), workdir)
        try:
            lam = _calibrated(config, workdir)
        except BudgetError:
            _time(config, workdir, 0.0)
            restore_and_evaluate(_without_budget(config), workdir)
            raise
        _time(config, workdir, lam)
        return restore_and_evaluate(config, workdir)


def _without_budget(config: ConfigDict) -> ConfigDict:
    """A copy, for the training and where no budget is kept."""
    copied = config.copy_and_resolve_references()
    for name in BUDGETS:
        copied.budget[name] = None
    copied.budget.batch_size, copied.budget.confidence = 0, 0.0
    return copied


def _calibrated(config: ConfigDict, workdir: Path) -> float:
    """Lambda of the budget; 0 without one.

    Raises:
      BudgetError: it cannot be kept.
    """
    # Once more takes no minutes: the outputs are kept.
    again = (workdir / "calibration.json").exists()
    with nullcontext() if again else timed(workdir, "calibration"):
        found = restore_and_calibrate(config, workdir)
    if budget_name(config) is None:
        return 0.0
    side = eval_view(data_settings(config, workdir)).size
    return solve(config, found, (side, side)).lam


def _time(config: ConfigDict, workdir: Path, lam: float) -> None:
    """Notes what each fixed resolution and the choice take on this device, unless it is noted."""
    trained, setting = find_model(config, workdir), timing_setting(config)
    fields = {n: v for n, v in flatten(config).items() if n.startswith(_TIMING_FIELDS)}
    of = f"{logits_key(config, trained)}, lambda {lam!r}, {setting}, {fields}"
    times = (read_conversion(workdir) or {}).get("times", {})
    # Of what there was no time for, the programs are compiled by now.
    if times.get("of") == of and not times.get("left_out"):
        log(f"times: kept in {conversion_path(workdir)}")
        return
    with timed(workdir, "timing"):
        rows = restore_and_benchmark(config, workdir, lambdas={"adaptive": lam})
    found = _milliseconds(rows)
    timed_sizes = {entry["batch_size"] for entry in found}
    times = {
        "of": of,
        "setting": setting,
        "lambda": lam,
        "milliseconds": found,
        "left_out": sorted({*config.benchmark.batch_sizes} - timed_sizes),
    }
    note_conversion(workdir, {"times": times})


def _milliseconds(rows: list[Row]) -> list[dict[str, Any]]:
    """Of an image in memory, by batch size: each fixed resolution, and the choice."""
    found = []
    shown = [row for row in rows if row.input == "pixels"]
    for batch_size in dict.fromkeys(row.latency.batch_size for row in shown):
        here = [row for row in shown if row.latency.batch_size == batch_size]
        fixed, (adaptive,) = (
            [row.latency.mean / batch_size for row in here if row.kind == kind]
            for kind in ("fixed", "adaptive")
        )
        found.append({"batch_size": batch_size, "fixed": fixed, "adaptive": adaptive})
    return found
