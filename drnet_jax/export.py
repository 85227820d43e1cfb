"""`--mode=export`: a model as ONNX files that run without JAX, checked against JAX."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import ConfigDict

from drnet_jax.checkpoints import answers
from drnet_jax.checkpoints.restore import check_predictor, find_model, restore_variables
from drnet_jax.config import ConfigError, flatten
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.settings import check_outside, data_settings
from drnet_jax.data.sources import DataError, Source
from drnet_jax.evaluation.inputs import load_split
from drnet_jax.exports.images import images_for_int8, real_images
from drnet_jax.hub.folder import WEIGHTS, read_folder
from drnet_jax.hub.saved_model import SavedModel, find_calibration, of_run
from drnet_jax.runtime.files import check_new_folder, new_folder, write_text
from drnet_jax.runtime.progress import log

if TYPE_CHECKING:
    from drnet_jax.exports.files import Export

_PACKAGES = ("onnx", "onnxruntime")
_UNUSABLE = "UNUSABLE.txt"
_LoadSplit = Callable[[str], Source]
# Of the data, which a folder of a model does not have.
_OF_A_MODEL = ("model.", "predictor.", "data.mean", "data.std", "inference.")


def restore_and_export(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes a model as ONNX, in a new folder, and compares the files with JAX on real images.

    `manifest.json`, `predictor_<px>.onnx` or `first_look_<px>.onnx`, `classifier_<px>.onnx`,
    `fixed_<n>.onnx` for `export.fixed_batches`, and `.stablehlo` and `.int8.onnx` beside each
    network where they are asked for, in `export.output` or in `export` of the workdir. Where they
    do not agree, the manifest says so, and `UNUSABLE.txt` why.

    Args:
      config: of the data, and with the model of a run; that of a folder is taken from there.
      workdir: of the run, unless `restore_from` names another, or a folder of `save_pretrained`.

    Returns:
      The manifest.

    Raises:
      ConfigError: the packages or JAX's CPU are missing, the data are not the model's or have no
        labels for int8, the output would lie in the folder of pictures, or a fixed program is asked
        for of a model that chooses nothing.
      CheckpointError: no model, one of another configuration, or no trained predictor.
      DataError: the data cannot be read, or are other data.
      BudgetError: the model's calibration is damaged, or of another model; or a fixed program needs
        one, or a budget that cannot be kept.
      ExportError: the model cannot be exported, or the export does not agree with it.
      OSError: the output is there already, or cannot be written.
    """
    _check_installed()
    cpu = _cpu()
    # Imported late: they need the packages.
    from drnet_jax.exports.errors import ExportError
    from drnet_jax.exports.files import write_files

    output = Path(config.export.output or workdir / "export")
    check_new_folder(output)
    if config.data.name == "folder" and config.data.dir:
        check_outside("data.dir", Path(config.data.dir), "--config.export.output", output)
    export = _prepared(config, workdir, cpu)
    with new_folder(output) as temporary:
        content = write_files(export, temporary)
        problems = content["parity"]["problems"]
        if problems:
            write_text(temporary / _UNUSABLE, "\n".join(problems) + "\n")
    if problems:
        raise ExportError(
            f"{output} does not agree with JAX and is marked as unusable: {'; '.join(problems[:3])}"
        )
    log(f"wrote {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    return content


def _prepared(config: ConfigDict, workdir: Path, cpu: jax.Device) -> "Export":
    """The model, and the images: all that may be wrong or missing, before files are made."""
    from drnet_jax.exports.files import Export
    from drnet_jax.exports.fixed import operating_point
    from drnet_jax.exports.networks import in_float32

    saved, load, said = _find(config, workdir)
    split = config.export.split
    source = load(split)
    saved = replace(saved, model=in_float32(saved.model))
    calibration = find_calibration(saved)
    if calibration is None:
        log("nothing is calibrated: the manifest has no lambda for a budget (--mode=calibrate)")
    point, side = operating_point(config, saved), saved.view.size
    images, _ = real_images(source, split, side, config.export.images)
    return Export(
        saved=saved,
        calibration=calibration,
        images=images,
        split=split,
        cpu=cpu,
        stablehlo=config.export.stablehlo,
        point=point,
        fixed_batches=tuple(config.export.fixed_batches),
        for_int8=images_for_int8(config, load, source, side) if config.export.int8 else None,
        said=said,
    )


def _check_installed() -> None:
    lacking = [package for package in _PACKAGES if find_spec(package) is None]
    if lacking:
        raise ConfigError(
            f"--mode=export needs {' and '.join(lacking)}: pip install -r requirements-export.txt"
        )


def _cpu() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise ConfigError(
            "--mode=export compares with JAX on the CPU, which JAX_PLATFORMS leaves out: unset it, "
            "or add cpu to it"
        ) from error


def _find(config: ConfigDict, workdir: Path) -> tuple[SavedModel, _LoadSplit, str]:
    """The model of a run or of a folder, and what loads a split of its data.

    Also what top-1 is where the labels are answers, in words.
    """
    origin = Path(config.restore_from) if config.restore_from else workdir
    if not (origin / WEIGHTS).exists():
        trained = find_model(config, origin)
        check_predictor(trained)
        saved = of_run(config, restore_variables(trained))
        said = answers.agreement(trained.config)
        return saved, lambda split: load_split(config, workdir, trained, split), said
    saved = read_folder(origin)
    wanted = saved.config.data.name
    if config.data.name != wanted:
        raise ConfigError(
            f"{origin} holds a model of data.name={wanted!r}, and data.name={config.data.name!r} "
            "is configured: give the data that it was trained on, images of which are compared"
        )
    if config.export.int8 and not config.convert.labels:
        raise ConfigError(
            f"what int8 gets right is told by labels, and {origin} has none of pictures that "
            "convert.labels=False leaves without: export the run, whose pictures have answers, or "
            "give export.int8=False"
        )
    config = config.copy_and_resolve_references()
    fields = flatten(saved.config).items()
    config.update_from_flattened_dict(
        {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields
            if name.startswith(_OF_A_MODEL)
        }
    )
    # Seen as in its training.
    config.data.eval_crop = saved.view.fraction
    splits = DataSplits(data_settings(config, workdir))
    if splits.classes and splits.classes != saved.classes:
        raise DataError(
            f"{origin} holds a model of the classes {', '.join(saved.classes[:5])}, ..., and the "
            f"data have {', '.join(splits.classes[:5])}, ...: give the data it was trained on"
        )
    return saved, splits.load, ""
