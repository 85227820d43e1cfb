"""The page of a finished prediction: what the gallery shows, and what is said of the job."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from drnet_jax.checkpoints.restore import TrainedModel
from drnet_jax.config import budget_name, network_in_words
from drnet_jax.data.decode import CorruptImageError, resize_square
from drnet_jax.data.eval_view import EvalView
from drnet_jax.data.files import read_picture, version
from drnet_jax.reports.gallery import gallery
from drnet_jax.reports.predictions import GlancePrediction, Prediction, Unreadable


def prediction_page(
    config: ConfigDict,
    trained: TrainedModel,
    root: Path,
    view: EvalView,
    lam: float,
    predictions: Sequence[Prediction],
    unreadable: Sequence[Unreadable],
    versions: Mapping[str, str],
) -> str:
    """HTML of these predictions; pictures that were changed since are not shown.

    Args:
      config: of the job.
      trained: the model.
      root: of the pictures.
      view: how they were read.
      lam: lambda of `choose`.
      predictions: one or more.
      unreadable: the pictures that have none.
      versions: of every picture when the job began, by its path from `root`.
    """
    resolutions = trained.model.resolutions

    def pixels(prediction: Prediction) -> list[np.ndarray] | None:
        """What the classifier saw, look by look."""
        path = root / prediction.file
        if version(path) != versions[prediction.file]:
            return None
        try:
            square = view.decode(read_picture(path))
        except (CorruptImageError, OSError):
            return None
        sides = [prediction.resolution]
        if isinstance(prediction, GlancePrediction) and prediction.looks == 2:
            sides.insert(0, resolutions[-1])
        return [resize_square(square, side) for side in sides]

    name = budget_name(config)
    mean = np.mean([prediction.gmacs for prediction in predictions])
    largest = trained.cost.classifier_gmacs[0]
    network = network_in_words(config.model.name, config.model.pruning_rates)
    return gallery(
        predictions,
        unreadable,
        resolutions=resolutions,
        shown=config.predict.gallery,
        title=root.resolve().name,
        facts={
            "Model": f"{network}, {trained.stage} step {trained.step}",
            "Run": str(trained.origin),
            "Input": str(root),
            "Budget": f"{name} {config.budget[name]:g} (lambda {lam:.4g})" if name else "none",
            "Pictures": f"{len(predictions):,}",
            "Mean cost": f"{mean:.4g} GMACs, {mean / largest:.2f} of {resolutions[0]} px alone",
        },
        pixels=pixels,
    )
