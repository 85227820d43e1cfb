"""How much the filters of a layer matter: those that matter least are pruned."""

from collections.abc import Callable, Mapping

import numpy as np
from scipy.spatial.distance import cdist

# From filters `[n, d]`, a row each, to how much each matters `[n]`.
Criterion = Callable[[np.ndarray], np.ndarray]


def l1_norm(filters: np.ndarray) -> np.ndarray:
    """Sum of the absolute weights (Li et al. 2017, arXiv 1608.08710)."""
    return np.abs(filters).sum(axis=1)


def distance_sum(filters: np.ndarray) -> np.ndarray:
    """Sum of the Euclidean distances to the layer's filters.

    It is least at the one nearest to their geometric median, which the others can stand in for
    (FPGM; He et al. 2019, arXiv 1811.00250, eq. 5 and 6).
    """
    return cdist(filters, filters).sum(axis=1)


CRITERIA: Mapping[str, Criterion] = {"fpgm": distance_sum, "l1": l1_norm}
