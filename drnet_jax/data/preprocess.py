"""What happens to images on the device, ahead of the network."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Maps `[n, h, w, 3]` of 0..255 to float32, given channel means and deviations in 0..1."""
    scaled = images.astype(jnp.float32) / 255
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image `[n, h, w, c]` left to right with probability 0.5."""
    flip = jax.random.bernoulli(key, np.float32(0.5), (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)
