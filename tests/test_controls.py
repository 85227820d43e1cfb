"""The controls of an evaluation, by brute force on small random logits."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy.special import softmax

from drnet_jax.evaluation.controls import by_choice, cascade, mixture, needed, oracle
from drnet_jax.evaluation.intervals import auroc, auroc_interval, resampled_aurocs
from drnet_jax.evaluation.metrics import hull_weights


@st.composite
def cases(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Logits, labels and costs of a few images, and what follows from them."""
    n, m, k = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    logits = draw(st_numpy.arrays(float, (n, m, k), elements=st.floats(-3, 3, width=16)))
    labels = draw(st_numpy.arrays(int, n, elements=st.integers(0, k - 1)))
    costs = draw(
        st.lists(st.integers(1, 50), min_size=m, max_size=m, unique=True).map(
            lambda c: np.array(sorted(c, reverse=True), float)
        )
    )
    return {
        "correct": logits.argmax(-1) == labels[:, None],
        "confidence": softmax(logits, axis=-1).max(-1),
        "costs": costs,
    }


@given(cases())
def test_oracle(case: dict[str, np.ndarray]) -> None:
    correct, costs = case["correct"], case["costs"]
    outcome = oracle(correct, costs)
    for image, row in enumerate(correct):
        sufficient = [cost for cost, ok in zip(costs, row, strict=True) if ok]
        assert outcome.correct[image] == bool(sufficient)
        assert outcome.cost[image] == min(sufficient, default=costs.min())
    assert np.array_equal(costs[needed(correct, costs)], outcome.cost)


@given(cases(), st.floats(0, 1.1))
def test_cascade(case: dict[str, np.ndarray], threshold: float) -> None:
    correct, confidence, costs = case["correct"], case["confidence"], case["costs"]
    outcome = cascade(correct, confidence, costs, threshold)
    for image in range(len(correct)):
        spent = 0.0
        # Costs fall along the columns: from the last one on.
        for column in reversed(range(len(costs))):
            spent += costs[column]
            if confidence[image, column] >= threshold or column == 0:
                break
        assert outcome.cost[image] == pytest.approx(spent)
        assert outcome.correct[image] == correct[image, column]


@given(cases(), st.data())
def test_mixtures_are_means_over_all_choices(
    case: dict[str, np.ndarray], data: st.DataObject
) -> None:
    correct, costs = case["correct"][:4], case["costs"]
    m = len(costs)
    weights = np.array(data.draw(st.lists(st.integers(0, 5), min_size=m, max_size=m))) + 0.01
    shares = weights / weights.sum()
    outcome = mixture(correct, shares, costs)
    top1, gmacs, square = 0.0, 0.0, 0.0
    for choices in itertools.product(range(m), repeat=len(correct)):
        chance = shares[list(choices)].prod()
        chosen = by_choice(correct, np.array(choices), costs)
        top1 += chance * chosen.top1
        gmacs += chance * chosen.gmacs
        square += chance * chosen.top1**2
    assert outcome.top1 == pytest.approx(top1)
    assert outcome.gmacs == pytest.approx(gmacs)
    assert outcome.spread == pytest.approx(np.sqrt(max(0, square - top1**2)), abs=1e-7)


@given(cases(), st.floats(0, 1))
def test_no_mixture_is_above_the_hull(case: dict[str, np.ndarray], place: float) -> None:
    correct, costs = case["correct"], case["costs"]
    budget = costs.min() + place * (costs.max() - costs.min())
    best = mixture(correct, hull_weights(costs, correct.mean(axis=0), budget), costs)
    assert best.gmacs <= budget + 1e-9
    m = len(costs)
    for first, second in itertools.product(range(m), repeat=2):
        for part in np.linspace(0, 1, 21):
            shares = np.zeros(m)
            shares[first] += part
            shares[second] += 1 - part
            other = mixture(correct, shares, costs)
            if other.gmacs <= budget:
                assert other.top1 <= best.top1 + 1e-9


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=12))
def test_auroc(images: list[tuple[bool, int]]) -> None:
    positive = np.array([flag for flag, _ in images])
    score = np.array([value for _, value in images], float)
    pairs = [
        (score[i] > score[j]) + 0.5 * (score[i] == score[j])
        for i in np.flatnonzero(positive)
        for j in np.flatnonzero(~positive)
    ]
    got = auroc(positive, score)
    assert got == pytest.approx(np.mean(pairs)) if pairs else np.isnan(got)
    # Counted twice, thrice or not at all, as a resample may.
    times = (np.arange(len(images)) + np.arange(4)[:, None]) % 4
    repeated = [auroc(np.repeat(positive, row), np.repeat(score, row)) for row in times]
    assert resampled_aurocs(positive, score, times) == pytest.approx(repeated, nan_ok=True)


def test_auroc_of_a_score_that_is_not_defined() -> None:
    positive, score = np.array([True, False, True]), np.array([0.5, np.nan, 0.1])
    assert np.isnan(auroc(positive, score))
    found = auroc_interval(positive, score)
    assert np.isnan([found.value, found.low, found.high]).all()
