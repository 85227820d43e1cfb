"""Random batches whose images get a fixed number of places a resolution, beside exact dispatch.

From the scores of every image and whether each answer is right: no network runs.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from drnet_jax.budgets.calibration import Calibration, Point, calibrate
from drnet_jax.evaluation.controls import by_choice
from drnet_jax.evaluation.intervals import intervals
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.inference.capacity import assign, capacities_of
from drnet_jax.inference.decision import choose
from drnet_jax.models.macs import ModelCost
from experiments.first_look_methods import in_points
from experiments.first_look_runs import Run

# Times that about as many images are drawn as the split has.
DRAWS = 20

_assign: Any = partial(jax.jit, static_argnums=1)(
    lambda values, capacities: jax.vmap(lambda each: assign(each, capacities, len(each))[0])(values)
)


def calibrated(records: EvalRecords, cost: ModelCost) -> Calibration:
    """What each lambda costs on a split, and gets right."""
    costs, largest = np.array(cost.choice_gmacs), records.top1[:, 0]
    return calibrate(
        records.scores, records.answer_top1, largest, costs, cost.predictor_gmacs, "of no file"
    )


def point_of(run: Run, target: float) -> Point:
    """The calibrated shares and lambda of a mean cost over the largest size's."""
    gmacs = target * run.cost.classifier_gmacs[0]
    return calibrated(run.calibration, run.cost).for_gmacs(gmacs)


def in_batches(
    run: Run, point: Point, choices: np.ndarray, size: int, places: float
) -> dict[str, Any]:
    """Random batches of a size, beside exact dispatch of the same images.

    They are drawn with replacement: batches of most of a split would differ less than new ones.

    Args:
      run: of it the test split.
      point: shares and lambda.
      choices: `[n]` of exact dispatch at that lambda.
      size: images of a batch.
      places: in a batch, over its images.
    """
    correct, values = run.test.answer_top1.astype(float), values_of(run, point)
    n, m = values.shape
    rows = np.random.default_rng(0).integers(n, size=(DRAWS * max(1, n // size), size))
    if size == 1:
        # The company of an image means nothing: each of them as often.
        rows = np.tile(np.arange(n), DRAWS)[:, None]
        got, capacities = values.argmax(axis=1)[rows], None
        spent = run.cost.predictor_gmacs + np.array(run.cost.choice_gmacs)[got].mean()
    else:
        capacities = capacities_with(point.shares, size, places)
        got = assigned(values[rows], capacities)
        spent = computed(run.cost, capacities, size)
    same = (got == choices[rows]).reshape(DRAWS, -1).mean(axis=1)
    # What exact dispatch gets wrong of these very images counts for neither.
    change = (correct[rows, got] - correct[rows, choices[rows]]).mean()
    top1 = correct[np.arange(n), choices].mean() + change
    equal = at_cost(run, spent)
    found = {
        "batch": size,
        "places": places,
        "agreement": 100 * float(same.mean()),
        "agreement std": 100 * float(same.std(ddof=1)),
        "top1": 100 * float(top1),
        "cost": spent / run.cost.classifier_gmacs[0],
        "exact top1 at this cost": 100 * float(equal.mean()),
        "minus exact": over_images(correct[rows, got] - equal[rows], rows),
    }
    if m < 3 or capacities is None:
        return found
    best = np.stack([optimum(batch, capacities) for batch in values[rows]])
    return found | {
        "value lost": float((values[rows, best] - values[rows, got]).mean()),
        "spread of values": float(np.ptp(values, axis=1).mean()),
        "minus optimum": over_images(correct[rows, got] - correct[rows, best], rows),
        "agreement of optimum": 100 * float((best == choices[rows]).mean()),
    }


def values_of(run: Run, point: Point) -> np.ndarray:
    """`[n, m]` of the test split, in float32 as `FusedProgram` takes them."""
    price = (point.lam * np.array(run.cost.choice_costs)).astype(np.float32)
    values: np.ndarray = run.test.scores.astype(np.float32) - price
    return values


def capacities_with(shares: Sequence[float], size: int, places: float) -> tuple[int, ...]:
    """As many places as `places` times the images, but at no resolution more than those."""
    return tuple(min(each, size) for each in capacities_of(shares, math.ceil(places * size)))


def computed(cost: ModelCost, capacities: Sequence[int], size: int) -> float:
    """GMACs of an image of a batch: a place costs the same with an image and without."""
    first = cost.choice_gmacs[-1] if cost.glances else 0.0
    passes = np.array(capacities) @ (np.array(cost.choice_gmacs) - first)
    return cost.predictor_gmacs + first + float(passes) / size


def at_cost(run: Run, gmacs: float) -> np.ndarray:
    """`[n]`: the chance that exact dispatch at a mean cost on the test split is right.

    Between two lambdas, of which a share of the images gets each; past the costliest, that one.
    """
    costs, scores = np.array(run.cost.choice_gmacs), run.test.scores
    points = calibrated(run.test, run.cost).points[::-1]
    place = np.interp(gmacs, [point.gmacs for point in points], np.arange(len(points)))
    low, high = (
        by_choice(run.test.answer_top1, choose(scores, costs, points[int(i)].lam), costs).correct
        for i in (np.floor(place), np.ceil(place))
    )
    return low + (place - np.floor(place)) * (high - low)


def assigned(values: np.ndarray, capacities: Sequence[int]) -> np.ndarray:
    """Resolutions `[b, n]` that `assign` gives the images of full batches `[b, n, m]`."""
    return np.asarray(_assign(jnp.asarray(values), tuple(capacities)))


def optimum(values: np.ndarray, capacities: Sequence[int]) -> np.ndarray:
    """Resolutions `[n]` with the largest sum of the values `[n, m]` that the places allow."""
    places = np.repeat(np.arange(len(capacities)), capacities)
    _, columns = linear_sum_assignment(values[:, places], maximize=True)
    return places[columns]


def over_images(difference: np.ndarray, rows: np.ndarray) -> list[float]:
    """Its mean in points over all draws of images, and where it would lie with other images."""
    sums = np.bincount(rows.ravel(), difference.ravel())
    columns = np.stack([sums, np.bincount(rows.ravel())], axis=1)
    return in_points(intervals(columns, lambda means: means[:, :1] / means[:, 1:])[0])
