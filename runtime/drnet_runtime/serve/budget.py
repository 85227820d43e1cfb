"""A request's budget, as lambda."""

import math
from collections.abc import Mapping
from typing import Any

from drnet_runtime import AdaptiveModel, BudgetError
from drnet_runtime.serve.errors import RequestError

# The names of budgets and what they mean; a request states at most one.
NAMES = {
    "lam": "lambda itself: 0 for the model's own choice, more to save",
    "fraction": "mean cost, as a fraction of the largest resolution's multiply-adds",
    "gmacs": "mean cost of a picture in GMACs",
    "drop": "points of top-1 that may be lost to the largest resolution",
}


def lambda_of(model: AdaptiveModel, budget: Mapping[str, Any]) -> float:
    """Lambda of a budget; 0 without one.

    Args:
      budget: one of `NAMES` at most, with its number, or the number as text.

    Raises:
      RequestError: 400: it is no number, or there are several; 422: it cannot be kept.
    """
    if not budget:
        return 0.0
    if len(budget) > 1:
        raise RequestError(400, f"state one budget, not {' and '.join(sorted(budget))}")
    ((name, given),) = budget.items()
    value = _number(name, given)
    if name == "lam":
        return value
    try:
        return model.lam_for(**{name: value})
    except BudgetError as error:
        raise RequestError(422, str(error)) from error


def _number(name: str, given: Any) -> float:
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise RequestError(400, f"{name} must be a finite number, got {given!r:.40}")
    return value
