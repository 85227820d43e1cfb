"""What a program makes of a trained run: a classifier, its budgets, a folder, weights."""

from collections.abc import Sequence
from pathlib import Path

from drnet_jax.budgets import calibration_file
from drnet_jax.budgets.calibration import Calibration
from drnet_jax.budgets.solve import calibration_path
from drnet_jax.checkpoints.model_key import model_key
from drnet_jax.checkpoints.restore import RestoredModel
from drnet_jax.checkpoints.runs import stored_config
from drnet_jax.hub.classifier import AdaptiveClassifier
from drnet_jax.hub.folder import write_folder
from drnet_jax.hub.saved_model import of_run
from drnet_jax.models.variables import part_variables
from drnet_jax.pretrained.export import export_weights


def load_classifier(
    run: RestoredModel,
    *,
    image_size: tuple[int, int] | None = None,
    buckets: Sequence[int] | None = None,
    measure: bool | None = None,
) -> AdaptiveClassifier:
    """Compiles a run for classifying images in memory, as its own configuration says.

    Args:
      run: of `load_run`.
      image_size: height and width of the images in pixels; default: the largest resolution.
      buckets: batch sizes to compile; groups of other sizes are split. Default: the run's
        `inference.buckets`.
      measure: time every bucket first, and split groups as is then fastest. Default: the run's
        `inference.measure`.

    Raises:
      CheckpointError: the run has no trained predictor, or its `config.json` is missing, damaged
        or of another version of the program.
      ConfigError: a value in `config.json` that this version refuses, several hosts, or batches
        that do not fit into the memory.
      ValueError: buckets or an image size that are not what they should be.
    """
    saved = of_run(stored_config(run.origin), run)
    classifier = AdaptiveClassifier(saved, image_size=image_size, buckets=buckets, measure=measure)
    return classifier.compile(arrays=True)


def save_pretrained(run: RestoredModel, folder: str | Path) -> None:
    """Writes the model of a run as a folder for `AdaptiveClassifier.from_pretrained`.

    With its calibration and its figures, where `--mode=calibrate` and `--mode=eval` have written
    them; see `write_folder`.

    Args:
      run: of `load_run`.
      folder: empty, or not there yet.

    Raises:
      FileExistsError: the folder holds something, or is no folder.
      CheckpointError: the run has no trained predictor, or a file of it is missing or damaged.
      BudgetError: its calibration is damaged, or of another model.
      OSError: the folder cannot be written.
    """
    write_folder(of_run(stored_config(run.origin), run), Path(folder))


def load_calibration(run: RestoredModel) -> Calibration:
    """What `--mode=calibrate` found out: which lambda keeps which budget.

    `load_calibration(run).for_gmacs(0.005).lam` is the lambda for `AdaptiveClassifier.classify`
    that costs 0.005 GMACs an image or less, on average over the calibration split.

    Args:
      run: of `load_run`.

    Raises:
      BudgetError: nothing is calibrated, or it was another model or another crop.
      CheckpointError: `config.json` is damaged.
    """
    key = model_key(stored_config(run.origin), run)
    return calibration_file.load(calibration_path(run), key)


def export_classifier(
    run: RestoredModel, path: str | Path, resolution: int, *, overwrite: bool = False
) -> None:
    """Writes a run's classifier at one resolution as `.safetensors`, for PyTorch.

    Args:
      run: of `load_run`.
      path: of the file.
      resolution: side in pixels, one of `run.model.resolutions`.
      overwrite: whether a file that is there already may be replaced.

    Raises:
      WeightsError: see `export_weights`.
      OSError: the file cannot be written.
    """
    variables = part_variables(run.variables, "classifier")
    export_weights(path, run.model.classifier, variables, resolution, overwrite=overwrite)
