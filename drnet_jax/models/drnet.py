"""The Dynamic Resolution Network: a predictor, a classifier and the mixing of its branches."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from drnet_jax.models.backbone import Backbone
from drnet_jax.models.glance import GlanceHead, Look
from drnet_jax.models.gumbel import gumbel_softmax
from drnet_jax.models.layers import resize
from drnet_jax.models.predictor import ResolutionPredictor


@flax.struct.dataclass
class DRNetOutput:
    """What a DRNet says of n images, m candidate resolutions and k classes.

    Attributes:
      logits: `[n, k]`, the answers mixed by `one_hot`.
      one_hot: `[n, m]`, the choice h.
      scores: `[n, m]`, the predictor's utilities of the choices, the larger the better: of
        DRNet's own objective unnormalised log-probabilities, of `'correctness'` probabilities minus
        a price, of `'threshold'` in units of its score.
      branch_logits: `[n, m, k]`, the classifier at every resolution.
      answers: `[n, m, k]`, what every choice leads to; `branch_logits` but where a second look
        reuses the first.
    """

    logits: jax.Array
    one_hot: jax.Array
    scores: jax.Array
    branch_logits: jax.Array
    answers: jax.Array


class DRNet(nn.Module):
    """Classifies each image at the resolution that a predictor picks for it.

    Every branch is computed and the *logits* are mixed by the one-hot h: y = sum_j h_j * F_j(x).
    The paper's eq. 4 mixes inputs of different sizes, which cannot be added; this is its
    meaningful reading, and gives dL/dh_j = <softmax(y) - label, F_j(x)>, a real comparison.

    The predictor looks at the pixels, as the paper's does, or is the classifier's own first look:
    then every image is classified at the smallest resolution, a `GlanceHead` reads what came of it,
    and a choice of a larger one is a second look.

    Attributes:
      classifier: the network that all resolutions share.
      predictor: None exactly if there is one resolution: a plain classifier.
      resolutions: candidate sides in pixels, largest first.
      statistics: which samples enter the classifier's BatchNorm statistics at a resolution while
        training jointly: `'all'`, or the `'routed'` ones (the paper's text).
    """

    classifier: Backbone
    predictor: ResolutionPredictor | GlanceHead | None
    resolutions: tuple[int, ...]
    statistics: str = "all"

    @property
    def glances(self) -> bool:
        """Whether every image gets a first look at the smallest resolution."""
        return isinstance(self.predictor, GlanceHead)

    @property
    def reuses(self) -> bool:
        """Whether second looks reuse the first one's logits."""
        return isinstance(self.predictor, GlanceHead) and self.predictor.reuse

    def predict_scores(
        self,
        images: jax.Array,
        first: Look | None,
        *,
        train: bool,
        sample_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Scores `[n, m]` of the candidate resolutions.

        Args:
          images: `[n, h, w, 3]`.
          first: of the same images at the smallest resolution; a `GlanceHead` needs it.
          train: see `ResolutionBatchNorm`.
          sample_mask: likewise.
        """
        if self.predictor is None:
            return jnp.zeros((images.shape[0], 1), jnp.float32)
        if isinstance(self.predictor, GlanceHead):
            assert first is not None
            return self.predictor(first)
        return self.predictor(images, train=train, sample_mask=sample_mask)

    def look(
        self,
        images: jax.Array,
        resolution: int,
        *,
        train: bool,
        sample_mask: jax.Array | None = None,
    ) -> Look:
        """What the classifier says of images `[n, h, w, 3]`, resized to `resolution`."""
        return self.classifier.look(
            resize(images, resolution),
            resolution=resolution,
            train=train,
            sample_mask=sample_mask,
        )

    def look_everywhere(
        self, images: jax.Array, *, train: bool, sample_mask: jax.Array | None = None
    ) -> list[Look]:
        """`look` at every resolution."""
        return [
            self.look(images, resolution, train=train, sample_mask=sample_mask)
            for resolution in self.resolutions
        ]

    def classify_all(
        self, images: jax.Array, *, train: bool, sample_mask: jax.Array | None = None
    ) -> jax.Array:
        """Logits `[n, m, k]` at every resolution: stage 1, and fixed-resolution evaluation."""
        looks = self.look_everywhere(images, train=train, sample_mask=sample_mask)
        return jnp.stack([look.logits for look in looks], axis=1)

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
        first = None
        if self.glances:
            first = self.look(images, self.resolutions[-1], train=train, sample_mask=sample_mask)
        scores = self.predict_scores(images, first, train=train, sample_mask=sample_mask)
        one_hot = gumbel_softmax(self.make_rng("gumbel"), scores, tau)
        # Every image is in the statistics of a first look.
        second = self.resolutions if first is None else self.resolutions[:-1]
        branches = []
        for index, resolution in enumerate(second):
            mask = sample_mask
            if self.statistics == "routed":
                chosen = lax.stop_gradient(one_hot[:, index]) > 0.5
                mask = chosen if mask is None else chosen & mask
            branches.append(self.look(images, resolution, train=train, sample_mask=mask).logits)
        if first is not None:
            branches.append(first.logits)
        return self._mix(one_hot, scores, jnp.stack(branches, axis=1))

    def __call__(self, images: jax.Array) -> DRNetOutput:
        """Test: the resolution of the largest score, no noise, running statistics."""
        looks = self.look_everywhere(images, train=False)
        scores = self.predict_scores(images, looks[-1], train=False)
        one_hot = jax.nn.one_hot(scores.argmax(-1), len(self.resolutions), dtype=scores.dtype)
        return self._mix(one_hot, scores, jnp.stack([look.logits for look in looks], axis=1))

    def _mix(self, one_hot: jax.Array, scores: jax.Array, branch_logits: jax.Array) -> DRNetOutput:
        answers = branch_logits
        if isinstance(self.predictor, GlanceHead):
            answers = self.predictor.answers(branch_logits)
        # A sum of products, not an einsum: a matrix product may round to TF32 on a GPU.
        logits = (one_hot[:, :, None] * answers).sum(axis=1)
        return DRNetOutput(logits, one_hot, scores, branch_logits, answers)
