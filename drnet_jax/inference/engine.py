"""The networks of a DRNet, compiled, and what passes of images through them give."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import numpy as np

from drnet_jax.checkpoints.finite import NotFiniteError, first_few, rows_not_finite
from drnet_jax.inference.arguments import check_count, check_normalisation, checked_buckets
from drnet_jax.inference.buckets import BucketPlan, buckets_for, default_buckets
from drnet_jax.inference.decision import check_lambda
from drnet_jax.inference.dispatch import Dispatch
from drnet_jax.inference.images import BatchT, Images, PartT, Problems
from drnet_jax.inference.networks import classifier_networks, predictor_network
from drnet_jax.inference.programs import CostTable, PlacedNetwork, Program, compile_programs
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import ModelCost, model_cost
from drnet_jax.models.variables import reuse_weight

T = TypeVar("T")


@dataclass(frozen=True)
class Classified:
    """The result of n images, m resolutions and k classes.

    Attributes:
      logits: `[n, k]` float32, at the chosen resolution; of a second look with those of the first
        where the model reuses them.
      choices: `[n]` index of the chosen resolution.
      scores: `[n, m]`, the predictor's.
      resolutions: `[n]`, the chosen ones, in pixels.
      macs: `[n]`, multiply-adds spent on each image, the predictor's and a first look's included.
      problems: by row, why an image cannot be read: what the arrays hold there means nothing.
      first_logits: `[n, k]` float32, what a first look said; None: the model takes none.
    """

    logits: np.ndarray
    choices: np.ndarray
    scores: np.ndarray
    resolutions: np.ndarray
    macs: np.ndarray
    problems: Mapping[int, str] = field(default_factory=dict)
    first_logits: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        """`[n]` the best class."""
        return self.logits.argmax(axis=1)

    @property
    def looks(self) -> np.ndarray:
        """`[n]`, 2 where a first look was followed by a second, else 1."""
        second = (self.first_logits is not None) & (self.choices < self.scores.shape[1] - 1)
        return 1 + second.astype(int)


class InferenceEngine:
    """The predictor, and the classifier per resolution, compiled for a few batch sizes.

    A first look is the predictor and the classifier at the smallest resolution in one program,
    which stands for both of them.

    Calls share nothing that changes: any number of threads may use one engine, and a call that
    fails leaves it as it was. Everything is compiled here, or by `extended`, nothing later.

    Args:
      model: the DRNet.
      variables: its parameters and statistics.
      mean: of the channels, in 0..1, that images are normalised with.
      std: of the channels, in 0..1.
      buckets: batch sizes to compile, the same for every network; groups of other sizes are split.
        None: what suits the device, see `default_buckets`.
      image_size: height and width of the images of every network, which are uploaded once for all
        of them; None: each network takes images of its own size, uploaded for each.
      fold: fold BatchNorm into the convolutions, which is faster and rounds otherwise.
      device: where to run.
      checkpoint: that the variables are from, for messages; None: unknown.
      cost: of the networks; default: their MACs, which choices are then made by.
      up_to: compile only what groups of up to so many images need (`buckets_for`); None: all.
      until: as of `time.monotonic`: what has not begun by then is left out, but for one bucket.

    Raises:
      ValueError: mean, std, buckets or the image size are not what they should be.
    """

    def __init__(
        self,
        model: DRNet,
        variables: Any,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        buckets: Sequence[int] | None,
        image_size: tuple[int, int] | None,
        fold: bool,
        device: jax.Device,
        checkpoint: Path | None = None,
        cost: ModelCost | None = None,
        up_to: int | None = None,
        until: float = math.inf,
    ) -> None:
        check_normalisation(mean, std)
        given = None if buckets is None else checked_buckets(buckets)
        self.checkpoint = checkpoint
        self.resolutions = np.array(model.resolutions)
        self.cost = cost or model_cost(model)
        self.num_classes = model.classifier.num_classes
        self.times: CostTable | None = None
        self._upload_for_each = image_size is None
        first = predictor_network(model, variables, mean, std, fold=fold)
        networks = list(classifier_networks(model, variables, mean, std, fold=fold))
        self._weight = None
        if first is not None and model.glances:
            self._weight = reuse_weight(variables, len(model.resolutions))
            networks.pop()
        self._predicts = first is not None
        if first is not None:
            networks.insert(0, first)
        uploaded = None if image_size is None else max(image_size)
        self._buckets = [
            given or default_buckets(n.size, device.platform, uploaded) for n in networks
        ]
        placed = [
            PlacedNetwork(n.apply, n.variables, image_size or (n.size, n.size), device)
            for n in networks
        ]
        self._use(compile_programs(placed, self._wanted(up_to), until))

    def _use(self, programs: Sequence[Program]) -> None:
        """Takes the programs: the predictor's, if there is one, and the classifiers'."""
        self.predictor = programs[0] if self._predicts else None
        self.classifiers = tuple(programs[self._predicts :])
        if self.predictor is not None and self._weight is not None:
            self.classifiers += (self.predictor,)
        self._everywhere = _common_plan(programs)

    def _wanted(self, up_to: int | None) -> list[tuple[int, ...]]:
        """The buckets of every program for groups of up to so many images."""
        if up_to is None:
            return list(self._buckets)
        return [buckets_for(sizes, up_to) for sizes in self._buckets]

    @property
    def programs(self) -> tuple[Program, ...]:
        """The predictor's, if there is one, and the classifiers'; that of a first look once."""
        programs = (*([self.predictor] if self.predictor else []), *self.classifiers)
        return programs[:-1] if self.cost.glances else programs

    def extended(self, up_to: int, until: float = math.inf) -> Self:
        """The same engine, with what groups of up to so many images need compiled too.

        Itself if none is lacking. Times that were measured are of other buckets, and are left
        behind.

        Args:
          up_to: images of a group.
          until: as of `time.monotonic`: what has not begun by then is left out.
        """
        if not self.lacking(up_to):
            return self
        other = copy(self)
        other.times = None
        known = self.programs
        networks = [program.network for program in known]
        other._use(compile_programs(networks, self._wanted(up_to), until, known))
        return other

    def lacking(self, up_to: int) -> list[int]:
        """Buckets that groups of up to so many images need and that are not compiled, rising."""
        pairs = zip(self._wanted(up_to), self.programs, strict=True)
        return sorted({size for sizes, program in pairs for size in {*sizes} - {*program.buckets}})

    def is_ready(self, batch_size: int) -> bool:
        """Whether every network has the largest bucket that a batch of this size fills."""
        pairs = zip(self._wanted(batch_size), self.programs, strict=True)
        return all(sizes[0] in program.buckets for sizes, program in pairs)

    def measure(self, repeats: int = 5) -> CostTable:
        """Seconds of every bucket of every network, on this device."""
        predictor = None
        if self.predictor is not None:
            predictor = self.predictor.measure(repeats, upload=True)
        classifiers = tuple(
            program.measure(repeats, upload=self._upload_for_each) for program in self.classifiers
        )
        return CostTable(predictor, classifiers, self.cost.glances)

    def with_times(self, table: CostTable) -> Self:
        """The same engine, which splits groups as is cheapest by measured times.

        Raises:
          ValueError: the table is of other buckets or other networks.
        """
        if len(table.classifiers) != len(self.classifiers):
            raise ValueError(
                f"times of {len(table.classifiers)} resolutions, compiled are "
                f"{len(self.classifiers)}"
            )
        if (table.predictor is None) != (self.predictor is None):
            raise ValueError("the table and the classifier differ in whether there is a predictor")
        if table.glances != self.cost.glances:
            raise ValueError("the table and the classifier differ in whether there is a first look")
        other = copy(self)
        other.times = table
        programs = zip(self.classifiers, table.classifiers, strict=True)
        other.classifiers = tuple(program.replan(times) for program, times in programs)
        if self.predictor is not None and table.predictor is not None:
            other.predictor = self.predictor.replan(table.predictor)
        other._everywhere = _common_plan(other.programs)
        return other

    def fixed(self, choice: int) -> Self:
        """The same engine at one of the resolutions, given by its index, and no more than that."""
        other = copy(self)
        # The smallest of a first look is its program, the first one.
        is_first = self.cost.glances and choice == len(self.classifiers) - 1
        other._buckets = [self._buckets[0 if is_first else choice + self._predicts]]
        other._predicts, other._weight = False, None
        other._use([self.classifiers[choice]])
        other.resolutions = self.resolutions[[choice]]
        other.cost = ModelCost(0, (self.cost.classifier[choice],))
        other.times = None
        return other

    def _dispatch(
        self,
        images: Images[BatchT, PartT],
        batches: Iterable[tuple[T, BatchT]],
        lam: float,
        max_waiting: int,
    ) -> Iterator[tuple[T, Classified]]:
        """One pass of batches, each with what to give back beside its result, in their order.

        Raises:
          ValueError: `max_waiting` below zero, or `lam` is no finite number.
          NotFiniteError: outputs are not finite.
        """
        check_count("max_waiting", max_waiting)
        check_lambda(lam)
        dispatch = Dispatch(
            images,
            self.predictor,
            self.classifiers,
            num_classes=self.num_classes,
            costs=np.array(self.cost.choice_costs),
            weight=self._weight,
            lam=lam,
            max_waiting=max_waiting,
            check=self._check_finite,
        )
        for caller, done in dispatch.run(batches):
            yield (
                caller,
                Classified(
                    done.logits,
                    done.choices,
                    done.scores,
                    self.resolutions[done.choices],
                    self.cost.predictor + np.array(self.cost.choice)[done.choices],
                    done.problems,
                    done.first,
                ),
            )

    def _check_finite(self, batch: object, outputs: np.ndarray, problems: Problems) -> None:
        """Stops if outputs `[n, ...]` of a batch are not finite, but for unreadable images."""
        rows = np.setdiff1d(rows_not_finite(outputs), list(problems))
        if len(rows):
            raise NotFiniteError(self._name(batch, rows), self.checkpoint, rows, batch)

    def _name(self, batch: object, rows: np.ndarray) -> str:
        """Rows of a batch, for messages."""
        return f"images {first_few(rows.tolist())} of a batch"


def _common_plan(programs: Sequence[Program]) -> BucketPlan:
    """By the times of the first, with the buckets that all of them have."""
    plan = programs[0].plan
    common = set.intersection(*(set(program.buckets) for program in programs))
    if common == set(plan.times):
        return plan
    return BucketPlan({size: seconds for size, seconds in plan.times.items() if size in common})
