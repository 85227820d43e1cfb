"""Runs with random weights, and their exports."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from drnet_jax.calibrate import restore_and_calibrate
from drnet_jax.export import restore_and_export
from tests.random_model import write_run
from tests.small_run import small_config

CLASSES = tuple("0123456789")


def write_export(place: Path, *, calibrated: bool = False, **fields: Any) -> ConfigDict:
    """A run in `place/run` and its export in `place/export`; the configuration of both."""
    config = small_config(**fields)
    single = len(config.model.resolutions) == 1
    write_run(config, place / "run", CLASSES, stage="pretrain" if single else "joint")
    if calibrated:
        restore_and_calibrate(config, place / "run")
    config.export.images = 8
    config.export.output = str(place / "export")
    restore_and_export(config, place / "run")
    return config
