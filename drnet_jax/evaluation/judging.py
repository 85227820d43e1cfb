"""How good every answer of an image is: one definition, for NumPy and under `jit`."""

from typing import Any, Generic, NamedTuple

from drnet_jax.models.glance import ArrayT, mixed


def judge(
    logits: ArrayT, scores: ArrayT, label: ArrayT, weight: ArrayT | None
) -> dict[str, ArrayT]:
    """Figures of n images, by the names that `EvalRecords` has for them; logits are not among them.

    Of equal logits the first counts as best.

    Args:
      logits: `[n, m, k]` of the k classes, at every fixed resolution.
      scores: `[n, m]`, the predictor's.
      label: `[n]`.
      weight: `[m]`, of the first look in every answer, see `mixed`; None: none.
    """
    fixed = _of_logits(logits, label)
    reached = fixed if weight is None else _of_logits(mixed(logits, weight), label)
    return {
        "ce": reached.ce,
        "top1": fixed.rank == 0,
        "answer_top1": reached.rank == 0,
        "answer_top5": reached.rank < 5,
        "choice": scores.argmax(axis=1),
        "confidence": fixed.confidence,
        "margin": fixed.margin,
    }


class _Judged(NamedTuple, Generic[ArrayT]):
    """Of logits: cross-entropy, classes ahead of the label, largest softmax, and its lead."""

    ce: ArrayT
    rank: ArrayT
    confidence: ArrayT
    margin: ArrayT


def _of_logits(logits: ArrayT, label: ArrayT) -> _Judged[ArrayT]:
    """Each `[n, m]`, of logits `[n, m, k]`."""
    xp: Any = logits.__array_namespace__()
    own = xp.take_along_axis(logits, label[:, None, None], axis=2)
    classes = xp.arange(logits.shape[2])
    # What is not a number is ahead of nothing, and everything ahead of it.
    ahead = ~(logits <= own) | ((logits == own) & (classes < label[:, None, None]))
    highest = logits.max(axis=2, keepdims=True)
    total = xp.exp(logits - highest).sum(axis=2)
    ce = xp.log(total) - (own - highest)[..., 0]
    # Without a sort, which is the slowest of all this on a device. One class alone has no second.
    is_best = (classes == logits.argmax(axis=2)[..., None]) & (logits.shape[2] > 1)
    second = xp.where(is_best, -xp.inf, logits).max(axis=2)
    lead = 1 - xp.exp(second - highest[..., 0])
    return _Judged(ce, ahead.sum(axis=2), 1 / total, lead / total)
