"""The losses against NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from drnet_jax.training.losses import (
    branch_cross_entropies,
    cross_entropy,
    distillation_loss,
    expected_cost,
    masked_mean,
    resource_regulariser,
)

MASKS = [None, np.array([True, False, True, True, False, False]), np.ones(6, bool)]
LABELS = np.array([0, 3, 1, 2, 3, 0])
COSTS = np.array([4.0, 2.5, 1.0], np.float32)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(scale=3.0, size=shape).astype(np.float32)


def numpy_cross_entropy(
    logits: np.ndarray, smoothing: float, mask: np.ndarray | None
) -> np.float64:
    log_probs = special.log_softmax(logits.astype(np.float64), axis=-1)
    per_sample = -(1 - smoothing) * log_probs[np.arange(6), LABELS]
    per_sample -= smoothing * log_probs.mean(axis=-1)
    return (per_sample if mask is None else per_sample[mask]).mean()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", [(6,), (6, 2, 3)])
def test_masked_mean(shape: tuple[int, ...], mask: np.ndarray | None) -> None:
    values = normal(*shape)
    expected = (values if mask is None else values[mask]).mean()
    np.testing.assert_allclose(masked_mean(jnp.asarray(values), mask), expected, rtol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing: float, mask: np.ndarray | None) -> None:
    logits = normal(6, 4)
    actual = cross_entropy(
        jnp.asarray(logits), jnp.asarray(LABELS), label_smoothing=smoothing, mask=mask
    )
    np.testing.assert_allclose(actual, numpy_cross_entropy(logits, smoothing, mask), rtol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_branch_cross_entropies_are_one_cross_entropy_a_resolution(
    smoothing: float, mask: np.ndarray | None
) -> None:
    logits = normal(6, 3, 4)
    actual = branch_cross_entropies(
        jnp.asarray(logits), jnp.asarray(LABELS), label_smoothing=smoothing, mask=mask
    )
    expected = [numpy_cross_entropy(logits[:, j], smoothing, mask) for j in range(3)]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_a_mask_without_samples_gives_zero_and_zero_gradient() -> None:
    def loss(logits: jax.Array) -> jax.Array:
        return cross_entropy(logits, jnp.asarray(LABELS), mask=jnp.zeros(6, bool))

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(normal(6, 4)))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros((6, 4)))


def test_masked_samples_receive_no_gradient_and_others_softmax_minus_label() -> None:
    logits, mask = normal(6, 4), MASKS[1]
    assert mask is not None
    gradient = jax.grad(cross_entropy)(jnp.asarray(logits), jnp.asarray(LABELS), mask=mask)
    expected = (special.softmax(logits, axis=-1) - np.eye(4)[LABELS]) / mask.sum()
    np.testing.assert_allclose(gradient, expected * mask[:, None], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("mask", "expected"), list(zip(MASKS, [17.5 / 6, 9.0 / 3, 17.5 / 6], strict=True))
)
def test_expected_cost(mask: np.ndarray | None, expected: float) -> None:
    """Of the choices 4, 2.5, 1, 4, 2.5 and a soft one of 3.5."""
    one_hot = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 0]]
    one_hot[5] = [5 / 6, 0, 1 / 6]  # 20/6 + 1/6 = 3.5
    actual = expected_cost(jnp.asarray(one_hot), jnp.asarray(COSTS), mask=mask)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("cost", "target", "expected", "slope"),
    [(3.0, 1.5, 0.5, 1 / 3), (4.0, 1.0, 1.0, 1 / 3), (1.5, 2.5, 0.0, 0.0)],
)
def test_resource_regulariser(cost: float, target: float, expected: float, slope: float) -> None:
    """(cost - target) / (4 - 1), zero and flat below the target."""
    value, gradient = jax.value_and_grad(resource_regulariser)(cost, jnp.asarray(COSTS), target)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-6)


def test_resource_regulariser_is_without_unit() -> None:
    giga = resource_regulariser(3.0, jnp.asarray(COSTS), 1.5)
    plain = resource_regulariser(3.0e9, jnp.asarray(COSTS * 1e9), 1.5e9)
    np.testing.assert_allclose(giga, plain, rtol=1e-6)


@pytest.mark.parametrize("target", [0.5, 4.0])
def test_resource_regulariser_of_one_resolution_is_zero(target: float) -> None:
    value, gradient = jax.value_and_grad(resource_regulariser)(2.0, jnp.array([2.0]), target)
    assert (value, gradient) == (0.0, 0.0)


@pytest.mark.parametrize("mask", MASKS)
def test_distillation_loss(mask: np.ndarray | None) -> None:
    """sum_k p_k log(p_k / q_k), p by the mean logits; its gradient is q - p, of one's own logits.

    With a gradient through the teacher every resolution would have a part in the others' losses.
    """
    logits = normal(6, 3, 4)
    log_p = special.log_softmax(logits.astype(np.float64).mean(axis=1, keepdims=True), axis=-1)
    log_q = special.log_softmax(logits.astype(np.float64), axis=-1)
    divergence = special.rel_entr(np.exp(log_p), np.exp(log_q)).sum(axis=-1)
    weight = np.ones(6) if mask is None else mask.astype(float)
    weight /= weight.sum()
    value = distillation_loss(jnp.asarray(logits), mask=mask)
    np.testing.assert_allclose(value, weight @ divergence, rtol=1e-4)
    gradients = jax.jacrev(partial(distillation_loss, mask=mask))(jnp.asarray(logits))
    own = weight[:, None, None] * (np.exp(log_q) - np.exp(log_p))
    want = np.zeros((3, 6, 3, 4))
    for resolution in range(3):
        want[resolution, :, resolution] = own[:, resolution]
    np.testing.assert_allclose(gradients, want, rtol=1e-4, atol=1e-6)


def test_distillation_from_the_largest_resolution() -> None:
    """Its own divergence is zero, and it gets no gradient from those of the others."""
    logits = normal(6, 3, 4)
    log_p = special.log_softmax(logits.astype(np.float64), axis=-1)
    divergence = special.rel_entr(np.exp(log_p[:, :1]), np.exp(log_p)).sum(axis=-1).mean(axis=0)
    value = distillation_loss(jnp.asarray(logits), teacher="largest")
    np.testing.assert_allclose(value, divergence, rtol=1e-4, atol=1e-7)
    gradient = jax.grad(lambda x: distillation_loss(x, teacher="largest").sum())(logits)
    own = (np.exp(log_p) - np.exp(log_p[:, :1])) / 6
    np.testing.assert_allclose(gradient, own, rtol=1e-4, atol=1e-6)
    assert np.abs(gradient[:, 0]).max() < 1e-6
