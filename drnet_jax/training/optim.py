"""Optimisers and learning-rate schedules, per stage and per part of the network."""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

# TF-Slim's defaults (`train_image_classifier.py`).
_RMS_DECAY = 0.9
_RMS_EPSILON = 1.0
# What is not trained, as a part.
_FROZEN = "frozen"
Path = tuple[Any, ...]


def create_learning_rate_fn(
    stage: ConfigDict, steps_per_epoch: int, scale: float
) -> optax.Schedule:
    """The learning rate of one part over the steps of a stage.

    Linear warm-up over `warmup_epochs` (the first step is already above zero), times `'step'`
    (times `decay_rate` every `decay_epochs`, counted from the first epoch), `'constant'`, or
    `'cosine'`: (1 + cos(pi * t / (T - 1))) / 2 at update t of T, that is one at the first and zero
    at the last; one at the only update of a stage (Loshchilov and Hutter 2017, without restarts).

    Args:
      stage: the stage's section of the config.
      steps_per_epoch: optimiser steps in an epoch.
      scale: multiplies the whole schedule (the paper's predictor: 0.1).
    """
    # As floats: JAX takes no integers beyond 32 bits.
    num_steps = float(stage.num_epochs * steps_per_epoch)
    warmup_steps = float(stage.warmup_epochs * steps_per_epoch)
    decay_steps = float(stage.decay_epochs * steps_per_epoch)
    decays = {
        "step": lambda step: stage.decay_rate ** jnp.floor(step / max(decay_steps, 1.0)),
        "cosine": optax.cosine_decay_schedule(1.0, max(num_steps - 1, 1.0)),
        "constant": optax.constant_schedule(1.0),
    }
    decay = decays[stage.schedule]

    def learning_rate(step: Any) -> Any:
        """The rate of the update that follows `step` updates, float32."""
        step = jnp.asarray(step, jnp.float32)
        warmup = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1.0))
        return scale * stage.base_learning_rate * warmup * decay(step)

    return learning_rate


def create_optimizer(
    stage: ConfigDict,
    learning_rate_fns: dict[str, optax.Schedule],
    trains: Callable[[Path], bool] | None = None,
) -> optax.GradientTransformation:
    """One optimiser a part ('classifier', 'predictor'), after an optional global-norm clip.

    `'sgd'`: `momentum` with *coupled* weight decay, added to the gradient before the momentum as
    in PyTorch. `'rmsprop'`: coupled decay too, and TensorFlow's RMSProp with TF-Slim's constants,
    which MobileNetV2 was trained with: epsilon is inside the root, and the learning rate inside the
    momentum (m = momentum * m + rate * g / sqrt(ms + epsilon)). `'adamw'`: decoupled decay.
    `decay_all=True` decays BatchNorm parameters and biases too (PyTorch's default, hence the
    paper's); otherwise only kernels (rank 2 and more).

    Args:
      stage: the stage's section of the config.
      learning_rate_fns: of every part.
      trains: from the names that lead to a parameter to whether it is trained; others keep their
        values, and have no state. Default: all are.
    """
    parts = {part: _part_optimizer(stage, fn) for part, fn in learning_rate_fns.items()}
    # Only where it is needed: checkpoints of runs without it lack its (empty) state.
    if trains is not None:
        parts[_FROZEN] = optax.set_to_zero()

    def labels(params: Any) -> Any:
        """Every leaf's part."""
        return flax.traverse_util.path_aware_map(
            lambda path, _: path[0] if trains is None or trains(path) else _FROZEN, params
        )

    optimizer = optax.partition(parts, labels)
    if stage.clip_norm:
        return optax.chain(optax.clip_by_global_norm(stage.clip_norm), optimizer)
    return optimizer


def _part_optimizer(
    stage: ConfigDict, learning_rate_fn: optax.Schedule
) -> optax.GradientTransformation:
    def mask(params: Any) -> Any:
        """Which leaves decay."""
        return jax.tree.map(lambda leaf: stage.decay_all or leaf.ndim >= 2, params)

    decay = optax.add_decayed_weights(stage.weight_decay, mask)
    if stage.optimizer == "rmsprop":
        rmsprop = optax.rmsprop(
            learning_rate_fn,
            decay=_RMS_DECAY,
            eps=_RMS_EPSILON,
            # As TensorFlow's slot of mean squares starts.
            initial_scale=1.0,
            eps_in_sqrt=True,
            momentum=stage.momentum,
        )
        return optax.chain(decay, rmsprop)
    descent = optax.scale_by_learning_rate(learning_rate_fn)
    if stage.optimizer == "sgd":
        return optax.chain(decay, optax.trace(decay=stage.momentum), descent)
    return optax.chain(optax.scale_by_adam(), decay, descent)
