"""How DRNet compares with its controls, in words."""

from collections.abc import Mapping

from drnet_jax.evaluation.intervals import Interval

# All at DRNet's cost.
_LABELS = {
    "hull": "the hull of the fixed resolutions",
    "matched_random": "a random choice with its shares",
    "cascade": "a confidence cascade",
    "margin_cascade": "a margin cascade",
}
_RELATIONS = ("above", "level with", "below")


def verdicts(differences: Mapping[str, Interval], relative: Mapping[str, float]) -> dict[str, str]:
    """A line a control.

    Args:
      differences: DRNet's top-1 minus that of every control, by its name: those of `_LABELS`, and
        fixed resolutions.
      relative: DRNet's cost over that of every fixed resolution, the largest first.

    Returns:
      By the control's name, in the order of `_LABELS`, then of `relative`.
    """
    labels = _labels(relative)
    return {
        name: f"{_relation(differences[name])} {label}: {_points(differences[name])}"
        for name, label in labels.items()
    }


def verdict(differences: Mapping[str, Interval], relative: Mapping[str, float]) -> str:
    """All of them in a sentence; of the fixed resolutions the largest, and the best if it is
    another one.

    Arguments as of `verdicts`.
    """
    largest, *_ = relative
    best = min(relative, key=lambda name: differences[name].value)
    named = [*_LABELS, *dict.fromkeys((largest, best))]
    labels = _labels(relative)
    parts = []
    for relation in _RELATIONS:
        those = [labels[name] for name in named if _relation(differences[name]) == relation]
        if those:
            parts.append(f"{relation} {_joined(those)}")
    return "; ".join(parts)


def _labels(relative: Mapping[str, float]) -> dict[str, str]:
    fixed = {name: f"{name} at {cost:.2f} of its cost" for name, cost in relative.items()}
    return _LABELS | fixed


def _relation(difference: Interval) -> str:
    """Level: the interval has zero in it."""
    above, level, below = _RELATIONS
    if difference.low > 0:
        return above
    return below if difference.high < 0 else level


def _points(difference: Interval) -> str:
    value, low, high = (100 * end for end in (difference.value, difference.low, difference.high))
    return f"{value:+.2f} points ({low:+.2f} to {high:+.2f})"


def _joined(labels: list[str]) -> str:
    *first, last = labels
    return f"{', '.join(first)} and {last}" if first else last
