"""A whole model as a folder that goes anywhere: written, and read as what it must be."""

from dataclasses import replace
from pathlib import Path

import jax

from drnet_jax.budgets import calibration_file
from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.checkpoints.checksums import file_checksum
from drnet_jax.hub import description
from drnet_jax.hub.card import model_card
from drnet_jax.hub.description import describe, read_description
from drnet_jax.hub.saved_model import (
    CALIBRATION,
    EVALUATION,
    SavedModel,
    find_calibration,
    find_evaluation,
)
from drnet_jax.hub.weights_file import read_weights, write_weights
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import model_cost
from drnet_jax.runtime.files import check_new_folder, new_folder, write_json, write_text

WEIGHTS = "model.safetensors"
CARD = "README.md"
FILES = (description.NAME, WEIGHTS, CARD, CALIBRATION, EVALUATION)


def write_folder(saved: SavedModel, folder: Path) -> None:
    """Writes a model, whole or not at all, on the first process only.

    `config.json`, `model.safetensors`, `README.md`, and, where the model's origin has them,
    `calibration.json`, without times, which are those of one device, and the figures of
    `eval.json`.

    Args:
      saved: the model.
      folder: empty, or not there yet.

    Raises:
      FileExistsError: the folder holds something, or is no folder.
      CheckpointError: the model holds values that are not finite, or its `eval.json` is damaged.
      BudgetError: its calibration is damaged, or of another model.
      OSError: the folder cannot be written.
    """
    check_new_folder(folder)
    calibration, evaluation = find_calibration(saved), find_evaluation(saved)
    if jax.process_index() != 0:
        return
    with new_folder(folder) as temporary:
        write_weights(saved.variables, temporary / WEIGHTS)
        content = describe(saved, file_checksum(temporary / WEIGHTS))
        write_json(temporary / description.NAME, content)
        if calibration is not None:
            calibration_file.save(replace(calibration, times=None), temporary / CALIBRATION)
        if evaluation is not None:
            write_json(temporary / EVALUATION, dict(evaluation))
        write_text(temporary / CARD, model_card(saved, calibration, evaluation))


def read_folder(folder: Path) -> SavedModel:
    """Reads what `write_folder` wrote. No file names another one that would be read.

    Raises:
      CheckpointError: there is no such folder; or a file is missing, damaged, of another program or
        of a newer format; or the weights are not those of the network, or not finite.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder: name one that save_pretrained wrote")
    found = read_description(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: restore it from a copy")
    if found.weights is not None and (here := file_checksum(path)) != found.weights:
        raise CheckpointError(
            f"{path} is damaged: {here}, it was saved as {found.weights}; restore it from a copy, "
            f"or, if you have changed it, remove 'weights' and 'crc32' from {description.NAME}"
        )
    model = create_model(found.config, len(found.classes))
    return SavedModel(
        config=found.config,
        model=model,
        cost=replace(model_cost(model), measured=found.measured),
        variables=read_weights(model, path),
        classes=found.classes,
        view=found.view,
        key=found.key,
        origin=folder,
    )
