"""A model as one static program a batch, for export: scores, choices and answers in one file."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from ml_collections import ConfigDict

from drnet_jax.budgets.calibration import BudgetError
from drnet_jax.budgets.solve import solve
from drnet_jax.config import ConfigError, budget_name
from drnet_jax.exports.networks import LOGITS, SCORES, in_stock_operations
from drnet_jax.exports.onnx_model import COUNT, IMAGES, onnx_model
from drnet_jax.hub.saved_model import SavedModel, get_calibration
from drnet_jax.inference.batches import check_images_fit
from drnet_jax.inference.capacity import capacities_of
from drnet_jax.inference.fused import FusedClassifier
from drnet_jax.inference.fused_program import FusedProgram

CHOICES = "choices"


@dataclass(frozen=True)
class OperatingPoint:
    """What a fixed program is made for.

    Attributes:
      lam: lambda, see `choose`.
      shares: `[m]` of the resolutions in a batch; None: only batches of one image are asked for.
      budget: what was configured, by name, which these keep; empty: nothing.
    """

    lam: float
    shares: tuple[float, ...] | None
    budget: Mapping[str, float]


def operating_point(config: ConfigDict, saved: SavedModel) -> OperatingPoint | None:
    """Lambda and shares of the configured budget; without one of lambda 0, the paper's choice.

    Args:
      config: `export.fixed_batches` and `budget` of it.
      saved: the model, with a calibration unless all that is asked for is lambda 0 for one image.

    Returns:
      None: no fixed program is asked for.

    Raises:
      ConfigError: the model has one resolution, and nothing to choose; or a batch does not fit into
        the memory.
      BudgetError: nothing is calibrated, or the budget cannot be kept.
    """
    sizes, name = tuple(config.export.fixed_batches), budget_name(config)
    if not sizes:
        return None
    if len(saved.model.resolutions) == 1:
        raise ConfigError(
            f"export.fixed_batches={sizes} is of models that choose, and this one has one "
            "resolution: leave it out, its classifier is exported as it is"
        )
    side = saved.view.size
    check_images_fit(f"export.fixed_batches={sizes}", max(sizes), (side, side))
    if name is None and sizes == (1,):
        return OperatingPoint(0.0, None, {})
    calibration = get_calibration(saved)
    if name is None:
        point = next((point for point in calibration.points if point.lam == 0), None)
        if point is None:
            raise BudgetError("the calibration has no lambda 0: run --mode=calibrate again")
    else:
        point = solve(config, calibration, (side, side))
    return OperatingPoint(point.lam, point.shares, {name: config.budget[name]} if name else {})


class FixedProgram:
    """A whole batch in one ONNX file.

    Args:
      saved: the model.
      point: what it is made for.
      batch: images.

    Attributes:
      point: what it is made for.
      batch: images.
      capacities: `[m]` places a resolution; None of one image, which gets what it chooses.
      name: of the file, without the ending.
      inputs: the images, and of more than one how many of them are real.
      outputs: in the order of the file.
    """

    outputs = (CHOICES, LOGITS, SCORES)

    def __init__(self, saved: SavedModel, point: OperatingPoint, batch: int) -> None:
        self.point, self.batch = point, batch
        self.capacities = None
        if batch > 1:
            assert point.shares is not None
            self.capacities = capacities_of(point.shares, batch)
        self.inputs = (IMAGES,) if self.capacities is None else (IMAGES, COUNT)
        self.name = f"fixed_{batch}"
        self._program = FusedProgram(
            in_stock_operations(saved.model),
            saved.variables,
            mean=tuple(saved.config.data.mean),
            std=tuple(saved.config.data.std),
            capacities=self.capacities,
            lam=point.lam,
            fold=True,
            cost=saved.cost,
        )

    def onnx_model(self, side: int) -> onnx.ModelProto:
        """The program for images of so many pixels a side.

        Raises:
          ExportError: it cannot be converted.
        """
        return onnx_model(
            self._apply,
            (side, side),
            name=self.name,
            batch_size=self.batch,
            counted=COUNT in self.inputs,
        )

    def classifier(self, saved: SavedModel, side: int) -> FusedClassifier:
        """The same in JAX, which has its own forms of the same operations; on the CPU."""
        return FusedClassifier(
            saved.model,
            saved.variables,
            mean=tuple(saved.config.data.mean),
            std=tuple(saved.config.data.std),
            batch_size=self.batch,
            capacities=self.capacities,
            lam=self.point.lam,
            image_size=(side, side),
            fold=saved.config.inference.fold,
            device=jax.local_devices(backend="cpu")[0],
            checkpoint=saved.checkpoint,
            cost=saved.cost,
        )

    def choose(self, scores: np.ndarray, count: int) -> np.ndarray:
        """By the program's rule in JAX, from scores `[batch, m]`: `[count]` resolutions."""
        price = jnp.asarray(self._program.variables["price"])
        choices, _ = self._program.choose(price, jnp.asarray(scores), jnp.int32(count))
        return np.asarray(choices)[:count]

    def _apply(self, images: jax.Array, count: jax.Array | int = 1) -> Mapping[str, jax.Array]:
        # NumPy's arrays have no index that is traced.
        variables = jax.tree.map(jnp.asarray, self._program.variables)
        found = self._program(variables, (images,), jnp.asarray(count))
        return {LOGITS: found.logits, CHOICES: found.choices, SCORES: found.scores}
