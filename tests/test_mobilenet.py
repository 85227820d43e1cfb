"""MobileNetV2 and EfficientNet-Lite0 against NumPy and what is published of them."""

from typing import Any

import jax
import numpy as np
import pytest
from jax import lax

from drnet_jax.models.backbone import backbones
from drnet_jax.models.macs import count_macs
from drnet_jax.models.mobilenet import rounded
from tests.networks import image, narrow, shapes, short
from tests.random_model import randomised


def written_out(variables: Any, x: np.ndarray, network: Any, top: float = 6) -> np.ndarray:
    """A MobileNet in evaluation, once more in XLA's own operations and NumPy."""
    size = x.shape[1]
    params, stats = variables["params"], variables[f"batch_stats_{size}"]

    def layer(x: Any, p: Any, s: Any, name: str, strides: int = 1) -> np.ndarray:
        kernel = p[f"{name}_conv"]["kernel"]
        pads: Any = "SAME" if network.same_padding else [(kernel.shape[0] // 2,) * 2] * 2
        y = lax.conv_general_dilated(
            np.asarray(x, np.float32),
            kernel,
            (strides, strides),
            pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1] // kernel.shape[2],
        )
        norm, moments = p[f"{name}_bn"], s[f"{name}_bn"]
        y = (np.asarray(y, np.float64) - moments["mean"]) / np.sqrt(
            moments["var"] + network.epsilon
        )
        return y * norm[f"scale_{size}"] + norm[f"bias_{size}"]

    x = np.clip(layer(x, params, stats, "stem", 2), 0, top)
    for stage, (expansion, _, blocks, strides, _) in enumerate(network.stages):
        for index in range(blocks):
            p, s = (tree[f"stage{stage}_{index}"] for tree in (params, stats))
            y = x if expansion == 1 else np.clip(layer(x, p, s, "expand"), 0, top)
            y = np.clip(layer(y, p, s, "depthwise", strides if index == 0 else 1), 0, top)
            y = layer(y, p, s, "project")
            added = (index or strides == 1) and x.shape[-1] == y.shape[-1]
            x = x + y if added else y
    if network.head_features:
        x = np.clip(layer(x, params, stats, "head"), 0, top)
    return x.mean(axis=(1, 2)) @ params["fc"]["kernel"] + params["fc"]["bias"]


@pytest.mark.parametrize("name", ["mobilenetv2", "mobilenetv2_one_block", "efficientnet_lite0"])
def test_inverted_residuals_written_out_once_more(name: str) -> None:
    """At an even size, where the two paddings differ; with a block that is added to its input."""
    network = short(name).clone(stages=((1, 16, 1, 1, 3), (6, 24, 2, 2, 5)))
    x = np.random.default_rng(0).normal(0, 50, size=(2, 18, 18, 3)).astype(np.float32)
    call = {"resolution": 18, "train": False}
    variables = jax.jit(lambda x: network.init(jax.random.key(0), x, **call))(x)
    variables = randomised(variables, 0)
    got = jax.jit(lambda v, x: network.apply(v, x, **call))(variables, x)
    expected = written_out(variables, x, network)
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(got, expected, atol=tolerance)
    # Activations do reach 6.
    assert np.abs(written_out(variables, x, network, np.inf) - expected).max() > 10 * tolerance
    assert network.epsilon == (1e-3 if name == "efficientnet_lite0" else 1e-5)


@pytest.mark.parametrize(
    ("name", "size", "gmacs", "params"),
    [
        ("mobilenetv2", 224, 0.3008, 3_504_872),
        ("mobilenetv2", 196, 0.2600, 3_504_872),
        ("mobilenetv2", 168, 0.1889, 3_504_872),
        ("mobilenetv2", 112, 0.0822, 3_504_872),
        ("efficientnet_lite0", 224, 0.3852, 4_652_008),
    ],
)
def test_published_costs(name: str, size: int, gmacs: float, params: int) -> None:
    """MobileNetV2's are torchvision's; EfficientNet-Lite0 has 4.7 million parameters."""
    network = backbones()[name](1000).clone(resolution_aware=False)
    assert round(count_macs(network, image(size), resolution=size, train=False) / 1e9, 4) == gmacs
    variables, _ = shapes(network, size)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == params


@pytest.mark.parametrize(
    ("name", "stem", "head"), [("mobilenetv2", 8, 1280), ("efficientnet_lite0", 32, 1280)]
)
def test_ends_of_a_narrow_network(name: str, stem: int, head: int) -> None:
    """A quarter of MobileNetV2 keeps its head, and of EfficientNet-Lite its stem too."""
    params = shapes(narrow(name, 7), 64)[0]["params"]
    assert params["stem_conv"]["kernel"].shape == (3, 3, 3, stem)
    assert params["head_conv"]["kernel"].shape[-1] == head


def test_the_papers_predictor_has_about_0_3_million_parameters() -> None:
    variables, _ = shapes(backbones()["mobilenetv2_one_block"](3), 64)
    assert 0.25e6 < sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) < 0.35e6


@pytest.mark.parametrize(
    ("features", "expected"), [(32 * 0.75, 24), (24 * 0.75, 24), (16 * 0.35, 8), (1280 * 1.4, 1792)]
)
def test_width_multiplier_rounds_as_torchvision(features: float, expected: int) -> None:
    """By hand: 18 would be below nine tenths of the next multiple of 8 under it, 16."""
    assert rounded(features) == expected
