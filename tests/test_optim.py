"""Schedules and optimisers against hand-computed values and a NumPy recurrence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.config import default_config
from drnet_jax.training.optim import create_learning_rate_fn, create_optimizer


def test_paper_schedule() -> None:
    """Warm-up over 3 of 70 epochs, a tenth every 20, a tenth again for the predictor."""
    stage = default_config().pretrain
    stage.num_epochs, stage.base_learning_rate, stage.schedule = 70, 0.1, "step"
    stage.warmup_epochs, stage.decay_epochs = 3.0, 20
    rate = create_learning_rate_fn(stage, 10, 1.0)
    assert float(rate(0)) == pytest.approx(0.1 / 30)
    assert float(rate(14)) == pytest.approx(0.05)
    assert float(rate(199)) == pytest.approx(0.1)
    assert float(rate(200)) == pytest.approx(0.01)
    assert float(rate(699)) == pytest.approx(1e-4)
    assert float(create_learning_rate_fn(stage, 10, 0.1)(100)) == pytest.approx(0.01)


def test_more_steps_than_integers_of_32_bits() -> None:
    stage = default_config().pretrain
    stage.schedule, stage.warmup_epochs, stage.decay_epochs = "step", 2.0, 2**31 - 1
    rate = create_learning_rate_fn(stage, 10, 1.0)
    assert float(jax.jit(rate)(jnp.int32(40))) == pytest.approx(4e-3)


@pytest.mark.parametrize("decay_all", [True, False])
def test_sgd_is_coupled_and_per_part(decay_all: bool) -> None:
    """Three steps equal PyTorch's recurrence v = m v + (g + wd p); p -= lr v."""
    stage = default_config().joint
    stage.optimizer, stage.weight_decay, stage.decay_all = "sgd", 0.1, decay_all
    rates = {"classifier": 0.5, "predictor": 0.05}
    tx = create_optimizer(stage, {part: lambda _, r=rate: r for part, rate in rates.items()})
    rng = np.random.default_rng(0)
    params = {p: {"kernel": rng.normal(size=(2, 3)), "bias": rng.normal(size=3)} for p in rates}
    want = jax.tree.map(np.copy, params)
    velocity = jax.tree.map(np.zeros_like, params)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    opt_state = tx.init(params)
    for _ in range(3):
        grads = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), want)
        updates, opt_state = tx.update(
            jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), grads), opt_state, params
        )
        params = jax.tree.map(jnp.add, params, updates)
        for part, rate in rates.items():
            for name, weight in want[part].items():
                decay = 0.1 if decay_all or name == "kernel" else 0.0
                velocity[part][name] = (
                    0.9 * velocity[part][name] + grads[part][name] + decay * weight
                )
                want[part][name] = weight - rate * velocity[part][name]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, want)


def test_rmsprop_is_tensorflows() -> None:
    """While the rate warms up over 10 steps, and the step after.

    ms = 0.9 ms + 0.1 g^2 from 1; m = 0.9 m + rate g / sqrt(ms + 1); p -= m, where g has the decay
    of the kernel (`tf.train.RMSPropOptimizer`, epsilon 1, as TF-Slim has it).
    """
    stage = default_config().joint
    stage.optimizer, stage.weight_decay, stage.momentum = "rmsprop", 0.1, 0.9
    stage.schedule, stage.warmup_epochs, stage.base_learning_rate = "constant", 1.0, 0.5
    tx = create_optimizer(stage, {"classifier": create_learning_rate_fn(stage, 10, 1.0)})
    rng = np.random.default_rng(0)
    want = {"kernel": rng.normal(size=(2, 3)), "bias": rng.normal(size=3)}
    params = {"classifier": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), want)}
    opt_state = tx.init(params)
    square, momentum = jax.tree.map(np.ones_like, want), jax.tree.map(np.zeros_like, want)
    for step in range(11):
        grads = {name: rng.normal(size=weight.shape) for name, weight in want.items()}
        floats = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), grads)
        updates, opt_state = tx.update({"classifier": floats}, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        rate = 0.5 * min(1.0, (step + 1) / 10)
        for name, weight in want.items():
            grad = grads[name] + (0.1 * weight if name == "kernel" else 0.0)
            square[name] = 0.9 * square[name] + 0.1 * grad**2
            momentum[name] = 0.9 * momentum[name] + rate * grad / np.sqrt(square[name] + 1.0)
            want[name] = weight - momentum[name]
        for name, weight in want.items():
            np.testing.assert_allclose(params["classifier"][name], weight, rtol=1e-5, atol=1e-6)
