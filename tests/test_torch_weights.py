"""PyTorch's names and layouts, without PyTorch: names by hand, arrays there and back."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.models.backbone import backbones
from drnet_jax.pretrained.torch_weights import WeightsError, torch_name, variables_from_torch

SIZE = 64
# Some of the names in torchvision's state dicts, and in the package's of EfficientNet-Lite0, with
# shapes; how many arrays there are, `num_batches_tracked` left out.
KNOWN: dict[str, tuple[int, dict[str, tuple[int, ...]]]] = {
    "resnet18": (
        102,
        {
            "conv1.weight": (64, 3, 7, 7),
            "layer2.0.downsample.0.weight": (128, 64, 1, 1),
            "layer2.0.downsample.1.running_mean": (128,),
            "layer4.1.bn2.running_var": (512,),
            "fc.weight": (10, 512),
        },
    ),
    "resnet50": (267, {"layer1.0.conv3.weight": (256, 64, 1, 1), "layer4.2.bn3.bias": (2048,)}),
    "mobilenetv2": (
        262,
        {
            "features.0.0.weight": (32, 3, 3, 3),
            "features.1.conv.0.0.weight": (32, 1, 3, 3),
            "features.1.conv.1.weight": (16, 32, 1, 1),
            "features.1.conv.2.running_var": (16,),
            "features.2.conv.0.0.weight": (96, 16, 1, 1),
            "features.2.conv.1.0.weight": (96, 1, 3, 3),
            "features.17.conv.3.bias": (320,),
            "features.18.1.weight": (1280,),
            "classifier.1.weight": (10, 1280),
        },
    ),
    "efficientnet_lite0": (
        247,
        {
            "_conv_stem.weight": (32, 3, 3, 3),
            "_blocks.0._depthwise_conv.weight": (32, 1, 3, 3),
            "_blocks.3._depthwise_conv.weight": (144, 1, 5, 5),
            "_blocks.15._bn2.running_mean": (320,),
            "_conv_head.weight": (1280, 320, 1, 1),
            "_fc.bias": (10,),
        },
    ),
}


def network(name: str) -> Any:
    return backbones()[name](10)


def random_state(name: str) -> tuple[dict[str, np.ndarray], dict[tuple[str, ...], np.ndarray]]:
    """Arrays as PyTorch has them, and as ours, which are turned here once more."""
    net, rng = network(name), np.random.default_rng(0)
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda x: net.init(jax.random.key(0), x, resolution=SIZE, train=False), image
    )
    state, ours = {}, {}
    for path, leaf in flax.traverse_util.flatten_dict(variables).items():
        value = rng.normal(size=leaf.shape).astype(np.float32)
        ours[path] = value
        if value.ndim == 4:
            value = np.moveaxis(value, (3, 2), (0, 1))
        state[torch_name(net, path, f"_{SIZE}")] = value.T if value.ndim == 2 else value
    return state, ours


@pytest.mark.parametrize("name", list(KNOWN))
def test_names_and_layouts(name: str) -> None:
    state, ours = random_state(name)
    count, known = KNOWN[name]
    assert len(state) == count
    assert {key: state[key].shape for key in known} == known
    found = variables_from_torch(network(name), state, (SIZE,))
    flat = flax.traverse_util.flatten_dict(found)
    assert set(flat) == set(ours)
    for path, value in flat.items():
        np.testing.assert_array_equal(value, ours[path])


def test_every_resolution_starts_alike() -> None:
    state, _ = random_state("resnet18")
    found = variables_from_torch(network("resnet18"), state, (64, 32))
    assert set(found) == {"params", "batch_stats_64", "batch_stats_32"}
    first, second = (found[f"batch_stats_{size}"]["bn1"]["mean"] for size in (64, 32))
    np.testing.assert_array_equal(first, second)
    norm = found["params"]["layer3_0"]["shortcut_bn"]
    np.testing.assert_array_equal(norm["scale_64"], norm["scale_32"])


def test_other_weights_are_refused() -> None:
    state, _ = random_state("resnet18")
    with pytest.raises(WeightsError, match="is missing: the weights are of another network"):
        variables_from_torch(network("mobilenetv2"), state, (32,))
    with pytest.raises(WeightsError, match="are not of this network, extra first"):
        variables_from_torch(network("resnet18"), {**state, "extra": np.zeros(1)}, (32,))
    other = backbones()["resnet18"](11)
    with pytest.raises(WeightsError, match=r"fc\.\w+ has shape"):
        variables_from_torch(other, state, (32,))
