"""Operations of JAX as ONNX: ONNX Runtime computes what JAX does, for any number of images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from jax import lax

from drnet_jax.exports.errors import ExportError
from drnet_jax.exports.onnx_model import IMAGES, onnx_model
from drnet_jax.models.convolution import max_pool
from drnet_jax.models.layers import resize
from tests.networks import narrow

RNG = np.random.default_rng(0)
SIZE = (9, 12)
KERNEL = RNG.normal(0, 1, (3, 2, 3, 4)).astype(np.float32)
DEPTHWISE = RNG.normal(0, 1, (3, 3, 1, 6)).astype(np.float32)
MATRIX = RNG.normal(0, 1, (9, 5)).astype(np.float32)
LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(x: jax.Array, kernel: np.ndarray, padding: Any, strides: Any = (1, 1), **more: Any) -> Any:
    return lax.conv_general_dilated(
        x, jnp.asarray(kernel), strides, padding, dimension_numbers=LAYOUT, **more
    )


def two_convolutions(x: jax.Array) -> Any:
    y = jnp.minimum(jnp.maximum(conv(x, KERNEL[..., :3], "SAME"), 0), 6)
    return conv(y, KERNEL, "VALID")


def channels_first(x: jax.Array) -> Any:
    kernel = jnp.asarray(KERNEL.transpose(3, 2, 0, 1))
    return lax.conv_general_dilated(x.transpose(0, 3, 1, 2), kernel, (1, 2), "SAME")


def best_of(x: jax.Array) -> jax.Array:
    values, index = lax.top_k(x.sum((1, 2)), 2)
    return jnp.concatenate([values, index.astype(jnp.float32)], axis=1)


OPERATIONS: dict[str, Callable[[jax.Array], Any]] = {
    "a padding that differs by side": lambda x: conv(x, KERNEL, ((0, 2), (1, 0)), (2, 1)),
    "SAME at an even side, strided": lambda x: conv(x, KERNEL, "SAME", (2, 2)),
    "a dilated kernel": lambda x: conv(x, KERNEL, "VALID", rhs_dilation=(2, 3)),
    "groups": lambda x: conv(x, DEPTHWISE, ((1, 2), (0, 1)), feature_group_count=3),
    "two convolutions": two_convolutions,
    "channels first": channels_first,
    "max-pool": lambda x: max_pool(x - 2, form="stock"),
    "max-pool of other axes": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 1, 4, 2), (1, 1, 3, 1), ((0, 0), (0, 0), (1, 2), (0, 0))
    ),
    "smaller": lambda x: resize(x, 5),
    "larger": lambda x: resize(x, 17),
    "a matrix after": lambda x: jnp.tensordot(x, MATRIX, axes=((1,), (0,))),
    "a matrix before": lambda x: jnp.tensordot(MATRIX, x, axes=((0,), (1,))),
    "a matrix in the last axis": lambda x: x @ MATRIX[:3],
    "a product of two": lambda x: jnp.einsum("nhwc,nhvc->nwvh", x, x),
    "sums and means": lambda x: x.sum((1, 3)) / x.mean((1, 3)),
    "extrema": lambda x: conv(x, KERNEL, "SAME").max((0, 2)) - x.min(),
    "softmax": lambda x: jax.nn.softmax(x, axis=2),
    "elementwise": lambda x: jnp.exp(-x) + jnp.tanh(x) * jnp.abs(x - 1) ** 1.5 + jnp.sqrt(x),
    "powers": lambda x: x**3 - lax.rsqrt(x + 1) + jnp.log(x + 1) + jnp.square(x) + lax.logistic(x),
    "rounding": lambda x: jnp.floor(x) + jnp.ceil(x / 2) - jnp.sign(x - 1) + lax.erf(x),
    "choices": lambda x: jnp.where((x > 1) & (x != 2) | ~(x <= 3) | (x >= 4), x, -x),
    "comparisons": lambda x: ((x < 1) | (x == 2)).astype(jnp.float32),
    "bounds": lambda x: (
        jnp.minimum(jnp.maximum(x, 1.5), 2.5)
        + jnp.maximum(x, x.mean((1, 2, 3))[:, None, None, None])
    ),
    "a common order": lambda x: conv(x, KERNEL, "SAME") + x[..., :1] * jnp.ones((9, 12, 4)),
    "axes": lambda x: x.transpose(2, 0, 3, 1).reshape(12, -1, 27)[2:9:3],
    "broadcast": lambda x: x + jnp.broadcast_to(x.sum((1, 2))[:, None, None], x.shape),
    "joined": lambda x: jnp.concatenate([x, conv(x, KERNEL, "SAME"), 2 * x], axis=3),
    "padded": lambda x: jnp.pad(
        conv(x, KERNEL, "SAME"), ((0, 0), (1, 2), (0, 3), (4, 0)), constant_values=7
    ),
    "one axis": lambda x: x.reshape(-1),
    "a slice": lambda x: lax.slice(
        conv(x, KERNEL, "SAME"), (0, 2, 1, 0), (x.shape[0], 9, 12, 3), (1, 3, 1, 2)
    ),
    "the best two": best_of,
    "the best": lambda x: x.sum((1, 2)).argmax(1),
    "a corner": lambda x: x[:, 2, 3:, 1],
    "the second row": lambda x: x[:, 1],
    "rows by number": lambda x: jnp.take(x, jnp.array([2, 0, 11, 11]), axis=2),
    "rows by value": lambda x: jnp.take(
        x, x.max((0, 1, 3)).astype(jnp.int32) * 4 - 9, axis=1, mode="clip"
    ),
    "rows of a table": lambda x: jnp.take(MATRIX, x.sum((2, 3)).argmax(1), axis=0, mode="clip"),
    "numbers that fit no byte": lambda x: (150 * x - 199.5).astype(jnp.uint8),
    "nor four": lambda x: (1e9 * (x - 2)).astype(jnp.int32).astype(jnp.float32),
    "a sum over no axes": lambda x: conv(x, KERNEL, "SAME").sum(()),
    "called": jax.jit(lambda x: jax.checkpoint(jax.nn.relu6)(x) - jax.nn.relu(x - 1)),
    "known beforehand": lambda x: x + jnp.linspace(0, 1, 12)[:, None].cumsum(0),
    "a constant": lambda x: jnp.arange(6.0).reshape(2, 3),
}


def rows_by_three_keys(x: jax.Array) -> jax.Array:
    first, second = jnp.floor(x[:, 0, 0, 0]).astype(jnp.int32), -jnp.floor(x[:, 0, 0, 1] / 2)
    numbers = jnp.arange(len(x), dtype=jnp.int32)
    *_, order, kept = lax.sort((first, second, numbers, x[:, 0, 0, 2]), num_keys=3)
    return jnp.concatenate([order.astype(jnp.float32), kept])


def some_dropped(x: jax.Array) -> jax.Array:
    rows = jnp.array([1, len(x), -1, 10**6, 2]) + jnp.floor(x[0, 0, 0, 0] / 10).astype(jnp.int32)
    return x.at[rows].set(-x[:5], mode="drop") + x.sum(0).at[rows].set(7.0, mode="drop")[None]


def one_of_three(x: jax.Array) -> Any:
    def inner(x: jax.Array) -> jax.Array:
        """With a choice of its own, a constant and one from outside."""
        return lax.cond(x.sum() > 900, lambda x: x * 3 + MATRIX[:, :1, None], lambda x: x - seen, x)

    seen = conv(x, KERNEL[..., :3], "SAME")
    branches = [lambda x: conv(x, KERNEL, "SAME")[..., :3], inner, lambda x: x]
    return lax.switch(jnp.floor(x[0, 0, 0, 0]).astype(jnp.int32) - 1, branches, x)


# For a number of images that is known.
OF_FIXED_BATCHES: dict[str, Callable[[jax.Array], Any]] = {
    "sorted": rows_by_three_keys,
    "sorted by one key": lambda x: jnp.sort(-x[:, 1, 1, 1]),
    "scattered": some_dropped,
    "scattered nowhere": lambda x: x.at[jnp.array([9, 9])].set(x[:2], mode="drop"),
    "one of three": one_of_three,
    "images by number": lambda x: conv(
        jnp.take(x, jnp.floor(x[:3, 0, 0, 0]).astype(jnp.int32), axis=0, mode="clip"),
        KERNEL,
        "SAME",
    ),
    "elements by number": lambda x: jnp.take(
        jnp.linspace(2, 3, 4), jnp.floor(x[:, 0, 0, 0]).astype(jnp.int32), mode="clip"
    ),
    "of nothing": lambda x: x[:, 0, 0] + x[:, 9:].max(axis=(1, 2), initial=-2.0),
    "within bounds": lambda x: lax.clamp(1.0, conv(x, KERNEL, "SAME"), 2.0),
}


def run(
    function: Callable[[jax.Array], Any], images: np.ndarray, batch_size: int | None = None
) -> np.ndarray:
    """By ONNX Runtime."""
    model = onnx_model(
        lambda images: {"out": function(images)},
        images.shape[1:3],
        name="test",
        batch_size=batch_size,
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(["out"], {IMAGES: images})
    return np.asarray(found)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    def function(images: jax.Array) -> Any:
        return OPERATIONS[name](images.astype(jnp.float32) / 50)

    for count in (1, 3):
        images = RNG.integers(0, 256, (count, *SIZE, 3), np.uint8)
        expected = np.asarray(function(jnp.asarray(images)))
        found = run(function, images)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", OF_FIXED_BATCHES)
def test_operations_of_fixed_batches(name: str) -> None:
    def function(images: jax.Array) -> Any:
        return OF_FIXED_BATCHES[name](images.astype(jnp.float32) / 50)

    # What the first pixel is decides which branch runs, and where rows go.
    for first in (0, 55, 110, 255):
        images = RNG.integers(0, 256, (8, *SIZE, 3), np.uint8)
        images[0, 0, 0, 0] = first
        expected = np.asarray(jax.jit(function)(jnp.asarray(images)))
        found = run(function, images, batch_size=8)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: jnp.fft.rfft(x, axis=1), "'fft' of JAX is not known here"),
        (lambda x: jnp.sort(x, axis=1), "of sorts only those of one axis"),
        (lambda x: x.sum(0).at[:, 1].set(0.0), "of scatters only those of whole rows"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0))), "padding betwe"),
        (lambda x: conv(x, KERNEL, ((0, 0), (0, 0)), lhs_dilation=(2, 2)), "of dilated input"),
        (lambda x: x[:1, 2:3], "a slice of the batch|within its array"),
        (lambda x: x - x.mean(0), "'dim_as_value' of JAX is not known here"),
        (lambda x: lax.pad(jnp.ones(3), x.sum(), ((1, 0, 0),)), "a value that is not known"),
        (lambda x: x.astype(jnp.int32) & 7, "test has no form in ONNX here: .*int32"),
        (lambda x: x.astype(jnp.float8_e3m4), "no element type float8_e3m4"),
    ],
)
def test_what_has_no_counterpart_is_named(function: Callable[[jax.Array], Any], words: str) -> None:
    images = np.zeros((1, *SIZE, 3), np.uint8)
    with pytest.raises(ExportError, match=words):
        run(lambda images: function(images.astype(jnp.float32)), images)


def test_a_model_that_no_file_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drnet_jax.exports.onnx_model._MAX_BYTES", KERNEL.nbytes - 1)
    images = np.zeros((1, *SIZE, 3), np.uint8)
    with pytest.raises(ExportError, match="test has 0.0 GiB of weights, and an ONNX file holds 2"):
        run(lambda images: conv(images.astype(jnp.float32), KERNEL, "SAME"), images)


def test_images_are_transposed_once() -> None:
    """Each more is a pass over all values, between two convolutions or in a resize."""
    network = narrow("mobilenetv2", 5).clone(folded=True, stock_operations=True)
    images = jnp.zeros((1, 32, 32, 3))
    variables = network.init(jax.random.key(0), images, resolution=32, train=False)

    def function(images: jax.Array) -> dict[str, jax.Array]:
        small = resize(images / 255, 32)
        return {"logits": network.apply(variables, small, resolution=32, train=False)}

    model = onnx_model(function, (48, 48), name="test")
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Transpose") == 1
    assert operators.count("Conv") == 52
    assert {"Expand", "Gather", "Reshape", "Einsum"}.isdisjoint(operators)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_resize_leaves_out_what_is_zero(axis: int) -> None:
    """The product is of blocks, none of them of all pixels; a full matrix stays in one piece."""
    matrix = np.asarray(jax.image.resize(jnp.eye(48), (20, 48), "bilinear"))
    full = RNG.normal(0, 1, (20, 48)).astype(np.float32)
    images = RNG.integers(0, 256, (2, 48, 48, 3), np.uint8)
    # 11 * 4 + 12 * 4 + 10 * 3 + 10 * 3 + 10 * 3 + 8 * 3 of the 960 weights.
    for weights, blocks, left in ((matrix, 6, 206), (full, 1, 960)):

        def function(images: jax.Array, weights: np.ndarray = weights) -> dict[str, jax.Array]:
            return {"out": jnp.tensordot(images / 255, weights, axes=((axis,), (1,)))}

        model = onnx_model(function, (48, 48), name="test")
        operators = [node.op_type for node in model.graph.node]
        assert operators.count("MatMul") == blocks
        sizes = [value.dims for value in model.graph.initializer if len(value.dims) == 2]
        assert sum(int(np.prod(dims)) for dims in sizes) == left
        expected = np.tensordot(images / 255, weights.astype(np.float64), axes=((axis,), (1,)))
        found = run(lambda images: function(images)["out"], images)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
