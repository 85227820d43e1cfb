"""What the classification of images gives, as arrays and file by file."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Result:
    """Of n images, m resolutions and k classes.

    Attributes:
      logits: `[n, k]` float32, the answers: at the chosen resolution, of a second look with those
        of the first where the model reuses them.
      choices: `[n]`, index of the chosen resolution.
      resolutions: `[n]`, the chosen ones, in pixels.
      looks: `[n]`, 2 where a first look was followed by a second, else 1.
      macs: `[n]` int64, multiply-adds spent, the predictor's or a first look's included.
      scores: `[n, m]` float32; None: there is a single resolution.
      first_logits: `[n, k]` float32, what a first look said; None: the model takes none.
    """

    logits: np.ndarray
    choices: np.ndarray
    resolutions: np.ndarray
    looks: np.ndarray
    macs: np.ndarray
    scores: np.ndarray | None
    first_logits: np.ndarray | None

    @property
    def labels(self) -> np.ndarray:
        """`[n]`, index of the best class."""
        return self.logits.argmax(axis=1)

    @property
    def probabilities(self) -> np.ndarray:
        """`[n, k]` float64, the softmax of the logits."""
        return softmax(self.logits)


@dataclass(frozen=True)
class Answer:
    """Of one picture; all members but `file` and `reason` are None where it cannot be read.

    Attributes:
      file: its path, as it was given.
      label: the class's name.
      class_index: its place among the classes, from 0.
      confidence: softmax of its logit.
      resolution: the chosen one, in pixels.
      looks: 1, or 2 where a first look was followed by a second.
      gmacs: spent, predictor or first look included.
      first_label: the class's name, as of the first look alone; None: the model takes none.
      first_confidence: softmax of its logit, likewise.
      reason: why it cannot be read; None: it was classified.
    """

    file: str
    label: str | None = None
    class_index: int | None = None
    confidence: float | None = None
    resolution: int | None = None
    looks: int | None = None
    gmacs: float | None = None
    first_label: str | None = None
    first_confidence: float | None = None
    reason: str | None = None


def softmax(logits: np.ndarray) -> np.ndarray:
    """`[n, k]` float64, over the last axis."""
    exact = logits.astype(np.float64)
    values = np.exp(exact - exact.max(axis=1, keepdims=True))
    return np.asarray(values / values.sum(axis=1, keepdims=True))


def as_answers(files: Sequence[str], result: Result, classes: Sequence[str]) -> list[Answer]:
    """The answer of every picture.

    Args:
      files: `[n]`, their paths.
      result: of these.
      classes: their names, in the order of the logits.
    """
    best, confidence = _best(result.logits)
    first = None if result.first_logits is None else _best(result.first_logits)
    return [
        Answer(
            file=file,
            label=classes[best[row]],
            class_index=int(best[row]),
            confidence=float(confidence[row]),
            resolution=int(result.resolutions[row]),
            looks=int(result.looks[row]),
            gmacs=float(result.macs[row]) / 1e9,
            first_label=None if first is None else classes[first[0][row]],
            first_confidence=None if first is None else float(first[1][row]),
        )
        for row, file in enumerate(files)
    ]


def _best(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best classes `[n]`, and their confidences."""
    probabilities = softmax(logits)
    return logits.argmax(axis=1), probabilities.max(axis=1)
