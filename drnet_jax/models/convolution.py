"""Convolutions and max-pooling in the form that is fastest on the platform.

On the CPU some of XLA's own operations are slow: depthwise convolutions above all, those of 1x1, of
small images and of few channels, and the gradient of a max-pool. Each has a second form here, of
the same values up to rounding. Elsewhere XLA's own operations are used. Which platform it is is
known when a program is lowered, not when it is traced: one traced on a CPU may be for a GPU.
`benchmarks/roofline.py` times every convolution of a network in both.
"""

import math
from collections.abc import Callable, Sequence
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
        `'im2col'`: one matrix product with the patches (Chellapilla et al. 2006), which the
        backward pass keeps: kh * kw times the input. Of a 1x1 convolution the patches are the
        input itself.
        `'space_to_depth'`: im2col after the columns of a stride have become channels of one, so
        that the patches are copied in fewer and longer runs.
        `'direct'`: the sum of products that defines the convolution, elementwise and in float32 at
        least, over the channels of a 1x1 convolution without stride or padding, or over the kernel
        positions of a depthwise one. XLA fuses the former with what follows, where a matrix product
        would be written out and read again; its gradient is im2col's. No forward-mode derivative
        (`jax.jvp`), and none of the default on any platform where this is the CPU's.
      arguments: further ones of `lax.conv_general_dilated`.

    Raises:
      ValueError: an unknown `form`, or one that this convolution does not have.
    """
    strides = tuple(strides)
    pads = _pads(x, kernel, strides, padding)
    forms = _possible_forms(x, kernel, strides, pads, arguments)
    if form is not None and form not in forms:
        raise ValueError(f"convolve: form={form!r} must be one of {forms} for this convolution")

    def run(form: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The convolution in this form."""
        if form == STOCK:
            return lax.conv_general_dilated(x, kernel, strides, padding, **arguments)
        return _run_form(form, x, kernel, strides, pads, arguments)

    fastest = _fastest_on_cpu(x, kernel, strides, pads, forms)
    if form is not None or fastest == STOCK:
        return run(form or STOCK, x, kernel)
    found: jax.Array = lax.platform_dependent(
        x, kernel, cpu=partial(run, fastest), default=partial(run, STOCK)
    )
    return found


def _run_form(
    form: str,
    x: jax.Array,
    kernel: jax.Array,
    strides: Strides,
    pads: Pads,
    arguments: dict[str, Any],
) -> jax.Array:
    precision = arguments.get("precision")
    if form == "im2col":
        return _im2col(_pad(x, pads), kernel, strides, precision)
    if form == "space_to_depth":
        x, kernel = _space_to_depth(_pad(x, pads), kernel, strides[1])
        return _im2col(x, kernel, (strides[0], 1), precision)
    if arguments.get("feature_group_count", 1) == 1:
        return _direct_pointwise(x, kernel, precision)
    return _direct_depthwise(x, kernel, strides, pads)


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
        forms = (STOCK, "im2col", "space_to_depth")
        pointwise = (kernel.shape[:2], strides, pads) == ((1, 1), (1, 1), ((0, 0), (0, 0)))
        return (*forms, "direct") if pointwise else forms
    return (STOCK, "direct") if groups == x.shape[-1] == kernel.shape[-1] else (STOCK,)


def _fastest_on_cpu(
    x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads, forms: tuple[str, ...]
) -> str:
    if len(forms) == 1:
        return STOCK
    positions = _output_positions(x, kernel, strides, pads)
    if positions == 0:
        return STOCK
    if forms == (STOCK, "direct"):
        return "direct"
    channels, features = kernel.shape[2:]
    # What was faster than XLA's own, forward and backward, on two cores of an AMD EPYC.
    if "direct" in forms and channels <= 16 and features > channels and positions > 64:
        return "direct"
    if kernel.shape[:2] == (1, 1) or positions <= 64:
        return "im2col"
    small_patch = math.prod(kernel.shape[:3]) <= 32
    return "space_to_depth" if small_patch and strides[1] > 1 else STOCK


def _pads(x: jax.Array, kernel: jax.Array, strides: Strides, padding: Padding) -> Pads:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return tuple((low, high) for low, high in padding)


def _output_positions(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> int:
    lengths = zip(x.shape[1:3], pads, kernel.shape[:2], strides, strict=True)
    return math.prod(
        max(0, (size + sum(pad) - length) // step + 1) for size, pad, length, step in lengths
    )


def _im2col(padded: jax.Array, kernel: jax.Array, strides: Strides, precision: Any) -> jax.Array:
    slices = _strided_slices(padded, kernel.shape[:2], strides)
    patches = slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis=-1)
    # Matrices, which `dkernel` needs to be one matrix product too.
    y = jnp.matmul(_as_matrix(patches), kernel.reshape(-1, kernel.shape[-1]), precision=precision)
    return y.reshape(*patches.shape[:-1], kernel.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _direct_pointwise(x: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    dtype = _accumulation_dtype(x)
    weights = kernel[0, 0].astype(dtype)
    channels = [x[..., channel, None].astype(dtype) for channel in range(x.shape[-1])]
    products = [channel * weight for channel, weight in zip(channels, weights, strict=True)]
    return reduce(jnp.add, products).astype(x.dtype)


def _direct_pointwise_forward(
    x: jax.Array, kernel: jax.Array, precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _direct_pointwise(x, kernel, precision), (x, kernel)


def _direct_pointwise_backward(
    precision: Any, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _, vjp = jax.vjp(lambda x, kernel: _im2col(x, kernel, (1, 1), precision), *residuals)
    dx, dkernel = vjp(dy)
    return dx, dkernel


_direct_pointwise.defvjp(_direct_pointwise_forward, _direct_pointwise_backward)


def _space_to_depth(
    padded: jax.Array, kernel: jax.Array, block: int
) -> tuple[jax.Array, jax.Array]:
    """`[n, h, w, c]` as `[n, h, blocks, block * c]`, and the kernel for it, padded with zeros."""
    n, height, width, channels = padded.shape
    kernel_height, kernel_width, _, features = kernel.shape
    kernel_blocks = -(-kernel_width // block)
    blocks = (width - kernel_width) // block + kernel_blocks
    # Negative padding cuts off the columns that no patch sees.
    columns = ((0, 0, 0), (0, 0, 0), (0, blocks * block - width, 0), (0, 0, 0))
    blocked = lax.pad(padded, jnp.zeros((), padded.dtype), columns)
    zeros = ((0, 0), (0, kernel_blocks * block - kernel_width), (0, 0), (0, 0))
    return (
        blocked.reshape(n, height, blocks, block * channels),
        jnp.pad(kernel, zeros).reshape(kernel_height, kernel_blocks, block * channels, features),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _direct_depthwise(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> jax.Array:
    return _sum_of_slices(x, kernel, strides, pads)


def _sum_of_slices(x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads) -> jax.Array:
    dtype = _accumulation_dtype(x)
    # Cast before the slices are taken, so that the transposed sum, which is `dx`, is of it too.
    slices = _strided_slices(_pad(x.astype(dtype), pads), kernel.shape[:2], strides)
    weights = kernel.reshape(-1, kernel.shape[-1]).astype(dtype)
    products = [part * weight for part, weight in zip(slices, weights, strict=True)]
    return reduce(jnp.add, products).astype(x.dtype)


def _direct_depthwise_forward(
    x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _sum_of_slices(x, kernel, strides, pads), (x, kernel)


def _direct_depthwise_backward(
    strides: Strides, pads: Pads, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    transpose = jax.linear_transpose(lambda x: _sum_of_slices(x, kernel, strides, pads), x)
    (dx,) = transpose(dy)
    return dx, _depthwise_dkernel(_pad(x, pads), kernel, strides, dy)


def _depthwise_dkernel(
    padded: jax.Array, kernel: jax.Array, strides: Strides, dy: jax.Array
) -> jax.Array:
    """The gradient with respect to the kernel, summed over the rows of `dy`, in float32 at least.

    What an output row sees of the image fits the cache; a sum over all output positions at once
    would read one slice of the whole image for every kernel position. Several CPU devices add up
    every row.
    """
    (height, width), channels = kernel.shape[:2], kernel.shape[-1]
    n, rows = dy.shape[:2]
    dtype = _accumulation_dtype(padded)

    def add_row(row: jax.Array, total: jax.Array) -> jax.Array:
        """`total` `[kw, kh, 1, c]` and the share of one row of `dy`."""
        band = lax.dynamic_slice_in_dim(padded, row * strides[0], height, axis=1)
        band = band.transpose(0, 2, 1, 3).reshape(n, 1, padded.shape[2], height * channels)
        slices = _strided_slices(band, (1, width), (1, strides[1]))
        dy_row = lax.dynamic_index_in_dim(dy, row, axis=1, keepdims=False)
        weights = _as_matrix(jnp.tile(dy_row, (1, 1, height)).astype(dtype))
        # A row of ones times a matrix: several times faster than a sum.
        ones = jnp.ones((1, weights.shape[0]), dtype)
        sums = jnp.stack([ones @ (_as_matrix(part) * weights) for part in slices])
        return total + sums.reshape(total.shape)

    total = jnp.zeros((width, height, 1, channels), dtype)
    total = lax.fori_loop(0, rows, add_row, total)
    return total.swapaxes(0, 1).astype(kernel.dtype)


_direct_depthwise.defvjp(_direct_depthwise_forward, _direct_depthwise_backward)


def _accumulation_dtype(x: jax.Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _as_matrix(x: jax.Array) -> jax.Array:
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
    pads = [(padding, padding)] * 2
    forms: dict[str, Callable[[jax.Array], jax.Array]] = {
        STOCK: lambda x: nn.max_pool(x, (window, window), (strides, strides), pads),
        "slices": lambda x: _max_of_slices(x, window, strides, padding),
    }
    if form is None:
        found: jax.Array = lax.platform_dependent(x, cpu=forms["slices"], default=forms[STOCK])
        return found
    if form not in forms:
        raise ValueError(f"max_pool: form must be 'slices' or 'stock', got {form!r}")
    return forms[form](x)


def _max_of_slices(x: jax.Array, window: int, strides: int, padding: int) -> jax.Array:
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    for length, step in (((1, window), (1, strides)), ((window, 1), (strides, 1))):
        x = reduce(jnp.maximum, _strided_slices(x, length, step))
    return x


def _strided_slices(x: jax.Array, window: Sequence[int], strides: Sequence[int]) -> list[jax.Array]:
    """What a sliding window sees of `[n, h, w, c]`: one `[n, h', w', c]` per window position."""
    rows, columns = (
        # None at all where the window does not fit.
        [slice(first, first + max(0, size - length + 1), step) for first in range(length)]
        for size, length, step in zip(x.shape[1:3], window, strides, strict=True)
    )
    return [x[:, row, column] for row in rows for column in columns]


def pair(value: int) -> Sequence[tuple[int, int]]:
    """Symmetric padding of both spatial axes, as PyTorch pads (XLA's SAME is asymmetric)."""
    return [(value, value)] * 2
