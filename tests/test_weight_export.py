"""Weights written for PyTorch, without PyTorch: back to the same bits, one resolution at a time."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax
import numpy as np
import pytest

from drnet_jax.library import export_classifier
from drnet_jax.models.backbone import backbones
from drnet_jax.models.weight_names import weight_names
from drnet_jax.pretrained.arrays import read_arrays
from drnet_jax.pretrained.export import export_weights
from drnet_jax.pretrained.weights import WeightsError, load_weights, variables_from_arrays
from tests.networks import shapes
from tests.random_model import randomised
from tests.test_weight_names import KNOWN, Known, built, random_arrays
from tests.weight_files import write_torch

SIZES = (64, 32)
# In the names that files are written in.
WRITTEN = [known for known in KNOWN if weight_names(built(known))[0].library == known.library]


def variables_of(known: Known) -> Any:
    """Every resolution with a BatchNorm of its own."""
    return randomised(variables_from_arrays(built(known), random_arrays(known)[0], SIZES), 0)


@pytest.mark.parametrize("known", WRITTEN, ids=lambda k: f"{k.network} {k.options}")
def test_a_file_is_what_was_read(known: Known, tmp_path: Path) -> None:
    """Names, shapes and bits of another library's file, but for `num_batches_tracked`."""
    arrays, _ = random_arrays(known)
    path = tmp_path / "weights.safetensors"
    export_weights(path, built(known), variables_from_arrays(built(known), arrays, SIZES), 32)
    found = read_arrays(path)
    assert {name: found[name].shape for name in known.arrays} == known.arrays
    assert set(found) == set(arrays)
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array.view(np.uint32), arrays[name].view(np.uint32))


@pytest.mark.parametrize("size", SIZES)
def test_one_resolution_at_a_time(size: int, tmp_path: Path) -> None:
    known, path = KNOWN[0], tmp_path / "weights.safetensors"
    variables = variables_of(known)
    export_weights(path, built(known), variables, size)
    arrays = read_arrays(path)
    own = variables[f"batch_stats_{size}"]["layer2_0"]["shortcut_bn"]
    np.testing.assert_array_equal(arrays["layer2.0.downsample.1.running_mean"], own["mean"])
    scale = variables["params"]["bn1"][f"scale_{size}"]
    np.testing.assert_array_equal(arrays["bn1.weight"], scale)
    kernel = variables["params"]["conv1"]["kernel"]
    np.testing.assert_array_equal(arrays["conv1.weight"][5, 2, 0, 6], kernel[0, 6, 2, 5])
    # The way back: that resolution's own variables.
    again = flax.traverse_util.flatten_dict(load_weights(path, built(known), (size,)))
    flat = flax.traverse_util.flatten_dict(variables)
    for place, value in again.items():
        np.testing.assert_array_equal(value, flat[place])


def test_one_batch_norm_for_all(tmp_path: Path) -> None:
    shared = built(KNOWN[0]).clone(resolution_aware=False)
    variables = variables_from_arrays(shared, random_arrays(KNOWN[0])[0], SIZES)
    export_weights(tmp_path / "weights.safetensors", shared, variables, 48)
    mean = read_arrays(tmp_path / "weights.safetensors")["bn1.running_mean"]
    np.testing.assert_array_equal(mean, variables["batch_stats"]["bn1"]["mean"])


def test_the_file_says_that_it_is_pytorchs(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    export_weights(path, built(KNOWN[0]), variables_of(KNOWN[0]), 64)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}
    assert header["fc.bias"]["dtype"] == "F32"


def test_what_is_refused(tmp_path: Path) -> None:
    known, path = KNOWN[0], tmp_path / "weights.safetensors"
    network, variables = built(known), variables_of(known)
    with pytest.raises(WeightsError, match="for 48 px, only batch_stats_32, batch_stats_64"):
        export_weights(path, network, variables, 48)
    with pytest.raises(WeightsError, match="name that ends in .safetensors"):
        export_weights(tmp_path / "weights.pth", network, variables, 64)
    broken = flax.traverse_util.flatten_dict(variables)
    broken["params", "fc", "bias"] = broken["params", "fc", "bias"].at[3].set(np.nan)
    with pytest.raises(WeightsError, match="params/fc/bias is not finite"):
        export_weights(path, network, flax.traverse_util.unflatten_dict(broken), 64)
    of_keras = backbones()["mobilenetv2"](10, tensorflow=True)
    with pytest.raises(
        WeightsError, match="torchvision has no such network: .*another padding and epsilon"
    ):
        export_weights(path, of_keras, {}, 64)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    known, path = KNOWN[0], tmp_path / "weights.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(WeightsError, match="is there already: give another name, or overwrite"):
        export_weights(path, built(known), variables_of(known), 64)
    assert path.read_bytes() == b"mine"
    export_weights(path, built(known), variables_of(known), 64, overwrite=True)
    assert "fc.weight" in read_arrays(path) and list(tmp_path.iterdir()) == [path]


def test_the_classifier_of_a_run(tmp_path: Path) -> None:
    """Without the predictor."""
    known = KNOWN[0]
    variables = {
        collection: {"classifier": tree, "predictor": {"network": {}}}
        for collection, tree in variables_of(known).items()
    }
    run: Any = SimpleNamespace(variables=variables, model=SimpleNamespace(classifier=built(known)))
    export_classifier(run, tmp_path / "weights.safetensors", 32)
    found = load_weights(tmp_path / "weights.safetensors", built(known), (32,))
    wanted = flax.traverse_util.flatten_dict(shapes(built(known), 32)[0])
    flat = flax.traverse_util.flatten_dict(variables_of(known))
    for place, value in flax.traverse_util.flatten_dict(found).items():
        assert value.shape == wanted[place].shape
        np.testing.assert_array_equal(value, flat[place])


def test_the_example_of_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There and back: what it writes is what it read."""
    text = (Path(__file__).parents[1] / "docs" / "pretrained.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    # Small kernels: the logits stay finite.
    known = random_arrays(KNOWN[0])[0].items()
    arrays = {name: np.ascontiguousarray(array * np.float32(1e-3)) for name, array in known}
    monkeypatch.chdir(tmp_path)
    write_torch(Path("resnet18.pth"), arrays)
    names: dict[str, Any] = {"images": np.zeros((1, 168, 168, 3), np.float32)}
    assert "resnet18" in example and "(1000)" in example
    exec(compile(example.replace("(1000)", "(10)"), "pretrained.md", "exec"), names)
    assert names["logits"].shape == (1, 10) and np.isfinite(names["logits"]).all()
    found = read_arrays("resnet18_168.safetensors")
    assert set(found) == set(arrays)
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name])
