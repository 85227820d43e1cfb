"""Which model on which data: another key for another one."""

import json
from dataclasses import asdict
from typing import Any

from ml_collections import ConfigDict

from drnet_jax.checkpoints.config_history import comparable
from drnet_jax.checkpoints.restore import TrainedModel
from drnet_jax.config import default_config, flatten, training_fields
from drnet_jax.data.index_cache import digest


def model_key(config: ConfigDict, trained: TrainedModel) -> str:
    """Stage, step and a digest of how the model was trained and how its images are cropped.

    `RESUMABLE_FIELDS` do not count: what is logged, evaluated or timed, and where the images are.
    `model.stock_operations` and `model.remat` are among them, which change no more than rounding.
    Nor do fields at their default, so that a run keeps its key when the program gets new ones.
    Times that choices are made by count.
    """
    defaults = comparable(flatten(default_config()))
    trained_with = {
        name: value
        for name, value in sorted(training_fields(trained.config).items())
        if value != defaults.get(name)
    }
    facts: list[Any] = [trained_with, trained.identities, config.data.eval_crop]
    if trained.cost.measured is not None:
        facts.append(asdict(trained.cost.measured))
    return f"{trained.stage}/{trained.step} {digest(json.dumps(facts))[:12]}"
