"""A DRNet with random weights that sends equally many photographs to every resolution."""

from dataclasses import dataclass
from typing import Any

import flax
import jax
import numpy as np
from ml_collections import ConfigDict
from sklearn.datasets import load_sample_images

from drnet_jax.inference.networks import InferenceNetwork, predictor_network
from drnet_jax.inference.programs import PlacedNetwork, Program, compile_programs
from drnet_jax.models.create import create_model
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.variables import init_variables


@dataclass(frozen=True)
class EvenModel:
    """A model, and images for it.

    Attributes:
      model: the DRNet.
      variables: random, with the last bias of what chooses set for equal shares.
      mean: of the channels, in 0..1.
      std: of the channels, in 0..1.
      images: `[n, h, w, 3]` uint8, at the largest resolution.
      choices: `[n]`, index of the resolution that each chooses, up to rounding.
    """

    model: DRNet
    variables: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: np.ndarray
    choices: np.ndarray

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of every classifier."""
        given = ("model", "variables", "mean", "std")
        return {name: getattr(self, name) for name in given}


def even_model(config: ConfigDict, num_images: int, chunk: int = 24) -> EvenModel:
    """The model of a configuration, with random weights.

    Args:
      config: the whole configuration.
      num_images: n.
      chunk: images that the predictor is compiled for, to score them.
    """
    model = create_model(config, config.data.num_classes or 10)
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    images = crops(num_images, model.resolutions[0])
    variables = _with_head(model, init_variables(model, jax.random.key(0)))
    scores = _score(model, variables, images, mean, std, chunk)
    bias = _even_bias(scores)
    variables = _with_bias(model, variables, bias)
    return EvenModel(model, variables, mean, std, images, (scores + bias).argmax(axis=1))


def crops(count: int, size: int) -> np.ndarray:
    """`[count, size, size, 3]` of two photographs."""
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    found = []
    for number in range(count):
        photograph = photographs[number % 2]
        top = rng.integers(photograph.shape[0] - size + 1)
        left = rng.integers(photograph.shape[1] - size + 1)
        found.append(photograph[top : top + size, left : left + size])
    return np.stack(found)


def draw(images: np.ndarray, choices: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A shuffled batch with `counts` images of every choice; they repeat where there are few."""
    rows = [np.resize(np.flatnonzero(choices == j), count) for j, count in enumerate(counts)]
    return images[np.random.default_rng(0).permutation(np.concatenate(rows))]


def compiled(network: InferenceNetwork, images: np.ndarray, size: int) -> Program:
    """A network for batches of `size` of such images, on the first device."""
    device = jax.local_devices()[0]
    placed = PlacedNetwork(network.apply, network.variables, images.shape[1:3], device)
    return compile_programs([placed], [(size,)])[0]


def _score(
    model: DRNet, variables: Any, images: np.ndarray, mean: Any, std: Any, chunk: int
) -> np.ndarray:
    """The predictor's scores `[n, m]`, which a first look has after its logits."""
    network = predictor_network(model, variables, mean, std, fold=True)
    assert network is not None
    program = compiled(network, images, chunk)
    parts = [images[start : start + chunk] for start in range(0, len(images), chunk)]
    outputs = [
        np.asarray(program.run(np.resize(part, (chunk, *part.shape[1:]))))[: len(part)]
        for part in parts
    ]
    return np.concatenate(outputs)[:, -len(model.resolutions) :]


def _even_bias(scores: np.ndarray) -> np.ndarray:
    """A bias `[m]` for scores `[n, m]` with which every column is chosen equally often."""
    bias = np.zeros(scores.shape[1])
    step = float(scores.std(axis=0).max())
    for _ in range(5000):
        shares = np.bincount((scores + bias).argmax(1), minlength=len(bias)) / len(scores)
        bias -= step * (shares - 1 / len(bias))
        step *= 0.998
    return bias


def _with_head(model: DRNet, variables: Any) -> Any:
    """Variables with random weights in the head of a first look, which begins as zeros."""
    if not model.glances:
        return variables
    flat = flax.traverse_util.flatten_dict(variables)
    path = ("params", "predictor", "fc", "kernel")
    flat[path] = np.random.default_rng(0).normal(size=flat[path].shape).astype(np.float32)
    return flax.traverse_util.unflatten_dict(flat)


def _with_bias(model: DRNet, variables: Any, bias: np.ndarray) -> Any:
    """Variables with `bias` added to the predictor's last one."""
    flat = flax.traverse_util.flatten_dict(variables)
    network = () if model.glances else ("network",)
    path = ("params", "predictor", *network, "fc", "bias")
    flat[path] = flat[path] + bias.astype(np.float32)
    return flax.traverse_util.unflatten_dict(flat)
