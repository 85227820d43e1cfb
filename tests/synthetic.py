"""Outputs of a model that was never run: random logits that depend on a difficulty."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from drnet_jax.checkpoints.restore import TrainedModel
from drnet_jax.config import flatten
from drnet_jax.evaluation.logits import Logits
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import model_cost


def synthetic_logits(count: int, sides: int, classes: int, seed: int = 0) -> Logits:
    """Of `count` images: the harder one is, the more resolution it needs."""
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=count).astype(np.int32)
    hard = rng.random((count, 1), np.float32)
    logits = rng.standard_normal((count, sides, classes), np.float32)
    margin = 4 - 3 * hard * np.linspace(0.5, 2, sides, dtype=np.float32)
    logits[np.arange(count), :, label] += margin
    scores = 4 * (hard - 0.5) * np.linspace(1, -1, sides) + rng.normal(0, 0.5, (count, sides))
    index = np.arange(count, dtype=np.int32)
    names = np.array([f"image {i}" for i in index], np.str_)
    facts = {"name": names, "version": names, "device": np.array("none")}
    weight = np.zeros(sides, np.float32)
    return Logits(logits, scores.astype(np.float32), weight, label, index, **facts)


def synthetic_model(
    config: ConfigDict, classes: tuple[str, ...], origin: Path, stage: str = "joint"
) -> TrainedModel:
    """As if it had been trained on these classes."""
    model = create_model(config, len(classes))
    return TrainedModel(model, model_cost(model), stage, 7, 1, origin, classes, {}, flatten(config))
