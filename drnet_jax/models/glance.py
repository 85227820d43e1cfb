"""A first look as the resolution predictor: what the classifier said at its smallest resolution."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)

# Of the norm that `norm_logit` divides by.
_P = 4.0
_TINY = 1e-12


@flax.struct.dataclass
class Look:
    """What the classifier gives for n images of k classes at one resolution.

    Attributes:
      logits: `[n, k]`.
      pooled: `[n, d]`, the mean of its last feature map, of which the logits are a dense layer.
    """

    logits: jax.Array
    pooled: jax.Array


def margin(logits: jax.Array) -> jax.Array:
    """`[n]`: the largest probability of logits `[n, k]` minus the second largest."""
    best = _best_two(jax.nn.softmax(logits))
    return best[:, 0] - best[:, -1]


def confidence(logits: jax.Array) -> jax.Array:
    """`[n]`: the largest probability of logits `[n, k]`."""
    return jax.nn.softmax(logits).max(axis=1)


def entropy(logits: jax.Array) -> jax.Array:
    """`[n]`: minus the entropy of logits `[n, k]`, over that of equal probabilities."""
    log_p = jax.nn.log_softmax(logits)
    return (jnp.exp(log_p) * log_p).sum(axis=1) / jnp.log(max(logits.shape[1], 2))


def logit_margin(logits: jax.Array) -> jax.Array:
    """`[n]`: the largest of the logits `[n, k]` minus the second largest, in nats."""
    best = _best_two(logits)
    return best[:, 0] - best[:, -1]


def norm_logit(logits: jax.Array) -> jax.Array:
    """`[n]`: the largest of the centred logits `[n, k]` over their p-norm, p = 4.

    Cattelan and Silva, "How to fix a broken confidence estimator" (arXiv 2305.15508, eq. 10).
    """
    centred = logits - logits.mean(axis=1, keepdims=True)
    norm = (jnp.abs(centred) ** _P).sum(axis=1) ** (1 / _P)
    return centred.max(axis=1) / (norm + _TINY)


def _best_two(values: jax.Array) -> jax.Array:
    """The largest two of `[n, k]`, or the only one."""
    best, _ = jax.lax.top_k(values, min(2, values.shape[1]))
    return best


# From logits [n, k] to [n]: the larger, the surer is the first look.
SCORES: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "margin": margin,
    "confidence": confidence,
    "entropy": entropy,
    "logit_margin": logit_margin,
    "norm_logit": norm_logit,
}


class GlanceHead(nn.Module):
    """Scores the candidate resolutions from a first look, and keeps what it said for the second.

    What is fitted to held-out images, and not by gradients, lies in a collection of its own,
    `'fitted'`: the weight of the first look's logits in every answer, and what is taken off every
    score.

    Attributes:
      num_options: m, as many as resolutions; the last is the smallest, at which the first look is.
      inputs: what the scores are linear in: names of `SCORES`, and `'pooled'` for the features.
      probabilities: the scores are probabilities (by the logistic function), not their logarithms.
      reuse: add the first look's logits to the second's, with weights.
    """

    num_options: int
    inputs: tuple[str, ...]
    probabilities: bool = False
    reuse: bool = False

    def setup(self) -> None:
        """Makes the layer and the fitted values, which begin at zero."""
        # Probabilities near 1 would be equal in the fewer digits of a GPU's matrix products.
        self.fc = nn.Dense(
            self.num_options,
            kernel_init=nn.initializers.zeros,
            precision=jax.lax.Precision.HIGHEST,
        )
        zeros = (jnp.zeros, (self.num_options,), jnp.float32)
        self.offset = self.variable("fitted", "offset", *zeros)
        self.weight = self.variable("fitted", "weight", *zeros) if self.reuse else None

    def __call__(self, look: Look) -> jax.Array:
        """Scores `[n, m]` of the resolutions, without a gradient into the classifier."""
        scores = self.fc(jax.lax.stop_gradient(self.features(look)))
        if self.probabilities:
            scores = nn.sigmoid(scores)
        return scores - self.offset.value

    @nn.nowrap
    def features(self, look: Look) -> jax.Array:
        """`[n, f]`, what the scores are linear in."""
        columns = [
            look.pooled if name == "pooled" else SCORES[name](look.logits)[:, None]
            for name in self.inputs
        ]
        return jnp.concatenate(columns, axis=1)

    def answers(self, branch_logits: jax.Array) -> jax.Array:
        """Logits `[n, m, k]` of the answer that every choice leads to.

        Args:
          branch_logits: `[n, m, k]`, of the classifier at every resolution.
        """
        if self.weight is None:
            return branch_logits
        return mixed(branch_logits, self.weight.value)


def mixed(branch_logits: ArrayT, weight: ArrayT) -> ArrayT:
    """Logits `[n, m, k]` of second looks with the first look's added, with a weight `[m]` each.

    Args:
      branch_logits: `[n, m, k]`, of every resolution; the first look is the last one.
      weight: its last element is zero: without a second look nothing is added.
    """
    return branch_logits + weight[:, None] * branch_logits[:, -1:]
