"""Weight files of other libraries and ours for them: both sides compute the same logits.

Needs a Python with the extra `reference` (pyproject.toml), in an environment of its own:
DRNET_TORCH_PYTHON=reference/bin/python python -m pytest tests/test_import_parity.py
"""

import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from drnet_jax.models.arguments import parse_arguments
from drnet_jax.models.backbone import Backbone, backbones
from drnet_jax.pretrained.arrays import read_arrays
from drnet_jax.pretrained.export import export_weights
from drnet_jax.pretrained.weights import load_weights
from tests.import_cases import CASES, NUM_CLASSES, SIZES, Case
from tests.random_model import randomised

PYTHON = os.environ.get("DRNET_TORCH_PYTHON", "")
# Of all others, one size; benchmarks/parity.py compares every size of every network.
EXPORTED = ("resnet18", "resnet50", "mobilenet_v2", "tf_efficientnet_lite0")
# Without PyTorch the names in the files are compared with those that tests/test_weight_names.py
# writes out, and what is written with what was read (tests/test_weight_export.py).
pytestmark = pytest.mark.skipif(
    not PYTHON,
    reason="weight files are not compared with other libraries': set DRNET_TORCH_PYTHON to a "
    "Python that has the extra `reference`",
)


def reference(*arguments: str | Path) -> None:
    script = Path(__file__).with_name("torch_files.py")
    subprocess.run([PYTHON, script, *arguments], check=True)


def network_of(case: Case) -> Backbone:
    builder = backbones()[case.network]
    return builder(NUM_CLASSES, **parse_arguments(case.args, builder))


def exported(case: Case, size: int, folder: Path) -> Path:
    return folder / "ours" / f"{case.library}_{case.model}_{size}.safetensors"


def trained(case: Case, folder: Path) -> Any:
    """Every resolution with a BatchNorm of its own."""
    return randomised(load_weights(case.path(folder), network_of(case), SIZES), 0)


@partial(jax.jit, static_argnums=(0, 1))
def logits(network: Backbone, size: int, variables: Any, images: jax.Array) -> Any:
    return network.apply(variables, images, resolution=size, train=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their files and logits, our files, and their logits with these."""
    folder = tmp_path_factory.mktemp("weights")
    reference("write", folder)
    for case in CASES:
        for size in SIZES if case.model in EXPORTED else ():
            path = exported(case, size, folder)
            export_weights(path, network_of(case), trained(case, folder), size)
    reference("run", folder / "ours")
    return folder


def check(found: Any, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def images(case: Case, size: int, folder: Path) -> np.ndarray:
    return np.load(f"{case.path(folder)}.npz")[f"{size}/images"].transpose(0, 2, 3, 1)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.library} {c.model}")
def test_their_files(case: Case, folder: Path) -> None:
    network = network_of(case)
    variables = load_weights(case.path(folder), network, SIZES)
    for size in SIZES if case.model in EXPORTED else SIZES[-1:]:
        wanted = np.load(f"{case.path(folder)}.npz")[f"{size}/logits"]
        check(logits(network, size, variables, images(case, size, folder)), wanted)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", [c for c in CASES if c.model in EXPORTED], ids=lambda c: c.model)
def test_our_files(case: Case, size: int, folder: Path) -> None:
    """Loaded strictly: PyTorch takes every array, and misses none."""
    network = network_of(case)
    found = logits(network, size, trained(case, folder), images(case, size, folder))
    check(found, np.load(f"{exported(case, size, folder)}.npz")["logits"])


@pytest.mark.parametrize("case", [c for c in CASES if c.model in EXPORTED], ids=lambda c: c.model)
def test_there_and_back(case: Case, folder: Path, tmp_path: Path) -> None:
    """The same names and bits, but for `num_batches_tracked`."""
    network, path = network_of(case), tmp_path / "again.safetensors"
    export_weights(path, network, load_weights(case.path(folder), network, SIZES), SIZES[0])
    theirs, ours = read_arrays(case.path(folder)), read_arrays(path)
    assert set(ours) == {name for name in theirs if not name.endswith("num_batches_tracked")}
    for name, array in ours.items():
        np.testing.assert_array_equal(array.view(np.uint32), theirs[name].view(np.uint32))
