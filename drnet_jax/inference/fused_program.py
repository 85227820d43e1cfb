"""Adaptive inference on a batch as one function: scores, choices, and each image at its own."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from drnet_jax.inference.capacity import assign
from drnet_jax.inference.networks import classifier_networks, predictor_network
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import GIGA, ModelCost
from drnet_jax.models.variables import reuse_weight


@flax.struct.dataclass
class FusedOutput:
    """Of n images, m resolutions and k classes, on the device; rows of padding mean nothing.

    Attributes:
      logits: `[n, k]` float32, at the chosen resolution; of a second look with those of the first
        where the model reuses them.
      choices: `[n]` int32, index of the resolution.
      gmacs: `[n]` float32, multiply-adds spent on each image in 10^9, the predictor's and a first
        look's included.
      scores: `[n, m]`, the predictor's.
      first_logits: `[n, k]`, what a first look said; None: the model takes none.
    """

    logits: jax.Array
    choices: jax.Array
    gmacs: jax.Array
    scores: jax.Array
    first_logits: jax.Array | None


class FusedProgram:
    """What a `FusedClassifier` compiles: a function of `variables`, images and their number.

    Args:
      model: the DRNet.
      variables: its parameters and statistics.
      mean: of the channels, in 0..1, that images are normalised with.
      std: of the channels, in 0..1.
      capacities: `[m]` places a resolution, see `assign`; None: of a batch of one image, which is
        classified as it chooses, and at no other resolution.
      lam: lambda, see `choose`.
      fold: fold BatchNorm into the convolutions.
      cost: of the networks, which choices are made by.

    Attributes:
      variables: its first argument: the weights of the networks that run, in the dtype of the
        computation, and what choices and answers are made with.
    """

    def __init__(
        self,
        model: DRNet,
        variables: Any,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        capacities: tuple[int, ...] | None,
        lam: float,
        fold: bool,
        cost: ModelCost,
    ) -> None:
        m = len(model.resolutions)
        self._capacities = capacities
        self._num_classes = model.classifier.num_classes
        self._predictor = predictor_network(model, variables, mean, std, fold=fold)
        networks = classifier_networks(model, variables, mean, std, fold=fold)
        self._glances = model.glances
        # The first look has answered for the smallest already.
        self._classifiers = networks[:-1] if self._glances else networks
        runs = [capacities is None or capacities[j] > 0 for j in range(len(self._classifiers))]
        spent = (cost.predictor + np.array(cost.choice)) / GIGA
        self.variables = {
            "predictor": self._predictor.variables if self._predictor else None,
            "classifiers": tuple(
                network.variables if run else None
                for network, run in zip(self._classifiers, runs, strict=True)
            ),
            "weight": reuse_weight(variables, m),
            "price": (lam * np.array(cost.choice_costs)).astype(np.float32),
            "gmacs": spent.astype(np.float32),
        }

    def __call__(
        self, variables: Any, pieces: Sequence[jax.Array], count: jax.Array
    ) -> FusedOutput:
        """Classifies a batch.

        Args:
          variables: see the class.
          pieces: its images, `[n, h, w, 3]` uint8 together, one or more.
          count: `[]` int32, how many of them are real; the others come after them.
        """
        images = jnp.concatenate(pieces)
        scores, first = self._score(variables, images)
        choices, placed = self.choose(variables["price"], scores, count)
        if scores.shape[1] == 1:
            logits = self._answers(0, variables, images, first)
        elif placed is None:
            logits = self._classify_one(variables, images, first, choices[0])
        else:
            logits = self._classify_placed(variables, images, first, placed)
        return FusedOutput(logits, choices, variables["gmacs"][choices], scores, first)

    def choose(
        self, price: jax.Array, scores: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, Sequence[jax.Array] | None]:
        """Which resolution each image of a batch gets.

        Args:
          price: `[m]`, `'price'` of the variables.
          scores: `[n, m]`.
          count: see `__call__`.

        Returns:
          As `assign` does; None where nothing has places.
        """
        # Without log_softmax, unlike `decision.choose`: only differences within an image count.
        values = scores - price
        if values.shape[1] == 1:
            return jnp.zeros(len(values), jnp.int32), None
        if self._capacities is None:
            return values.argmax(axis=1).astype(jnp.int32), None
        return assign(values, self._capacities, count)

    def _score(self, variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Scores `[n, m]`, and logits `[n, k]` of a first look."""
        if self._predictor is None:
            return jnp.zeros((len(images), 1), jnp.float32), None
        output = self._predictor.apply(variables["predictor"], images)
        if not self._glances:
            return output, None
        return output[:, self._num_classes :], output[:, : self._num_classes]

    def _classify_one(
        self, variables: Any, images: jax.Array, first: jax.Array | None, choice: jax.Array
    ) -> jax.Array:
        """Logits `[1, k]`; the classifier runs at the chosen resolution only."""
        branches: list[Callable[..., Any]] = [
            partial(self._answers, j) for j in range(len(self._classifiers))
        ]
        if self._glances:
            branches.append(lambda variables, images, first: first)
        logits: jax.Array = lax.switch(choice, branches, variables, images, first)
        return logits

    def _classify_placed(
        self,
        variables: Any,
        images: jax.Array,
        first: jax.Array | None,
        placed: Sequence[jax.Array],
    ) -> jax.Array:
        """Logits `[n, k]`, of the images `[capacity]` that each resolution has."""
        if first is None:
            logits = jnp.zeros((len(images), self._num_classes), jnp.float32)
        else:
            logits = first
        for j, rows in enumerate(placed[: len(self._classifiers)]):
            if not len(rows):
                continue
            # A place that none has repeats the last image, and what comes of it is dropped.
            mine = jnp.take(images, rows, axis=0, mode="clip")
            looks = None if first is None else jnp.take(first, rows, axis=0, mode="clip")
            answers = self._answers(j, variables, mine, looks)
            logits = logits.at[rows].set(answers, mode="drop")
        return logits

    def _answers(
        self, j: int, variables: Any, images: jax.Array, first: jax.Array | None
    ) -> jax.Array:
        """Logits `[c, k]` of images `[c, h, w, 3]` at a resolution, with those of a first look."""
        logits = self._classifiers[j].apply(variables["classifiers"][j], images)
        return logits if first is None else logits + variables["weight"][j] * first
