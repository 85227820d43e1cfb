"""The resolution predictor: a small network that scores the candidate resolutions of an image."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from drnet_jax.models.layers import resize
from drnet_jax.models.resnet import ResNet

_HIDDEN = 32


class ResolutionPredictor(nn.Module):
    """Resizes images to `size` and scores the candidates with `network`.

    The paper's, for ResNet: 128 px, one basic block a stage, 64/128/256/512 features, ordinary
    BatchNorm (0.290 GMACs). The scores are unnormalised log-probabilities.

    Attributes:
      network: a ResNet with ordinary BatchNorm and as many outputs as candidates.
      size: side of its input, in pixels.
      class_head: not the paper's. The number of candidates; `network` then has as many outputs as
        classes, and a small MLP scores the candidates from their probabilities: from what the image
        seems to be, and how surely. While training the class logits `[n, k]` are sown as
        `class_logits` in the collection `auxiliary`, for a loss of their own.
    """

    network: ResNet
    size: int
    class_head: int | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, sample_mask: jax.Array | None = None
    ) -> jax.Array:
        """Maps `[n, h, w, 3]` to scores `[n, m]`, float32 at least."""
        outputs = self.network(
            resize(images, self.size), resolution=self.size, train=train, sample_mask=sample_mask
        )
        if self.class_head is None:
            return outputs
        if train and not self.is_initializing():
            self.sow("auxiliary", "class_logits", outputs)
        log_p = nn.log_softmax(outputs)
        features = jnp.concatenate([jnp.exp(log_p), log_p], axis=-1)
        hidden = nn.relu(nn.Dense(_HIDDEN, name="head_hidden")(features))
        # Every resolution is equally likely at first.
        return nn.Dense(self.class_head, kernel_init=nn.initializers.zeros, name="head_scores")(
            hidden
        )
