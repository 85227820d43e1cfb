"""The jitted training step: preprocessing, gradients, update and moving average, of any loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from drnet_jax.data.preprocess import normalise, random_flip
from drnet_jax.training.stage_losses import Batch, Loss, Metrics
from drnet_jax.training.train_state import TrainState

GradFn = Callable[[Any, Any, Batch, jax.Array, jax.Array], tuple[Any, tuple[Any, Metrics]]]
StepFn = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class TrainPreprocess:
    """Images as the network takes them in training.

    Attributes:
      mean: channel means, in 0..1.
      std: channel deviations.
      flip: mirror images at random.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = False

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """`[n, h, w, 3]` uint8 to float32."""
        images = normalise(images, self.mean, self.std)
        return random_flip(key, images) if self.flip else images


def make_train_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    preprocess: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    learning_rate_fns: Mapping[str, optax.Schedule],
    ema_decay: float = 0.0,
    accumulate: int = 1,
) -> StepFn:
    """The jitted `train_step(state, batch, key)`; it donates its state.

    A batch has `image` `[n, h, w, 3]` uint8, `label` `[n]` and optionally `mask` `[n]` bool. `key`
    is the same at every step: all randomness comes from `fold_in(key, state.step)`. Beside those of
    the loss, the metrics have the norm of the gradient and the learning rates.

    With `accumulate` a batch is worked off in as many micro-batches, one after another: gradients,
    losses and metrics are means over them, the regulariser sees the cost of one, and BatchNorm
    normalises with the statistics of one and updates its running statistics after each.

    Args:
      loss: what to minimise.
      tx: the optimiser.
      preprocess: from a key and a batch's images to what the network takes.
      learning_rate_fns: learning rate of every part, for the metrics.
      ema_decay: of the moving average of weights and statistics, where the state has one.
      accumulate: micro-batches a step.
    """
    grad_fn = _accumulated(jax.grad(loss, has_aux=True), accumulate)

    @partial(jax.jit, donate_argnames="state")
    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """The next state, and what was measured on the way."""
        image_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        images = preprocess(image_key, batch["image"])
        grads, (collections, metrics) = grad_fn(
            state.params, state.collections, {**batch, "image": images}, loss_key, state.step
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            newest = {"params": params, "collections": collections}
            # Not in float64, which `JAX_ENABLE_X64` would make of a ratio of integers.
            steps = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + steps) / (10 + steps))
            # In this form what does not change, as frozen parameters, keeps its bits.
            ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, newest)
        metrics["grad_norm"] = optax.tree.norm(grads)
        for part, learning_rate_fn in learning_rate_fns.items():
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
            mask = micro_batch.get("mask", jnp.ones(len(micro_batch["label"]), bool))
            weight = mask.sum().astype(jnp.float32)
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
