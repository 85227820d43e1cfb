"""ResNet: its initialisation and its stride."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.models.resnet import ResNet


@pytest.mark.parametrize(("block", "last"), [("basic", "bn2"), ("bottleneck", "bn3")])
def test_zero_init_residual_starts_the_last_scale_of_every_block_at_zero(
    block: str, last: str
) -> None:
    """And no other: then a block is its shortcut."""
    network = ResNet(3, (1, 2), block, 2, "small", zero_init_residual=True)

    @jax.jit
    def initial_scales() -> dict[str, jax.Array]:
        x = jnp.zeros((1, 8, 8, 3))
        params = network.init(jax.random.key(0), x, resolution=8, train=False)["params"]
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        # The kernels are dropped here, so that XLA need not compile their random numbers.
        return {path: leaf for path, leaf in flat.items() if path.endswith("/scale_8")}

    scales = initial_scales()
    assert len([path for path in scales if path.endswith(f"{last}/scale_8")]) == 3
    for path, leaf in scales.items():
        expected = 0.0 if path.endswith(f"{last}/scale_8") else 1.0
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, expected))


@pytest.mark.parametrize(("stem", "stages", "stride"), [("imagenet", 4, 32), ("small", 2, 4)])
def test_network_stride_is_what_the_last_feature_map_shows(
    stem: str, stages: int, stride: int
) -> None:
    network = ResNet(3, (1,) * stages, width=2, stem=stem)
    x = jnp.zeros((1, 64, 64, 3))

    def last_map(x: jax.Array) -> Any:
        _, state = network.init_with_output(
            jax.random.key(0), x, resolution=64, train=False, capture_intermediates=True
        )
        return state["intermediates"][f"layer{stages}_0"]["__call__"][0]

    assert network.network_stride == stride == 64 // jax.eval_shape(last_map, x).shape[1]
