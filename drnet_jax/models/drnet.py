"""The Dynamic Resolution Network: a predictor, a classifier and the mixing of its branches."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from drnet_jax.models.backbone import Backbone
from drnet_jax.models.gumbel import gumbel_softmax
from drnet_jax.models.layers import resize
from drnet_jax.models.predictor import ResolutionPredictor


@flax.struct.dataclass
class DRNetOutput:
    """What a DRNet says of n images, m candidate resolutions and k classes.

    Attributes:
      logits: `[n, k]`, mixed by `one_hot`.
      one_hot: `[n, m]`, the choice h.
      scores: `[n, m]`, the predictor's unnormalised log-probabilities.
      branch_logits: `[n, m, k]`, the classifier at every resolution.
    """

    logits: jax.Array
    one_hot: jax.Array
    scores: jax.Array
    branch_logits: jax.Array


class DRNet(nn.Module):
    """Classifies each image at the resolution that a predictor picks for it.

    Every branch is computed and the *logits* are mixed by the one-hot h: y = sum_j h_j * F_j(x).
    The paper's eq. 4 mixes inputs of different sizes, which cannot be added; this is its
    meaningful reading, and gives dL/dh_j = <softmax(y) - label, F_j(x)>, a real comparison.

    Attributes:
      classifier: the network that all resolutions share.
      predictor: None exactly if there is one resolution: a plain classifier.
      resolutions: candidate sides in pixels, largest first.
      statistics: which samples enter the classifier's BatchNorm statistics at a resolution while
        training jointly: `'all'`, or the `'routed'` ones (the paper's text).
    """

    classifier: Backbone
    predictor: ResolutionPredictor | None
    resolutions: tuple[int, ...]
    statistics: str = "all"

    def predict_scores(
        self, images: jax.Array, *, train: bool, sample_mask: jax.Array | None = None
    ) -> jax.Array:
        """Scores `[n, m]` of the candidate resolutions of images `[n, h, w, 3]`."""
        if self.predictor is None:
            return jnp.zeros((images.shape[0], 1), jnp.float32)
        return self.predictor(images, train=train, sample_mask=sample_mask)

    def classify(
        self,
        images: jax.Array,
        resolution: int,
        *,
        train: bool,
        sample_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Logits `[n, k]` of images `[n, h, w, 3]`, resized to `resolution`."""
        return self.classifier(
            resize(images, resolution),
            resolution=resolution,
            train=train,
            sample_mask=sample_mask,
        )

    def classify_all(
        self, images: jax.Array, *, train: bool, sample_mask: jax.Array | None = None
    ) -> jax.Array:
        """Logits `[n, m, k]` at every resolution: stage 1, and fixed-resolution evaluation."""
        return jnp.stack(
            [
                self.classify(images, resolution, train=train, sample_mask=sample_mask)
                for resolution in self.resolutions
            ],
            axis=1,
        )

    def sample(
        self,
        images: jax.Array,
        *,
        tau: float | jax.Array,
        train: bool,
        sample_mask: jax.Array | None = None,
    ) -> DRNetOutput:
        """Stage 2: h by straight-through Gumbel-softmax, from the rng stream `'gumbel'`.

        Args:
          images: `[n, h, w, 3]`.
          tau: temperature of the Gumbel-softmax.
          train: see `ResolutionBatchNorm`.
          sample_mask: `[n]` bool; samples marked False stay out of all statistics.
        """
        scores = self.predict_scores(images, train=train, sample_mask=sample_mask)
        one_hot = gumbel_softmax(self.make_rng("gumbel"), scores, tau)
        branches = []
        for index, resolution in enumerate(self.resolutions):
            mask = sample_mask
            if self.statistics == "routed":
                chosen = lax.stop_gradient(one_hot[:, index]) > 0.5
                mask = chosen if mask is None else chosen & mask
            branches.append(self.classify(images, resolution, train=train, sample_mask=mask))
        return _mix(one_hot, scores, jnp.stack(branches, axis=1))

    def __call__(self, images: jax.Array) -> DRNetOutput:
        """Test: the resolution of the largest score, no noise, running statistics."""
        scores = self.predict_scores(images, train=False)
        one_hot = jax.nn.one_hot(scores.argmax(-1), len(self.resolutions), dtype=scores.dtype)
        return _mix(one_hot, scores, self.classify_all(images, train=False))


def _mix(one_hot: jax.Array, scores: jax.Array, branch_logits: jax.Array) -> DRNetOutput:
    # A sum of products, not an einsum: a matrix product may round to TF32 on a GPU.
    logits = (one_hot[:, :, None] * branch_logits).sum(axis=1)
    return DRNetOutput(logits, one_hot, scores, branch_logits)
