"""Why a training stops before its end, in words."""

from collections.abc import Mapping

import numpy as np

from drnet_jax.training.stage import Stage


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and what is saved."""


def stopped(stage: Stage, step: int, reason: str) -> TrainingError:
    """A stop after a step that is saved, or before the first one; waits until it is saved."""
    stage.checkpoints.close()
    where = f"after step {step} of {stage.name}, which is saved"
    if not step:
        where = f"before the first step of {stage.name}"
    return TrainingError(f"{reason} {where}; run the same command to resume")


def diverged(stage: Stage, step: int, metrics: Mapping[str, np.ndarray]) -> TrainingError:
    """A stop for figures that are not finite; waits until the last save is complete.

    Args:
      stage: which.
      step: of these metrics.
      metrics: with `loss`, `grad_norm` and the learning rates.
    """
    stage.checkpoints.close()
    saved = stage.checkpoints.latest_step
    rates = ", ".join(
        f"{name.removeprefix('learning_rate_')} {float(value):.3g}"
        for name, value in metrics.items()
        if name.startswith("learning_rate_")
    )
    where = f"step {saved} in {stage.checkpoints.directory}" if saved else "none"
    return TrainingError(
        f"loss is {float(metrics['loss'])} with a gradient of norm "
        f"{float(metrics['grad_norm'])} at step {step} of {stage.name} (learning rate: "
        f"{rates}); last good checkpoint: {where}. Lower "
        f"{stage.name}.base_learning_rate or set {stage.name}.clip_norm"
    )
