"""The result for every picture, as a line of a table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import softmax

from drnet_jax.inference.engine import Classified
from drnet_jax.models.macs import GIGA


@dataclass(frozen=True, slots=True)
class Prediction:
    """A picture that was classified.

    Attributes:
      file: path from the input folder, with slashes.
      label: the class's name.
      class_index: its place among the classes, from 0.
      confidence: softmax of its logit, at the chosen resolution.
      resolution: the chosen one, in pixels.
      gmacs: spent on the picture, predictor or first look included.
    """

    file: str
    label: str
    class_index: int
    confidence: float
    resolution: int
    gmacs: float


@dataclass(frozen=True, slots=True)
class GlancePrediction(Prediction):
    """A picture that was classified by a model which takes a first look at every one.

    Attributes:
      looks: 1, or 2 where a larger resolution was chosen.
      first_label: the class's name, as of the first look alone.
      first_confidence: softmax of its logit.
    """

    looks: int
    first_label: str
    first_confidence: float


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A picture without a prediction.

    Attributes:
      file: path from the input folder, with slashes.
      reason: in words.
    """

    file: str
    reason: str


def as_predictions(
    names: Sequence[str], result: Classified, classes: Sequence[str]
) -> list[Prediction | Unreadable]:
    """The lines of a batch of pictures, in its order.

    Args:
      names: `[n]`, of the files.
      result: of the batch.
      classes: their names, in the order of the logits.
    """
    return [
        Unreadable(name, result.problems[row])
        if row in result.problems
        else as_prediction(name, result, row, classes)
        for row, name in enumerate(names)
    ]


def as_prediction(name: str, result: Classified, row: int, classes: Sequence[str]) -> Prediction:
    """The line of one picture, a `GlancePrediction` where the model takes a first look.

    Args:
      name: of the file.
      result: of its batch.
      row: its place in that.
      classes: their names, in the order of the logits.
    """
    best, confidence = _best(result.logits[row])
    prediction = Prediction(
        file=name,
        label=classes[best],
        class_index=best,
        confidence=confidence,
        resolution=int(result.resolutions[row]),
        gmacs=float(result.macs[row]) / GIGA,
    )
    if result.first_logits is None:
        return prediction
    first, confidence = _best(result.first_logits[row])
    return GlancePrediction(
        **asdict(prediction),
        looks=int(result.looks[row]),
        first_label=classes[first],
        first_confidence=confidence,
    )


def _best(logits: np.ndarray) -> tuple[int, float]:
    """The best class by logits `[k]`, and its confidence."""
    probabilities = softmax(logits.astype(np.float64))
    best = int(probabilities.argmax())
    return best, round(float(probabilities[best]), 6)
