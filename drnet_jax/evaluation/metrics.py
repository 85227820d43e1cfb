"""Evaluation figures, computed from what was recorded of every single image."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from drnet_jax.evaluation.intervals import proportion
from drnet_jax.evaluation.judging import judge
from drnet_jax.models.macs import ModelCost

# Images whose logits are worked on at once, so that the copies stay small.
_CHUNK = 4096


@dataclass(frozen=True)
class EvalRecords:
    """What an evaluation recorded of n images at m resolutions, in the order of the source.

    Attributes:
      ce: `[n, m]` cross-entropy of every answer in nats.
      top1: `[n, m]` bool, correct at each fixed resolution.
      answer_top1: `[n, m]` bool, whether the answer that each choice leads to is correct: `top1`
        but where a second look reuses the first.
      answer_top5: `[n, m]` bool, correct among its best five.
      choice: `[n]` index of the resolution that the predictor picked.
      scores: `[n, m]`, the predictor's, see `choose`.
      confidence: `[n, m]`, the classifier's largest softmax at each fixed resolution.
      margin: `[n, m]`, the largest softmax minus the second largest.
      index: `[n]` of the image in the source; images that cannot be decoded are left out.
      label: `[n]`.
      origin: `[n]`, equal for images that are not independent (crops of one picture, say); None:
        all are.
    """

    ce: np.ndarray
    top1: np.ndarray
    answer_top1: np.ndarray
    answer_top5: np.ndarray
    choice: np.ndarray
    scores: np.ndarray
    confidence: np.ndarray
    margin: np.ndarray
    index: np.ndarray
    label: np.ndarray
    origin: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "EvalRecords":
        """The records of some images, with repetitions if `rows` `[k]` has them."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{n: v[rows] for n, v in columns.items() if v is not None})

    def chosen(self, values: np.ndarray) -> np.ndarray:
        """`[n]`: the column of `values` `[n, m]` that each image's choice picks."""
        return np.take_along_axis(values, self.choice[:, None], axis=1)[:, 0]


def record(
    logits: np.ndarray,
    scores: np.ndarray,
    weight: np.ndarray,
    label: np.ndarray,
    index: np.ndarray,
) -> EvalRecords:
    """What is recorded of images with these outputs; of equal logits the first counts as best.

    Args:
      logits: `[n, m, k]` of the k classes, at every fixed resolution.
      scores: `[n, m]`, the predictor's.
      weight: `[m]`, of the first look in every answer, see `mixed`; zero: none.
      label: `[n]`.
      index: `[n]`.
    """
    # Zeros would be added to every logit.
    first_look = weight if weight.any() else None
    parts = [
        judge(logits[rows], scores[rows], label[rows], first_look)
        for start in range(0, max(len(label), 1), _CHUNK)
        for rows in [slice(start, start + _CHUNK)]
    ]
    figures = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return EvalRecords(**figures, scores=scores, index=index, label=label)


def summarise(
    records: EvalRecords, resolutions: tuple[int, ...], cost: ModelCost
) -> dict[str, Any]:
    """The figures of `eval.json`: accuracies are fractions, costs GMACs an image.

    `gmacs` counts the predictor, `gmacs_classifier` does not, but a first look as all that the
    classifier does; `fixed` is without either. `choice_top1` is of all images at each choice: that
    of `fixed` but where a second look reuses the first.
    """
    shares = np.bincount(records.choice, minlength=len(resolutions)) / len(records.choice)
    classifier = float(np.dot(shares, cost.choice_gmacs))
    return {
        "num_images": len(records.choice),
        "top1": float(records.chosen(records.answer_top1).mean()),
        "top5": float(records.chosen(records.answer_top5).mean()),
        "gmacs": classifier + cost.predictor_gmacs,
        "gmacs_classifier": classifier,
        "resolutions": list(resolutions),
        "shares": shares.tolist(),
        "choice_top1": records.answer_top1.mean(axis=0).tolist(),
        "fixed": [
            {"resolution": resolution, "gmacs": gmacs, **_top1(top1, records.origin)}
            for resolution, top1, gmacs in zip(
                resolutions, records.top1.T, cost.classifier_gmacs, strict=True
            )
        ],
    }


def by_class(records: EvalRecords, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Shares and top-1, with its interval, of the images of every class that has some."""
    counts = np.bincount(records.label, minlength=len(classes))
    return [
        {"class": name, **_of_group(records, records.label == label)}
        for label, name in enumerate(classes)
        if counts[label]
    ]


def by_resolution(records: EvalRecords, resolutions: Sequence[int]) -> list[dict[str, Any]]:
    """Top-1, with its interval, of the images sent to every resolution that has some.

    `fixed_top1` is what each resolution gets right of them.
    """
    counts = np.bincount(records.choice, minlength=len(resolutions))
    return [
        {"resolution": size, **_of_group(records, records.choice == choice)}
        for choice, size in enumerate(resolutions)
        if counts[choice]
    ]


def _of_group(records: EvalRecords, here: np.ndarray) -> dict[str, Any]:
    count = int(here.sum())
    shares = np.bincount(records.choice[here], minlength=records.top1.shape[1]) / count
    origin = None if records.origin is None else records.origin[here]
    return {
        "num_images": count,
        "shares": shares.tolist(),
        **_top1(records.chosen(records.answer_top1)[here], origin),
        "fixed_top1": records.top1[here].mean(axis=0).tolist(),
    }


def _top1(correct: np.ndarray, origin: np.ndarray | None) -> dict[str, Any]:
    """Of images `[n]`, with its interval."""
    found = proportion(correct, origin)
    return {"top1": found.value, "interval": [found.low, found.high]}


def by_size(
    records: EvalRecords, sizes: np.ndarray, edges: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Shares and top-1 of the images of each range of apparent sizes `[n]`, empty ones left out.

    Range i holds the integer sizes from `edges[i]` to `edges[i + 1] - 1`.
    """
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        here = (sizes >= low) & (sizes < high)
        if here.any():
            rows.append({"pixels": [low, high - 1], **_of_group(records, here)})
    return rows


def objective(records: EvalRecords, cost: ModelCost, *, target: float | None, eta: float) -> float:
    """L_ce + eta * L_reg under argmax, on the evaluated images: what the best checkpoint has least.

    Top-1 alone would pick the costliest early checkpoint.
    """
    costs = np.asarray(cost.choice_costs)
    ce = float(records.chosen(records.ce).mean())
    if target is None or len(costs) == 1:
        return ce
    excess = max(0.0, float(costs[records.choice].mean()) - target)
    return ce + eta * excess / float(costs.max() - costs.min())


def hull_top1(summary: dict[str, Any], gmacs: float) -> float:
    """Top-1 at `gmacs` on the upper convex hull of the fixed resolutions; see `hull_weights`."""
    costs = np.array([entry["gmacs"] for entry in summary["fixed"]])
    top1 = np.array([entry["top1"] for entry in summary["fixed"]])
    return float(hull_weights(costs, top1, gmacs) @ top1)


def hull_weights(costs: np.ndarray, top1: np.ndarray, cost: float) -> np.ndarray:
    """The mixture of fixed resolutions that reaches most at a mean cost, whatever the image.

    That is the upper convex hull of their points. Beyond the costliest point it stays level, and
    below the cheapest too.

    Args:
      costs: `[m]` of the fixed resolutions.
      top1: `[m]` theirs.
      cost: the mean cost.

    Returns:
      How often to take each: `[m]`, adding up to 1.
    """
    corners: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], top1[i])):
        while len(corners) >= 2 and _below(costs, top1, corners[-2], corners[-1], index):
            corners.pop()
        corners.append(index)
    # What costs more than the best one and is less accurate is of no use.
    corners = corners[: int(np.argmax(top1[corners])) + 1]
    shares = np.eye(len(corners))
    weights = np.zeros(len(costs))
    weights[corners] = [np.interp(cost, costs[corners], share) for share in shares]
    return weights


def _below(costs: np.ndarray, top1: np.ndarray, left: int, middle: int, right: int) -> bool:
    """Whether `middle` lies on or below the line from `left` to `right`."""
    slope_through = (top1[middle] - top1[left]) * (costs[right] - costs[left])
    return bool(slope_through <= (top1[right] - top1[left]) * (costs[middle] - costs[left]))


def matched_random_top1(summary: dict[str, Any]) -> float:
    """Expected top-1 of a random choice with the same shares, independent of the image."""
    # An eval.json of an earlier version has no second looks.
    fixed = [entry["top1"] for entry in summary["fixed"]]
    return float(np.dot(summary["shares"], summary.get("choice_top1", fixed)))
