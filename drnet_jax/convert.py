"""`--mode=convert`: from a weight file and a folder of pictures to an adaptive classifier."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from drnet_jax.benchmark import restore_and_benchmark
from drnet_jax.budgets.calibration import BudgetError
from drnet_jax.budgets.solve import solve
from drnet_jax.calibrate import restore_and_calibrate
from drnet_jax.checkpoints.conversion import note_conversion, timed
from drnet_jax.checkpoints.training_lock import training_lock
from drnet_jax.config import BUDGETS, budget_name
from drnet_jax.config_checks import check_config
from drnet_jax.data.datasets import eval_view
from drnet_jax.data.settings import data_settings
from drnet_jax.evaluate import restore_and_evaluate
from drnet_jax.reports.latency_report import Row
from drnet_jax.train import train_stages


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
            with timed(workdir, "calibration"):
                gmacs = _calibrated(config, workdir)
        except BudgetError:
            _time(_without_budget(config), workdir)
            restore_and_evaluate(_without_budget(config), workdir)
            raise
        timing = config.copy_and_resolve_references()
        timing.benchmark.gmacs = gmacs
        _time(timing, workdir)
        return restore_and_evaluate(config, workdir)


def _without_budget(config: ConfigDict) -> ConfigDict:
    """A copy, for the training and where no budget is kept."""
    copied = config.copy_and_resolve_references()
    for name in BUDGETS:
        copied.budget[name] = None
    copied.budget.batch_size, copied.budget.confidence = 0, 0.0
    return copied


def _calibrated(config: ConfigDict, workdir: Path) -> tuple[float, ...]:
    """Mean cost of an image in GMACs at the budget; nothing without one.

    Raises:
      BudgetError: it cannot be kept.
    """
    found = restore_and_calibrate(config, workdir)
    if budget_name(config) is None:
        return ()
    side = eval_view(data_settings(config, workdir)).size
    return (solve(config, found, (side, side)).gmacs,)


def _time(config: ConfigDict, workdir: Path) -> None:
    """Notes what each fixed resolution and the choice at the budget take on this device."""
    with timed(workdir, "timing"):
        rows = restore_and_benchmark(config, workdir)
    note_conversion(workdir, {"milliseconds": _milliseconds(rows)})


def _milliseconds(rows: list[Row]) -> list[dict[str, Any]]:
    """Of an image in memory, by batch size: each fixed resolution, and the choice."""
    found = []
    shown = [row for row in rows if row.input == "pixels"]
    for batch_size in dict.fromkeys(row.latency.batch_size for row in shown):
        here = [row for row in shown if row.latency.batch_size == batch_size]
        fixed, adaptive = (
            [row.latency.percentile(50) / batch_size for row in here if row.kind == kind]
            for kind in ("fixed", "adaptive")
        )
        # The last one is that of the budget.
        found.append({"batch_size": batch_size, "fixed": fixed, "adaptive": adaptive[-1]})
    return found
