"""Every form of convolution and pooling against NumPy and XLA's own."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.models.backbone import backbones
from drnet_jax.models.convolution import convolve, max_pool
from tests.lowered import counted

NHWC: dict[str, Any] = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def random_input(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (1.5 + 2.0 * rng.normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize("form", ["slices", "stock"])
@pytest.mark.parametrize(("size", "window", "strides", "padding"), [(8, 3, 2, 1), (7, 2, 2, 0)])
def test_max_pool_matches_numpy(
    form: str, size: int, window: int, strides: int, padding: int
) -> None:
    x = random_input((2, size, size + 1, 3)) - 20.0  # all negative: padding must not win
    padded = np.pad(
        x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=-np.inf
    )
    windows = np.lib.stride_tricks.sliding_window_view(padded, (window, window), axis=(1, 2))
    expected = windows[:, ::strides, ::strides].max(axis=(-2, -1))
    np.testing.assert_array_equal(max_pool(x, window, strides, padding, form=form), expected)


@pytest.mark.parametrize("size", [8, 9])
def test_max_pool_forms_agree_in_value_and_gradient(size: int) -> None:
    x = jnp.asarray(random_input((2, size, size, 3)))
    forms = ("slices", "stock")
    slices, window = (np.asarray(max_pool(x, form=form)) for form in forms)
    np.testing.assert_array_equal(slices, window)
    weights = random_input(slices.shape, seed=1)
    gradients = [
        jax.grad(lambda x, form=form: (weights * max_pool(x, form=form)).sum())(x) for form in forms
    ]
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.sum(gradients[0]), weights.sum(), rtol=1e-5)


def test_max_pool_gradient_of_ties_adds_up() -> None:
    """ReLU and -inf around: windows of zeros alone give what they get to the zeros in them."""
    x = jnp.zeros((1, 5, 5, 1))
    for form in ("slices", "stock"):
        gradient = jax.grad(lambda x, form=form: max_pool(x, form=form).sum())(x)
        assert float(gradient.min()) >= 0
        np.testing.assert_allclose(gradient.sum(), 9, rtol=1e-6)
        # Behind a ReLU that is shut nothing comes back.
        behind = jax.grad(lambda x, form=form: max_pool(nn.relu(x), form=form).sum())(x - 1)
        np.testing.assert_array_equal(behind, 0)


@pytest.mark.parametrize("form", ["slices", "stock"])
def test_max_pool_of_a_row_smaller_than_the_window_is_empty(form: str) -> None:
    assert max_pool(jnp.ones((2, 1, 4, 3)), 2, 2, 0, form=form).shape == (2, 0, 2, 3)


def test_max_pool_refuses_an_unknown_form() -> None:
    with pytest.raises(ValueError, match="form"):
        max_pool(jnp.zeros((1, 4, 4, 1)), form="sum")


FORMS = ("im2col", "space_to_depth", "stock", None)
# Height, width, size of the kernel, strides, padding.
CONVOLUTIONS = [
    (2, 2, 3, 1, 1),
    (1, 1, 3, 1, 1),
    (2, 5, 3, 2, 1),
    (7, 6, 3, 2, 1),
    (5, 4, 1, 2, 0),
    (9, 8, 7, 2, 3),
]


@pytest.mark.parametrize(
    ("form", "height", "width", "size", "strides", "padding"),
    [(form, *shape) for form in FORMS for shape in CONVOLUTIONS]
    + [(form, 9, 8, 1, 1, 0) for form in ("direct", "im2col", None)],
)
def test_convolve_matches_numpy(
    form: str | None, height: int, width: int, size: int, strides: int, padding: int
) -> None:
    x, kernel = random_input((2, height, width, 3)), random_input((size, size, 3, 4), seed=1)
    weights = random_input(
        (2, *((n + 2 * padding - size) // strides + 1 for n in (height, width)), 4), seed=2
    )

    def loss(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = convolve(
            x,
            kernel,
            (strides, strides),
            [(padding, padding)] * 2,
            form=form,
            feature_group_count=1,
            **NHWC,
        )
        return (weights * y).sum(), y

    (dx, dkernel), y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, kernel)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    windows = windows[:, ::strides, ::strides]
    np.testing.assert_allclose(
        y, np.einsum("nhwcij,ijcd->nhwd", windows, kernel), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        dkernel, np.einsum("nhwcij,nhwd->ijcd", windows, weights), rtol=1e-5, atol=1e-5
    )
    # The gradient is the transposed map: <y(v), weights> = <v, dx> for any v.
    other = random_input(x.shape, seed=3)
    dot = loss(jnp.asarray(other), jnp.asarray(kernel))[0]
    np.testing.assert_allclose((other * dx).sum(), dot, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "kernel_size", "strides", "padding"),
    [(7, 3, 1, [(1, 1)] * 2), (6, 3, 2, "SAME"), (9, 5, 2, "SAME"), (2, 5, 1, [(2, 2)] * 2)],
)
def test_direct_depthwise_convolution(
    size: int, kernel_size: int, strides: int, padding: Any
) -> None:
    """Values and gradients are those of XLA's own convolution, whatever the padding."""
    x = random_input((2, size, size, 6))
    kernel = random_input((kernel_size, kernel_size, 1, 6), seed=1)

    def loss(x: jax.Array, kernel: jax.Array, form: str) -> tuple[jax.Array, jax.Array]:
        y = convolve(
            x,
            kernel,
            (strides, strides),
            padding,
            form=form,
            feature_group_count=6,
            **NHWC,
        )
        return (jnp.cos(jnp.arange(y.size).reshape(y.shape)) * y).sum(), y

    direct, stock = (
        jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=2)(x, kernel, form)
        for form in ("direct", "stock")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), direct, stock)


def test_convolve_refuses_an_unknown_form() -> None:
    x, kernel = jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1))
    with pytest.raises(ValueError, match="form"):
        convolve(x, kernel, (1, 1), [(1, 1)] * 2, form="sum")
    with pytest.raises(ValueError, match="must be one of .'stock',. for this"):
        convolve(x, kernel, (1, 1), [(1, 1)] * 2, form="im2col", rhs_dilation=(2, 2))
    for strides, padding in (((2, 2), "VALID"), ((1, 1), [(1, 1)] * 2)):
        with pytest.raises(ValueError, match="'space_to_depth'. for this"):
            convolve(x, kernel[:1, :1], strides, padding, form="direct", **NHWC)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_group_count", 2),
        ("preferred_element_type", jnp.float32),
        ("dimension_numbers", None),
    ],
)
def test_convolve_leaves_to_xla_what_its_forms_do_not_take(name: str, value: Any) -> None:
    x, kernel = (
        jnp.asarray(random_input(shape), jnp.bfloat16) for shape in ((4, 4, 4, 4), (4, 4, 4, 4))
    )
    arguments: dict[str, Any] = {**NHWC, name: value}
    got, expected = (
        function(x, kernel, (1, 1), [(1, 1)] * 2, **arguments)
        for function in (convolve, jax.lax.conv_general_dilated)
    )
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("form", "size", "groups"),
    [("im2col", 3, 1), ("space_to_depth", 3, 1), ("direct", 1, 1), ("direct", 3, 4)],
)
def test_convolve_of_no_images(form: str, size: int, groups: int) -> None:
    x, kernel = jnp.ones((0, 8, 8, 4)), jnp.ones((size, size, 4 // groups, 4))

    def total(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = convolve(x, kernel, (1, 1), "SAME", form=form, feature_group_count=groups, **NHWC)
        return y.sum(), y

    gradients, y = jax.grad(total, (0, 1), has_aux=True)(x, kernel)
    assert y.shape == x.shape
    assert gradients[0].shape == x.shape
    np.testing.assert_array_equal(gradients[1], np.zeros(kernel.shape))


def test_convolve_leaves_negative_padding_and_mixed_dtypes_to_xla() -> None:
    x, kernel = jnp.asarray(random_input((1, 9, 9, 3))), jnp.ones((1, 1, 3, 4))
    pads = [(-1, 0)] * 2
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, **NHWC)
    np.testing.assert_array_equal(convolve(x, kernel, (1, 1), pads, **NHWC), expected)
    with pytest.raises(TypeError, match="dtype"):
        convolve(x.astype(jnp.bfloat16), kernel, (1, 1), "SAME", **NHWC)


def test_convolve_of_an_image_smaller_than_the_kernel_without_padding_is_empty() -> None:
    x, kernel = jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1))
    assert convolve(x, kernel, (1, 1), "VALID", **NHWC).size == 0


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": "SAME"},
        {"padding": "SAME", "strides": 2},
        {"padding": "VALID", "kernel_size": (2, 2)},
        {"padding": "SAME", "kernel_dilation": 2},
        {"padding": 2, "kernel_dilation": 2},
        {"padding": "SAME", "feature_group_count": 2},
        {"padding": "CIRCULAR"},
    ],
)
def test_convolve_in_any_layer(arguments: dict[str, Any], size: int) -> None:
    x = random_input((2, size, size, 4))
    layers = [
        nn.Conv(4, **{"kernel_size": (3, 3), **arguments}, conv_general_dilated=way)
        for way in (convolve, jax.lax.conv_general_dilated)
    ]
    variables = layers[0].init(jax.random.key(0), x)
    got, expected = (layer.apply(variables, x) for layer in layers)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel_shape", "groups"),
    [((5, 5, 1, 4), 4), ((1, 1, 4, 6), 1)],
)
def test_bfloat16_is_summed_in_float32(kernel_shape: tuple[int, ...], groups: int) -> None:
    """Values and both gradients lie within bfloat16's last place of float32's."""
    x, kernel = random_input((2, 31, 31, 4)) - 1.5, random_input(kernel_shape, seed=1) - 1.5
    weights = random_input((*x.shape[:3], kernel_shape[-1]), seed=2) - 1.5
    x, kernel, weights = (jnp.asarray(a).astype(jnp.bfloat16) for a in (x, kernel, weights))

    def run(dtype: Any) -> list[np.ndarray]:
        def apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return convolve(
                x, kernel, (1, 1), "SAME", form="direct", feature_group_count=groups, **NHWC
            )

        y, gradients = jax.vjp(jax.jit(apply), x.astype(dtype), kernel.astype(dtype))
        found = (y, *gradients(weights.astype(dtype)))
        assert all(array.dtype == dtype for array in found)
        return [np.asarray(array, np.float32) for array in found]

    for got, expected in zip(run(jnp.bfloat16), run(jnp.float32), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2.0**-8, atol=1e-4)


def operations(name: str, stock: bool, platform: str) -> dict[str, int]:
    """How often each operation stands in a network's forward pass at 64 px, lowered here."""
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    network = backbones()[name](3).clone(stock_operations=stock)
    variables = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x, resolution=64, train=False), x
    )
    run = partial(network.apply, resolution=64, train=False)
    return counted(jax.jit(run).trace(variables, x), platform)


# Convolutions; of them depthwise; of them left to XLA on the CPU: neither depthwise nor 1x1, nor of
# 8x8 pixels, nor a 3x3 stem; direct ones of 16 channels; max-pools.
NETWORKS = {
    "resnet10": (12, 0, 3, 0, 1),
    "mobilenetv2": (52, 17, 0, 1, 0),
    "efficientnet_lite0": (49, 16, 0, 1, 0),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_stock_operations_are_the_override_and_those_of_a_gpu(name: str, platform: str) -> None:
    """A program is for the platform that it is lowered for, which need not be at hand."""
    every, depthwise, left, sums, pools = NETWORKS[name]
    stock = {"dot_general": 1, "convolution": every, "reduce_window": pools}
    assert operations(name, stock=True, platform=platform) == stock
    on_cpu = {
        "dot_general": 1 + every - depthwise - left - sums,
        "convolution": left,
        "reduce_window": 0,
    }
    assert operations(name, False, platform) == (stock if platform == "cuda" else on_cpu)


def test_gradients_of_a_program_for_a_gpu_are_of_stock_operations() -> None:
    """Of every form at once: two convolutions a layer in the backward pass, one for the images."""
    x = jax.ShapeDtypeStruct((2, 16, 16, 4), jnp.float32)
    kernels = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((3, 3, 1, 4), (1, 1, 4, 8), (3, 3, 8, 8))
    ]

    def loss(kernels: Any, x: jax.Array, form: str | None) -> jax.Array:
        x = convolve(x, kernels[0], (1, 1), "SAME", form=form, feature_group_count=4, **NHWC)
        x = convolve(x, kernels[1], (1, 1), "VALID", form=form, **NHWC)
        x = max_pool(x, form=form)
        return convolve(x, kernels[2], (2, 2), "SAME", form=form, **NHWC).sum()

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
    stock, default = (gradient.trace(kernels, x, form) for form in ("stock", None))
    by_hand = {"dot_general": 0, "convolution": 3 + 2 * 3, "reduce_window": 1}
    assert counted(stock, "cuda") == counted(default, "cuda") == counted(stock, "cpu") == by_hand
    assert counted(default, "cpu")["convolution"] == 0


def test_stock_operations_train_a_network_the_same() -> None:
    """In float64, so that rounding does not decide which entry of a window is the largest."""
    with jax.enable_x64(True):
        x = jnp.asarray(random_input((2, 16, 16, 3)), jnp.float64)
        gradients = []
        for stock in (False, True):
            network = backbones()["resnet"](3, width=4, stage_sizes=(1, 1))
            network = network.clone(stock_operations=stock, dtype=jnp.float64)
            run = partial(network.apply, resolution=16, train=True, mutable=["batch_stats_16"])
            variables = network.init(jax.random.key(0), x, resolution=16, train=False)

            def loss(variables: Any, run: Any = run) -> jax.Array:
                logits, _ = run(variables, x)
                return jnp.square(logits - 1).sum()

            gradients.append(jax.jit(jax.grad(loss))(variables)["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *gradients)
