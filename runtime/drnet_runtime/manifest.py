"""`manifest.json` of an export, read as what it must be (docs/export.md has its members)."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from drnet_runtime.budgets import Calibration, Point
from drnet_runtime.errors import ExportDirectoryError

NAME = "manifest.json"
_FORMAT, _FORMAT_VERSION = "drnet_jax export", 1
# What `pictures.py` does with a picture.
_OUTSIDE = {"upright": "by EXIF", "crop": "centred square", "filter": "Pillow BILINEAR"}
_ANEW = "export the model anew (drnet_jax: --mode=export), or copy the directory again"
PREDICTOR, FIRST_LOOK, CLASSIFIER = "predictor", "first_look", "classifier"
_OUTPUTS = {
    PREDICTOR: ("scores",),
    FIRST_LOOK: ("logits", "scores"),
    CLASSIFIER: ("logits",),
}


@dataclass(frozen=True)
class Network:
    """An exported network.

    Attributes:
      role: `'predictor'`, `'first_look'` or `'classifier'`.
      resolution: side of what it sees, in pixels.
      file: its name in the directory.
      sha256: of the file, in hexadecimal.
      macs: multiply-adds of an image.
      outputs: their names, in the order of the file.
    """

    role: str
    resolution: int
    file: str
    sha256: str
    macs: int
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """What a manifest says, for m resolutions.

    Attributes:
      model: which model it is: another value for another one.
      classes: names in the order of the logits.
      resolutions: `[m]`, in pixels, the largest first.
      image_size: side of the images that every network takes.
      crop_fraction: side of the centred square of a picture, of its shorter side.
      input_name: of the images, in every file.
      networks: the predictor or first look, if there is one, then the classifiers by resolution.
      costs: `[m]`, what lambda counts of every choice.
      macs: `[m]`, multiply-adds of every choice, the predictor or first look included.
      first_look_weight: `[m]`, of the first look's logits in every answer; None: there is no look.
      calibration: None where nothing is calibrated.
    """

    model: str
    classes: tuple[str, ...]
    resolutions: tuple[int, ...]
    image_size: int
    crop_fraction: float
    input_name: str
    networks: tuple[Network, ...]
    costs: tuple[float, ...]
    macs: tuple[int, ...]
    first_look_weight: tuple[float, ...] | None
    calibration: Calibration | None


def read_manifest(directory: Path, *, int8: bool = False) -> Manifest:
    """Reads and checks the manifest of an export.

    Args:
      directory: of the export.
      int8: its networks are the files in int8.

    Raises:
      ExportDirectoryError: there is none, or it is damaged, of a newer format, marked as unusable,
        or of what this runtime does not know; or a name leads out of the directory; or it has no
        files in int8.
    """
    path = directory / NAME
    if not directory.is_dir():
        raise ExportDirectoryError(f"{directory} is no directory: give one that drnet_jax exported")
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ExportDirectoryError(
            f"{path} is missing: give a directory that drnet_jax exported"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ExportDirectoryError(f"{path} cannot be read ({error}): {_ANEW}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ExportDirectoryError(f"{path} is no manifest of an export: give one of drnet_jax")
    _check_usable(path, content)
    if int8 and content.get("int8") is None:
        raise ExportDirectoryError(
            f"{path} has no files in int8: export it anew (drnet_jax: --mode=export "
            "--config.export.int8=True), or load it without int8"
        )
    try:
        return _parse(content, int8)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ExportDirectoryError(f"{path} is damaged ({reason}): {_ANEW}") from error


def _check_usable(path: Path, content: Mapping[str, Any]) -> None:
    """Stops for a newer format, and for an export that does not agree with its model."""
    version = content.get("format_version")
    if type(version) is not int or version < 1:
        raise ExportDirectoryError(f"{path} is damaged (format_version {version!r}): {_ANEW}")
    if version > _FORMAT_VERSION:
        raise ExportDirectoryError(
            f"{path} has format {version}, and this drnet_runtime reads up to {_FORMAT_VERSION}: "
            "install a newer one"
        )
    if content.get("usable") is not True:
        parity = content.get("parity")
        problems = parity.get("problems") if isinstance(parity, dict) else None
        reason = f" ({problems[0]})" if isinstance(problems, list) and problems else ""
        raise ExportDirectoryError(
            f"{path} says that the export is unusable: it does not agree with the model{reason}; "
            "export it anew"
        )


def _parse(content: Mapping[str, Any], int8: bool) -> Manifest:
    """What it says.

    Raises:
      ValueError: it cannot be; or KeyError, TypeError, AttributeError, OverflowError.
    """
    resolutions = tuple(_integer(size, "a resolution") for size in content["resolutions"])
    if not resolutions or sorted(set(resolutions), reverse=True) != list(resolutions):
        raise ValueError(f"its resolutions are {list(resolutions)}")
    m = len(resolutions)
    classes = tuple(content["classes"])
    if not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are no names")
    networks = tuple(_network(entry, int8) for entry in content["networks"])
    _check_roles(networks, resolutions)
    weight = content["choice"]["first_look_weight"]
    if (weight is None) == any(network.role == FIRST_LOOK for network in networks):
        raise ValueError("first_look_weight does not go with its networks")
    costs, macs = content["cost"]["each"], content["cost"]["macs"]
    macs = tuple(_integer(value, "a cost in macs") for value in _of_length(macs, m, "cost.macs"))
    outside = content["preprocessing"]["outside"]
    fraction = _number(outside["crop_fraction_of_shorter_side"])
    if any(outside[name] != wanted for name, wanted in _OUTSIDE.items()) or not 0 < fraction <= 1:
        raise ValueError(f"preprocessing.outside is {outside}, which this runtime does not know")
    name, side = _input(content["input"])
    if outside["size"] != side:
        raise ValueError(f"pictures of {outside['size']} px do not fit into inputs of {side} px")
    table = content["calibration"]
    return Manifest(
        model=str(content["model"]),
        classes=classes,
        resolutions=resolutions,
        image_size=side,
        crop_fraction=fraction,
        input_name=name,
        networks=networks,
        costs=_numbers(costs, m, "cost.each"),
        macs=macs,
        first_look_weight=None if weight is None else _numbers(weight, m, "first_look_weight"),
        calibration=None if table is None else _calibration(table, _largest_macs(networks), m),
    )


def _network(entry: Mapping[str, Any], int8: bool) -> Network:
    given = entry["int8"] if int8 else entry
    role, file, outputs = entry["role"], given["file"], tuple(entry["outputs"])
    if role not in _OUTPUTS or outputs != _OUTPUTS[role]:
        raise ValueError(f"a network {role!r} with the outputs {list(outputs)} is not known")
    # Neither on this system nor on another one may it lead elsewhere.
    plain = PurePosixPath(file).name == file == PureWindowsPath(file).name
    if not plain or not file or ".." in file or ":" in file:
        raise ValueError(f"the file {file!r} would not lie in the directory")
    return Network(
        role=role,
        resolution=_integer(entry["resolution"], "a resolution"),
        file=file,
        sha256=str(given["sha256"]),
        macs=_integer(entry["macs"], "macs of a network"),
        outputs=outputs,
    )


def _check_roles(networks: Sequence[Network], resolutions: Sequence[int]) -> None:
    """Stops unless every resolution has its classifier, and a choice its network."""
    found = [(network.role, network.resolution) for network in networks]
    classifiers = [(CLASSIFIER, size) for size in resolutions]
    sides = {role: size for role, size in found}
    known = [classifiers] if len(resolutions) == 1 else []
    if len(resolutions) > 1 and PREDICTOR in sides:
        known = [[(PREDICTOR, sides[PREDICTOR]), *classifiers]]
    elif len(resolutions) > 1:
        known = [[(FIRST_LOOK, resolutions[-1]), *classifiers[:-1]]]
    if found not in known:
        raise ValueError(f"the networks {found} do not go with the resolutions {list(resolutions)}")


def _largest_macs(networks: Sequence[Network]) -> int:
    """Multiply-adds of the largest resolution alone."""
    return next(network.macs for network in networks if network.role == CLASSIFIER)


def _input(given: Mapping[str, Any]) -> tuple[str, int]:
    """Name and side of the images that the files take."""
    shape = given["shape"]
    side = _integer(shape[1], "a side of the input")
    if given["dtype"] != "uint8" or given["channels"] != "RGB" or shape[2:] != [side, 3]:
        raise ValueError(f"input is {dict(given)}, which this runtime does not know")
    return str(given["name"]), side


def _calibration(table: Mapping[str, Any], largest: int, m: int) -> Calibration:
    num_images = _integer(table["num_images"], "num_images")
    points = tuple(
        Point(
            lam=_number(entry["lambda"]),
            gmacs=_number(entry["gmacs"]),
            top1=_number(entry["top1"]),
            shares=_numbers(entry["shares"], m, "shares"),
            lost=_integer(entry["lost"], "lost", least=0),
            won=_integer(entry["won"], "won", least=0),
            largest_gmacs=largest / 1e9,
        )
        for entry in table["points"]
    )
    lambdas = [point.lam for point in points]
    if not points or lambdas != sorted(lambdas):
        raise ValueError("its points do not rise in lambda")
    return Calibration(num_images, points)


def _integer(value: Any, what: str, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{what} is {value!r}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def _numbers(values: Any, count: int, what: str) -> tuple[float, ...]:
    return tuple(_number(value) for value in _of_length(values, count, what))


def _of_length(values: Any, count: int, what: str) -> Sequence[Any]:
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{what} has not {count} values")
    return values
