"""From a restored model and a configuration to an adaptive classifier and its budget."""

import json
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from drnet_jax.checkpoint import CheckpointError
from drnet_jax.config import ConfigError, budget_name
from drnet_jax.data.index_cache import digest
from drnet_jax.inference.adaptive import AdaptiveClassifier
from drnet_jax.inference.calibration import BudgetError, Calibration, Point, load
from drnet_jax.restore import RestoredModel, TrainedModel
from drnet_jax.writers import say


def adaptive_classifier(
    config: ConfigDict, restored: RestoredModel, image_size: tuple[int, int] | None
) -> AdaptiveClassifier:
    """Compiles the restored model for `config.inference.buckets`, on the first device.

    Args:
      config: with the model the checkpoint was trained with.
      restored: the model.
      image_size: height and width of the images; None: for encoded pictures.

    Raises:
      CheckpointError: the model has no trained predictor.
      ConfigError: several hosts.
    """
    check_predictor(restored)
    if jax.process_count() > 1:
        raise ConfigError("dispatch runs on one host; eval.dispatch='dense' on several")
    say("compiling every resolution and bucket ...")
    classifier = AdaptiveClassifier(
        restored.model,
        restored.variables,
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        buckets=tuple(config.inference.buckets),
        image_size=image_size,
        own_sizes=image_size is None,
        fold=config.inference.fold,
    )
    if not config.inference.measure:
        return classifier
    say("measuring them ...")
    return classifier.with_times(classifier.measure())


def check_predictor(restored: TrainedModel) -> None:
    """Stops after stage 1 alone.

    Raises:
      CheckpointError: the model has no trained predictor.
    """
    if restored.stage == "pretrain" and restored.model.predictor is not None:
        raise CheckpointError(
            f"{restored.origin} holds stage 1 only, without a trained predictor: train stage 2"
        )


def calibration_path(restored: TrainedModel) -> Path:
    """The file of `--mode=calibrate`, beside the checkpoint."""
    return restored.origin / "calibration.json"


def model_key(config: ConfigDict, restored: TrainedModel) -> str:
    """Stage, step and a digest of how the model was trained and how its images are cropped."""
    facts = json.dumps([restored.config, restored.identities, config.data.eval_crop])
    return f"{restored.stage}/{restored.step} {digest(facts)[:12]}"


def times_setting(config: ConfigDict, image_size: tuple[int, int]) -> str:
    """On what times are measured, in words."""
    buckets = "/".join(map(str, config.inference.buckets))
    folded = "folded" if config.inference.fold else "not folded"
    return (
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, buckets {buckets}, "
        f"images {image_size[0]}x{image_size[1]}, {folded}"
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
