"""The result for every picture, as a line of a table."""

from dataclasses import dataclass


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
