"""Files in int8: what they hold, what the manifest says of them, and who runs them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ml_collections import ConfigDict
from onnx import numpy_helper

from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.eval_view import eval_image
from drnet_jax.data.settings import data_settings
from drnet_runtime import AdaptiveModel
from tests.small_export import write_export
from tests.small_run import GLANCE

NUM_IMAGES = 30


@dataclass
class Case:
    """An export with files in int8."""

    config: ConfigDict
    folder: Path
    manifest: dict[str, Any]


@pytest.fixture(scope="module", params=[GLANCE, {}], ids=["first look", "predictor"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    place = tmp_path_factory.mktemp("int8")
    fields = {"export.int8": True, "export.int8_images": NUM_IMAGES}
    config = write_export(place, calibrated=True, **fields, **request.param)
    folder = place / "export"
    return Case(config, folder, json.loads((folder / "manifest.json").read_text()))


def test_weights_of_convolutions_are_of_one_byte(case: Case) -> None:
    """The same ones, each within half a step of its channel; what is after them stays."""
    for network in case.manifest["networks"]:
        whole, small = (
            onnx.load(case.folder / entry["file"]).graph for entry in (network, network["int8"])
        )
        weights = {t.name: numpy_helper.to_array(t) for t in whole.initializer}
        kernels = {n.input[1] for n in whole.node if n.op_type == "Conv"}
        found = {t.name: numpy_helper.to_array(t) for t in small.initializer}
        made_of = {n.output[0]: n for n in small.node if n.op_type == "DequantizeLinear"}
        quantised = [made_of[n.input[1]] for n in small.node if n.op_type == "Conv"]
        assert {n.input[0].removesuffix("_quantized") for n in quantised} == kernels
        for node in quantised:
            kernel = weights[node.input[0].removesuffix("_quantized")]
            values, scale = found[node.input[0]], found[node.input[1]]
            assert values.dtype == np.int8
            np.testing.assert_array_equal(scale.shape, kernel.shape[:1])
            distances = abs(values * scale[:, None, None, None] - kernel)
            assert (distances <= 0.5001 * scale[:, None, None, None]).all()
        kinds = [n.op_type for n in small.node]
        # What is after the last convolution has no values of a byte.
        last = max(i for i, kind in enumerate(kinds) if kind == "Conv")
        assert kinds[last:].count("QuantizeLinear") <= 1


def test_the_manifest_says_what_is_right(case: Case, tmp_path: Path) -> None:
    """Counted anew, by the files alone and by drnet_runtime, on the same images."""
    source = DataSplits(data_settings(case.config, tmp_path)).load("test")
    rows = np.linspace(0, len(source) - 1, NUM_IMAGES).round().astype(int)
    side = case.manifest["input"]["shape"][1]
    images = np.stack([eval_image(source, int(row), side) for row in rows])
    labels = source.labels[rows]
    found = case.manifest["int8"]
    assert found["ranges"]["split"] == "calibration"
    assert found["accuracy"]["num_images"] == NUM_IMAGES
    for kind in ("float32", "int8"):
        for network in case.manifest["networks"]:
            if "logits" in network["outputs"]:
                file = (network if kind == "float32" else network["int8"])["file"]
                session = onnxruntime.InferenceSession(case.folder / file)
                (logits,) = session.run(["logits"], {"images": images})
                place = case.manifest["resolutions"].index(network["resolution"])
                right = 100 * (logits.argmax(1) == labels).mean()
                assert found["accuracy"]["resolutions"][place][kind] == pytest.approx(right)
        model = AdaptiveModel.load(case.folder, int8=kind == "int8")
        assert len(found["accuracy"]["adaptive"]) > 2
        for point in found["accuracy"]["adaptive"]:
            result = model.classify(images, point["lam"])
            assert point[kind] == pytest.approx(100 * (result.labels == labels).mean())
            assert point[f"{kind}_gmacs"] == pytest.approx(result.macs.mean() / 1e9)


def test_other_files_are_run(case: Case) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    exact, small = (AdaptiveModel.load(case.folder, int8=int8) for int8 in (False, True))
    difference = abs(exact.classify(images).logits - small.classify(images).logits).max()
    assert 1e-3 < difference
