"""Other libraries' names and layouts, without these: names by hand, arrays there and back."""

from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.models.backbone import backbones
from drnet_jax.models.mobilenet import MobileNet
from drnet_jax.models.weight_names import WeightNames, register_weight_names, weight_names
from drnet_jax.pretrained.weights import WeightsError, variables_from_arrays

SIZE = 64


class Known(NamedTuple):
    """Of a library's weights: which network, how many arrays, and some of them with their shapes.

    `num_batches_tracked` is not counted.
    """

    network: str
    options: dict[str, Any]
    library: str
    count: int
    arrays: dict[str, tuple[int, ...]]


TIMM_LITE0 = {
    "conv_stem.weight": (32, 3, 3, 3),
    "bn1.running_mean": (32,),
    "blocks.0.0.conv_dw.weight": (32, 1, 3, 3),
    "blocks.0.0.bn1.weight": (32,),
    "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
    "blocks.0.0.bn2.running_var": (16,),
    "blocks.2.1.conv_dw.weight": (240, 1, 5, 5),
    "blocks.5.3.conv_pwl.weight": (192, 1152, 1, 1),
    "blocks.6.0.conv_pw.weight": (1152, 192, 1, 1),
    "blocks.6.0.bn3.bias": (320,),
    "conv_head.weight": (1280, 320, 1, 1),
    "bn2.weight": (1280,),
    "classifier.weight": (10, 1280),
}
KNOWN = [
    Known(
        "resnet18",
        {},
        "torchvision",
        102,
        {
            "conv1.weight": (64, 3, 7, 7),
            "layer2.0.downsample.0.weight": (128, 64, 1, 1),
            "layer2.0.downsample.1.running_mean": (128,),
            "layer4.1.bn2.running_var": (512,),
            "fc.weight": (10, 512),
        },
    ),
    Known("resnet34", {}, "torchvision", 182, {"layer3.5.conv2.weight": (256, 256, 3, 3)}),
    Known(
        "resnet50",
        {},
        "torchvision",
        267,
        {"layer1.0.conv3.weight": (256, 64, 1, 1), "layer4.2.bn3.bias": (2048,)},
    ),
    Known("resnet101", {}, "torchvision", 522, {"layer3.22.conv1.weight": (256, 1024, 1, 1)}),
    Known(
        "mobilenetv2",
        {},
        "torchvision",
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
    Known(
        "mobilenetv2",
        {},
        "timm",
        262,
        {
            "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
            "blocks.1.0.conv_pw.weight": (96, 16, 1, 1),
            "blocks.1.0.conv_dw.weight": (96, 1, 3, 3),
            "blocks.1.0.conv_pwl.weight": (24, 96, 1, 1),
            "blocks.6.0.bn3.running_mean": (320,),
            "bn2.running_var": (1280,),
            "classifier.bias": (10,),
        },
    ),
    Known(
        "mobilenetv2",
        {},
        "pytorch-mobilenet-v2",
        262,
        {
            "features.0.1.bias": (32,),
            "features.1.conv.0.weight": (32, 1, 3, 3),
            "features.1.conv.3.weight": (16, 32, 1, 1),
            "features.1.conv.4.running_var": (16,),
            "features.2.conv.3.weight": (96, 1, 3, 3),
            "features.17.conv.6.weight": (320, 960, 1, 1),
            "features.17.conv.7.bias": (320,),
            "features.18.0.weight": (1280, 320, 1, 1),
        },
    ),
    Known(
        "mobilenetv2",
        {"tensorflow": True},
        "Keras",
        262,
        {
            "Conv1/kernel": (3, 3, 3, 32),
            "bn_Conv1/moving_mean": (32,),
            "expanded_conv_depthwise/kernel": (3, 3, 32, 1),
            "expanded_conv_depthwise_BN/gamma": (32,),
            "expanded_conv_project/kernel": (1, 1, 32, 16),
            "block_1_expand/kernel": (1, 1, 16, 96),
            "block_16_project_BN/beta": (320,),
            "Conv_1/kernel": (1, 1, 320, 1280),
            "Conv_1_bn/moving_variance": (1280,),
            "predictions/kernel": (1280, 10),
        },
    ),
    Known(
        "efficientnet_lite0",
        {},
        "efficientnet-lite-pytorch",
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
    Known("efficientnet_lite0", {}, "timm", 247, TIMM_LITE0),
    Known("efficientnet_lite0", {"tensorflow": False}, "timm", 247, TIMM_LITE0),
]


def built(known: Known) -> Any:
    return backbones()[known.network](10, **known.options)


def names_of(network: Any, library: str) -> WeightNames:
    (found,) = (names for names in weight_names(network) if names.library == library)
    return found


def theirs(value: np.ndarray, path: tuple[str, ...], library: str) -> np.ndarray:
    """Our array, turned as the library has it."""
    if library == "Keras":
        return value.swapaxes(2, 3) if path[-2] == "depthwise_conv" else value
    value = np.moveaxis(value, (3, 2), (0, 1)) if value.ndim == 4 else value
    return value.T if value.ndim == 2 else value


def random_arrays(known: Known) -> tuple[dict[str, np.ndarray], dict[tuple[str, ...], np.ndarray]]:
    """Arrays as the library has them, and as ours, of values that no variance forbids."""
    network, rng = built(known), np.random.default_rng(0)
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x, resolution=SIZE, train=False), image
    )
    names, arrays, ours = names_of(network, known.library), {}, {}
    for path, leaf in flax.traverse_util.flatten_dict(variables).items():
        ours[path] = rng.uniform(0, 1, leaf.shape).astype(np.float32)
        arrays[names.array(path, f"_{SIZE}")] = theirs(ours[path], path, known.library)
    return arrays, ours


@pytest.mark.parametrize("known", KNOWN, ids=lambda k: f"{k.library} {k.network} {k.options}")
def test_names_and_layouts(known: Known) -> None:
    arrays, ours = random_arrays(known)
    assert len(arrays) == known.count
    assert {name: arrays[name].shape for name in known.arrays} == known.arrays
    found = flax.traverse_util.flatten_dict(variables_from_arrays(built(known), arrays, (SIZE,)))
    assert set(found) == set(ours)
    for path, value in found.items():
        np.testing.assert_array_equal(value, ours[path])


def test_every_resolution_starts_alike() -> None:
    arrays, _ = random_arrays(KNOWN[0])
    found = variables_from_arrays(built(KNOWN[0]), arrays, (64, 32))
    assert set(found) == {"params", "batch_stats_64", "batch_stats_32"}
    first, second = (found[f"batch_stats_{size}"]["bn1"]["mean"] for size in (64, 32))
    np.testing.assert_array_equal(first, arrays["bn1.running_mean"])
    np.testing.assert_array_equal(first, second)
    norm = found["params"]["layer3_0"]["shortcut_bn"]
    assert set(norm) == {"scale_64", "scale_32", "bias_64", "bias_32"}
    np.testing.assert_array_equal(norm["scale_64"], arrays["layer3.0.downsample.1.weight"])
    np.testing.assert_array_equal(norm["scale_64"], norm["scale_32"])


def test_no_resolution() -> None:
    with pytest.raises(WeightsError, match="the weights: name at least one resolution"):
        variables_from_arrays(built(KNOWN[0]), {}, ())


def test_one_batch_norm_for_all_resolutions() -> None:
    arrays, _ = random_arrays(KNOWN[0])
    shared = built(KNOWN[0]).clone(resolution_aware=False)
    found = variables_from_arrays(shared, arrays, (64, 32))
    assert set(found) == {"params", "batch_stats"}
    np.testing.assert_array_equal(found["params"]["bn1"]["scale"], arrays["bn1.weight"])


@pytest.mark.parametrize(
    ("network", "library", "tensorflow", "match"),
    [
        ("mobilenetv2", "Keras", False, "Keras's weights are for TensorFlow's.*tensorflow=True"),
        ("mobilenetv2", "torchvision", True, "are for PyTorch's padding.*tensorflow=False"),
        ("mobilenetv2", "timm", True, "are for PyTorch's padding.*tensorflow=False"),
        ("efficientnet_lite0", "efficientnet-lite-pytorch", False, "TensorFlow's.*tensorflow=True"),
    ],
)
def test_weights_of_another_padding(
    network: str, library: str, tensorflow: bool, match: str
) -> None:
    (known,) = (k for k in KNOWN if (k.network, k.library) == (network, library))
    arrays, _ = random_arrays(known)
    with pytest.raises(WeightsError, match=match):
        variables_from_arrays(backbones()[network](10, tensorflow=tensorflow), arrays, (SIZE,))


def test_origin_decides_padding_and_epsilon() -> None:
    for name in ("mobilenetv2", "efficientnet_lite0"):
        of_tensorflow, of_torch = (backbones()[name](10, tensorflow=t) for t in (True, False))
        assert of_tensorflow.same_padding and of_tensorflow.epsilon == 1e-3
        assert not of_torch.same_padding and of_torch.epsilon == 1e-5
    assert backbones()["mobilenetv2"](10) == backbones()["mobilenetv2"](10, tensorflow=False)


def test_paddings_agree_where_every_strided_layer_sees_an_odd_side() -> None:
    """After n of these, TensorFlow pads a pixel on every side too at 2^n k + 1 px, and only there.

    Of the whole network n is 5: of the sizes that are used it is 97, 129, 161, 193 and 225 px.
    """
    network = backbones()["mobilenetv2"](3).clone(stages=((1, 4, 1, 2, 3),), head_features=0)
    for size, alike in ((33, True), (29, True), (32, False), (31, False)):
        images = jax.random.normal(jax.random.key(0), (1, size, size, 3))
        variables = network.init(jax.random.key(1), images, resolution=size, train=False)
        first, second = (
            padded.apply(variables, images, resolution=size, train=False)
            for padded in (network, network.clone(same_padding=True))
        )
        assert bool(np.allclose(first, second, rtol=1e-4, atol=1e-5)) == alike, size


def test_a_network_is_described_once() -> None:
    with pytest.raises(ValueError, match="MobileNet's weights are described twice"):
        register_weight_names(MobileNet)(lambda network: ())
