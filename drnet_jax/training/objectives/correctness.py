"""Choose by how likely each resolution is right: argmax_j P_j - lambda * c_j."""

from collections.abc import Callable

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from drnet_jax.budgets.calibration import Calibration, Point, calibrate
from drnet_jax.training.objectives.fitting import FittedHead, HeldOut

# Strengths of the penalty to choose among, by cross-validation in so many parts.
_STRENGTHS = tuple(10.0**exponent for exponent in range(-4, 2))
_PARTS = 5


def fit(held_out: HeldOut) -> FittedHead:
    """The choice that gets most right within the target, see `fit_at`."""
    return fit_at(held_out, Calibration.for_gmacs)


def spend(held_out: HeldOut) -> FittedHead:
    """The choice that spends the target: for few images, which tell better where looks help most
    than how many of them do, see `fit_at`.
    """
    return fit_at(held_out, Calibration.spending)


def fit_at(held_out: HeldOut, pick: Callable[[Calibration, float], Point]) -> FittedHead:
    """m logistic regressions of "right at r_j", and lambda for the target.

    Scikit-learn's, with a penalty that is chosen by log-loss in a cross-validation.

    Args:
      held_out: what to fit to.
      pick: lambda by the most that a mean cost may be; without a target it is 0.

    Raises:
      BudgetError: no choice is within the target.
    """
    columns = [_regression(held_out.inputs, correct) for correct in held_out.correct.T]
    kernel = np.stack([column[0] for column in columns], axis=1)
    bias = np.array([column[1] for column in columns])
    likely = expit(held_out.inputs @ kernel + bias)
    if held_out.target is None:
        return FittedHead(kernel, bias, np.zeros_like(held_out.costs))
    correct = held_out.correct
    found = calibrate(likely, correct, correct[:, 0], held_out.costs, 0.0, "")
    return FittedHead(kernel, bias, pick(found, held_out.limit).lam * held_out.costs)


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
