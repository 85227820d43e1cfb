"""Objectives that are fitted: to outputs for images that the classifier was not trained on.

On training images a classifier is surer, and more often right, than it will be: the better it
remembers them, the less they tell of what a second look is worth (docs/beyond.md has the figures).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

# Of a mean that is equal to the target.
_ROUNDING = 1 + 1e-9


@dataclass(frozen=True)
class HeldOut:
    """What a glancing model's choice is fitted to: n images, m resolutions, largest first.

    Attributes:
      inputs: `[n, f]`, what the head reads of the first look (`GlanceHead.features`).
      correct: `[n, m]` bool, whether the answer that each choice leads to is correct.
      costs: `[m]`, of each choice, the first look included.
      target: mean cost that the choice may have, in the unit of `costs`; None: any.
    """

    inputs: np.ndarray
    correct: np.ndarray
    costs: np.ndarray
    target: float | None

    @property
    def limit(self) -> float:
        """What a mean cost may be: the target, but for rounding; infinite without one."""
        return np.inf if self.target is None else self.target * _ROUNDING


@dataclass(frozen=True)
class FittedHead:
    """Values of a `GlanceHead`.

    Attributes:
      kernel: `[f, m]`.
      bias: `[m]`.
      offset: `[m]`, taken off the scores: what each choice's cost is worth at the target.
    """

    kernel: np.ndarray
    bias: np.ndarray
    offset: np.ndarray


class Fit(Protocol):
    """How an objective is fitted: one function a file of this folder."""

    def __call__(self, held_out: HeldOut) -> FittedHead:
        """The head whose choice, the largest score, suits the objective at the target."""
