"""The files of an export: written, compared with JAX, and described in the manifest."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drnet_jax.budgets.calibration import Calibration
from drnet_jax.exports import int8, stablehlo
from drnet_jax.exports.fixed import FixedProgram, OperatingPoint
from drnet_jax.exports.fixed_parity import compare_fixed
from drnet_jax.exports.images import RANGES_SPLIT, ImagesForInt8
from drnet_jax.exports.manifest import NAME, first_look_weight, manifest
from drnet_jax.exports.networks import ExportedNetwork, exported_networks, in_stock_operations
from drnet_jax.exports.onnx_model import onnx_model
from drnet_jax.exports.parity import Agreement, Outputs, compare, enough, run_files
from drnet_jax.hub.saved_model import SavedModel
from drnet_jax.inference.arrays import ArrayClassifier
from drnet_jax.models.drnet import DRNet
from drnet_jax.runtime.files import write_json
from drnet_jax.runtime.progress import log

_BUCKETS = (1, 16)
# At which int8 is compared: the first, the last and others between them.
_INT8_LAMBDAS = 6
# Agreement of files with JAX, given what they say.
_Compare = Callable[[Outputs], Agreement]


@dataclass(frozen=True)
class Export:
    """What is exported, and what it is compared on.

    Attributes:
      saved: the model, in float32.
      calibration: of the model; None: nothing is calibrated.
      images: `[n, s, s, 3]` uint8, on which files are compared with JAX.
      split: that they are of.
      cpu: where JAX computes for that.
      stablehlo: whether every network is written as StableHLO too.
      point: of the programs of whole batches; None: there are none.
      fixed_batches: their sizes.
      for_int8: images for files in int8; None: there are none.
      said: what top-1 is where labels are answers, in words; empty: labels are the data set's.
    """

    saved: SavedModel
    calibration: Calibration | None
    images: np.ndarray
    split: str
    cpu: jax.Device
    stablehlo: bool
    point: OperatingPoint | None
    fixed_batches: tuple[int, ...]
    for_int8: ImagesForInt8 | None
    said: str

    @property
    def lambdas(self) -> list[float]:
        """At which choices are compared: 0, and those of the calibration."""
        points = self.calibration.points if self.calibration else ()
        return [0.0, *(point.lam for point in points)]

    @cached_property
    def compared(self) -> np.ndarray:
        """The images as often as it takes for every size of batch."""
        return enough(self.images)


def write_files(export: Export, folder: Path) -> dict[str, Any]:
    """Writes all files of an export, and compares them with JAX.

    Args:
      export: what of.
      folder: that is there, and empty.

    Returns:
      The manifest; `parity.problems` is empty where all of them agree.

    Raises:
      ExportError: the model cannot be exported.
      OSError: a file cannot be written.
    """
    saved = export.saved
    networks = _write_networks(export, folder)
    log(f"comparing with JAX on {len(export.images)} images of the {export.split} split ...")
    compare_outputs = _comparison(export)
    agreement = compare_outputs(run_files(folder, networks, export.compared))
    _print("", agreement)
    parts: dict[str, Agreement] = {}
    facts = None
    if export.stablehlo:
        facts, parts["StableHLO"] = _write_stablehlo(export, folder, compare_outputs)
    fixed = _write_fixed(export, folder)
    parts |= {program.name: parity for program, parity in fixed}
    agreement = agreement.with_problems_of(parts)
    in_int8 = None
    # What is broken says nothing of int8, or no numbers at all.
    if export.for_int8 is not None and not agreement.problems:
        in_int8 = _quantise(saved, networks, folder, export.for_int8, export.lambdas)
        in_int8["accuracy"] |= {"split": export.split, "labels": export.said or "the data set's"}
        if export.said:
            log(export.said)
    content = manifest(
        saved,
        networks,
        folder,
        calibration=export.calibration,
        fixed=fixed,
        agreement=agreement,
        split=export.split,
        stablehlo=facts,
        int8=in_int8,
    )
    write_json(folder / NAME, content)
    return content


def _write_networks(export: Export, folder: Path) -> list[ExportedNetwork]:
    networks = _networks(export.saved, in_stock_operations(export.saved.model))
    side = export.saved.view.size
    for network in networks:
        log(f"{network.name}.onnx ...")
        model = onnx_model(network.apply, (side, side), name=network.name)
        (folder / f"{network.name}.onnx").write_bytes(model.SerializeToString())
    return networks


def _comparison(export: Export) -> _Compare:
    weight = first_look_weight(export.saved)
    return partial(
        compare,
        _engine(export.saved, export.saved.view.size, export.cpu),
        images=export.compared,
        num_images=len(export.images),
        lambdas=export.lambdas,
        weight=None if weight is None else np.array(weight, np.float32),
    )


def _write_stablehlo(
    export: Export, folder: Path, compare_outputs: _Compare
) -> tuple[dict[str, Any], Agreement]:
    """Writes and compares; for the manifest, what the files are."""
    facts, outputs = _stablehlo(export.saved, folder, export.compared)
    agreement = compare_outputs(outputs)
    _print("StableHLO: ", agreement)
    return facts | {"parity": agreement.as_json()}, agreement


def _write_fixed(export: Export, folder: Path) -> list[tuple[FixedProgram, Agreement]]:
    """Programs of whole batches, each with its agreement."""
    found = []
    for batch in export.fixed_batches if export.point is not None else ():
        log(f"fixed_{batch}.onnx, and comparing it with JAX's ...")
        assert export.point is not None
        found.append(_fixed_program(export.saved, export.point, batch, folder, export.images))
    return found


def _quantise(
    saved: SavedModel,
    networks: Sequence[ExportedNetwork],
    folder: Path,
    images: ImagesForInt8,
    lambdas: Sequence[float],
) -> dict[str, Any]:
    """Writes every network in int8 too; for the manifest, what they get right."""
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


def _networks(saved: SavedModel, model: DRNet) -> list[ExportedNetwork]:
    return exported_networks(
        model,
        saved.variables,
        saved.cost,
        mean=tuple(saved.config.data.mean),
        std=tuple(saved.config.data.std),
    )


def _stablehlo(
    saved: SavedModel, folder: Path, images: np.ndarray
) -> tuple[dict[str, Any], Outputs]:
    """Writes every network for JAX too; for the manifest, and what the files say when loaded."""
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
    saved: SavedModel, point: OperatingPoint, batch: int, folder: Path, images: np.ndarray
) -> tuple[FixedProgram, Agreement]:
    """Writes the program of a batch's size, and compares it with JAX's."""
    side = saved.view.size
    program = FixedProgram(saved, point, batch)
    path = folder / f"{program.name}.onnx"
    path.write_bytes(program.onnx_model(side).SerializeToString())
    agreement = compare_fixed(program.classifier(saved, side), program, path, images)
    _print(f"{program.name}: ", agreement)
    return program, agreement


def _print(prefix: str, agreement: Agreement) -> None:
    for name, difference in agreement.differences.items():
        allowed = agreement.tolerances[name]
        log(f"{prefix}{name}: largest difference {difference:.2g} (allowed {allowed:.2g})")
    if agreement.num_choices:
        log(
            f"{prefix}choices: {agreement.num_choices}, lambdas: {agreement.num_lambdas}; "
            f"{agreement.num_ties} choices are ties that fell differently"
        )
