"""Choose by how likely each resolution is right: argmax_j P_j - lambda * c_j."""

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drnet_jax.budgets.calibration import calibrate
from drnet_jax.training.objectives.fitting import FittedHead, HeldOut

# Strengths of the penalty to choose among, by cross-validation in so many parts.
_STRENGTHS = tuple(10.0**exponent for exponent in range(-4, 2))
_PARTS = 5


def fit(held_out: HeldOut) -> FittedHead:
    """m logistic regressions of "right at r_j", and lambda for the target.

    Scikit-learn's, with a penalty that is chosen by log-loss in a cross-validation.

    Args:
      held_out: what to fit to.
    """
    columns = [_regression(held_out.inputs, correct) for correct in held_out.correct.T]
    kernel = np.stack([column[0] for column in columns], axis=1)
    bias = np.array([column[1] for column in columns])
    likely = expit(held_out.inputs @ kernel + bias)
    offset = target_lambda(likely, held_out) * held_out.costs
    return FittedHead(kernel, bias, offset)


def target_lambda(scores: np.ndarray, held_out: HeldOut) -> float:
    """Lambda of the most accurate choice within the target; 0 without one.

    Args:
      scores: `[n, m]`.
      held_out: what they are of.

    Raises:
      BudgetError: no choice is within the target.
    """
    if held_out.target is None:
        return 0.0
    correct = held_out.correct
    found = calibrate(scores, correct, correct[:, 0], held_out.costs, 0.0, "")
    return found.for_gmacs(held_out.limit).lam


def _regression(inputs: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, float]:
    """Kernel `[f]` and bias of one column `[n]`."""
    rarer = min(int(correct.sum()), int((~correct).sum()))
    if rarer < _PARTS:
        # Too few of one kind to tell them apart: as likely as it is on the whole (Laplace).
        likely = (correct.sum() + 1) / (len(correct) + 2)
        return np.zeros(inputs.shape[1]), float(np.log(likely / (1 - likely)))
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": _STRENGTHS},
        scoring="neg_log_loss",
        # Images come class by class.
        cv=StratifiedKFold(_PARTS, shuffle=True, random_state=0),
    ).fit(inputs, correct)
    scaler, regression = search.best_estimator_
    kernel = regression.coef_[0] / scaler.scale_
    return kernel, float(regression.intercept_[0] - kernel @ scaler.mean_)
