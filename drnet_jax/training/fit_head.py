"""A head for the classes of the data, fitted to features of a network that is not trained."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

# Of the penalty (scikit-learn's C), from the strongest on.
_STRENGTHS = tuple(10.0**exponent for exponent in range(-4, 2))
_MAX_ITERATIONS = 300


@dataclass(frozen=True)
class LinearHead:
    """The last layer of a classifier.

    Attributes:
      kernel: `[d, k]` float32.
      bias: `[k]` float32.
      strength: scikit-learn's C of the logistic regression.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float

    def logits(self, features: np.ndarray) -> np.ndarray:
        """`[..., k]` of features `[..., d]`."""
        return features @ self.kernel + self.bias


def fit_head(
    features: np.ndarray,
    label: np.ndarray,
    held_out_features: np.ndarray,
    held_out_label: np.ndarray,
) -> LinearHead:
    """One logistic regression for all resolutions, which share the head.

    Scikit-learn's, of standardised features. Its penalty is the strongest after which the log-loss
    on held-out images does not fall any more.

    Args:
      features: `[n, m, d]` of n images at m resolutions, with every one of the k classes.
      label: `[n]`, 0 to k - 1.
      held_out_features: `[p, m, d]`.
      held_out_label: `[p]`.
    """
    scaler = StandardScaler().fit(_rows(features))
    inputs, targets = scaler.transform(_rows(features)), _repeated(label, features)
    held_out = scaler.transform(_rows(held_out_features))
    held_out_targets = _repeated(held_out_label, held_out_features)
    regression = LogisticRegression(max_iter=_MAX_ITERATIONS, warm_start=True)
    best: tuple[float, LinearHead] | None = None
    for strength in _STRENGTHS:
        with warnings.catch_warnings():
            # Held-out images judge how far it came.
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.set_params(C=strength).fit(inputs, targets)
        loss = log_loss(
            held_out_targets, regression.predict_proba(held_out), labels=regression.classes_
        )
        if best is not None and loss >= best[0]:
            break
        best = loss, _head(regression, scaler, strength)
    assert best is not None
    return best[1]


def _rows(features: np.ndarray) -> np.ndarray:
    """`[n * m, d]` of `[n, m, d]`."""
    return features.reshape(-1, features.shape[-1]).astype(np.float64)


def _repeated(label: np.ndarray, features: np.ndarray) -> np.ndarray:
    return np.repeat(label, features.shape[1])


def _head(regression: LogisticRegression, scaler: StandardScaler, strength: float) -> LinearHead:
    """On features that are not standardised."""
    rows, bias = regression.coef_, regression.intercept_
    if len(rows) == 1:
        # Of two classes it has the difference of the logits.
        rows, bias = np.concatenate([-rows, rows]) / 2, np.concatenate([-bias, bias]) / 2
    kernel = (rows / scaler.scale_).T
    return LinearHead(
        kernel.astype(np.float32), (bias - scaler.mean_ @ kernel).astype(np.float32), strength
    )
