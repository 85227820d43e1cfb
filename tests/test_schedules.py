"""Temperature, cosine schedule, clipping, AdamW and flips against hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.config import default_config
from drnet_jax.data.preprocess import normalise, random_flip
from drnet_jax.training.optim import create_learning_rate_fn, create_optimizer
from drnet_jax.training.stage_losses import create_tau_fn


def test_temperature_decays_by_the_epoch_down_to_its_floor() -> None:
    stage = default_config().joint
    stage.tau, stage.tau_decay, stage.tau_min = 5.0, 0.9, 0.5
    tau = create_tau_fn(stage, 10)
    assert float(tau(0)) == pytest.approx(5.0)
    assert float(tau(15)) == pytest.approx(5.0 * 0.9**1.5)
    assert float(tau(1000)) == 0.5


@pytest.mark.parametrize("warmup_epochs", [0.0, 1.0])
def test_cosine_ends_at_zero(warmup_epochs: float) -> None:
    """All 40 rates of a stage: 0.6 (1 + cos(pi t / 39)) / 2, times the warm-up over 10."""
    stage = default_config().joint
    stage.num_epochs, stage.warmup_epochs, stage.base_learning_rate = 4, warmup_epochs, 0.2
    rates = [float(create_learning_rate_fn(stage, 10, 3.0)(step)) for step in range(40)]
    steps = np.arange(40)
    want = 0.3 * (1 + np.cos(np.pi * steps / 39))
    if warmup_epochs:
        want *= np.minimum(1, (steps + 1) / 10)
    np.testing.assert_allclose(rates, want, rtol=1e-5, atol=1e-7)
    assert rates[39] == 0.0 and rates[38] > 1e-4


def test_cosine_of_a_single_step_is_the_base_rate() -> None:
    stage = default_config().joint
    stage.num_epochs, stage.warmup_epochs, stage.base_learning_rate = 1, 0.0, 0.2
    assert float(create_learning_rate_fn(stage, 1, 1.0)(0)) == pytest.approx(0.2)


def test_adamw_after_clipping() -> None:
    """Adam's first step is the sign of the gradient; decay is decoupled and spares the bias."""
    stage = default_config().joint
    stage.clip_norm, stage.weight_decay, stage.decay_all = 1.0, 0.1, False
    tx = create_optimizer(stage, {"classifier": lambda _: 0.5})
    params = {"classifier": {"kernel": jnp.array([[2.0, -4.0]]), "bias": jnp.array([3.0])}}
    grads = {"classifier": {"kernel": jnp.array([[30.0, -40.0]]), "bias": jnp.array([0.0])}}
    updates, opt_state = tx.update(grads, tx.init(params), params)
    want = -0.5 * (np.array([[1.0, -1.0]]) + 0.1 * np.array([[2.0, -4.0]]))
    np.testing.assert_allclose(updates["classifier"]["kernel"], want, rtol=1e-5)
    np.testing.assert_allclose(updates["classifier"]["bias"], [0.0])
    # The first moment is a tenth of the gradient, scaled from norm 50 to norm 1.
    moments = [leaf for leaf in jax.tree.leaves(opt_state) if leaf.shape == (1, 2)]
    assert any(np.allclose(moment, [[0.06, -0.08]]) for moment in moments)


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 2, 3, 1)))
    flipped = np.asarray(random_flip(jax.random.key(0), images))
    mirrored = (flipped == np.asarray(images)[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (flipped == np.asarray(images)).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert abs(mirrored.mean() - 0.5) < 0.04


def test_normalise() -> None:
    pixels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    want = [(0 - 0.5) / 0.25, (0.2 - 0.4) / 0.5, (1 - 0.1) / 0.2]
    got = normalise(jnp.asarray(pixels), (0.5, 0.4, 0.1), (0.25, 0.5, 0.2))
    np.testing.assert_allclose(np.asarray(got).ravel(), want, rtol=1e-6)
