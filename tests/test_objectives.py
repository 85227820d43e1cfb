"""Choices that are fitted to held-out outputs, against exhaustive search and plain NumPy."""

from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np
import pytest
from scipy.special import expit, log_softmax

from drnet_jax.budgets.calibration import BudgetError
from drnet_jax.training.objectives import correctness, threshold
from drnet_jax.training.objectives.fitting import FittedHead, HeldOut
from drnet_jax.training.reuse import fit_weights

COSTS = np.array([1.25, 0.5, 0.25])


def held_out(count: int, *, target: float | None, seed: int = 0) -> HeldOut:
    """Images of a random difficulty, which the score tells with noise: hard ones need more."""
    rng = np.random.default_rng(seed)
    easy = rng.random(count)
    score = easy + rng.normal(0, 0.2, count)
    correct = rng.random((count, 3)) < expit(6 * (easy[:, None] - np.array([0.1, 0.4, 0.6])))
    return HeldOut(np.stack([score, rng.random(count)], axis=1), correct, COSTS, target)


def choice(head: FittedHead, inputs: np.ndarray, *, probabilities: bool) -> np.ndarray:
    """What a `GlanceHead` with these values chooses."""
    scores = inputs @ head.kernel + head.bias
    return ((expit(scores) if probabilities else scores) - head.offset).argmax(axis=1)


def outcome(found: np.ndarray, outputs: HeldOut) -> tuple[int, float]:
    """Images that are correct, and the mean cost."""
    return int(outputs.correct[np.arange(len(found)), found].sum()), COSTS[found].mean()


def every_threshold(outputs: HeldOut) -> list[tuple[int, float]]:
    """The outcome of every pair of thresholds."""
    order = np.argsort(outputs.inputs[:, 0])
    found = []
    for first, second in combinations_with_replacement(range(len(order) + 1), 2):
        chosen = np.zeros(len(order), int)
        chosen[order[first:second]], chosen[order[second:]] = 1, 2
        found.append(outcome(chosen, outputs))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_without_a_target_are_the_most_accurate_ones(seed: int) -> None:
    outputs = held_out(25, target=None, seed=seed)
    chosen = choice(threshold.fit(outputs), outputs.inputs, probabilities=False)
    assert outcome(chosen, outputs)[0] == max(right for right, _ in every_threshold(outputs))


@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_no_thresholds_within_the_target_lie_above_the_concave_hull(target: float) -> None:
    outputs = held_out(30, target=target)
    right, spent = outcome(
        choice(threshold.fit(outputs), outputs.inputs, probabilities=False), outputs
    )
    assert spent <= target
    # The best at some price of a unit of cost: nothing as cheap is more accurate.
    every = every_threshold(outputs)
    prices = np.linspace(0, 100, 20001)
    values = np.array(every)[:, 0] - prices[:, None] * np.array(every)[:, 1]
    assert np.isclose(right - prices * spent, values.max(axis=1)).any()
    assert right == max(found for found, cost in every if cost <= spent)


@pytest.mark.parametrize("target", [None, 0.3, 0.6, 0.9])
def test_equal_scores_get_the_same_choice(target: float | None) -> None:
    outputs = held_out(300, target=target)
    score = np.float32(np.minimum(outputs.inputs[:, 0], 0.5))
    assert 0.4 < (score == 0.5).mean() < 0.7
    tied = HeldOut(score[:, None], outputs.correct, COSTS, target)
    found = choice(threshold.fit(tied), tied.inputs, probabilities=False)
    assert len(set(found[score == 0.5])) == 1
    right, spent = outcome(found, tied)
    assert target is None or spent <= target
    # All that a threshold below the tie can do.
    each = [outcome(np.full(300, j), tied) for j in range(3)]
    assert right >= max(count for count, cost in each if target is None or cost <= target)


@pytest.mark.parametrize("cheapest", [0.25, 0.1])
def test_a_target_that_leaves_one_choice(cheapest: float) -> None:
    """Also where the mean of equal costs is a rounding above them."""
    costs = np.array([1.25, 0.5, cheapest])
    outputs = replace(held_out(38, target=cheapest), costs=costs)
    assert np.full(38, 0.1).mean() > 0.1 and np.full(38, 0.25).mean() == 0.25
    for fit, probabilities in ((threshold.fit, False), (correctness.fit, True)):
        found = choice(fit(outputs), outputs.inputs, probabilities=probabilities)
        np.testing.assert_array_equal(found, 2)


def test_a_lambda_lowers_the_thresholds() -> None:
    outputs = held_out(200, target=0.8)
    head = threshold.fit(outputs)
    scores = outputs.inputs @ head.kernel + head.bias
    shares = [
        np.bincount((scores - lam * COSTS).argmax(axis=1), minlength=3) for lam in (0, 0.2, 0.4)
    ]
    spent = [share @ COSTS for share in shares]
    assert spent[0] > spent[1] > spent[2]
    # By what a step costs: t_j - lambda * (c_{j-1} - c_j), only the score counts.
    t_1, t_2 = -np.diff(head.bias)
    expected = np.digitize(outputs.inputs[:, 0], [t_1 - 0.2 * 0.75, t_2 - 0.2 * 0.25])
    np.testing.assert_array_equal((scores - 0.2 * COSTS).argmax(axis=1), expected)


def test_correctness_is_how_often_each_is_right() -> None:
    rng = np.random.default_rng(1)
    group = rng.integers(0, 2, 6000)
    likely = np.array([[0.9, 0.7, 0.3], [0.95, 0.9, 0.9]])
    correct = rng.random((6000, 3)) < likely[group]
    inputs = np.stack([1000.0 + 5 * group, rng.random(6000)], axis=1)
    head = correctness.fit(HeldOut(inputs, correct, COSTS, None))
    frequent = np.stack([correct[group == g].mean(axis=0) for g in (0, 1)])
    np.testing.assert_allclose(expit(inputs @ head.kernel + head.bias), frequent[group], atol=0.03)
    np.testing.assert_array_equal(head.offset, np.zeros(3))


@pytest.mark.parametrize("target", [0.4, 0.7])
def test_correctness_keeps_the_target_by_a_price_of_the_costs(target: float) -> None:
    outputs = held_out(400, target=target)
    head = correctness.fit(outputs)
    right, spent = outcome(choice(head, outputs.inputs, probabilities=True), outputs)
    assert spent <= target
    lam = head.offset[0] / COSTS[0]
    np.testing.assert_allclose(head.offset, lam * COSTS)
    # Nearly no other price within the target is more accurate: some 200 are tried.
    likely = expit(outputs.inputs @ head.kernel + head.bias)
    others = [
        outcome((likely - price * COSTS).argmax(axis=1), outputs)
        for price in np.linspace(0, 3, 500)
    ]
    assert right >= max(found for found, cost in others if cost <= target) - 4


@pytest.mark.parametrize("target", [0.4, 0.7])
@pytest.mark.parametrize("helps", [True, False])
def test_spending_leaves_less_than_one_look_of_the_target(target: float, helps: bool) -> None:
    """Even where larger sizes are less often right, at a lambda below zero."""
    outputs = held_out(150, target=target)
    if not helps:
        outputs = replace(outputs, correct=outputs.correct[:, ::-1])
    head = correctness.spend(outputs)
    _, spent = outcome(choice(head, outputs.inputs, probabilities=True), outputs)
    assert target - COSTS.max() / 150 < spent <= target
    np.testing.assert_allclose(head.offset, head.offset[0] / COSTS[0] * COSTS)
    assert (head.offset[0] > 0) == helps
    other = correctness.fit(outputs)
    np.testing.assert_array_equal(head.kernel, other.kernel)
    np.testing.assert_array_equal(head.bias, other.bias)
    free = replace(outputs, target=None)
    np.testing.assert_array_equal(correctness.spend(free).offset, np.zeros(3))


def test_a_resolution_that_is_always_right_is_as_likely_as_on_the_whole() -> None:
    outputs = held_out(100, target=None)
    correct = outputs.correct.copy()
    correct[:, 0] = True
    head = correctness.fit(HeldOut(outputs.inputs, correct, COSTS, None))
    np.testing.assert_array_equal(head.kernel[:, 0], 0)
    assert expit(head.bias[0]) == pytest.approx(101 / 102)


def test_a_target_below_every_choice_is_an_error() -> None:
    for fit in (correctness.fit, correctness.spend, threshold.fit):
        with pytest.raises(BudgetError, match="cannot be kept"):
            fit(held_out(100, target=0.2))


@pytest.mark.parametrize("scale", [1, 60])
def test_weights_have_the_least_cross_entropy_with_any_temperature(scale: int) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, 3000)
    truth = np.eye(5)[label]
    noise = rng.normal(0, 1, (3, 3000, 5))
    # The first looks say something of their own; every logit is too large, as after a training.
    logits = 3 * np.stack([2 * truth + noise[0], truth + noise[1], truth + noise[2]], axis=1)
    weights = fit_weights(scale * logits.astype(np.float32), label)
    assert weights[2] == 0
    for j in (0, 1):
        grid = [
            (-log_softmax(t * (logits[:, j] + w * logits[:, 2]), axis=1)[truth > 0].mean(), w)
            for w in np.linspace(0, 2, 41)
            for t in np.geomspace(0.1, 1, 25)
        ]
        assert weights[j] == pytest.approx(min(grid)[1], abs=0.08)
    assert weights[1] > weights[0] > 0.2


def test_what_says_nothing_gets_no_weight() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, 2000)
    logits = np.stack([3 * np.eye(5)[label], -np.eye(5)[label]], axis=1)
    logits += rng.normal(0, 1, logits.shape)
    assert fit_weights(logits, label)[0] == pytest.approx(0, abs=1e-3)
