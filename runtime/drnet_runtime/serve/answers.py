"""What a client is told of a picture, and of the model."""

from typing import Any

import numpy as np

from drnet_runtime import AdaptiveModel, Point, Result
from drnet_runtime.results import softmax

_TOP = 5


def answer_of(model: AdaptiveModel, result: Result, index: int) -> dict[str, Any]:
    """The answer to the picture at `index` of a result, as JSON takes it."""
    probabilities = softmax(result.logits[index : index + 1])[0]
    top = np.argsort(-probabilities, kind="stable")[:_TOP]
    macs = int(result.macs[index])
    first = None
    if result.first_logits is not None:
        values = softmax(result.first_logits[index : index + 1])[0]
        label = int(values.argmax())
        first = {"resolution": model.resolutions[-1]} | _named(model, label, values[label])
    label = int(result.labels[index])
    return _named(model, label, probabilities[label]) | {
        "top": [_named(model, int(place), probabilities[place]) for place in top],
        "resolution": int(result.resolutions[index]),
        "looks": int(result.looks[index]),
        "gmacs": macs / 1e9,
        "share": macs / model.largest_macs,
        "first_look": first,
    }


def about(model: AdaptiveModel, default: float) -> dict[str, Any]:
    """The model, as JSON takes it.

    Args:
      default: lambda of requests that state no budget.
    """
    return {
        "classes": list(model.classes),
        "resolutions": list(model.resolutions),
        "gmacs": [macs / 1e9 for macs in model.macs],
        "largest_gmacs": model.largest_macs / 1e9,
        "first_look": model.has_first_look,
        "default_lam": default,
        "points": _points(model),
    }


def _points(model: AdaptiveModel) -> list[dict[str, float]]:
    """The calibrated lambdas that a budget would choose, the cheapest first.

    A point that another one beats in both is none of them, so that more never costs accuracy.
    """
    kept: list[Point] = []
    for point in sorted(model.points, key=lambda point: (point.cost, -point.top1)):
        if not kept or point.top1 > kept[-1].top1:
            kept.append(point)
    return [
        {"lam": point.lam, "cost": point.cost, "gmacs": point.gmacs, "top1": point.top1}
        for point in kept
    ]


def _named(model: AdaptiveModel, label: int, confidence: float) -> dict[str, Any]:
    return {
        "label": model.classes[label],
        "class_index": label,
        "confidence": float(confidence),
    }
