"""Convolutions and max-pooling in the form that is fastest on the platform.

On the CPU some of XLA's own operations are slow: depthwise convolutions above all, those of 1x1, of
small images and of few channels, and the gradient of a max-pool. Each has a second form here, of
the same values up to rounding. Elsewhere XLA's own operations are used.
`benchmarks/roofline.py` times every convolution of a network in both.
"""

import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Padding = str | Sequence[tuple[int, int]]
Pads = tuple[tuple[int, int], ...]
Strides = tuple[int, ...]

STOCK = "stock"
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Padding,
    *,
    form: str | None = None,
    **arguments: Any,
) -> jax.Array:
    """`lax.conv_general_dilated`, for `nn.Conv(conv_general_dilated=...)`.

    Args:
      x: `[n, h, w, c]`.
      kernel: `[kh, kw, c, d]`, of a depthwise convolution `[kh, kw, 1, d]`.
      strides: of both spatial axes.
      padding: of both spatial axes, with zeros; or `'SAME'`, `'VALID'`.
      form: default: XLA's own, but on the CPU whatever is fastest. Values and gradients are the
        same up to rounding.
        `'stock'`: XLA's own operation.
        `'product'`: one matrix product over shifted views, which the backward pass keeps: kh * kw
        times the input.
        `'space_to_depth'`: the same, after the columns of a stride have become channels of one, so
        that the views are of fewer and longer runs.
        `'weighted_sum'`, of a 1x1 convolution without stride or padding: the sum over the channels
        times their weights, which XLA fuses with what follows, where a product would be written
        out and read again; the gradient is the product's. No forward-mode derivative (`jax.jvp`).
        `'shifts'`, of a depthwise convolution: the sum of shifted views times their weights, in
        float32 at least. No forward-mode derivative either.
      arguments: further ones of `lax.conv_general_dilated`.

    Raises:
      ValueError: an unknown `form`, or one that this convolution does not have.
    """
    strides = tuple(strides)
    pads = _pads(x, kernel, strides, padding)
    forms = _possible_forms(x, kernel, strides, pads, arguments)
    form = form or _fastest(x, kernel, strides, pads, forms)
    if form not in forms:
        raise ValueError(f"convolve: form={form!r} must be one of {forms} for this convolution")
    if form == STOCK:
        return lax.conv_general_dilated(x, kernel, strides, padding, **arguments)
    if form == "weighted_sum":
        return _weighted_sum(x, kernel, arguments.get("precision"))
    if form == "product":
        return _product(_pad(x, pads), kernel, strides, arguments.get("precision"))
    if form == "space_to_depth":
        deep, deep_kernel = _space_to_depth(_pad(x, pads), kernel, strides[1])
        return _product(deep, deep_kernel, (strides[0], 1), arguments.get("precision"))
    return _shifts(x, kernel, strides, pads)


def _possible_forms(
    x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads, arguments: dict[str, Any]
) -> tuple[str, ...]:
    defaults: dict[str, Any] = {
        "dimension_numbers": lax.conv_dimension_numbers(x.shape, kernel.shape, _LAYOUT),
        "lhs_dilation": (1, 1),
        "rhs_dilation": (1, 1),
        "batch_group_count": 1,
        "preferred_element_type": None,
    }
    given = {name: value for name, value in arguments.items() if name in defaults}
    layout = given.get("dimension_numbers")
    given["dimension_numbers"] = lax.conv_dimension_numbers(x.shape, kernel.shape, layout)
    if any(value not in (None, defaults[name]) for name, value in given.items()):
        return (STOCK,)
    unknown = arguments.keys() - defaults.keys() - {"feature_group_count", "precision"}
    if unknown or x.dtype != kernel.dtype or min(map(min, pads)) < 0:
        return (STOCK,)
    groups = arguments.get("feature_group_count", 1)
    if groups == 1:
        forms = (STOCK, "product", "space_to_depth")
        pixelwise = (kernel.shape[:2], strides, pads) == ((1, 1), (1, 1), ((0, 0), (0, 0)))
        return (*forms, "weighted_sum") if pixelwise else forms
    return (STOCK, "shifts") if groups == x.shape[-1] == kernel.shape[-1] else (STOCK,)


def _fastest(
    x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads, forms: tuple[str, ...]
) -> str:
    if jax.default_backend() != "cpu" or len(forms) == 1:
        return STOCK
    places = _output_places(x, kernel, strides, pads)
    if places == 0:
        return STOCK
    if "shifts" in forms:
        return "shifts"
    channels, features = kernel.shape[2:]
    # What was faster than XLA's own, forward and backward, on two cores of an AMD EPYC.
    if "weighted_sum" in forms and channels <= 16 and features > channels and places > 64:
        return "weighted_sum"
    if kernel.shape[:2] == (1, 1) or places <= 64:
        return "product"
    small_patch = math.prod(kernel.shape[:3]) <= 32
    return "space_to_depth" if small_patch and strides[1] > 1 else STOCK


def _pads(x: jax.Array, kernel: jax.Array, strides: Strides, padding: Padding) -> Pads:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return tuple((low, high) for low, high in padding)


def _output_places(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> int:
    lengths = zip(x.shape[1:3], pads, kernel.shape[:2], strides, strict=True)
    return math.prod(
        max(0, (size + sum(pad) - length) // step + 1) for size, pad, length, step in lengths
    )


def _product(padded: jax.Array, kernel: jax.Array, strides: Strides, precision: Any) -> jax.Array:
    views = _views(padded, kernel.shape[:2], strides)
    stacked = views[0] if len(views) == 1 else jnp.concatenate(views, axis=-1)
    # Of two axes, which the gradient by the kernel needs to be one product too.
    y = jnp.matmul(_flat(stacked), kernel.reshape(-1, kernel.shape[-1]), precision=precision)
    return y.reshape(*stacked.shape[:-1], kernel.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _weighted_sum(x: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    wide = _wide(x)
    weights = kernel[0, 0].astype(wide)
    channels = [x[..., channel, None].astype(wide) for channel in range(x.shape[-1])]
    products = [channel * weight for channel, weight in zip(channels, weights, strict=True)]
    return reduce(jnp.add, products).astype(x.dtype)


def _weighted_sum_forward(
    x: jax.Array, kernel: jax.Array, precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _weighted_sum(x, kernel, precision), (x, kernel)


def _weighted_sum_backward(
    precision: Any, kept: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _, transpose = jax.vjp(lambda x, kernel: _product(x, kernel, (1, 1), precision), *kept)
    by_x, by_kernel = transpose(cotangent)
    return by_x, by_kernel


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)


def _space_to_depth(padded: jax.Array, kernel: jax.Array, step: int) -> tuple[jax.Array, jax.Array]:
    """`[n, h, w, c]` as `[n, h, blocks, step * c]`, and the kernel for it, padded with zeros."""
    n, height, columns, channels = padded.shape
    length, width, _, features = kernel.shape
    taken = -(-width // step)
    blocks = (columns - width) // step + taken
    # What no window sees is cut off.
    fit = ((0, 0, 0), (0, 0, 0), (0, blocks * step - columns, 0), (0, 0, 0))
    deep = lax.pad(padded, jnp.zeros((), padded.dtype), fit)
    kernel = jnp.pad(kernel, ((0, 0), (0, taken * step - width), (0, 0), (0, 0)))
    return (
        deep.reshape(n, height, blocks, step * channels),
        kernel.reshape(length, taken, step * channels, features),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifts(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> jax.Array:
    return _sum_of_shifts(x, kernel, strides, pads)


def _sum_of_shifts(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> jax.Array:
    wide = _wide(x)
    # All of it wide, so that the transposed sum, which is the gradient by x, is wide too.
    views = _views(_pad(x.astype(wide), pads), kernel.shape[:2], strides)
    weights = kernel.reshape(-1, kernel.shape[-1]).astype(wide)
    products = [view * weight for view, weight in zip(views, weights, strict=True)]
    return reduce(jnp.add, products).astype(x.dtype)


def _shifts_forward(
    x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _sum_of_shifts(x, kernel, strides, pads), (x, kernel)


def _shifts_backward(
    strides: Strides, pads: Pads, kept: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    transpose = jax.linear_transpose(lambda x: _sum_of_shifts(x, kernel, strides, pads), x)
    (by_x,) = transpose(cotangent)
    return by_x, _shifts_by_kernel(_pad(x, pads), kernel, strides[0], strides[1], cotangent)


def _shifts_by_kernel(
    padded: jax.Array, kernel: jax.Array, down: int, across: int, cotangent: jax.Array
) -> jax.Array:
    """The gradient by the kernel, summed over the rows of the output, in float32 at least.

    What a row sees of the image fits the cache; a sum over all pixels at once would be over one
    view of the whole image for every place of the kernel. Several CPU devices add up every row.
    """
    (height, width), channels = kernel.shape[:2], kernel.shape[-1]
    n, rows = cotangent.shape[:2]
    wide = _wide(padded)

    def add_row(row: jax.Array, total: jax.Array) -> jax.Array:
        """`total` `[kw, kh, 1, c]` and the share of one row of the output."""
        band = lax.dynamic_slice_in_dim(padded, row * down, height, axis=1)
        band = band.transpose(0, 2, 1, 3).reshape(n, 1, padded.shape[2], height * channels)
        seen = _views(band, (1, width), (1, across))
        returned = lax.dynamic_index_in_dim(cotangent, row, axis=1, keepdims=False)
        weights = _flat(jnp.tile(returned, (1, 1, height)).astype(wide))
        # A row of ones times a matrix: several times faster than a sum.
        ones = jnp.ones((1, weights.shape[0]), wide)
        sums = jnp.stack([ones @ (_flat(view) * weights) for view in seen])
        return total + sums.reshape(total.shape)

    total = jnp.zeros((width, height, 1, channels), wide)
    total = lax.fori_loop(0, rows, add_row, total)
    return total.swapaxes(0, 1).astype(kernel.dtype)


_shifts.defvjp(_shifts_forward, _shifts_backward)


def _wide(x: jax.Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _pad(x: jax.Array, pads: Pads) -> jax.Array:
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def max_pool(
    x: jax.Array, window: int = 3, strides: int = 2, padding: int = 1, *, form: str | None = None
) -> jax.Array:
    """Max-pools `x` `[n, h, w, c]`, padded with -inf on both sides.

    Args:
      form: `'stock'` is XLA's own operation, `'slices'` the maximum of strided slices, along the
        rows and then along the columns, whose gradient is several times faster on the CPU. Default:
        `'slices'` on the CPU, `'stock'` elsewhere. The values are the same. Where entries of a
        window tie, `'slices'` splits the gradient among them, unevenly, and `'stock'` gives it to
        the first.

    Raises:
      ValueError: an unknown `form`.
    """
    form = form or ("slices" if jax.default_backend() == "cpu" else STOCK)
    pads = [(padding, padding)] * 2
    if form == STOCK:
        return nn.max_pool(x, (window, window), (strides, strides), pads)
    if form != "slices":
        raise ValueError(f"max_pool: form must be 'slices' or 'stock', got {form!r}")
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    for length, step in (((1, window), (1, strides)), ((window, 1), (strides, 1))):
        x = reduce(jnp.maximum, _views(x, length, step))
    return x


def _views(x: jax.Array, window: Sequence[int], strides: Sequence[int]) -> list[jax.Array]:
    """The pixels at each place of a sliding window: one `[n, h', w', c]` a place."""
    rows, columns = (
        # None at all where the window does not fit.
        [slice(first, first + max(0, size - length + 1), step) for first in range(length)]
        for size, length, step in zip(x.shape[1:3], window, strides, strict=True)
    )
    return [x[:, row, column] for row in rows for column in columns]


def pair(value: int) -> Sequence[tuple[int, int]]:
    """Symmetric padding of both spatial axes, as PyTorch pads (XLA's SAME is asymmetric)."""
    return [(value, value)] * 2
