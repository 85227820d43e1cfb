"""What keeps arrays from being a network's, collected, and said in one message with the remedy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from drnet_jax.models.layers import SHARED_STATISTICS
from drnet_jax.pretrained.errors import WeightsError

_FLOATS = tuple(map(np.dtype, (np.float16, jnp.bfloat16, np.float32, np.float64)))
# So many names are written out.
_SHOWN = 10


@dataclass(frozen=True)
class Wanted:
    """What an array has to be.

    Attributes:
      shape: in the order of the file's axes.
      statistic: it is a BatchNorm's running mean or variance.
      variance: it is a variance, which cannot be negative.
    """

    shape: tuple[int, ...]
    statistic: bool
    variance: bool

    @classmethod
    def of(cls, path: tuple[str, ...], shape: tuple[int, ...], axes: tuple[int, ...]) -> "Wanted":
        """The array at a path of ours.

        Args:
          path: collection, layers and name.
          shape: of our array.
          axes: of the file's array, in the order of ours.
        """
        statistic = path[0].startswith(SHARED_STATISTICS)
        theirs = tuple(shape[axes.index(axis)] for axis in range(len(shape)))
        return cls(theirs, statistic, statistic and path[-1] == "var")


@dataclass
class Misfits:
    """What does not fit so far.

    Attributes:
      origin: of the arrays.
      library: whose names they have.
      head: what names of the last layer's arrays begin with.
    """

    origin: str | Path
    library: str
    head: str
    missing: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    misshaped: dict[str, tuple[int, ...]] = field(default_factory=dict)
    mistyped: list[str] = field(default_factory=list)
    impossible: list[str] = field(default_factory=list)
    _wanted: dict[str, Wanted] = field(default_factory=dict)

    def checked(
        self, name: str, arrays: Mapping[str, np.ndarray], wanted: Wanted
    ) -> np.ndarray | None:
        """The array in float32; None, and a misfit more, where it is not what is wanted."""
        self._wanted[name] = wanted
        if name not in arrays:
            self.missing.append(name)
            return None
        array = np.asarray(arrays[name])
        if array.shape != wanted.shape:
            self.misshaped[name] = array.shape
            return None
        if array.dtype not in _FLOATS:
            self.mistyped.append(f"{name}: {array.dtype}")
            return None
        # Beyond float32 is infinite.
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all() or (wanted.variance and (array < 0).any()):
            self.impossible.append(name)
            return None
        return array

    def report(self) -> None:
        """Says what does not fit.

        Raises:
          WeightsError: something does not.
        """
        kinds = {
            "missing": sorted(self.missing),
            "left over": sorted(self.left_over),
            "of another shape": [
                f"{name} is {shape}, not {self._wanted[name].shape}"
                for name, shape in self.misshaped.items()
            ],
            "not of a floating-point type": self.mistyped,
            "not finite, or a negative variance": self.impossible,
        }
        found = [
            f"{len(names)} {kind} ({_listed(names)})" for kind, names in kinds.items() if names
        ]
        if found:
            raise WeightsError(
                f"{self.origin} does not fit the network, in {self.library}'s names. Arrays: "
                f"{'; '.join(found)}. {self._remedy()}"
            )

    def _remedy(self) -> str:
        if self.mistyped or self.impossible:
            return "The file is damaged, quantised, or of a training that diverged: get another"
        if prefix := self._prefix():
            return f"Every name begins with {prefix!r}: store the arrays without it"
        wrong = [*self.missing, *self.misshaped, *self.left_over]
        if all(name.startswith(self.head) for name in wrong):
            return self._remedy_of_the_head(wrong)
        statistics = {name for name, wanted in self._wanted.items() if wanted.statistic}
        if statistics == set(wrong):
            return (
                "The file has parameters only: store BatchNorm's statistics too (PyTorch: "
                "model.state_dict())"
            )
        return (
            "It is of another network or width, or not whole: give the network that it was made "
            "with (model.name, model.args, model.pruning_rates)"
        )

    def _remedy_of_the_head(self, wrong: list[str]) -> str:
        head = [name for name in self._wanted if name.startswith(self.head)]
        if wrong == head and wrong == self.missing:
            return "The file has no classifier: leave it out with head=False"
        if wrong == head and wrong == [*self.misshaped]:
            return (
                "The file's classifier is of another number of classes: build the network with "
                "that, or leave the classifier out with head=False"
            )
        return "The file's classifier is not one dense layer as here: leave it out with head=False"

    def _prefix(self) -> str:
        """What stands before every missing name, as DataParallel's `module.`; empty: nothing."""
        if len(self.missing) < len(self._wanted) or self.misshaped:
            return ""
        name = min(self.missing)
        ends = [left for left in self.left_over if left.endswith(f".{name}")]
        prefix = min(ends, key=len).removesuffix(name) if ends else ""
        whole = prefix and {prefix + name for name in self.missing} <= set(self.left_over)
        return prefix if whole else ""


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
