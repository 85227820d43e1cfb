"""From a trained model and a configuration to a compiled classifier."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
from ml_collections import ConfigDict

from drnet_jax.config import ConfigError
from drnet_jax.data.eval_view import EvalView
from drnet_jax.inference.arrays import ArrayClassifier
from drnet_jax.inference.batches import check_buckets, check_images_fit
from drnet_jax.inference.capacity import capacities_of
from drnet_jax.inference.engine import InferenceEngine
from drnet_jax.inference.files import FileClassifier
from drnet_jax.inference.fused import FusedClassifier
from drnet_jax.inference.programs import CostTable
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import ModelCost
from drnet_jax.runtime.progress import log

EngineT = TypeVar("EngineT", bound=InferenceEngine)


class UsableModel(Protocol):
    """What a classifier is made of: a `RestoredModel`, or a model that a folder holds."""

    @property
    def model(self) -> DRNet:
        """The network."""

    @property
    def variables(self) -> Any:
        """Its parameters and statistics."""

    @property
    def cost(self) -> ModelCost:
        """Of its networks."""

    @property
    def checkpoint(self) -> Path | None:
        """That the variables are from, for messages; None: unknown."""


def array_classifier(
    config: ConfigDict,
    restored: UsableModel,
    image_size: tuple[int, int],
    *,
    up_to: int | None = None,
    until: float = math.inf,
) -> ArrayClassifier:
    """Compiles a model for `config.inference.buckets`, on the first device.

    Args:
      config: with the model the checkpoint was trained with.
      restored: the model, with a trained predictor if it has one (`check_predictor`).
      image_size: height and width of the images.
      up_to: see `InferenceEngine`; default: all buckets.
      until: see `InferenceEngine`.

    Raises:
      ConfigError: several hosts, or buckets that do not fit into the memory.
    """
    settings = _settings(config, restored) | _buckets(config, up_to)
    classifier = ArrayClassifier(**settings, image_size=image_size, up_to=up_to, until=until)
    return measured(config, classifier)


def file_classifier(
    config: ConfigDict, restored: UsableModel, view: EvalView, times: CostTable | None = None
) -> FileClassifier:
    """As `array_classifier`, for picture files.

    Args:
      config: with the model the checkpoint was trained with.
      restored: see there.
      view: what is classified of a picture, as evaluation sees it.
      times: measured before; default: measured now, if `config.inference.measure` is set.

    Raises:
      ConfigError: several hosts, or buckets that do not fit into the memory.
      ValueError: the times are of other buckets, as another kind of device has them by default.
    """
    settings = _settings(config, restored) | _buckets(config)
    classifier = FileClassifier(**settings, view=view)
    return classifier.with_times(times) if times else measured(config, classifier)


def fused_classifier(
    config: ConfigDict,
    restored: UsableModel,
    image_size: tuple[int, int],
    *,
    batch_size: int,
    shares: Sequence[float] | None,
    lam: float,
) -> FusedClassifier:
    """Compiles a model for batches of one size, in one program, on the first device.

    Args:
      config: with the model the checkpoint was trained with.
      restored: see `array_classifier`.
      image_size: height and width of the images.
      batch_size: images of a batch.
      shares: `[m]` of the resolutions, which `capacities_of` gives places for; None for one image,
        or one resolution.
      lam: lambda, see `choose`.

    Raises:
      ConfigError: several hosts, or a batch that does not fit into the memory.
      ValueError: a batch, shares or a lambda that are not what they should be.
    """
    m = len(restored.model.resolutions)
    if m == 1 and shares is None and batch_size > 1:
        shares = (1.0,)
    if (shares is None) != (batch_size == 1) or (shares is not None and len(shares) != m):
        raise ValueError(
            f"shares={shares!r} must be those of {m} resolutions, as a Point of a calibration has "
            "them, or None for batches of one image"
        )
    capacities = None if shares is None else capacities_of(shares, batch_size)
    check_images_fit(f"batch_size={batch_size}", batch_size, image_size)
    return FusedClassifier(
        **_settings(config, restored),
        image_size=image_size,
        batch_size=batch_size,
        capacities=capacities,
        lam=lam,
    )


def _buckets(config: ConfigDict, up_to: int | None = None) -> dict[str, Any]:
    """The buckets of a classifier that compiles every resolution for each."""
    check_buckets(config)
    log(f"compiling every resolution {'and bucket' if up_to is None else f'for batch {up_to}'} ...")
    return {"buckets": tuple(config.inference.buckets) or None}


def _settings(config: ConfigDict, restored: UsableModel) -> dict[str, Any]:
    """Arguments of any classifier."""
    if jax.process_count() > 1:
        raise ConfigError("dispatch runs on one host; eval.dispatch='dense' on several")
    return {
        "model": restored.model,
        "variables": restored.variables,
        "mean": tuple(config.data.mean),
        "std": tuple(config.data.std),
        "fold": config.inference.fold,
        "checkpoint": restored.checkpoint,
        "cost": restored.cost,
    }


def measured(config: ConfigDict, classifier: EngineT) -> EngineT:
    """The classifier with its measured times, if `config.inference.measure` is set."""
    if not config.inference.measure:
        return classifier
    log("measuring them ...")
    return classifier.with_times(classifier.measure())
