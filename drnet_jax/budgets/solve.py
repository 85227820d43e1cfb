"""From a configured budget to lambda."""

import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from drnet_jax.budgets.calibration import BudgetError, Calibration, Point
from drnet_jax.budgets.calibration_file import load
from drnet_jax.checkpoints.model_key import model_key
from drnet_jax.checkpoints.restore import TrainedModel
from drnet_jax.config import budget_name
from drnet_jax.inference.batches import buckets_in_words


def calibration_path(restored: TrainedModel) -> Path:
    """The file of `--mode=calibrate`, beside the checkpoint."""
    return restored.origin / "calibration.json"


def times_setting(config: ConfigDict, image_size: tuple[int, int]) -> str:
    """On what times are measured, in words."""
    folded = "folded" if config.inference.fold else "not folded"
    return (
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, "
        f"buckets {buckets_in_words(config)}, images {image_size[0]}x{image_size[1]}, {folded}"
    )


def budget_lambda(config: ConfigDict, restored: TrainedModel, image_size: tuple[int, int]) -> float:
    """The lambda of the configured budget; 0, the paper's choice, without one.

    Raises:
      BudgetError: nothing is calibrated, or the budget cannot be kept.
    """
    if budget_name(config) is None:
        return 0.0
    known = load(calibration_path(restored), model_key(config, restored))
    return solve(config, known, image_size).lam


def solve(config: ConfigDict, calibration: Calibration, image_size: tuple[int, int]) -> Point:
    """The point of the configured budget.

    Raises:
      BudgetError: it cannot be kept, or times are needed and were measured in another setting.
    """
    budget = config.budget
    if budget.gmacs is not None:
        return calibration.for_gmacs(budget.gmacs)
    if budget.max_drop is not None:
        return calibration.for_drop(budget.max_drop, budget.confidence)
    setting = times_setting(config, image_size)
    if calibration.times is not None and calibration.times.setting != setting:
        raise BudgetError(
            f"times were measured on {calibration.times.setting}, this is {setting}: run "
            "--mode=calibrate here"
        )
    return calibration.for_ms(budget.ms, budget.batch_size)
