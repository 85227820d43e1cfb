"""The shared layers against nn.BatchNorm and NumPy."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from drnet_jax.models.layers import ResolutionBatchNorm, resize

MOMENTUM, EPSILON = 0.9, 1e-5
CHANNELS = 5


def random_input(shape: tuple[int, ...] = (8, 6, 6, CHANNELS), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (1.5 + 2.0 * rng.normal(size=shape)).astype(np.float32)


def random_variables(suffixes: tuple[str, ...]) -> dict[str, Any]:
    """Statistics and parameters unlike the initial ones, one set per suffix."""
    rng = np.random.default_rng(42)
    variables: dict[str, Any] = {"params": {}}
    for suffix in suffixes:
        variables["params"][f"scale{suffix}"] = jnp.asarray(rng.normal(size=CHANNELS), "float32")
        variables["params"][f"bias{suffix}"] = jnp.asarray(rng.normal(size=CHANNELS), "float32")
        variables[f"batch_stats{suffix}"] = {
            "mean": jnp.asarray(rng.normal(size=CHANNELS), "float32"),
            "var": jnp.asarray(rng.uniform(0.5, 2.0, size=CHANNELS), "float32"),
        }
    return variables


def apply_train(
    variables: dict[str, Any],
    x: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray | None = None,
    resolution: int = 32,
    **fields: Any,
) -> tuple[jax.Array, dict[str, Any]]:
    """Output and updated statistics of one jitted training call."""
    layer = ResolutionBatchNorm(**fields)
    collections = [name for name in variables if name != "params"]

    @jax.jit
    def step(variables: Any, x: jax.Array, mask: jax.Array | None) -> Any:
        return layer.apply(
            variables, x, resolution=resolution, train=True, sample_mask=mask, mutable=collections
        )

    return step(variables, x, mask)


def numpy_batch_norm(
    x: np.ndarray, params: dict[str, Any], mean: np.ndarray, var: np.ndarray, suffix: str
) -> np.ndarray:
    scale, bias = (np.asarray(params[f"{name}{suffix}"], np.float64) for name in ("scale", "bias"))
    return (x - mean) / np.sqrt(var + EPSILON) * scale + bias


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("input_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_without_mask_and_resolutions_it_is_flax_batch_norm(
    train: bool, input_dtype: Any, dtype: Any
) -> None:
    x = jnp.asarray(random_input()).astype(input_dtype)
    variables = random_variables(("",))
    ours = ResolutionBatchNorm(resolution_aware=False, dtype=dtype)
    theirs = nn.BatchNorm(
        use_running_average=not train, momentum=MOMENTUM, epsilon=EPSILON, dtype=dtype
    )
    y, state = jax.jit(
        lambda v, x: ours.apply(v, x, resolution=32, train=train, mutable=["batch_stats"])
    )(variables, x)
    expected, expected_state = jax.jit(lambda v, x: theirs.apply(v, x, mutable=["batch_stats"]))(
        variables, x
    )
    assert y.dtype == expected.dtype
    # One place of bfloat16, which has eight bits.
    tolerance = 1e-5 if y.dtype == jnp.float32 else 2.0**-7
    np.testing.assert_allclose(
        y.astype(jnp.float32), expected.astype(jnp.float32), rtol=tolerance, atol=1e-5
    )
    for name in ("mean", "var"):
        value = np.asarray(state["batch_stats"][name])
        np.testing.assert_allclose(value, expected_state["batch_stats"][name], rtol=1e-6)
        assert train != np.array_equal(value, variables["batch_stats"][name])


def test_gradients_are_those_of_flax_batch_norm() -> None:
    """Of a weighted sum of the outputs, in training."""
    x, weights = jnp.asarray(random_input()), jnp.asarray(random_input(seed=1))
    variables = random_variables(("",))
    stats = {"batch_stats": variables["batch_stats"]}
    ours = ResolutionBatchNorm(resolution_aware=False)
    theirs = nn.BatchNorm(use_running_average=False, momentum=MOMENTUM, epsilon=EPSILON)

    def our_sum(params: Any, x: jax.Array) -> jax.Array:
        y, _ = ours.apply(
            {"params": params, **stats}, x, resolution=32, train=True, mutable=["batch_stats"]
        )
        return (weights * y).sum()

    def their_sum(params: Any, x: jax.Array) -> jax.Array:
        y, _ = theirs.apply({"params": params, **stats}, x, mutable=["batch_stats"])
        return (weights * y).sum()

    actual = jax.grad(our_sum, argnums=(0, 1))(variables["params"], x)
    expected = jax.grad(their_sum, argnums=(0, 1))(variables["params"], x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected
    )


def test_every_resolution_has_its_own_collection_and_parameters() -> None:
    layer = ResolutionBatchNorm()
    x = random_input()
    for resolution in (32, 16):
        variables = layer.init(jax.random.key(0), x, resolution=resolution, train=True)
        assert set(variables) == {"params", f"batch_stats_{resolution}"}
        assert set(variables["params"]) == {f"scale_{resolution}", f"bias_{resolution}"}
        # Initialising is no training step.
        statistics = variables[f"batch_stats_{resolution}"]
        np.testing.assert_array_equal(statistics["mean"], np.zeros(CHANNELS))
        np.testing.assert_array_equal(statistics["var"], np.ones(CHANNELS))


@pytest.mark.parametrize(("trained", "other"), [(32, 16), (16, 32)])
def test_training_at_one_resolution_leaves_the_other_untouched(trained: int, other: int) -> None:
    x = random_input()
    variables = random_variables(("_32", "_16"))
    y, state = apply_train(variables, x, resolution=trained)
    x64 = x.astype(np.float64)
    mean, var = x64.mean(axis=(0, 1, 2)), x64.var(axis=(0, 1, 2))
    expected = numpy_batch_norm(x64, variables["params"], mean, var, f"_{trained}")
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    for name, batch in (("mean", mean), ("var", var)):
        np.testing.assert_array_equal(
            state[f"batch_stats_{other}"][name], variables[f"batch_stats_{other}"][name]
        )
        old = np.asarray(variables[f"batch_stats_{trained}"][name], np.float64)
        np.testing.assert_allclose(
            state[f"batch_stats_{trained}"][name],
            MOMENTUM * old + (1 - MOMENTUM) * batch,
            rtol=1e-5,
            atol=1e-6,
        )


def test_evaluation_reads_the_statistics_and_parameters_of_its_resolution() -> None:
    x = random_input()
    variables = random_variables(("_32", "_16"))
    for resolution in (32, 16):
        y = ResolutionBatchNorm().apply(variables, x, resolution=resolution, train=False)
        stats = variables[f"batch_stats_{resolution}"]
        mean, var = (np.asarray(stats[name], np.float64) for name in ("mean", "var"))
        expected = numpy_batch_norm(x, variables["params"], mean, var, f"_{resolution}")
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_marked", [4, 5, 8])
@pytest.mark.parametrize("rank", [2, 4])
def test_only_marked_samples_enter_the_statistics_and_all_are_normalised(
    num_marked: int, rank: int
) -> None:
    x = random_input((8, 6, 6, CHANNELS) if rank == 4 else (8, CHANNELS))
    mask = np.zeros(8, bool)
    mask[np.random.default_rng(3).permutation(8)[:num_marked]] = True
    variables = random_variables(("_32",))
    y, state = apply_train(variables, x, mask)

    marked = x[mask].astype(np.float64).reshape(-1, CHANNELS)
    mean, var = marked.mean(axis=0), marked.var(axis=0)
    expected = numpy_batch_norm(x, variables["params"], mean, var, "_32")
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=2e-5)
    for name, batch in (("mean", mean), ("var", var)):
        old = np.asarray(variables["batch_stats_32"][name], np.float64)
        np.testing.assert_allclose(
            state["batch_stats_32"][name],
            MOMENTUM * old + (1 - MOMENTUM) * batch,
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.parametrize(("num_marked", "min_samples"), [(0, 4), (3, 4), (0, 0), (1, 2)])
def test_below_min_samples_the_running_statistics_normalise_and_stay(
    num_marked: int, min_samples: int
) -> None:
    x = random_input()
    mask = np.arange(8) < num_marked
    variables = random_variables(("_32",))
    y, state = apply_train(variables, x, mask, min_samples=min_samples)
    mean, var = (np.asarray(variables["batch_stats_32"][n], np.float64) for n in ("mean", "var"))
    expected = numpy_batch_norm(x, variables["params"], mean, var, "_32")
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for name in ("mean", "var"):
        np.testing.assert_array_equal(
            state["batch_stats_32"][name], variables["batch_stats_32"][name]
        )


@pytest.mark.parametrize("num_marked", [0, 3])
def test_below_min_samples_gradients_are_those_of_fixed_statistics(num_marked: int) -> None:
    """d sum(w * y) is w * scale / sqrt(var + eps) for x, and finite for a constant input too."""
    mask = np.arange(8) < num_marked
    variables = random_variables(("_32",))
    weights = random_input(seed=1)

    def weighted_sum(x: jax.Array, params: Any) -> jax.Array:
        return (weights * apply_train({**variables, "params": params}, x, mask)[0]).sum()

    var = np.asarray(variables["batch_stats_32"]["var"], np.float64)
    scale = np.asarray(variables["params"]["scale_32"], np.float64)
    for x in (random_input(), np.zeros_like(weights)):
        gradients = jax.grad(weighted_sum, argnums=(0, 1))(jnp.asarray(x), variables["params"])
        np.testing.assert_allclose(
            gradients[0], weights * scale / np.sqrt(var + EPSILON), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(gradients[1]["bias_32"], weights.sum(axis=(0, 1, 2)), rtol=1e-4)
        assert np.isfinite(gradients[1]["scale_32"]).all()


@pytest.mark.parametrize("num_marked", [None, 3, 5])
def test_statistics_of_a_sharded_batch_are_those_of_the_whole_batch(
    num_marked: int | None,
) -> None:
    """Four devices of two samples, each with other means; 5 marked leave one device none."""
    x = random_input() - 3.0 + np.repeat(np.arange(4.0, dtype=np.float32), 2)[:, None, None, None]
    mask = None if num_marked is None else np.arange(8) < num_marked
    variables = random_variables(("_32",))
    expected = apply_train(variables, x, mask)

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    sharded_x = jax.device_put(x, split)
    assert len(sharded_x.addressable_shards) == 4
    sharded_mask = None if mask is None else jax.device_put(mask, split)
    replicated = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    actual = apply_train(replicated, sharded_x, sharded_mask)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), actual, expected
    )


def test_resize_at_factor_two_is_the_antialiased_triangle_kernel() -> None:
    """Weights 1:3:3:1 along each axis, renormalised at the border."""
    x = random_input((2, 12, 12, 3))
    weights = np.zeros((6, 12))
    for row in range(6):
        for offset, weight in zip(range(-1, 3), (1, 3, 3, 1), strict=True):
            if 0 <= 2 * row + offset < 12:
                weights[row, 2 * row + offset] = weight
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.einsum("ih,jw,nhwc->nijc", weights, weights, x)
    np.testing.assert_allclose(resize(jnp.asarray(x), 6), expected, rtol=1e-4, atol=1e-5)


def test_resize_to_the_same_size_changes_no_bit() -> None:
    x = random_input((2, 12, 12, 3))
    np.testing.assert_array_equal(resize(jnp.asarray(x), 12), x)


@pytest.mark.parametrize("train", [True, False])
def test_a_mean_of_a_hundred_deviations_costs_no_more_than_its_digits(train: bool) -> None:
    """Against NumPy in float64."""
    x = np.random.default_rng(0).normal(100.0, 1.0, size=(8, 6, 6, 5)).astype(np.float32)
    layer = ResolutionBatchNorm(epsilon=EPSILON)
    stats = {"mean": jnp.full(5, 100.0), "var": jnp.ones(5)}
    params = {"scale_32": jnp.ones(5), "bias_32": jnp.zeros(5)}
    y, _ = layer.apply(
        {"params": params, "batch_stats_32": stats},
        x,
        resolution=32,
        train=train,
        mutable=["batch_stats_32"],
    )
    wide = x.astype(np.float64)
    mean, var = (wide.mean((0, 1, 2)), wide.var((0, 1, 2))) if train else (100.0, 1.0)
    expected = (wide - mean) / np.sqrt(var + EPSILON)
    # float32 has 1.2e-7 of 1; of E[x^2] = 10,000 that is 1.2e-3 of the variance.
    np.testing.assert_allclose(y, expected, atol=5e-3 if train else 2e-5)
