"""`manifest.json` of an export: all that a runtime without JAX needs beside the files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from drnet_jax.budgets.calibration import Calibration
from drnet_jax.exports.fixed import FixedProgram
from drnet_jax.exports.graph import OPSET
from drnet_jax.exports.int8 import ENDING
from drnet_jax.exports.networks import LOGITS, SCORES, ExportedNetwork
from drnet_jax.exports.onnx_model import IMAGES
from drnet_jax.exports.parity import Agreement
from drnet_jax.exports.stablehlo import ENDING as STABLEHLO
from drnet_jax.hub.saved_model import SavedModel
from drnet_jax.models.macs import ModelCost
from drnet_jax.models.variables import reuse_weight
from drnet_jax.runtime.environment import VERSION

NAME = "manifest.json"
FORMAT = "drnet_jax export"
# Of what is written; a reader refuses a higher one.
FORMAT_VERSION = 1
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "onnx", "onnxruntime")
_RULE = (
    "argmax over the resolutions, the first of equals, of log_softmax(scores) - lambda * cost.each "
    "in float64; at lambda 0 of the scores alone"
)
_ANSWER = (
    "logits at the chosen resolution, plus first_look_weight of it times the first look's logits; "
    "where the smallest is chosen, the first look's logits are the answer"
)


def manifest(
    saved: SavedModel,
    networks: Sequence[ExportedNetwork],
    folder: Path,
    *,
    calibration: Calibration | None,
    fixed: Sequence[tuple[FixedProgram, Agreement]],
    agreement: Agreement,
    split: str,
    stablehlo: Mapping[str, Any] | None,
    int8: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The content of the file.

    Args:
      saved: the model.
      networks: that were exported.
      folder: of their files.
      calibration: of the model, if there is one.
      fixed: programs that were exported, and how far each agrees with JAX.
      agreement: of the networks with JAX, with the problems of all files.
      split: of the images that it was found on.
      stablehlo: what the files of JAX's are, without themselves; None: there are none.
      int8: how the files in int8 were made, and what they get right; None: there are none.
    """
    model, side = saved.model, saved.view.size
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "usable": not agreement.problems,
        "model": saved.key,
        "classes": list(saved.classes),
        "resolutions": list(model.resolutions),
        "input": {
            "name": IMAGES,
            "dtype": "uint8",
            "shape": ["batch", side, side, 3],
            "channels": "RGB",
        },
        "preprocessing": _preprocessing(saved),
        "networks": [
            _described(network, folder, stablehlo is not None, int8 is not None)
            for network in networks
        ],
        "cost": _costs(saved.cost),
        "choice": {
            "rule": _RULE,
            "answer": _ANSWER,
            "first_look_weight": first_look_weight(saved),
        },
        "calibration": None if calibration is None else _table(saved, calibration),
        "fixed": [_described_program(program, saved, folder, parity) for program, parity in fixed],
        "parity": {"split": split, **agreement.as_json()},
        "stablehlo": stablehlo,
        "int8": int8,
        "versions": {
            "drnet_jax": VERSION,
            "onnx_opset": OPSET,
            **{package: version(package) for package in _PACKAGES},
        },
    }


def _preprocessing(saved: SavedModel) -> dict[str, Any]:
    """From a picture to what a network computes with."""
    view, data = saved.view, saved.config.data
    return {
        "outside": {
            "upright": "by EXIF",
            "crop": "centred square",
            "crop_fraction_of_shorter_side": view.fraction,
            "size": view.size,
            "filter": "Pillow BILINEAR",
        },
        "inside": {
            "mean": list(data.mean),
            "std": list(data.std),
            "of": "values over 255",
            "resize": "bilinear with antialiasing, as jax.image.resize",
        },
    }


def _costs(cost: ModelCost) -> dict[str, Any]:
    """Of every choice."""
    return {
        "unit": cost.unit,
        "each": list(cost.choice_costs),
        "macs": [cost.predictor + macs for macs in cost.choice],
        "measured": None if cost.measured is None else asdict(cost.measured),
    }


def first_look_weight(saved: SavedModel) -> list[float] | None:
    """`[m]`, of the first look's logits in every answer; None: the model takes no first look."""
    if not saved.model.glances:
        return None
    weight = reuse_weight(saved.variables, len(saved.model.resolutions))
    return [float(value) for value in weight]


def _described(
    network: ExportedNetwork, folder: Path, in_stablehlo: bool, in_int8: bool
) -> dict[str, Any]:
    outputs = {"predictor": [SCORES], "first_look": [LOGITS, SCORES]}
    return {
        "role": network.role,
        "resolution": network.resolution,
        **_file(folder / f"{network.name}.onnx"),
        "macs": network.macs,
        "outputs": outputs.get(network.role, [LOGITS]),
        "stablehlo": _file(folder / f"{network.name}{STABLEHLO}") if in_stablehlo else None,
        "int8": _file(folder / f"{network.name}{ENDING}") if in_int8 else None,
    }


def _described_program(
    program: FixedProgram, saved: SavedModel, folder: Path, parity: Agreement
) -> dict[str, Any]:
    """With what a whole batch costs; of one image that is what its choice costs."""
    macs = None
    if program.capacities is not None:
        each = zip(program.capacities, saved.cost.choice, strict=True)
        macs = program.batch * saved.cost.predictor + sum(places * cost for places, cost in each)
    return {
        "batch": program.batch,
        **_file(folder / f"{program.name}.onnx"),
        "capacities": None if program.capacities is None else list(program.capacities),
        "lambda": program.point.lam,
        "shares": None if program.point.shares is None else list(program.point.shares),
        "budget": dict(program.point.budget),
        "macs": macs,
        "inputs": list(program.inputs),
        "outputs": list(program.outputs),
        "parity": parity.as_json(),
    }


def _file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "sha256": digest, "bytes": path.stat().st_size}


def _table(saved: SavedModel, calibration: Calibration) -> dict[str, Any]:
    """Every lambda with what it costs; between two resolutions with its threshold too."""
    costs = saved.cost.choice_costs
    points = []
    for point in calibration.points:
        entry = {"lambda": point.lam, **asdict(point)}
        del entry["lam"]
        if len(costs) == 2:
            # The larger one is chosen where its score is above the other's by this or more.
            entry["threshold"] = point.lam * (costs[0] - costs[1])
        points.append(entry)
    return {"num_images": calibration.num_images, "points": points}
