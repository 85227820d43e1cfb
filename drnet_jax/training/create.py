"""From a configuration to a stage's optimiser, training step and noise."""

from typing import NamedTuple

import jax
import optax
from jax.sharding import Sharding
from ml_collections import ConfigDict

from drnet_jax.config import STAGES, section_name, what_is_trained
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import ModelCost
from drnet_jax.training.optim import create_learning_rate_fn, create_optimizer
from drnet_jax.training.stage_losses import JointLoss, Loss, PretrainLoss, create_tau_fn
from drnet_jax.training.train_step import StepFn, TrainPreprocess, make_train_step
from drnet_jax.training.trained_part import TRAINED_STAGES, PartLoss, TrainedPart, last_layers


class StageStep(NamedTuple):
    """How a stage is trained.

    Attributes:
      tx: the optimiser, whose state is part of the training state.
      train_step: see `make_train_step`.
    """

    tx: optax.GradientTransformation
    train_step: StepFn


def create_stage_step(
    config: ConfigDict,
    stage: str,
    model: DRNet,
    cost: ModelCost,
    target: float | None,
    steps_per_epoch: int,
) -> StageStep:
    """Optimiser and step of a stage; see `create_loss`."""
    section = config[section_name(stage)]
    scales = {"classifier": 1.0}
    if stage != "pretrain" and model.predictor is not None:
        scales["predictor"] = section.predictor_lr_scale
    learning_rate_fns = {
        part: create_learning_rate_fn(section, steps_per_epoch, scale)
        for part, scale in scales.items()
    }
    loss = create_loss(config, stage, model, cost, target, steps_per_epoch)
    trains = None
    what = "all"
    if stage == "pretrain":
        what = what_is_trained(section.train, config.convert.labels)
    if stage == "pretrain" and (what != "all" or not section.batch_statistics):
        stages = TRAINED_STAGES.get(what, 0)
        layers = last_layers(model.classifier, model.resolutions[0], stages)
        part = TrainedPart(what, model.resolutions[0], layers, section.batch_statistics)
        loss, trains = PartLoss(loss, part), part.trains
    tx = create_optimizer(section, learning_rate_fns, trains)
    data = config.data
    train_step = make_train_step(
        loss,
        tx,
        TrainPreprocess(tuple(data.mean), tuple(data.std), data.flip),
        learning_rate_fns=learning_rate_fns,
        ema_decay=section.ema_decay,
        accumulate=section.accumulate,
    )
    return StageStep(tx, train_step)


def create_loss(
    config: ConfigDict,
    stage: str,
    model: DRNet,
    cost: ModelCost,
    target: float | None,
    steps_per_epoch: int,
) -> Loss:
    """What a stage minimises.

    Args:
      config: the whole configuration.
      stage: `'pretrain'`, `'joint'` or `'single'`.
      model: the network.
      cost: of its networks.
      target: alpha in the unit of `cost`, or None without a target (`config.alpha_target`).
      steps_per_epoch: optimiser steps in an epoch.
    """
    section = config[section_name(stage)]
    if stage == "pretrain":
        return PretrainLoss(model, section.label_smoothing, section.distillation, section.teacher)
    return JointLoss(
        model,
        cost.choice_costs,
        target=target,
        eta=section.eta,
        tau_fn=create_tau_fn(section, steps_per_epoch),
        label_smoothing=section.label_smoothing,
        gmacs=None if cost.measured is None else cost.choice_gmacs,
        branch_weight=section.branch_weight if stage == "single" else 0.0,
    )


def noise_key(seed: int, stage: str, sharding: Sharding | None = None) -> jax.Array:
    """The base key of a stage's noise; the initial weights come from `jax.random.key(seed)`.

    Args:
      seed: of the run.
      stage: its name.
      sharding: where to put the key, on devices of other processes too; default: the first device.
    """

    def key() -> jax.Array:
        """The key, computed where it is wanted: `device_put` takes keys to own devices only."""
        return jax.random.fold_in(jax.random.key(seed), 1 + STAGES.index(stage))

    return jax.jit(key, out_shardings=sharding)()
