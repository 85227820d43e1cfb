"""Models with random weights, and runs that hold one: as if trained, without the training."""

from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from ml_collections import ConfigDict

from drnet_jax.checkpoints.checkpoint import StageCheckpoints
from drnet_jax.checkpoints.restore import RestoredModel, write_data
from drnet_jax.config import SPLITS, flatten
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.data.preprocess import normalise
from drnet_jax.models.create import create_model
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.variables import classifier_variables, init_variables
from drnet_jax.runtime.files import write_json


def randomised(variables: Any, seed: int) -> Any:
    """As after a training: no statistic, scale or bias is what it is initialised with."""
    rng = np.random.default_rng(seed)
    flat = flax.traverse_util.flatten_dict(variables)
    for path, leaf in flat.items():
        if path[0] != "params" and path[-1] == "var":
            flat[path] = rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        elif leaf.ndim == 1:
            flat[path] = leaf + rng.normal(0, 0.2, leaf.shape).astype(np.float32)
        elif path == ("params", "predictor", "fc", "kernel"):
            # Of a first look's head: it begins as zeros, with which all images get the same scores.
            flat[path] = rng.normal(0, 1, leaf.shape).astype(np.float32)
    weight = ("fitted", "predictor", "weight")
    if weight in flat:
        # So large that answers change by it; without a second look nothing is added.
        second = np.arange(len(flat[weight])) < len(flat[weight]) - 1
        flat[weight] = (5 + flat[weight]) * second.astype(np.float32)
    return flax.traverse_util.unflatten_dict(flat)


def spread_choices(model: DRNet, variables: Any, pixels: Any) -> Any:
    """Variables whose predictor sends about equally many images to every resolution."""
    output: Any = model.apply(variables, pixels)
    scores = np.asarray(output.scores)
    bias = np.zeros(scores.shape[1], np.float32)
    for step in range(2000):
        chosen = (scores + bias).argmax(1)
        shares = np.bincount(chosen, minlength=len(bias)) / len(scores)
        bias += (1 / len(bias) - shares).astype(np.float32) * scores.std() / (10 + step)
    flat = flax.traverse_util.flatten_dict(variables)
    if model.glances:
        path, bias = ("fitted", "predictor", "offset"), -bias
    else:
        path = ("params", "predictor", "network", "fc", "bias")
    flat[path] = flat[path] + bias
    return flax.traverse_util.unflatten_dict(flat)


def write_overflowing(run: RestoredModel, workdir: Path) -> Path:
    """A later checkpoint of the run in `workdir`: finite weights whose products are not.

    Returns:
      Its directory.
    """
    params = jax.tree.map(lambda leaf: leaf * np.float32(1e30), run.variables["params"])
    collections = {name: tree for name, tree in run.variables.items() if name != "params"}
    with StageCheckpoints(workdir / run.stage, keep_latest=2) as checkpoints:
        checkpoints.save(run.step + 1, {"params": params, "collections": collections})
    return workdir / run.stage / str(run.step + 1)


def write_run(
    config: ConfigDict,
    workdir: Path,
    classes: tuple[str, ...],
    *,
    stage: str = "joint",
    step: int = 1,
) -> None:
    """What a finished run on the embedded data leaves, with random weights."""
    model = create_model(config, len(classes))
    variables = randomised(init_variables(model, jax.random.key(0)), 0)
    images = compose("calibration", 60)["image"]
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    if model.predictor is not None:
        variables = spread_choices(model, variables, normalise(images, mean, std))
    if stage == "pretrain":
        variables = classifier_variables(variables)
    collections = {name: tree for name, tree in variables.items() if name != "params"}
    with StageCheckpoints(workdir / stage) as checkpoints:
        checkpoints.save(step, {"params": variables["params"], "collections": collections})
    write_json(workdir / "config.json", flatten(config))
    write_data(workdir, classes, {split: split for split in SPLITS})
