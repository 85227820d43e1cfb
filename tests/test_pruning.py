"""A pruned network is the masked one; which filters are kept, by the definitions, in NumPy."""

from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.inference.folding import fold_batch_norm
from drnet_jax.models.backbone import Backbone, backbones
from drnet_jax.models.macs import count_macs
from drnet_jax.models.mobilenet import MobileNet
from drnet_jax.models.resnet import ResNet
from drnet_jax.pretrained.errors import WeightsError
from drnet_jax.pretrained.export import export_weights
from drnet_jax.pretrained.weights import load_weights
from drnet_jax.pruning.prune import prune
from tests.networks import image, narrow, shapes
from tests.random_model import randomised

SIZES = (32, 24)
RATES = {"basic": (0.25, 0.5), "bottleneck": (0.3, 0.5), "inverted residual": (0.0, 0.5, 0.3)}
NETWORKS: dict[str, Backbone] = {
    "basic": ResNet(5, (2, 1), "basic", 8, "small"),
    "bottleneck": ResNet(5, (2, 1), "bottleneck", 8, "small"),
    "inverted residual": MobileNet(
        5, ((1, 8, 1, 1, 3), (3, 8, 2, 2, 3), (2, 16, 1, 2, 5)), head_features=24
    ),
}
# By hand: layers with an entry a channel, the first of which has the filters, and what reads them.
CHAINS = {
    "basic": [(("conv1", "bn1"), "conv2")],
    "bottleneck": [(("conv1", "bn1"), "conv2"), (("conv2", "bn2"), "conv3")],
    "inverted residual": [
        (("expand_conv", "expand_bn", "depthwise_conv", "depthwise_bn"), "project_conv")
    ],
}
# And the blocks of the stages above, with how many of the inner channels are left in each of them.
LEFT = {
    "basic": {"layer1_0": (6,), "layer1_1": (6,), "layer2_0": (8,)},
    "bottleneck": {"layer1_0": (6, 6), "layer1_1": (6, 6), "layer2_0": (8, 8)},
    "inverted residual": {"stage1_0": (12,), "stage1_1": (12,), "stage2_0": (11,)},
}


def by_definition(kernel: np.ndarray, criterion: str, count: int) -> list[int]:
    """Kept filters: of the largest L1 norm, or farthest from the others, one by one."""
    filters = [kernel[..., index].ravel().astype(float) for index in range(kernel.shape[-1])]
    if criterion == "l1":
        matter = [sum(abs(weight) for weight in one) for one in filters]
    else:
        matter = [sum(np.sqrt(((one - other) ** 2).sum()) for other in filters) for one in filters]
    return sorted(sorted(range(len(filters)), key=lambda index: -matter[index])[:count])


@pytest.fixture(scope="module", params=list(NETWORKS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def wide(kind: str) -> Any:
    """Variables with a BatchNorm of its own at every resolution."""

    def initialise() -> Any:
        variables: dict[str, Any] = {}
        for size in SIZES:
            x = jnp.zeros((1, size, size, 3))
            found = NETWORKS[kind].init(jax.random.key(0), x, resolution=size, train=False)
            flat = flax.traverse_util.flatten_dict(found)
            variables |= {path: leaf for path, leaf in flat.items() if path not in variables}
        return flax.traverse_util.unflatten_dict(variables)

    return randomised(jax.device_get(jax.jit(initialise)()), 1)


def masked(kind: str, variables: Any, criterion: str) -> Any:
    """Filters that are not kept give zero: their weights, and the scale and bias of BatchNorm."""
    flat = {p: np.array(leaf) for p, leaf in flax.traverse_util.flatten_dict(variables).items()}
    for block, counts in LEFT[kind].items():
        # All are chosen before any is zero.
        lost = []
        for (layers, _), count in zip(CHAINS[kind], counts, strict=True):
            kernel = flat["params", block, layers[0], "kernel"]
            kept = by_definition(kernel, criterion, count)
            lost.append((layers, np.setdiff1d(np.arange(kernel.shape[-1]), kept)))
        for layers, where in lost:
            for path, leaf in flat.items():
                if path[0] == "params" and path[1] == block and path[2] in layers:
                    leaf[..., where] = 0
    return flax.traverse_util.unflatten_dict(flat)


@pytest.mark.parametrize("criterion", ["l1", "fpgm"])
def test_pruned_is_masked(kind: str, wide: Any, criterion: str) -> None:
    """At every resolution, with BatchNorm and with it folded."""
    network = NETWORKS[kind]
    narrow = network.clone(pruning_rates=RATES[kind])
    pruned, zeroed = prune(narrow, wide, criterion, SIZES[0]), masked(kind, wide, criterion)
    for size in SIZES:
        x = np.random.default_rng(2).normal(size=(4, size, size, 3)).astype(np.float32)

        def logits(one: Backbone, variables: Any, x: Any = x, size: int = size) -> Any:
            return jax.jit(partial(one.apply, resolution=size, train=False))(variables, x)

        want = logits(network, zeroed)
        assert np.abs(want - logits(network, wide)).max() > 0.01
        tolerance = 1e-5 * np.abs(want).max()
        np.testing.assert_allclose(logits(narrow, pruned), want, rtol=0, atol=tolerance)
        folded = fold_batch_norm(narrow, pruned, size)
        np.testing.assert_allclose(logits(*folded), want, rtol=0, atol=tolerance)


def test_shapes_and_what_stays(kind: str, wide: Any) -> None:
    """Of the inner channels as many as are counted by hand, of all others as many as before."""
    pruned = prune(NETWORKS[kind].clone(pruning_rates=RATES[kind]), wide, "l1", SIZES[0])
    before, after = map(flax.traverse_util.flatten_dict, (wide, pruned))
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        shape = list(leaf.shape)
        if counts := LEFT[kind].get(path[1]):
            for (layers, reader), count in zip(CHAINS[kind], counts, strict=True):
                if path[2] in layers:
                    shape[-1] = count
                elif path[2] == reader and path[-1] == "kernel":
                    shape[2] = count
        if path[2:3] == ("conv2",) and kind == "bottleneck":
            shape[2] = LEFT[kind][path[1]][0]
        assert after[path].shape == tuple(shape)
        if tuple(shape) == leaf.shape:
            np.testing.assert_array_equal(after[path], leaf)


def test_weight_files_of_a_pruned_network(kind: str, wide: Any, tmp_path: Path) -> None:
    """Read again they are the same bits; of the wider network they are refused."""
    network, path = NETWORKS[kind], tmp_path / "pruned.safetensors"
    narrow = network.clone(pruning_rates=RATES[kind])
    pruned = prune(narrow, wide, "l1", SIZES[0])
    export_weights(path, narrow, pruned, SIZES[1])
    found = flax.traverse_util.flatten_dict(load_weights(path, narrow, SIZES[1:]))
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, flax.traverse_util.flatten_dict(pruned)[name])
    with pytest.raises(WeightsError, match="model.pruning_rates"):
        load_weights(path, network, SIZES[1:])


def test_no_pruning_is_equal_to_the_bit(kind: str, wide: Any) -> None:
    """At rates of zero, and of a pruned network at its own rates."""
    network = NETWORKS[kind]
    rates = (0.0,) * len(network.inner_channels)
    same = prune(network.clone(pruning_rates=rates), wide, "fpgm", SIZES[0])
    jax.tree.map(np.testing.assert_array_equal, same, jax.tree.map(np.asarray, wide))
    narrow = network.clone(pruning_rates=RATES[kind])
    once = prune(narrow, wide, "fpgm", SIZES[0])
    jax.tree.map(np.testing.assert_array_equal, prune(narrow, once, "fpgm", SIZES[0]), once)


def test_filters_that_are_not_there(kind: str, wide: Any) -> None:
    network = NETWORKS[kind]
    pruned = prune(network.clone(pruning_rates=RATES[kind]), wide, "l1", SIZES[0])
    with pytest.raises(ValueError, match=r"kernel has \d+ filters, and \d+ are wanted"):
        prune(network, pruned, "l1", SIZES[0])


def test_one_filter_is_left_and_equal_ones_stay_in_order() -> None:
    network = ResNet(2, (1,), "basic", 4, "small")
    x = jnp.zeros((1, 8, 8, 3))
    variables = network.init(jax.random.key(0), x, resolution=8, train=False)
    flat = flax.traverse_util.flatten_dict(jax.device_get(variables))
    path = ("params", "layer1_0", "conv1", "kernel")
    flat[path] = np.ones_like(flat[path]) * np.array([1, 2, 2, 2], np.float32)
    reader = flat["params", "layer1_0", "conv2", "kernel"]
    variables = flax.traverse_util.unflatten_dict(flat)
    for rate, kept in ((0.5, [1, 2]), (0.99, [1])):
        found = prune(network.clone(pruning_rates=(rate,)), variables, "l1", 8)
        found = found["params"]["layer1_0"]["conv2"]["kernel"]
        np.testing.assert_array_equal(found, reader[:, :, kept])


def test_hand_count_of_pruned_networks() -> None:
    """Multiply-adds of every convolution, with the inner channels of `LEFT`."""
    # conv1 16x16, layer1 twice 8-6-8, layer2 8-8-16 at 8x8 with its 1x1 shortcut; fc.
    basic = 256 * 27 * 8 + 2 * 256 * 9 * (8 * 6 + 6 * 8)
    basic += 64 * (9 * (8 * 8 + 8 * 16) + 8 * 16) + 16 * 5
    # layer1 8-6-6-32 with a shortcut and 32-6-6-32; layer2 32-8 at 16x16, 8-8-64 at 8x8.
    bottleneck = 256 * 27 * 8 + 256 * (8 * 6 + 9 * 6 * 6 + 6 * 32 + 8 * 32)
    bottleneck += 256 * (32 * 6 + 9 * 6 * 6 + 6 * 32)
    bottleneck += 256 * 32 * 8 + 64 * (9 * 8 * 8 + 8 * 64 + 32 * 64) + 64 * 5
    # Stem 3-32 at 16x16, 32-8; 8-12 at 16x16 and 12-8 at 8x8, 8-12-8; 8-11 at 8x8, 11-16 at 4x4.
    inverted = 256 * (27 * 32 + 9 * 32 + 32 * 8) + 256 * 8 * 12 + 64 * (9 * 12 + 12 * 8)
    inverted += 64 * (8 * 12 + 9 * 12 + 12 * 8) + 64 * 8 * 11 + 16 * (25 * 11 + 11 * 16)
    inverted += 16 * 16 * 24 + 24 * 5
    for kind, expected in zip(NETWORKS, (basic, bottleneck, inverted), strict=True):
        narrow = NETWORKS[kind].clone(pruning_rates=RATES[kind])
        assert count_macs(narrow, image(32), resolution=32, train=False) == expected, kind


@pytest.mark.parametrize("name", list(backbones()))
def test_every_network_is_pruned_as_it_is_described(name: str) -> None:
    """What its blocks have inside is what becomes narrower, and nothing else."""
    network = narrow(name, 7)
    stages = network.inner_channels
    rates = tuple(0.3 if blocks else 0.0 for blocks in stages)
    narrower, size = network.clone(pruning_rates=rates), 2 * network.network_stride
    variables, _ = shapes(network, size)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variables)
    found = jax.tree.map(np.shape, prune(narrower, zeros, "l1", size))
    assert found == jax.tree.map(lambda leaf: leaf.shape, shapes(narrower, size)[0])
    assert found != jax.tree.map(np.shape, zeros)
