"""Convolutions and max-pooling in the form that is fastest on the platform.

On the CPU XLA's own operations are slow where networks spend their time: a depthwise convolution
runs 25 times below what the memory allows, a 1x1 convolution several times below a matrix product,
and so does the gradient by the kernel of every other. Here each has a second form, equal in value
and gradient up to rounding. Elsewhere XLA's own operations are used.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Padding = str | Sequence[tuple[int, int]]
Pads = Sequence[tuple[int, int]]
Linear = Callable[[jax.Array, jax.Array], jax.Array]
Contract = Callable[[list[jax.Array], jax.Array], jax.Array]

STOCK = "stock"


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
      padding: of both spatial axes, with zeros; or `'SAME'`.
      form: default: XLA's own, but on the CPU whatever is fastest. The values and gradients are the
        same up to rounding.
        `'stock'`: XLA's own operation.
        `'rows'`: the same, and the gradient by the kernel is a sum over the rows of the output.
        `'product'`: one matrix product over shifted views.
        `'shifts'`, of a depthwise convolution: the sum of shifted views times their weights; the
        gradient by the kernel as in `'rows'`.
      arguments: further ones of `lax.conv_general_dilated`.

    Raises:
      ValueError: an unknown `form`, or one that this convolution does not have.
    """
    forms = _possible_forms(x, kernel, arguments)
    form = form or _fastest(x, kernel, forms)
    if form not in forms:
        raise ValueError(f"convolve: form={form!r} must be one of {forms} for this convolution")
    if form == STOCK:
        return lax.conv_general_dilated(x, kernel, strides, padding, **arguments)
    pads = padding
    if isinstance(pads, str):
        pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, pads)
    precision = arguments.get("precision")
    if form == "product":
        return _product(x, kernel, strides, pads, precision)
    if form == "shifts":
        forward: Linear = partial(_shifts, strides=strides, pads=pads)
        contract: Contract = _channel_sums
    else:
        forward = partial(
            lax.conv_general_dilated, window_strides=strides, padding=pads, **arguments
        )
        contract = partial(_channel_products, precision=precision)
    return _with_gradient_by_rows(forward, contract, strides, pads)(x, kernel)


def _possible_forms(x: jax.Array, kernel: jax.Array, arguments: dict[str, Any]) -> tuple[str, ...]:
    groups = arguments.get("feature_group_count", 1)
    dilations = (arguments.get(name) or (1, 1) for name in ("lhs_dilation", "rhs_dilation"))
    if any(tuple(dilation) != (1, 1) for dilation in dilations):
        return (STOCK,)
    if groups == 1:
        return (STOCK, "rows", "product")
    return (STOCK, "shifts") if groups == x.shape[-1] == kernel.shape[-1] else (STOCK,)


def _fastest(x: jax.Array, kernel: jax.Array, forms: tuple[str, ...]) -> str:
    if jax.default_backend() != "cpu" or len(forms) == 1:
        return STOCK
    if "shifts" in forms:
        return "shifts"
    # XLA swaps image and kernel where the image is smaller, and is ten times slower then.
    small = min(x.shape[1:3]) < max(kernel.shape[:2])
    return "product" if small or kernel.shape[:2] == (1, 1) else "rows"


def _product(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads, precision: Any
) -> jax.Array:
    views = _views(_pad(x, pads), kernel.shape[:2], strides)
    stacked = views[0] if len(views) == 1 else jnp.concatenate(views, axis=-1)
    # Of two axes, which the gradient by the kernel needs to be one product too.
    y = jnp.matmul(_flat(stacked), kernel.reshape(-1, kernel.shape[-1]), precision=precision)
    return y.reshape(*stacked.shape[:-1], -1)


def _shifts(x: jax.Array, kernel: jax.Array, *, strides: Sequence[int], pads: Pads) -> jax.Array:
    views = _views(_pad(x, pads), kernel.shape[:2], strides)
    weights = kernel.reshape(-1, kernel.shape[-1])
    return reduce(jnp.add, [view * weight for view, weight in zip(views, weights, strict=True)])


def _with_gradient_by_rows(
    forward: Linear, contract: Contract, strides: Sequence[int], pads: Pads
) -> Linear:
    """`forward` with its gradient by the kernel summed over the rows of the output.

    What a row sees of the image fits the cache; XLA writes a view of the whole image for every
    place of the kernel.

    Args:
      forward: a convolution of `[n, h, w, c]` by a kernel `[kh, kw, ...]`.
      contract: a row's share of the gradient, `[kw, kh, ...]` when reshaped, float32 at least. Its
        arguments: at each column of the kernel what the row sees, `[n, w', kh * c]`, and what
        comes back to the row, `[n, w', d]`.
      strides: of `forward`.
      pads: of `forward`.
    """

    @jax.custom_vjp
    def apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return forward(x, kernel)

    def keep(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return forward(x, kernel), (x, kernel)

    def gradients(
        kept: tuple[jax.Array, jax.Array], cotangent: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        x, kernel = kept
        (by_x,) = jax.linear_transpose(lambda x: forward(x, kernel), x)(cotangent)
        padded = _pad(x, pads)
        (height, width), channels = kernel.shape[:2], kernel.shape[2:]
        n, rows, columns, _ = cotangent.shape
        step = strides[1]

        def add_row(row: jax.Array, total: jax.Array) -> jax.Array:
            band = lax.dynamic_slice_in_dim(padded, row * strides[0], height, axis=1)
            band = band.transpose(0, 2, 1, 3).reshape(n, padded.shape[2], -1)
            seen = [band[:, x : x + (columns - 1) * step + 1 : step] for x in range(width)]
            returned = lax.dynamic_index_in_dim(cotangent, row, axis=1, keepdims=False)
            return total + contract(seen, returned).reshape(total.shape)

        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        total = jnp.zeros((width, height, *channels), wide)
        total = lax.fori_loop(0, rows, add_row, total)
        return by_x, total.swapaxes(0, 1).astype(kernel.dtype)

    apply.defvjp(keep, gradients)
    return apply


def _channel_products(seen: list[jax.Array], returned: jax.Array, *, precision: Any) -> jax.Array:
    stacked = _flat(jnp.concatenate(seen, axis=-1))
    wide = jnp.promote_types(stacked.dtype, jnp.float32)
    return jnp.matmul(stacked.T, _flat(returned), precision=precision, preferred_element_type=wide)


def _channel_sums(seen: list[jax.Array], returned: jax.Array) -> jax.Array:
    wide = jnp.promote_types(returned.dtype, jnp.float32)
    height = seen[0].shape[-1] // returned.shape[-1]
    weights = _flat(jnp.tile(returned, (1, 1, height)).astype(wide))
    # A row of ones times a matrix: several times faster than a sum.
    ones = jnp.ones((1, weights.shape[0]), wide)
    return jnp.stack([ones @ (_flat(view) * weights) for view in seen])


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _pad(x: jax.Array, pads: Pads) -> jax.Array:
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def max_pool(
    x: jax.Array, window: int = 3, strides: int = 2, padding: int = 1, *, form: str | None = None
) -> jax.Array:
    """Max-pools `x` `[n, h, w, c]`, padded with -inf on both sides.

    Args:
      form: `'stock'` is XLA's own operation, `'slices'` the maximum of window^2 strided slices,
        whose gradient is several times faster on the CPU. Default: `'slices'` on the CPU,
        `'stock'` elsewhere. The values are the same. Where entries of a window tie, `'slices'`
        splits the gradient among them and `'stock'` gives it to the first.

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
    return reduce(jnp.maximum, _views(x, (window, window), (strides, strides)))


def _views(x: jax.Array, window: Sequence[int], strides: Sequence[int]) -> list[jax.Array]:
    """The pixels at each place of a sliding window: one `[n, h', w', c]` a place."""
    rows, columns = (
        range(0, size - length + 1, step)
        for size, length, step in zip(x.shape[1:3], window, strides, strict=True)
    )
    return [
        x[:, top : top + rows[-1] + 1 : rows.step, left : left + columns[-1] + 1 : columns.step]
        for top in range(window[0])
        for left in range(window[1])
    ]


def pair(value: int) -> Pads:
    """Symmetric padding of both spatial axes, as PyTorch pads (XLA's SAME is asymmetric)."""
    return [(value, value)] * 2
