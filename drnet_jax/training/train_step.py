"""The jitted training step of each stage."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from drnet_jax.data.preprocess import normalise, random_flip
from drnet_jax.models.drnet import DRNet
from drnet_jax.training.losses import (
    branch_cross_entropies,
    cross_entropy,
    expected_cost,
    masked_mean,
    resource_regulariser,
)
from drnet_jax.training.train_state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
LossFn = Callable[[Any, Any, Batch, jax.Array, jax.Array], tuple[jax.Array, tuple[Any, Metrics]]]
GradFn = Callable[[Any, Any, Batch, jax.Array, jax.Array], tuple[Any, tuple[Any, Metrics]]]
StepFn = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class StepSettings:
    """What a step needs beside the model and the optimiser.

    Attributes:
      costs: GMACs of the classifier at every resolution.
      target: alpha in GMACs, or None for no regulariser.
      eta: weight of the regulariser.
      tau_fn: temperature as a function of the step.
      learning_rate_fns: learning rate of every part, for the log.
      key: base key; the step's own is folded in from its number.
      mean: channel means of the images, in 0..1.
      std: channel deviations.
      flip: mirror images at random.
      label_smoothing: of the cross-entropies.
      ema_decay: of the moving average of weights and statistics; 0 keeps none.
      accumulate: micro-batches a step.
    """

    costs: tuple[float, ...]
    target: float | None
    eta: float
    tau_fn: optax.Schedule
    learning_rate_fns: dict[str, optax.Schedule]
    key: jax.Array
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    label_smoothing: float
    ema_decay: float
    accumulate: int = 1


def create_tau_fn(stage: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """tau * tau_decay^epoch, not below tau_min (tau_decay = 1: constant)."""

    def tau(step: Any) -> Any:
        """The temperature after so many steps."""
        epoch = step / steps_per_epoch
        return jnp.maximum(stage.tau_min, stage.tau * stage.tau_decay**epoch)

    return tau


def make_train_step(
    stage: str, model: DRNet, tx: optax.GradientTransformation, settings: StepSettings
) -> StepFn:
    """The jitted step of stage `'pretrain'` or `'joint'`; it donates its state.

    A batch has `image` `[n, h, w, 3]` uint8, `label` `[n]` and optionally `mask` `[n]` bool. All
    randomness comes from `fold_in(settings.key, state.step)`. Metrics are scalars or `[m]` arrays.

    With `settings.accumulate` a batch is worked off in as many micro-batches, one after another:
    gradients, losses and metrics are means over them, the regulariser sees the cost of one, and
    BatchNorm normalises with the statistics of one and updates its running statistics after each.
    """
    losses = {"pretrain": _pretrain_loss, "joint": _joint_loss}
    loss_fn: LossFn = partial(losses[stage], model, settings)
    grad_fn = _accumulated(jax.grad(loss_fn, has_aux=True), settings.accumulate)
    # On the host: a constant on the device would be fetched from there when the step is traced.
    key_data: Any = np.asarray(jax.random.key_data(settings.key))
    key_impl = jax.random.key_impl(settings.key)

    @partial(jax.jit, donate_argnames="state")
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The next state, and what was measured on the way."""
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data, impl=key_impl), state.step)
        flip_key, gumbel_key = jax.random.split(key)
        images = normalise(batch["image"], settings.mean, settings.std)
        if settings.flip:
            images = random_flip(flip_key, images)
        grads, (collections, metrics) = grad_fn(
            state.params, state.collections, {**batch, "image": images}, gumbel_key, state.step
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            newest = {"params": params, "collections": collections}
            decay = jnp.minimum(settings.ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update(newest, ema, 1 - decay)
        metrics["grad_norm"] = optax.tree.norm(grads)
        for part, learning_rate_fn in settings.learning_rate_fns.items():
            metrics[f"learning_rate_{part}"] = learning_rate_fn(state.step)
        return TrainState(state.step + 1, params, collections, opt_state, ema), metrics

    return train_step


def _accumulated(grad_fn: GradFn, count: int) -> GradFn:
    """The same function, worked off in `count` micro-batches."""
    if count == 1:
        return grad_fn

    def split(values: jax.Array) -> jax.Array:
        """`[n, ...]` as `[count, n / count, ...]`."""
        # Every count-th sample: the batch axis stays where it lies on the devices.
        return values.reshape(-1, count, *values.shape[1:]).swapaxes(0, 1)

    def accumulated(
        params: Any, collections: Any, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Any, tuple[Any, Metrics]]:
        """Mean gradients, the last statistics and mean metrics."""

        def work_off(carry: Any, part: Any) -> tuple[Any, tuple[Metrics, jax.Array]]:
            """One micro-batch."""
            collections, total = carry
            micro_batch, index = part
            grads, (collections, metrics) = grad_fn(
                params, collections, micro_batch, jax.random.fold_in(key, index), step
            )
            # Samples that count, so that masked ones do not weigh.
            weight = micro_batch.get("mask", jnp.ones(len(micro_batch["label"]))).sum()
            total = jax.tree.map(lambda old, grad: old + weight * grad, total, grads)
            return (collections, total), (metrics, weight)

        parts = jax.tree.map(split, batch), jnp.arange(count)
        start = collections, jax.tree.map(jnp.zeros_like, params)
        (collections, total), (metrics, weights) = jax.lax.scan(work_off, start, parts)
        shares = weights / jnp.maximum(weights.sum(), 1)
        means = jax.tree.map(lambda values: jnp.tensordot(shares, values, 1), metrics)
        grads = jax.tree.map(lambda grad: grad / jnp.maximum(weights.sum(), 1), total)
        return grads, (collections, means)

    return accumulated


def _pretrain_loss(
    model: DRNet,
    settings: StepSettings,
    params: Any,
    collections: Any,
    batch: Batch,
    gumbel_key: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, tuple[Any, Metrics]]:
    """Stage 1: the sum of the cross-entropies at all resolutions."""
    del gumbel_key, step
    mask = batch.get("mask")
    branch_logits, updated = model.apply(
        {"params": params, **collections},
        batch["image"],
        train=True,
        sample_mask=mask,
        method="classify_all",
        mutable=list(collections),
    )
    ces = branch_cross_entropies(
        branch_logits, batch["label"], label_smoothing=settings.label_smoothing, mask=mask
    )
    loss = ces.sum()
    metrics = {"loss": loss, "ce": loss, **_branch_accuracies(branch_logits, batch)}
    metrics["accuracy"] = metrics["accuracy_per_resolution"][0]
    return loss, (updated, metrics)


def _joint_loss(
    model: DRNet,
    settings: StepSettings,
    params: Any,
    collections: Any,
    batch: Batch,
    gumbel_key: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, tuple[Any, Metrics]]:
    """Stage 2: L_ce + eta * L_reg (DRNet eq. 8)."""
    mask = batch.get("mask")
    costs = jnp.asarray(settings.costs)
    tau = settings.tau_fn(step)
    output, updated = model.apply(
        {"params": params, **collections},
        batch["image"],
        tau=tau,
        train=True,
        sample_mask=mask,
        method="sample",
        rngs={"gumbel": gumbel_key},
        mutable=list(collections),
    )
    ce = cross_entropy(
        output.logits, batch["label"], label_smoothing=settings.label_smoothing, mask=mask
    )
    sampled_cost = expected_cost(output.one_hot, costs, mask=mask)
    reg = jnp.zeros(())
    if settings.target is not None:
        reg = resource_regulariser(sampled_cost, costs, settings.target)
    loss = ce + settings.eta * reg
    greedy = jax.nn.one_hot(output.scores.argmax(-1), len(settings.costs))
    metrics = {
        "loss": loss,
        "ce": ce,
        "reg": reg,
        "tau": tau,
        "accuracy": masked_mean(output.logits.argmax(-1) == batch["label"], mask),
        "shares_sampled": jax.vmap(masked_mean, (1, None))(output.one_hot, mask),
        "shares": jax.vmap(masked_mean, (1, None))(greedy, mask),
        "gmacs_sampled": sampled_cost,
        "gmacs_argmax": expected_cost(greedy, costs, mask=mask),
        **_branch_accuracies(output.branch_logits, batch),
    }
    return loss, (updated, metrics)


def _branch_accuracies(branch_logits: jax.Array, batch: Batch) -> Metrics:
    correct = branch_logits.argmax(-1) == batch["label"][:, None]
    per_resolution = jax.vmap(masked_mean, (1, None))(correct, batch.get("mask"))
    return {"accuracy_per_resolution": per_resolution}
