"""Straight-through Gumbel-softmax: the differentiable choice of a resolution."""

import jax
import jax.numpy as jnp


def gumbel_softmax(
    key: jax.Array, logits: jax.Array, tau: float | jax.Array, *, hard: bool = True
) -> jax.Array:
    """Samples (nearly) one-hot choices from unnormalised log-probabilities.

    DRNet eq. 9-11 (eq. 11 is misprinted there); Jang et al. 2017, arXiv 1611.01144. The noise, the
    division by `tau` and the softmax run in float32 at least, whatever the dtype of `logits`.

    Args:
      key: a typed key, as `jax.random.key` makes it.
      logits: `[..., m]` unnormalised log-probabilities.
      tau: temperature > 0. Small: close to one-hot, large gradients. Large: close to uniform.
      hard: forward the exact one-hot of the largest entry and differentiate as if the soft sample
        had been returned (straight-through); otherwise return the soft sample.

    Returns:
      `[..., m]` float32 (float64 for float64 logits), summing to 1 over the last axis.

    Raises:
      TypeError: `key` is not a typed PRNG key.
    """
    if not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"gumbel_softmax needs a typed key (jax.random.key(seed)), got {jnp.asarray(key).dtype}"
        )
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    log_probs = jax.nn.log_softmax(logits.astype(dtype))
    noise = jax.random.gumbel(key, logits.shape, dtype)
    soft = jax.nn.softmax((log_probs + noise) / tau)
    if not hard:
        return soft
    one_hot = jax.nn.one_hot(soft.argmax(-1), soft.shape[-1], dtype=dtype)
    # soft - stop_gradient(soft) is exactly zero, so the forward value stays exactly one-hot;
    # (one_hot - soft) + soft would not be.
    return one_hot + (soft - jax.lax.stop_gradient(soft))
