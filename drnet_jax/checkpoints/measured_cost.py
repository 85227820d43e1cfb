"""The measured times that a run's choices are made by: a file beside its checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drnet_jax.checkpoints.checkpoint import CheckpointError, damaged, read_object
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import MeasuredCost
from drnet_jax.runtime.files import write_json


def measured_path(origin: Path) -> Path:
    """The file of a run."""
    return origin / "choice_ms.json"


def is_measured(cost: str, stage: str, model: DRNet) -> bool:
    """Whether choices are made by measured times: there are some, and they are trained so.

    Args:
      cost: `joint.cost` of the run.
      stage: the last one.
      model: of the run.
    """
    return cost == "ms" and stage != "pretrain" and len(model.resolutions) > 1


def write_measured(workdir: Path, measured: MeasuredCost) -> None:
    """Keeps what the choices of the run in `workdir` cost."""
    write_json(measured_path(workdir), asdict(measured))


def read_measured(origin: Path, num_resolutions: int) -> MeasuredCost:
    """What the choices of the run in `origin` cost.

    Args:
      origin: its workdir.
      num_resolutions: of its model.

    Raises:
      CheckpointError: it is missing or damaged, or of another number of resolutions.
    """
    path = measured_path(origin)
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing, which says what choices cost a run with joint.cost='ms': restore "
            "it from a copy, or train in another --workdir"
        )
    content = read_object(path)
    try:
        return parse_measured(content, num_resolutions)
    except ValueError as error:
        raise damaged(path, error) from error


def parse_measured(content: Mapping[str, Any], num_resolutions: int) -> MeasuredCost:
    """The times whose `asdict` was kept as JSON.

    Args:
      content: the JSON object.
      num_resolutions: of the model.

    Raises:
      ValueError: it holds something else, or times of another number of resolutions.
    """
    try:
        choice, largest, setting = (content[name] for name in ("choice", "largest", "setting"))
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    if not isinstance(choice, list) or len(choice) != num_resolutions:
        raise ValueError(f"it has no times of {num_resolutions} choices")
    if not all(map(_is_time, (*choice, largest))) or not isinstance(setting, str):
        raise ValueError("its times are none, or of no setting")
    return MeasuredCost(tuple(choice), largest, setting)


def _is_time(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < math.inf
