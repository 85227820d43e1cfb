"""gumbel_softmax against its distribution and its derivative in NumPy."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import special, stats

from drnet_jax.models.gumbel import gumbel_softmax


def random_logits(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("offset", [0.0, 7.0])
@pytest.mark.parametrize("tau", [0.1, 5.0])
def test_choices_follow_the_softmax_of_the_logits(tau: float, offset: float) -> None:
    logits = np.array([1.0, 0.0, -1.0, 0.5], np.float32)
    draws = 20_000
    tiled = jnp.asarray(np.tile(logits + offset, (draws, 1)))
    counts = np.asarray(gumbel_softmax(jax.random.key(11), tiled, tau)).sum(axis=0)
    assert stats.chisquare(counts, draws * special.softmax(logits)).pvalue > 1e-3


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(
    seed=st.integers(0, 2**31 - 1), tau=st.floats(1e-3, 100.0), scale=st.floats(0.0, 1e4)
)
def test_hard_is_the_exact_one_hot_of_the_soft_samples_largest_entry(
    seed: int, tau: float, scale: float
) -> None:
    logits = scale * random_logits((5, 3), seed)
    hard = np.asarray(gumbel_softmax(jax.random.key(seed), jnp.asarray(logits), tau))
    soft = np.asarray(gumbel_softmax(jax.random.key(seed), jnp.asarray(logits), tau, hard=False))
    np.testing.assert_array_equal(hard, np.eye(3, dtype=np.float32)[soft.argmax(axis=-1)])


@pytest.mark.parametrize("tau", [0.3, 1.0, 4.0])
def test_soft_sample_and_both_gradients_match_numpy(tau: float) -> None:
    """d<w, soft>/dlogits = soft * (w - <w, soft>) / tau, for the hard sample as well."""
    logits, weights = random_logits((6, 3)), random_logits((6, 3), seed=1)
    key = jax.random.key(5)
    noise = np.asarray(jax.random.gumbel(key, logits.shape, jnp.float32), np.float64)
    soft = special.softmax((logits + noise) / tau, axis=-1)
    expected = soft * (weights - (weights * soft).sum(axis=-1, keepdims=True)) / tau

    np.testing.assert_allclose(
        gumbel_softmax(key, jnp.asarray(logits), tau, hard=False), soft, rtol=1e-5, atol=1e-6
    )
    gradients = [
        jax.grad(lambda x, hard=hard: (weights * gumbel_softmax(key, x, tau, hard=hard)).sum())(
            jnp.asarray(logits)
        )
        for hard in (True, False)
    ]
    np.testing.assert_array_equal(gradients[0], gradients[1])
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("tau", [1e-3, 1.0])
def test_extreme_logits_give_the_certain_choice_and_finite_gradients(
    hard: bool, tau: float
) -> None:
    logits = 1e4 * jnp.array([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0], [0.0, 1.0, -1.0]])
    sample = gumbel_softmax(jax.random.key(0), logits, tau, hard=hard)
    np.testing.assert_array_equal(sample, np.eye(3, dtype=np.float32)[[0, 2, 1]])
    weights = jnp.asarray(random_logits((3, 3)))
    gradient = jax.grad(
        lambda x: (weights * gumbel_softmax(jax.random.key(0), x, tau, hard=hard)).sum()
    )(logits)
    # A certain choice does not react to the logits.
    np.testing.assert_array_equal(gradient, np.zeros((3, 3), np.float32))


@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_large_equal_logits_stay_finite_at_low_temperature(magnitude: float) -> None:
    logits = jnp.full((50, 3), magnitude)
    soft = np.asarray(gumbel_softmax(jax.random.key(3), logits, 1e-3, hard=False))
    np.testing.assert_allclose(soft.sum(axis=-1), 1.0, rtol=1e-6)
    gradient = jax.grad(lambda x: gumbel_softmax(jax.random.key(3), x, 1e-3)[:, 0].sum())(logits)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("hard", [True, False])
def test_bfloat16_logits_are_computed_in_float32(hard: bool) -> None:
    logits = jnp.asarray(random_logits((64, 3))).astype(jnp.bfloat16)
    key = jax.random.key(2)
    low = gumbel_softmax(key, logits, 0.7, hard=hard)
    assert low.dtype == jnp.float32
    np.testing.assert_array_equal(
        low, gumbel_softmax(key, logits.astype(jnp.float32), 0.7, hard=hard)
    )


def test_legacy_key_is_refused() -> None:
    with pytest.raises(TypeError, match="typed key"):
        gumbel_softmax(jax.random.PRNGKey(0), jnp.zeros((1, 2)), 1.0)
