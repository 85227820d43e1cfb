"""Every family against PyTorch's own definitions: logits, stages and statistics.

Needs a Python with the extra `reference` (pyproject.toml), in an environment of its own:
DRNET_TORCH_PYTHON=reference/bin/python python -m pytest tests/test_torch_parity.py
"""

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from drnet_jax.models.backbone import backbones
from drnet_jax.models.weight_names import WeightNames, weight_names
from drnet_jax.pretrained.weights import variables_from_arrays

PYTHON = os.environ.get("DRNET_TORCH_PYTHON", "")
NETWORKS = ("resnet18", "resnet50", "mobilenetv2", "efficientnet_lite0")
SIZES = (224, 168, 112, 97)
# PyTorch is gigabytes that nothing else here needs. Without it the networks are compared with what
# tests/test_drnet.py and tests/test_mobilenet.py write out, and the names of the weights with
# those in tests/test_weight_names.py.
pytestmark = pytest.mark.skipif(
    not PYTHON,
    reason="networks are not compared with PyTorch's: set DRNET_TORCH_PYTHON to a Python that has "
    "the extra `reference`",
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("torch") / "reference.npz"
    script = Path(__file__).with_name("torch_reference.py")
    subprocess.run([PYTHON, str(script), str(path)], check=True)
    return np.load(path)


@cache
def network(name: str) -> Any:
    return backbones()[name](10)


def names(name: str) -> WeightNames:
    """Of the libraries that tests/torch_reference.py takes the networks from."""
    known = {found.library: found for found in weight_names(network(name))}
    return known.get("efficientnet-lite-pytorch") or known["torchvision"]


def part(reference: Any, prefix: str) -> dict[str, np.ndarray]:
    """The arrays under a prefix, by the rest of their names."""
    found = [name for name in reference.files if name.startswith(prefix)]
    return {name.removeprefix(prefix): reference[name] for name in found}


def our_stage(name: str, stage: str) -> str:
    """The block of ours that ends where a module of torchvision does."""
    if name.startswith("resnet"):
        blocks = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}[name]
        return f"{stage}_{blocks[int(stage[-1]) - 1] - 1}"
    # torchvision counts its stem too.
    number = int(stage.split(".")[1]) - (name == "mobilenetv2")
    for index, (_, _, blocks, _, _) in enumerate(network(name).stages):
        if number < blocks:
            return f"stage{index}_{number}"
        number -= blocks
    raise AssertionError(stage)


def needs(reference: Any, name: str) -> None:
    """Skips where the reference environment lacks a network."""
    if not part(reference, f"{name}/state/"):
        pytest.skip(f"not compared: {name} is not in the reference environment")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_stages(reference: Any, name: str, size: int) -> None:
    needs(reference, name)
    variables = variables_from_arrays(network(name), part(reference, f"{name}/state/"), (size,))
    expected = part(reference, f"{name}/{size}/")
    images = expected.pop("images").transpose(0, 2, 3, 1)
    logits, state = jax.jit(
        lambda v, x: network(name).apply(
            v, x, resolution=size, train=False, capture_intermediates=True, mutable="intermediates"
        )
    )(variables, images)
    wanted = expected.pop("logits")
    assert np.abs(logits - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert len(expected) >= 4
    for stage, values in expected.items():
        got = state["intermediates"][our_stage(name, stage)]["__call__"][0]
        difference = np.abs(got - values.transpose(0, 2, 3, 1)).max()
        assert difference <= 1e-4 * np.abs(values).max(), stage


@pytest.mark.parametrize("name", NETWORKS)
def test_running_statistics(reference: Any, name: str) -> None:
    """PyTorch keeps the unbiased variance: n / (n - 1) of ours, of n values per channel."""
    needs(reference, name)
    size, state = 64, part(reference, f"{name}/state/")
    variables = variables_from_arrays(network(name), state, (size,))
    trained = part(reference, f"{name}/trained/")
    images = reference[f"{name}/train/images"].transpose(0, 2, 3, 1)
    collection = f"batch_stats_{size}"
    _, updated = jax.jit(
        lambda v, x: network(name).apply(
            v,
            x,
            resolution=size,
            train=True,
            capture_intermediates=True,
            mutable=[collection, "intermediates"],
        )
    )(variables, images)
    found = 0
    for path, values in jax.tree_util.tree_leaves_with_path(updated[collection]):
        keys = tuple(entry.key for entry in path)
        key = names(name).array((collection, *keys), f"_{size}")
        got = np.asarray(values)
        if keys[-1] == "var":
            layer: Any = updated["intermediates"]
            for entry in keys[:-1]:
                layer = layer[entry]
            n = layer["__call__"][0].size / got.size
            batch = (got - 0.9 * state[key]) / 0.1
            got = 0.9 * state[key] + 0.1 * batch * n / (n - 1)
        assert np.abs(got - trained[key]).max() <= 1e-4 * np.abs(trained[key]).max(), key
        found += 1
    assert found == len(trained)
