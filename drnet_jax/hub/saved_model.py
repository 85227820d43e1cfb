"""A trained model with all that its use needs, whether it comes from a run or from a folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from drnet_jax.budgets import calibration_file
from drnet_jax.budgets.calibration import BudgetError, Calibration
from drnet_jax.checkpoints.answers import agreement
from drnet_jax.checkpoints.model_key import model_key
from drnet_jax.checkpoints.restore import RestoredModel, check_predictor
from drnet_jax.data.datasets import eval_view
from drnet_jax.data.eval_view import EvalView
from drnet_jax.data.settings import data_settings
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import ModelCost
from drnet_jax.reports.summaries import read_summary
from drnet_jax.runtime.progress import log

# Beside a checkpoint, and in a folder.
CALIBRATION = "calibration.json"
EVALUATION = "eval.json"
# Of an evaluation what a folder keeps: figures, but no paths, commands or names of images.
_FIGURES = (
    *("model", "split", "num_images", "num_corrupt", "resolutions", "fixed", "choice_top1"),
    *("top1", "top5", "gmacs", "gmacs_classifier", "shares", "lambda", "controls", "resampled"),
)
_FIELDS = ("seed", "data.name")


@dataclass(frozen=True)
class SavedModel:
    """A trained model.

    Attributes:
      config: what it is built, normalised, compiled and split into buckets with; other fields are
        at their default, or those of its run.
      model: the network.
      cost: of its networks, with times where its choices are made by those.
      variables: parameters, BatchNorm statistics and fitted values.
      classes: their names, in the order of the logits.
      view: what is classified of a picture.
      key: which model on which data, as `model_key` gives it.
      origin: the run or the folder, which may hold a calibration and an evaluation.
      checkpoint: that the variables are from, for messages; None: they are from a folder.
    """

    config: ConfigDict
    model: DRNet
    cost: ModelCost
    variables: Any
    classes: tuple[str, ...]
    view: EvalView
    key: str
    origin: Path
    checkpoint: Path | None = None


def of_run(config: ConfigDict, run: RestoredModel) -> SavedModel:
    """The model of a run.

    Args:
      config: of the run, as `stored_config` gives it.
      run: the model.

    Raises:
      CheckpointError: it has no trained predictor.
    """
    check_predictor(run)
    return SavedModel(
        config=config,
        model=run.model,
        cost=run.cost,
        variables=run.variables,
        classes=run.classes,
        view=eval_view(data_settings(config, run.origin)),
        key=model_key(config, run),
        origin=run.origin,
        checkpoint=run.checkpoint,
    )


def get_calibration(saved: SavedModel) -> Calibration:
    """The calibration of the model.

    Raises:
      BudgetError: it is missing, damaged, or of another model.
    """
    remedy = "run --mode=calibrate"
    if saved.checkpoint is None:
        remedy += " on its run, and save the model in a new folder"
    path = saved.origin / CALIBRATION
    found = calibration_file.load(path, saved.key, remedy)
    if len(found.points[0].shares) != len(saved.model.resolutions):
        raise BudgetError(f"{path} is of another number of resolutions: {remedy}")
    return found


def find_calibration(saved: SavedModel) -> Calibration | None:
    """As `get_calibration`; None of a model that has none.

    Raises:
      BudgetError: it is damaged, or of another model.
    """
    return get_calibration(saved) if (saved.origin / CALIBRATION).exists() else None


def find_evaluation(saved: SavedModel) -> Mapping[str, Any] | None:
    """The figures of `eval.json` that a folder keeps; None without an evaluation of this model.

    Raises:
      CheckpointError: the file is damaged.
    """
    summary = read_summary(saved.origin)
    if summary is None:
        return None
    if said := agreement(summary["config"]):
        log(f"{saved.origin / EVALUATION} is not taken over: {said}")
        return None
    same = summary["resolutions"] == list(saved.model.resolutions)
    # Without a choice it is of stage 1 alone.
    if summary.get("model") != saved.key or not same or summary["top1"] is None:
        log(
            f"{saved.origin / EVALUATION} is not known to be of {saved.key}: its figures are left "
            "out; --mode=eval writes them anew"
        )
        return None
    fields = {name: summary["config"][name] for name in _FIELDS}
    return {name: summary[name] for name in _FIGURES if name in summary} | {"config": fields}
