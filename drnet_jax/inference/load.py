"""From a restored model and a configuration to an adaptive classifier and its budget."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from drnet_jax.checkpoint import CheckpointError
from drnet_jax.config import budget_name
from drnet_jax.inference.adaptive import AdaptiveClassifier
from drnet_jax.inference.calibration import BudgetError, Calibration, Point, load
from drnet_jax.restore import RestoredModel
from drnet_jax.writers import say


def adaptive_classifier(
    config: ConfigDict, restored: RestoredModel, image_size: tuple[int, int]
) -> AdaptiveClassifier:
    """Compiles the restored model for `config.inference.buckets`, on the first device.

    Args:
      config: with the model the checkpoint was trained with.
      restored: the model.
      image_size: height and width of the images.

    Raises:
      CheckpointError: the model has no trained predictor.
    """
    check_predictor(restored)
    say("compiling every resolution and bucket ...")
    return AdaptiveClassifier(
        restored.model,
        restored.variables,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        buckets=tuple(config.inference.buckets),
        image_size=image_size,
        fold=config.inference.fold,
    )


def check_predictor(restored: RestoredModel) -> None:
    """Stops after stage 1 alone.

    Raises:
      CheckpointError: the model has no trained predictor.
    """
    if restored.stage == "pretrain" and restored.model.predictor is not None:
        raise CheckpointError(
            f"{restored.origin} holds stage 1 only, without a trained predictor: train stage 2"
        )


def calibration_path(restored: RestoredModel) -> Path:
    """The file of `--mode=calibrate`, beside the checkpoint."""
    return restored.origin / "calibration.json"


def budget_lambda(config: ConfigDict, restored: RestoredModel) -> float:
    """The lambda of the configured budget; 0, the paper's choice, without one.

    Raises:
      BudgetError: nothing is calibrated, or the budget cannot be kept.
    """
    if budget_name(config) is None:
        return 0.0
    return solve(config, load(calibration_path(restored), restored.checkpoint)).lam


def solve(config: ConfigDict, calibration: Calibration) -> Point:
    """The point of the configured budget.

    Raises:
      BudgetError: it cannot be kept, or times are needed and were measured on another device.
    """
    budget = config.budget
    if budget.gmacs is not None:
        return calibration.for_gmacs(budget.gmacs)
    if budget.max_drop is not None:
        return calibration.for_drop(budget.max_drop, budget.confidence)
    device = jax.devices()[0].device_kind
    if calibration.times is not None and calibration.times.device != device:
        raise BudgetError(
            f"times were measured on {calibration.times.device}, this is {device}: run "
            "--mode=calibrate here"
        )
    return calibration.for_ms(budget.ms)
