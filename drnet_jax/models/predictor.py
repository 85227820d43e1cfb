"""The resolution predictor: a small network that scores the candidate resolutions of an image."""

import flax.linen as nn
import jax

from drnet_jax.models.backbone import Backbone
from drnet_jax.models.layers import resize


class ResolutionPredictor(nn.Module):
    """Resizes images to `size` and scores the candidates with `network`.

    The paper's, for ResNet: 128 px, one basic block per stage, 64/128/256/512 features, ordinary
    BatchNorm (0.290 GMACs). The scores are unnormalised log-probabilities.

    Attributes:
      network: with ordinary BatchNorm and as many outputs as candidates.
      size: side of its input, in pixels.
    """

    network: Backbone
    size: int

    def __call__(
        self, images: jax.Array, *, train: bool, sample_mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[n, h, w, 3]` to scores `[n, m]`, float32 at least."""
        return self.network(
            resize(images, self.size), resolution=self.size, train=train, sample_mask=sample_mask
        )
