"""Evaluation figures, computed from what was recorded of every single image."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from drnet_jax.macs import ModelCost


@dataclass(frozen=True)
class EvalRecords:
    """What an evaluation recorded of n images at m resolutions, in the order of the source.

    Attributes:
      ce: `[n, m]` cross-entropy in nats.
      top1: `[n, m]` bool, right.
      top5: `[n, m]` bool, right among the best five.
      choice: `[n]` index of the resolution that the predictor picked.
      scores: `[n, m]`, the predictor's unnormalised log-probabilities.
      index: `[n]` of the image in the source; images that cannot be decoded are left out.
    """

    ce: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    choice: np.ndarray
    scores: np.ndarray
    index: np.ndarray

    def take(self, rows: np.ndarray) -> "EvalRecords":
        """The records of some images, with repetitions if `rows` `[k]` has them."""
        fields = (self.ce, self.top1, self.top5, self.choice, self.scores, self.index)
        return EvalRecords(*(values[rows] for values in fields))

    def chosen(self, values: np.ndarray) -> np.ndarray:
        """`[n]`: the column of `values` `[n, m]` that each image's choice picks."""
        return np.take_along_axis(values, self.choice[:, None], axis=1)[:, 0]


def summarise(
    records: EvalRecords, resolutions: tuple[int, ...], cost: ModelCost
) -> dict[str, Any]:
    """The figures of `eval.json`: accuracies are fractions, costs GMACs an image.

    `gmacs` counts the predictor, `gmacs_classifier` and `fixed` do not: a fixed resolution runs
    without it.
    """
    shares = np.bincount(records.choice, minlength=len(resolutions)) / len(records.choice)
    classifier = float(np.dot(shares, cost.classifier_gmacs))
    return {
        "num_images": len(records.choice),
        "top1": float(records.chosen(records.top1).mean()),
        "top5": float(records.chosen(records.top5).mean()),
        "gmacs": classifier + cost.predictor_gmacs,
        "gmacs_classifier": classifier,
        "resolutions": list(resolutions),
        "shares": shares.tolist(),
        "fixed": [
            {"resolution": resolution, "top1": float(top1), "gmacs": gmacs}
            for resolution, top1, gmacs in zip(
                resolutions, records.top1.mean(axis=0), cost.classifier_gmacs, strict=True
            )
        ],
    }


def by_size(
    records: EvalRecords, sizes: np.ndarray, edges: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Shares and top-1 of the images of each range of apparent sizes `[n]`, empty ones left out.

    Range i holds the integer sizes from `edges[i]` to `edges[i + 1] - 1`.
    """
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        here = (sizes >= low) & (sizes < high)
        if not here.any():
            continue
        counts = np.bincount(records.choice[here], minlength=records.top1.shape[1])
        rows.append(
            {
                "pixels": [low, high - 1],
                "num_images": int(here.sum()),
                "shares": (counts / here.sum()).tolist(),
                "top1": float(records.chosen(records.top1)[here].mean()),
                "fixed_top1": records.top1[here].mean(axis=0).tolist(),
            }
        )
    return rows


def objective(records: EvalRecords, cost: ModelCost, *, target: float | None, eta: float) -> float:
    """L_ce + eta * L_reg under argmax, on the evaluated images: what the best checkpoint has least.

    Top-1 alone would pick the costliest early checkpoint.
    """
    costs = np.asarray(cost.classifier_gmacs)
    ce = float(records.chosen(records.ce).mean())
    if target is None or len(costs) == 1:
        return ce
    excess = max(0.0, float(costs[records.choice].mean()) - target)
    return ce + eta * excess / float(costs.max() - costs.min())


def hull_top1(summary: dict[str, Any], gmacs: float) -> float:
    """Top-1 at `gmacs` on the upper convex hull of the fixed resolutions.

    The best that mixing fixed resolutions at random, whatever the image, reaches at that cost;
    beyond the costliest point the hull stays level.
    """
    points = sorted((entry["gmacs"], entry["top1"]) for entry in summary["fixed"])
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) >= 2 and _below(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    best = np.maximum.accumulate([top1 for _, top1 in hull])
    return float(np.interp(gmacs, [cost for cost, _ in hull], best))


def _below(
    left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]
) -> bool:
    """Whether `middle` lies on or below the line from `left` to `right`."""
    slope_through = (middle[1] - left[1]) * (right[0] - left[0])
    return slope_through <= (right[1] - left[1]) * (middle[0] - left[0])


def matched_random_top1(summary: dict[str, Any]) -> float:
    """Expected top-1 of a random choice with the same shares, independent of the image."""
    return float(np.dot(summary["shares"], [entry["top1"] for entry in summary["fixed"]]))
