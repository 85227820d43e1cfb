"""How much of the first look's logits to add to the second's."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from drnet_jax.models.glance import mixed

# A weight that changes nothing, and a temperature that changes nothing, to begin with.
_START = (0.0, 0.0)


def fit_weights(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Weights of the first look in the answers, by the cross-entropy of held-out images.

    Each together with a temperature of the answer, which is not kept: training makes logits too
    large, and a weight should not have to mend that. By SciPy's Nelder-Mead.

    Args:
      logits: `[n, m, k]` of n images that the classifier was not trained on, the first look last.
      label: `[n]`.

    Returns:
      `[m]` float32, not below zero; the last one, of the first look itself, is zero.
    """
    weights = [_weight(logits[:, [j, -1]], label) for j in range(logits.shape[1] - 1)]
    return np.array([*weights, 0.0], np.float32)


def _weight(logits: np.ndarray, label: np.ndarray) -> float:
    """Of a second and a first look `[n, 2, k]`."""
    logits = logits.astype(np.float64)

    def cross_entropy(values: np.ndarray) -> float:
        """At a weight and the logarithm of an inverse temperature."""
        weight, log_scale = values
        answers = np.exp(log_scale) * mixed(logits, np.array([weight, 0.0]))[:, 0]
        own = np.take_along_axis(log_softmax(answers, axis=1), label[:, None], axis=1)
        return -float(own.mean())

    found = minimize(
        cross_entropy, _START, method="Nelder-Mead", bounds=((0.0, None), (None, None))
    )
    return float(found.x[0])
