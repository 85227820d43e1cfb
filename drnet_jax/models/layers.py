"""What the networks share: resolution-aware BatchNorm, convolution, max-pooling, resizing."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike

SHARED_STATISTICS = "batch_stats"
ModuleDef = Callable[..., Callable[..., jax.Array]]
Padding = str | Sequence[tuple[int, int]]


def without_norm(**_: Any) -> Callable[..., jax.Array]:
    """In the place of a BatchNorm that is folded into the convolution before it."""
    return lambda x, **_: x


class ResolutionBatchNorm(nn.Module):
    """BatchNorm whose mean, variance, scale and bias are private to a resolution (DRNet eq. 3).

    The running `mean` and `var` of resolution r live in the collection `batch_stats_<r>`, the
    parameters are `scale_<r>` and `bias_<r>`. With `resolution_aware=False` there is one set
    (`batch_stats`, `scale`, `bias`), and without a mask the layer is `nn.BatchNorm` to the bit.
    Under `jit` the statistics of a batch that is sharded over devices are those of the whole batch.

    Attributes:
      resolution_aware: one set of statistics and parameters a resolution, or a single one.
      momentum: decay of the running statistics (0.9 is PyTorch's 0.1). The running variance is the
        biased one, as in `nn.BatchNorm`.
      epsilon: added to the variance.
      min_samples: with fewer unmasked samples than this in a batch, the running statistics
        normalise it and stay as they are.
      dtype: dtype of the output (default: that of the input and parameters).
      param_dtype: dtype of the parameters and of the running statistics.
      scale_init: initialiser of the scale.
    """

    resolution_aware: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-5
    min_samples: int = 4
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    scale_init: initializers.Initializer = initializers.ones

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        resolution: int,
        train: bool,
        sample_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Normalises `x` `[n, ..., c]` over all axes but the last.

        Args:
          x: the input.
          resolution: whose statistics and parameters to use (ignored if not `resolution_aware`).
          train: normalise with this batch's statistics and update the running ones, which must be
            mutable then; otherwise normalise with the running ones.
          sample_mask: `[n]` bool; only samples marked True enter the statistics. All are
            normalised.
        """
        suffix = f"_{resolution}" if self.resolution_aware else ""
        collection = SHARED_STATISTICS + suffix
        features = x.shape[-1]
        mean = self.variable(collection, "mean", jnp.zeros, (features,), self.param_dtype)
        var = self.variable(collection, "var", jnp.ones, (features,), self.param_dtype)
        scale = self.param(f"scale{suffix}", self.scale_init, (features,), self.param_dtype)
        bias = self.param(f"bias{suffix}", initializers.zeros, (features,), self.param_dtype)

        used_mean, used_var = mean.value, var.value
        if train and not self.is_initializing():
            batch_mean, batch_var, enough = batch_statistics(x, sample_mask, self.min_samples)
            new_mean = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            new_var = self.momentum * var.value + (1 - self.momentum) * batch_var
            if enough is None:
                used_mean, used_var = batch_mean, batch_var
                mean.value, var.value = new_mean, new_var
            else:
                used_mean = jnp.where(enough, batch_mean, mean.value)
                used_var = jnp.where(enough, batch_var, var.value)
                mean.value = jnp.where(enough, new_mean, mean.value)
                var.value = jnp.where(enough, new_var, var.value)

        y = (x - used_mean) * (lax.rsqrt(used_var + self.epsilon) * scale) + bias
        dtype = self.dtype or jnp.result_type(x, scale, bias)
        return y.astype(dtype)


def batch_statistics(
    x: jax.Array, sample_mask: jax.Array | None, min_samples: int
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Mean and biased variance of `x` `[n, ..., c]` over all axes but the last.

    The variance is E[x^2] - E[x]^2 in float32 at least, clipped at zero, as in `nn.BatchNorm`.

    Returns:
      Mean `[c]`, variance `[c]`, and whether `sample_mask` left at least `min_samples` samples
      (None without a mask). Where it left none, mean and variance are zero, not NaN.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    if sample_mask is None:
        mean, mean_square, enough = x.mean(axes), lax.square(x).mean(axes), None
    else:
        where = sample_mask.reshape(-1, *[1] * (x.ndim - 1))
        num_samples = sample_mask.sum()
        positions = x[0, ..., 0].size
        count = jnp.maximum(num_samples * positions, 1).astype(x.dtype)
        mean = x.sum(axes, where=where) / count
        mean_square = lax.square(x).sum(axes, where=where) / count
        enough = num_samples >= max(min_samples, 1)
    return mean, jnp.maximum(0.0, mean_square - lax.square(mean)), enough


def max_pool(
    x: jax.Array, window: int = 3, strides: int = 2, padding: int = 1, *, form: str | None = None
) -> jax.Array:
    """Max-pools `x` `[n, h, w, c]`, padded with -inf on both sides.

    Args:
      form: `'reduce_window'` is XLA's own operation, `'slices'` the maximum of window^2 strided
        slices, whose gradient is several times faster on the CPU. Default: `'slices'` on the CPU,
        `'reduce_window'` elsewhere. The values are the same. Where entries of a window tie,
        `'slices'` splits the gradient among them and `'reduce_window'` gives it to the first.

    Raises:
      ValueError: an unknown `form`.
    """
    form = form or ("slices" if jax.default_backend() == "cpu" else "reduce_window")
    pads = [(padding, padding)] * 2
    if form == "reduce_window":
        return nn.max_pool(x, (window, window), (strides, strides), pads)
    if form != "slices":
        raise ValueError(f"max_pool: form must be 'slices' or 'reduce_window', got {form!r}")
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    return reduce(jnp.maximum, _views(x, (window, window), (strides, strides)))


FORMS = ("convolution", "product", "shifts")


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
      form: `'convolution'` is XLA's own operation, `'product'` one matrix product over shifted
        views, `'shifts'`, of a depthwise convolution, the sum of shifted views times their weights.
        Default: XLA's own, but on the CPU whatever is faster, see `_form`. The values are the same
        up to rounding.
      arguments: further ones of `lax.conv_general_dilated`.

    Raises:
      ValueError: an unknown `form`, or one that this convolution does not have.
    """
    forms = _possible_forms(x, kernel, arguments)
    form = form or _form(x, kernel, forms)
    if form not in forms:
        raise ValueError(f"convolve: form={form!r} must be one of {forms} for this convolution")
    if form == "convolution":
        return lax.conv_general_dilated(x, kernel, strides, padding, **arguments)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    views = _views(jnp.pad(x, ((0, 0), *padding, (0, 0))), kernel.shape[:2], strides)
    if form == "shifts":
        weights = kernel.reshape(-1, kernel.shape[-1])
        return reduce(jnp.add, [view * weight for view, weight in zip(views, weights, strict=True)])
    stacked = views[0] if len(views) == 1 else jnp.concatenate(views, axis=-1)
    flat = kernel.reshape(-1, kernel.shape[-1])
    return jnp.matmul(stacked, flat, precision=arguments.get("precision"))


def _possible_forms(x: jax.Array, kernel: jax.Array, arguments: dict[str, Any]) -> tuple[str, ...]:
    groups = arguments.get("feature_group_count", 1)
    dilations = (arguments.get(name) or (1, 1) for name in ("lhs_dilation", "rhs_dilation"))
    if any(tuple(dilation) != (1, 1) for dilation in dilations):
        return FORMS[:1]
    if groups == 1:
        return ("convolution", "product")
    return ("convolution", "shifts") if groups == x.shape[-1] == kernel.shape[-1] else FORMS[:1]


def _form(x: jax.Array, kernel: jax.Array, forms: tuple[str, ...]) -> str:
    """On the CPU a depthwise convolution is a sum of shifts (25 times faster forward), and one of
    images smaller than its kernel a matrix product, because XLA swaps the two then and falls off
    its fast path (ten times slower at 2x2 pixels)."""
    if jax.default_backend() != "cpu":
        return "convolution"
    if "shifts" in forms:
        return "shifts"
    small = min(x.shape[1:3]) < max(kernel.shape[:2])
    return "product" if small and "product" in forms else "convolution"


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


def resize(images: jax.Array, resolution: int) -> jax.Array:
    """Resizes `images` `[n, h, w, c]` to `[n, resolution, resolution, c]`; a no-op at that size.

    Bilinear with antialiasing (`jax.image.resize`): a triangle filter as wide as the output pixel,
    so that no input pixel is skipped (at factor 2 it weighs four pixels 1:3:3:1). The official
    DRNet code resizes without antialiasing, which at factor 2 is the mean of two by two pixels, and
    aliases in between.
    """
    n, height, width, channels = images.shape
    if (height, width) == (resolution, resolution):
        return images
    return jax.image.resize(
        images, (n, resolution, resolution, channels), "bilinear", antialias=True
    )


def pair(value: int) -> Sequence[tuple[int, int]]:
    """Symmetric padding of both spatial axes, as PyTorch pads (XLA's SAME is asymmetric)."""
    return [(value, value)] * 2
