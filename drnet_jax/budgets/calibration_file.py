"""The file of `--mode=calibrate`: written, and read as what it must be."""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from drnet_jax.budgets.calibration import BudgetError, Calibration, Point, Times
from drnet_jax.inference.programs import CostTable
from drnet_jax.runtime.checked_json import read_json
from drnet_jax.runtime.files import write_json


def save(calibration: Calibration, path: Path) -> None:
    """Writes it as JSON."""
    write_json(path, asdict(calibration))


def load(path: Path, model: str, remedy: str = "run --mode=calibrate") -> Calibration:
    """Reads what `save` wrote.

    Args:
      path: of the file.
      model: that it must be of.
      remedy: for a file that is missing, damaged or of another model.

    Raises:
      BudgetError: nothing is calibrated, or it was another model, or the file is damaged.
    """
    if not path.exists():
        raise BudgetError(f"{path} is missing: {remedy} before a budget is used")
    try:
        return read(path, model)
    except ValueError as error:
        raise BudgetError(f"{error}: {remedy}") from error


def read(path: Path, model: str) -> Calibration:
    """As `load`, of a file that is there, and for whoever writes it anew.

    Raises:
      ValueError: it is of another model, or damaged; the message names no remedy.
    """
    try:
        found = _parse(read_json(path))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r})") from error
    if found.model != model:
        raise ValueError(f"{path} is of {found.model}, and the model is {model}")
    return found


def _parse(content: Mapping[str, Any]) -> Calibration:
    """What the file says.

    Raises:
      ValueError: it cannot be; or KeyError, TypeError, AttributeError.
    """
    model, num_images = content["model"], content["num_images"]
    if not isinstance(model, str) or type(num_images) is not int or num_images < 1:
        raise ValueError(f"it is of {num_images!r} images and the model {model!r}")
    points = tuple(_point(point, num_images) for point in content["points"])
    lambdas = [point.lam for point in points]
    if not points or lambdas != sorted(lambdas):
        raise ValueError("its points do not rise in lambda")
    m = len(points[0].shares)
    if any(len(point.shares) != m for point in points):
        raise ValueError("its points differ in the number of resolutions")
    times = content["times"]
    if times is None:
        return Calibration(model, num_images, points)
    table = CostTable.from_json(times["table"])
    _check_times(table, m)
    return Calibration(model, num_images, points, Times(str(times["setting"]), table))


def _point(content: Mapping[str, Any], num_images: int) -> Point:
    point = Point(**{**content, "shares": tuple(content["shares"])})
    numbers = [getattr(point, field.name) for field in fields(Point) if field.name != "shares"]
    for number in (*numbers, *point.shares):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ValueError(f"{number!r} is no number")
        if not math.isfinite(number):
            raise ValueError(f"{number} is not finite")
    fractions = (point.top1, *point.shares, point.lost / num_images, point.won / num_images)
    if not all(0 <= value <= 1 for value in fractions) or abs(sum(point.shares) - 1) > 1e-6:
        raise ValueError(f"its fractions of images are none at lambda {point.lam}")
    if point.gmacs <= 0:
        raise ValueError(f"it costs {point.gmacs} GMACs at lambda {point.lam}")
    return point


def _check_times(table: CostTable, m: int) -> None:
    """Stops for times that are none, or of another number of resolutions."""
    networks = [*table.classifiers, *([] if table.predictor is None else [table.predictor])]
    buckets = {tuple(sorted(times)) for times in networks}
    seconds = [value for times in networks for value in times.values()]
    good = all(math.isfinite(value) and value > 0 for value in seconds)
    if len(table.classifiers) != m or len(buckets) != 1 or not seconds or not good:
        raise ValueError("its times are not those of its resolutions")
