"""Which resolution an image gets: argmax_j (s_j - lambda * c_j), s_j its scores."""

import numpy as np


def choose(scores: np.ndarray, costs: np.ndarray, lam: np.ndarray) -> np.ndarray:
    """The resolutions that are worth their cost; the first of equals.

    Args:
      scores: `[n, m]` float32, of which only differences within an image count.
      costs: `[m]`, c: `cost.each` of the manifest.
      lam: `[n]`, lambda of each image, in units of the scores by those of the costs. 0 is the
        choice by scores alone, a larger one saves, one below 0 spends.

    Returns:
      Their indices `[n]`.
    """
    exact = scores.astype(np.float64)
    values = exact - exact.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    worth = (values - lam[:, None] * costs).argmax(axis=1)
    return np.where(lam == 0, scores.argmax(axis=1), worth)


def checked_lambda(lam: float | np.ndarray, count: int) -> np.ndarray:
    """`[count]` float64: the lambda of every image.

    Args:
      lam: one for all images, or `[count]`.
      count: of the images.

    Raises:
      ValueError: it is neither, or not of finite numbers.
    """
    given = np.asarray(lam)
    if given.dtype.kind not in "iuf" or given.shape not in ((), (count,)):
        raise ValueError(
            f"lam must be a number, or one for each of the {count} images, got {lam!r:.80}"
        )
    if not np.isfinite(given).all():
        raise ValueError(f"lam must be finite, got {lam!r:.80}")
    return np.broadcast_to(given.astype(np.float64), (count,))
