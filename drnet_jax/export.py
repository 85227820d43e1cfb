"""`--mode=export`: a model as ONNX files that run without JAX, checked against JAX."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from drnet_jax.checkpoints import answers
from drnet_jax.checkpoints.restore import check_predictor, find_model, restore_variables
from drnet_jax.config import ConfigError, flatten
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.settings import check_outside, data_settings
from drnet_jax.data.sources import DataError, Source
from drnet_jax.evaluation.inputs import load_split
from drnet_jax.exports.images import RANGES_SPLIT, ImagesForInt8, images_for_int8, real_images
from drnet_jax.hub.folder import WEIGHTS, read_folder
from drnet_jax.hub.saved_model import SavedModel, find_calibration, of_run
from drnet_jax.inference.arrays import ArrayClassifier
from drnet_jax.models.drnet import DRNet
from drnet_jax.runtime.files import check_new_folder, new_folder, write_json, write_text
from drnet_jax.runtime.progress import log

if TYPE_CHECKING:
    from drnet_jax.exports.fixed import FixedProgram, OperatingPoint
    from drnet_jax.exports.networks import ExportedNetwork
    from drnet_jax.exports.parity import Agreement, Outputs

_PACKAGES = ("onnx", "onnxruntime")
_UNUSABLE = "UNUSABLE.txt"
_BUCKETS = (1, 16)
# At which int8 is compared: the first, the last and others between them.
_INT8_LAMBDAS = 6
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
    from drnet_jax.exports.fixed import operating_point
    from drnet_jax.exports.manifest import NAME, first_look_weight, manifest
    from drnet_jax.exports.networks import in_float32, in_stock_operations
    from drnet_jax.exports.onnx_model import onnx_model
    from drnet_jax.exports.parity import Agreement, compare, enough, run_files

    output = Path(config.export.output or workdir / "export")
    check_new_folder(output)
    if config.data.name == "folder" and config.data.dir:
        check_outside("data.dir", Path(config.data.dir), "--config.export.output", output)
    saved, load, said = _find(config, workdir)
    source = load(config.export.split)
    saved = replace(saved, model=in_float32(saved.model))
    calibration = find_calibration(saved)
    if calibration is None:
        log("nothing is calibrated: the manifest has no lambda for a budget (--mode=calibrate)")
    point = operating_point(config, saved)
    side = saved.view.size
    images, _ = real_images(source, config.export.split, side, config.export.images)
    # Before the files are made, which takes a while: they may not be there.
    for_int8 = images_for_int8(config, load, source, side) if config.export.int8 else None
    networks = _networks(saved, in_stock_operations(saved.model))
    lambdas = [0.0, *(point.lam for point in calibration.points)] if calibration else [0.0]
    weight = first_look_weight(saved)
    with new_folder(output) as temporary:
        for network in networks:
            log(f"{network.name}.onnx ...")
            model = onnx_model(network.apply, (side, side), name=network.name)
            (temporary / f"{network.name}.onnx").write_bytes(model.SerializeToString())
        log(f"comparing with JAX on {len(images)} images of the {config.export.split} split ...")
        compared = enough(images)
        compare_outputs = partial(
            compare,
            _engine(saved, side, cpu),
            images=compared,
            num_images=len(images),
            lambdas=lambdas,
            weight=None if weight is None else np.array(weight, np.float32),
        )
        agreement = compare_outputs(run_files(temporary, networks, compared))
        _print("", agreement)
        parts: dict[str, Agreement] = {}
        stablehlo = None
        if config.export.stablehlo:
            stablehlo, outputs = _stablehlo(saved, temporary, compared)
            parts["StableHLO"] = compare_outputs(outputs)
            stablehlo["parity"] = parts["StableHLO"].as_json()
            _print("StableHLO: ", parts["StableHLO"])
        fixed = []
        if point is not None:
            for batch in config.export.fixed_batches:
                log(f"fixed_{batch}.onnx, and comparing it with JAX's ...")
                fixed.append(_fixed_program(saved, point, batch, temporary, images))
        parts |= {program.name: parity for program, parity in fixed}
        agreement = agreement.with_problems_of(parts)
        int8 = None
        # What is broken says nothing of int8, or no numbers at all.
        if for_int8 is not None and not agreement.problems:
            int8 = _quantise(saved, networks, temporary, for_int8, lambdas)
            int8["accuracy"] |= {"split": config.export.split, "labels": said or "the data set's"}
            if said:
                log(said)
        content = manifest(
            saved,
            networks,
            temporary,
            calibration=calibration,
            fixed=fixed,
            agreement=agreement,
            split=config.export.split,
            stablehlo=stablehlo,
            int8=int8,
        )
        write_json(temporary / NAME, content)
        if agreement.problems:
            write_text(temporary / _UNUSABLE, "\n".join(agreement.problems) + "\n")
    if agreement.problems:
        raise ExportError(
            f"{output} does not agree with JAX and is marked as unusable: "
            f"{'; '.join(agreement.problems[:3])}"
        )
    log(f"wrote {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    return content


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


def _quantise(
    saved: SavedModel,
    networks: Sequence["ExportedNetwork"],
    folder: Path,
    images: ImagesForInt8,
    lambdas: Sequence[float],
) -> dict[str, Any]:
    """Writes every network in int8 too; for the manifest, what they get right."""
    from drnet_jax.exports import int8
    from drnet_jax.exports.manifest import first_look_weight

    for network in networks:
        log(f"{network.name}{int8.ENDING} ...")
        source, target = (folder / f"{network.name}{end}" for end in (".onnx", int8.ENDING))
        int8.quantise(source, target, images.ranges)
    ranges = {"split": RANGES_SPLIT, "num_images": len(images.ranges), "method": int8.METHOD}
    log(f"top-1 of float32 and of int8 on {len(images.compared)} images ...")
    places = np.linspace(0, len(lambdas) - 1, _INT8_LAMBDAS).round().astype(int)
    accuracy = int8.compare_accuracy(
        folder,
        networks,
        images.compared,
        images.labels,
        cost=saved.cost,
        lambdas=[lambdas[place] for place in dict.fromkeys(places.tolist())],
        weight=first_look_weight(saved),
    )
    for line in int8.in_words(accuracy, saved.model.resolutions):
        log(line)
    return {"ranges": ranges, "accuracy": asdict(accuracy)}


def _engine(saved: SavedModel, side: int, device: jax.Device) -> ArrayClassifier:
    """JAX's classifier, which has its own forms of the same operations.

    On the CPU, also beside a GPU, whose matrix products may have three digits.
    """
    return ArrayClassifier(
        saved.model,
        saved.variables,
        mean=tuple(saved.config.data.mean),
        std=tuple(saved.config.data.std),
        buckets=_BUCKETS,
        image_size=(side, side),
        fold=saved.config.inference.fold,
        device=device,
        checkpoint=saved.checkpoint,
        cost=saved.cost,
    )


def _networks(saved: SavedModel, model: DRNet) -> list["ExportedNetwork"]:
    from drnet_jax.exports.networks import exported_networks

    return exported_networks(
        model,
        saved.variables,
        saved.cost,
        mean=tuple(saved.config.data.mean),
        std=tuple(saved.config.data.std),
    )


def _stablehlo(
    saved: SavedModel, folder: Path, images: np.ndarray
) -> tuple[dict[str, Any], "Outputs"]:
    """Writes every network for JAX too; for the manifest, and what the files say when loaded."""
    from drnet_jax.exports import stablehlo
    from drnet_jax.exports.parity import run_files

    networks, version = _networks(saved, saved.model), 0
    for network in networks:
        log(f"{network.name}{stablehlo.ENDING} ...")
        content, version = stablehlo.stablehlo(network, saved.view.size)
        (folder / f"{network.name}{stablehlo.ENDING}").write_bytes(content)
    outputs = run_files(folder, networks, images, stablehlo.ENDING, stablehlo.load_stablehlo)
    facts = {
        "calling_convention_version": version,
        "platforms": list(stablehlo.PLATFORMS),
        "validity": stablehlo.VALIDITY,
    }
    return facts, outputs


def _fixed_program(
    saved: SavedModel, point: "OperatingPoint", batch: int, folder: Path, images: np.ndarray
) -> tuple["FixedProgram", "Agreement"]:
    """Writes the program of a batch's size, and compares it with JAX's."""
    from drnet_jax.exports.fixed import FixedProgram
    from drnet_jax.exports.fixed_parity import compare_fixed

    side = saved.view.size
    program = FixedProgram(saved, point, batch)
    path = folder / f"{program.name}.onnx"
    path.write_bytes(program.onnx_model(side).SerializeToString())
    agreement = compare_fixed(program.classifier(saved, side), program, path, images)
    _print(f"{program.name}: ", agreement)
    return program, agreement


def _print(prefix: str, agreement: "Agreement") -> None:
    for name, difference in agreement.differences.items():
        allowed = agreement.tolerances[name]
        log(f"{prefix}{name}: largest difference {difference:.2g} (allowed {allowed:.2g})")
    if agreement.num_choices:
        log(
            f"{prefix}choices: {agreement.num_choices}, lambdas: {agreement.num_lambdas}; "
            f"{agreement.num_ties} choices are ties that fell differently"
        )
