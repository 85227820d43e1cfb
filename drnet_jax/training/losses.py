"""The losses of DRNet: cross-entropies and the resource regulariser."""

import jax
import jax.numpy as jnp
import optax


def masked_mean(values: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mean of `[n, ...]` over all axes, or over the samples that `mask` `[n]` marks True.

    Of flags and integers float32; zero, not NaN, if it marks none.
    """
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.float32)
    if mask is None:
        return values.mean()
    where = mask.reshape(-1, *[1] * (values.ndim - 1))
    count = jnp.maximum(mask.sum() * values[0].size, 1)
    return values.sum(where=where) / count


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Mean softmax cross-entropy (DRNet eq. 5), in nats.

    Args:
      logits: `[n, k]`.
      labels: `[n]` integers.
      label_smoothing: mass that is spread evenly over all k classes.
      mask: `[n]` bool; samples marked False are left out.
    """
    targets = optax.smooth_labels(
        jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), label_smoothing
    )
    return masked_mean(optax.softmax_cross_entropy(logits, targets), mask)


def branch_cross_entropies(
    branch_logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Mean cross-entropy `[m]` of every resolution's logits `[n, m, k]`; stage 1 sums them."""

    def one_branch(logits: jax.Array) -> jax.Array:
        """Mean cross-entropy of one resolution's logits `[n, k]`."""
        return cross_entropy(logits, labels, label_smoothing=label_smoothing, mask=mask)

    return jax.vmap(one_branch, in_axes=1)(branch_logits)


def expected_cost(
    one_hot: jax.Array, costs: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Mean cost E[F] of the choices h (DRNet eq. 6).

    Args:
      one_hot: `[n, m]` choices.
      costs: `[m]` cost of each resolution, in any unit.
      mask: `[n]` bool; samples marked False are left out.
    """
    return masked_mean((one_hot * costs).sum(axis=-1), mask)


def resource_regulariser(cost: jax.Array, costs: jax.Array, target: float | jax.Array) -> jax.Array:
    """max(0, (E[F] - alpha) / (C_max - C_min)) (DRNet eq. 7), without unit.

    Args:
      cost: E[F].
      costs: `[m]` cost of each resolution, in the unit of `cost`.
      target: alpha, in the same unit.
    """
    spread = costs.max() - costs.min()
    # One resolution: no choice to regularise.
    return jnp.where(spread > 0, jnp.maximum(0.0, cost - target) / jnp.maximum(spread, 1e-12), 0.0)


def distillation_loss(
    branch_logits: jax.Array, *, teacher: str = "ensemble", mask: jax.Array | None = None
) -> jax.Array:
    """Kullback-Leibler divergence `[m]` of every resolution from a teacher, in nats.

    Of the ensemble the teacher's logits are the mean over the resolutions: the distillation of
    RS-Nets (Wang et al., "Resolution Switchable Networks", ECCV 2020, arXiv 2007.09558). There the
    weights of the ensemble are learned; here they are equal, so that nothing is trained that is not
    used afterwards. No teacher gets a gradient.

    Args:
      branch_logits: `[n, m, k]`, of the same crops, the largest resolution first.
      teacher: `'ensemble'`, or `'largest'`, the largest resolution, whose own divergence is zero.
      mask: `[n]` bool; samples marked False are left out.
    """
    logits = branch_logits[:, :1] if teacher == "largest" else branch_logits
    target = jax.lax.stop_gradient(logits.mean(axis=1, keepdims=True))
    log_p, log_q = jax.nn.log_softmax(target), jax.nn.log_softmax(branch_logits)
    divergence = (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    return jax.vmap(masked_mean, (1, None))(divergence, mask)
