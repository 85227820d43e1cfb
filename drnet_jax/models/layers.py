"""What the networks share: resolution-aware BatchNorm and resizing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike

SHARED_STATISTICS = "batch_stats"


class ResolutionBatchNorm(nn.Module):
    """BatchNorm whose mean, variance, scale and bias are private to a resolution (DRNet eq. 3).

    The running `mean` and `var` of resolution r live in the collection `batch_stats_<r>`, the
    parameters are `scale_<r>` and `bias_<r>`. With `resolution_aware=False` there is one set
    (`batch_stats`, `scale`, `bias`), and without a mask the layer is `nn.BatchNorm` up to rounding.
    Under `jit` the statistics of a batch that is sharded over devices are those of the whole batch.

    Attributes:
      resolution_aware: one set of statistics and parameters per resolution, or a single one.
      momentum: decay of the running statistics (0.9 is PyTorch's 0.1). The running variance is the
        biased one, as in `nn.BatchNorm`.
      epsilon: added to the variance.
      min_samples: where a mask leaves fewer samples of a batch than this, the running statistics
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

        # Not of `x - mean`, which the gradient would keep beside `x`. That loses the digits of
        # |mean| / deviation, fewer than E[x^2] - E[x]^2 does.
        factor = lax.rsqrt(used_var + self.epsilon) * scale
        y = x * factor + (bias - used_mean * factor)
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
    positions = tuple(range(1, x.ndim - 1))
    mean, mean_square, enough = x.mean(positions), lax.square(x).mean(positions), None
    if sample_mask is None:
        mean, mean_square = mean.mean(0), mean_square.mean(0)
    else:
        # Masked after the positions are summed: a mask over all of `x` costs two more passes.
        num_samples, where = sample_mask.sum(), sample_mask[:, None]
        count = jnp.maximum(num_samples, 1).astype(x.dtype)
        mean = mean.sum(0, where=where) / count
        mean_square = mean_square.sum(0, where=where) / count
        enough = num_samples >= max(min_samples, 1)
    return mean, jnp.maximum(0.0, mean_square - lax.square(mean)), enough


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
