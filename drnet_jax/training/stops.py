"""Why a training stops before its end, in words."""

from collections.abc import Mapping

import numpy as np

from drnet_jax.checkpoints.finite import find_not_finite
from drnet_jax.config import section_name
from drnet_jax.training.stage import Stage
from drnet_jax.training.train_state import TrainState

# The reason of a stop that nothing is wrong with.
BY_SIGNAL = "interrupted"


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and what is saved."""


class TrainingInterrupted(TrainingError):
    """A signal stopped a training, and the same command goes on."""


def stopped(stage: Stage, step: int, reason: str) -> TrainingError:
    """A stop after a step that is saved, or before the first one; waits until it is saved.

    Args:
      stage: which.
      step: the last one that was taken.
      reason: in words; `BY_SIGNAL` makes it a `TrainingInterrupted`.
    """
    stage.checkpoints.close()
    where = f"after step {step} of {stage.name}, which is saved"
    if not step:
        where = f"before the first step of {stage.name}"
    kind = TrainingInterrupted if reason == BY_SIGNAL else TrainingError
    return kind(f"{reason} {where}; run the same command to resume")


def diverged(
    stage: Stage, step: int, what: str, metrics: Mapping[str, np.ndarray] | None = None
) -> TrainingError:
    """A stop for figures that are not finite; waits until the last save is complete.

    Nothing is saved that is not finite, so that the latest checkpoint is good.

    Args:
      stage: which.
      step: of these figures.
      what: is not finite, in words.
      metrics: of that step, with the learning rates.
    """
    stage.checkpoints.close()
    saved = stage.checkpoints.latest_step
    rates = ", ".join(
        f"{name.removeprefix('learning_rate_')} {float(value):.3g}"
        for name, value in (metrics or {}).items()
        if name.startswith("learning_rate_")
    )
    where = f"step {saved} in {stage.checkpoints.directory}" if saved is not None else "none"
    section = section_name(stage.name)
    return TrainingError(
        f"{what} at step {step} of {stage.name}{f' (learning rate: {rates})' if rates else ''}; "
        f"last good checkpoint: {where}. Lower {section}.base_learning_rate or set "
        f"{section}.clip_norm, in another --workdir"
    )


def check_metrics(stage: Stage, step: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Stops if the loss of a step or its gradient is not finite.

    Raises:
      TrainingError: one of them is not.
    """
    # A loss is computed before its own update: the gradient tells what that did.
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    if not np.isfinite([loss, norm]).all():
        raise diverged(stage, step, f"loss is {loss} with a gradient of norm {norm}", metrics)


def check_state(stage: Stage, step: int, state: TrainState) -> None:
    """Stops before a state that is not finite is saved: saving removes older ones.

    The loss may be finite still: it is of the state before, and does not see moving averages or
    what an optimiser keeps.

    Raises:
      TrainingError: an array of it is not finite.
    """
    found = find_not_finite(state)
    if found:
        raise diverged(stage, step, f"the training state is not finite ({found})")
