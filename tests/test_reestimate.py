"""Re-estimated BatchNorm statistics against NumPy, and against the network in training."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.models.reestimate import reestimate_statistics
from drnet_jax.models.resnet import ResNet
from tests.random_model import randomised

SIZE = 16


def network_and_images() -> tuple[ResNet, Any, np.ndarray]:
    network = ResNet(5, (1, 1), width=4, stem="small")
    images = np.random.default_rng(0).normal(1, 2, (10, SIZE, SIZE, 3)).astype(np.float32)

    def initialise(x: Any) -> Any:
        return network.init(jax.random.key(0), x, resolution=SIZE, train=False)

    return network, randomised(jax.jit(initialise)(images), 0), images


def test_of_one_batch_evaluation_is_training() -> None:
    network, variables, images = network_and_images()
    again = reestimate_statistics(network, variables, [images], SIZE)
    collection = f"batch_stats_{SIZE}"
    trained, _ = network.apply(variables, images, resolution=SIZE, train=True, mutable=[collection])
    before = network.apply(variables, images, resolution=SIZE, train=False)
    after = network.apply(again, images, resolution=SIZE, train=False)
    np.testing.assert_allclose(after, trained, rtol=1e-4, atol=1e-4)
    assert np.abs(before - trained).max() > 0.1
    assert again["params"] is variables["params"]


def test_batches_of_different_sizes_are_pooled() -> None:
    """Of the first BatchNorm, whose input does not depend on other statistics."""
    network, variables, images = network_and_images()
    again = reestimate_statistics(network, variables, [images[:7], images[7:]], SIZE)
    kernel = variables["params"]["conv1"]["kernel"]
    layer = nn.Conv(4, (3, 3), 2, padding=1, use_bias=False)
    inputs = np.asarray(layer.apply({"params": {"kernel": kernel}}, images), np.float64)
    found = again[f"batch_stats_{SIZE}"]["bn1"]
    np.testing.assert_allclose(found["mean"], inputs.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], inputs.var((0, 1, 2)), rtol=1e-4, atol=1e-5)


def test_the_variance_of_a_constant_channel_is_not_negative() -> None:
    """Rounding alone would leave it below -epsilon, of which the root is NaN."""
    network, variables, _ = network_and_images()
    centre = jnp.zeros_like(variables["params"]["conv1"]["kernel"]).at[1, 1].set(1 / 3)
    params = {**variables["params"], "conv1": {"kernel": centre}}
    for value in np.linspace(10, 100, 10, dtype=np.float32):
        batches = [np.full((3, SIZE, SIZE, 3), value)] * 7
        again = reestimate_statistics(network, {**variables, "params": params}, batches, SIZE)
        found = again[f"batch_stats_{SIZE}"]["bn1"]["var"]
        np.testing.assert_allclose(found, 0, atol=1e-6 * value**2)
        assert float(found.min()) >= 0


def test_no_batch_is_refused() -> None:
    network, variables, _ = network_and_images()
    with pytest.raises(ValueError, match="at least one batch"):
        reestimate_statistics(network, variables, [], SIZE)
