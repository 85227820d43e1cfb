"""How much of the first look's logits to add to the second's."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

# Of a second and a first look, to begin with; what is divided by stays above zero.
_START = (1.0, 0.1)
_BOUNDS = ((1e-6, None), (0.0, None))
# Wrong answers of the second look that a weight is fitted to, at least.
_LEAST_WRONG = 5


def fit_weights(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Weights of the first look in the answers, by the cross-entropy of held-out images.

    Each together with a temperature of the answer, which is not kept: training makes logits too
    large, and a weight should not have to mend that. Both factors, of the second and of the first
    look, are those of a convex problem, solved by SciPy's L-BFGS-B. Where a second look has fewer
    than five wrong answers, which its weight would be fitted to, that is zero.

    Args:
      logits: `[n, m, k]` of n images that the classifier was not trained on, the first look last.
      label: `[n]`.

    Returns:
      `[m]` float32, not below zero; the last one, of the first look itself, is zero.
    """
    m = logits.shape[1]
    weights = [_weight(logits[:, j], logits[:, -1], label) for j in range(m - 1)]
    return np.array([*weights, 0.0], np.float32)


def _weight(second: np.ndarray, first: np.ndarray, label: np.ndarray) -> float:
    """Of two looks' logits `[n, k]`."""
    if (second.argmax(axis=1) != label).sum() < _LEAST_WRONG:
        return 0.0
    scale = max(float(second.std()), float(first.std()), 1e-6)
    looks = [logits.astype(np.float64) / scale for logits in (second, first)]
    rows = np.arange(len(label))

    def cross_entropy(factors: np.ndarray) -> tuple[float, np.ndarray]:
        """Its mean, and its gradient by the two factors."""
        log_p = log_softmax(
            sum(f * logits for f, logits in zip(factors, looks, strict=True)), axis=1
        )
        slope = np.exp(log_p)
        slope[rows, label] -= 1
        gradient = np.array([(slope * logits).sum() for logits in looks]) / len(label)
        return -float(log_p[rows, label].mean()), gradient

    found = minimize(cross_entropy, _START, jac=True, method="L-BFGS-B", bounds=_BOUNDS)
    return float(found.x[1] / found.x[0])
