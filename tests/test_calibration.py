"""Budgets: costs and accuracies of every lambda by hand, and the bound's promise by simulation."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from drnet_jax.budgets.calibration import (
    BudgetError,
    Calibration,
    Point,
    Times,
    calibrate,
)
from drnet_jax.budgets.calibration_file import load, save
from drnet_jax.calibrate import known_times
from drnet_jax.inference.programs import CostTable
from drnet_jax.runtime.checked_json import read_json

GMACS = np.array([4.0, 2.0, 1.0])
# Best of the buckets 1 and 4: 0.5 ms an image, and 40, 20 and 16.
TABLE = CostTable(
    {1: 0.0006, 4: 0.002},
    ({1: 0.05, 4: 0.16}, {1: 0.03, 4: 0.08}, {1: 0.02, 4: 0.064}),
)
TIMES = Times("cpu", TABLE)


def small() -> Calibration:
    """Two images that are surely sent to the largest and to the smallest, one in between."""
    scores = np.log([[0.98, 0.01, 0.01], [0.01, 0.01, 0.98], [0.2, 0.6, 0.2]])
    correct = np.array([[True, False, False], [True, True, False], [False, True, True]])
    return calibrate(scores, correct, correct[:, 0], GMACS, 0.1, "joint/3", TIMES)


def point(calibration: Calibration, lam: float) -> Point:
    return next(point for point in calibration.points if point.lam == lam)


def test_points() -> None:
    found = small()
    paper = point(found, 0.0)
    assert paper.shares == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert paper.gmacs == pytest.approx((4 + 2 + 1) / 3 + 0.1)
    assert paper.top1 == pytest.approx(2 / 3)
    # Image 1 is correct at the largest and not at the chosen one; image 2 the other way round.
    assert (paper.lost, paper.won) == (1, 1)
    assert [entry.shares for entry in (found.points[0], found.points[-1])] == [
        (1.0, 0.0, 0.0),
        (0.0, 0.0, 1.0),
    ]
    costs = [entry.gmacs for entry in found.points]
    assert costs == sorted(costs, reverse=True)


def test_drops_are_from_the_largest_resolution_alone() -> None:
    """Where a second look reuses the first, its answer may be another than that resolution's."""
    scores = np.log([[0.98, 0.01, 0.01], [0.01, 0.01, 0.98], [0.2, 0.6, 0.2]])
    correct = np.array([[True, False, False], [True, True, False], [False, True, True]])
    found = calibrate(scores, correct, np.array([False, False, True]), GMACS, 0.1, "")
    drops = {(entry.shares, entry.lost, entry.won) for entry in found.points}
    # All at the largest: images 0 and 1 are won, and image 2 is lost.
    assert ((1.0, 0.0, 0.0), 1, 2) in drops
    # Images at the largest, the smallest and the middle: the first is won, the others as they were.
    paper = point(found, 0.0)
    assert (paper.lost, paper.won) == (0, 1)
    # All at the smallest: as the largest resolution, image by image.
    assert ((0.0, 0.0, 1.0), 0, 0) in drops


def test_every_change_of_a_choice_is_found() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 3))
    found = calibrate(scores, np.ones((40, 3), bool), np.ones(40, bool), GMACS, 0.0, "joint/3")
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    fine = np.linspace(-10, 10, 20001)[:, None, None]
    choices = (log_p - fine * GMACS).argmax(-1)
    # 120 changes are fewer than the points, so that every cost is on the curve.
    expected = np.unique(GMACS[choices].mean(1).round(9))
    assert set(expected) <= {round(entry.gmacs, 9) for entry in found.points}


def test_budgets() -> None:
    found = small()
    # The most accurate within the budget, and the cheapest of equals.
    for budget in (100, 7 / 3 + 0.1 + 1e-9, 2.0):
        within = [entry for entry in found.points if entry.gmacs <= budget]
        best = max(entry.top1 for entry in within)
        cost = min(entry.gmacs for entry in within if entry.top1 == best)
        got = found.for_gmacs(budget)
        assert (got.top1, got.gmacs) == (best, cost)
    assert found.for_gmacs(1.1).shares == (0.0, 0.0, 1.0)
    got = found.for_ms(30)
    times = {p: 0.5 + np.dot(p.shares, (40, 20, 16)) for p in found.points}
    assert times[got] <= 30
    assert got.top1 == max(p.top1 for p in found.points if times[p] <= 30)
    # Two correct at the largest. At the smallest only one is: a drop of a third.
    assert found.for_drop(34).shares == (0.0, 0.0, 1.0)
    cheapest = min(p.gmacs for p in found.points if p.top1 >= 2 / 3)
    assert found.for_drop(0).gmacs == cheapest


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_times_of_a_batch(batch_size: int) -> None:
    """Against all ways in which a batch can choose."""
    shares = np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])

    def seconds(times: dict[int, float], count: int) -> float:
        return min(count * times[1], times[4]) if count else 0.0

    expected = np.zeros(2)
    for choices in itertools.product(range(3), repeat=batch_size):
        counts = np.bincount(choices, minlength=3)
        took = seconds(TABLE.predictor, batch_size)
        took += sum(seconds(t, n) for t, n in zip(TABLE.classifiers, counts, strict=True))
        expected += shares[:, choices].prod(axis=1) * took
    got = TIMES.milliseconds(shares, batch_size)
    np.testing.assert_allclose(got, 1000 * expected / batch_size, rtol=1e-9)


def test_a_budget_of_time_follows_the_batch_size() -> None:
    # Alone, an image takes longer than in a bucket of four.
    assert small().for_ms(21, batch_size=1).shares == (0.0, 0.0, 1.0)
    assert small().for_ms(27).gmacs > small().for_ms(27, batch_size=1).gmacs
    with pytest.raises(BudgetError, match=r"17 ms an image \(batch 1, cpu\) cannot be kept: 20.6"):
        small().for_ms(17, batch_size=1)


def test_out_of_reach() -> None:
    found = small()
    with pytest.raises(BudgetError, match=r"1 GMACs cannot be kept: 1.1 to 4.1 can"):
        found.for_gmacs(1.0)
    with pytest.raises(
        BudgetError, match=r"10 ms an image \(cpu\) cannot be kept: 16.5 to 40.5 can"
    ):
        found.for_ms(10)
    with pytest.raises(BudgetError, match="3 calibration images show no drop below"):
        found.for_drop(0.5, confidence=0.95)
    with pytest.raises(BudgetError, match="no times are measured"):
        Calibration("joint/3", 3, found.points).for_ms(10)


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    with pytest.raises(BudgetError, match="run --mode=calibrate before"):
        load(path, "joint/3")
    save(small(), path)
    assert load(path, "joint/3") == small()
    path.write_text(path.read_text()[:100])
    with pytest.raises(BudgetError, match="calibration.json is damaged"):
        load(path, "joint/3")
    save(small(), path)
    with pytest.raises(BudgetError, match="of joint/3, and the model is joint/9"):
        load(path, "joint/9")


def test_times_of_another_model_are_not_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the calibration, which therefore does not advise to calibrate."""
    path = tmp_path / "calibration.json"
    save(small(), path)
    assert known_times(path, "joint/3") == small().times is not None
    assert known_times(path, "joint/9") is None
    path.write_text("{")
    assert known_times(path, "joint/3") is None
    other, damaged = capsys.readouterr().out.splitlines()
    assert other.endswith(f"taken over: {path} is of joint/3, and the model is joint/9")
    assert f"taken over: {path} is damaged (" in damaged and "--mode" not in damaged


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": []}, "points do not rise"),
        ({"points": 3}, "not iterable"),
        ({"points": ["x"]}, "TypeError"),
        ({"model": 3}, "the model 3"),
        ({"num_images": "3"}, "'3' images"),
        ({"num_images": 0}, "0 images"),
        ({"times": {"setting": "cpu", "table": {"predictor": None, "classifiers": []}}}, "times"),
        ({"times": []}, "list indices"),
        ({"lam": "2"}, "'2' is no number"),
        ({"lam": float("nan")}, "nan is not finite"),
        ({"lam": float("inf")}, "inf is not finite"),
        ({"lam": 1e9}, "do not rise in lambda"),
        ({"gmacs": -1.0}, "costs -1.0 GMACs"),
        ({"shares": [0.5, 0.1, 0.1]}, "fractions"),
        ({"shares": [1.0]}, "number of resolutions"),
        ({"top1": 1.5}, "fractions"),
        ({"won": 4}, "fractions"),
    ],
    ids=str,
)
def test_a_damaged_file(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Of valid JSON without a checksum: what it says is no calibration."""
    path = tmp_path / "calibration.json"
    save(small(), path)
    content = read_json(path)
    (name,) = changes
    (content if name in content else content["points"][0]).update(changes)
    path.write_text(json.dumps(content))
    with pytest.raises(BudgetError, match=f"calibration.json is damaged .*{words}.*: run --mode="):
        load(path, "joint/3")


def test_a_flipped_digit(tmp_path: Path) -> None:
    """Another lambda would be as good a number: the checksum tells."""
    path = tmp_path / "calibration.json"
    save(small(), path)
    text = path.read_text()
    lam = repr(small().points[1].lam)
    path.write_text(text.replace(lam, lam[:-1] + str((int(lam[-1]) + 1) % 10), 1))
    assert path.read_text() != text
    with pytest.raises(BudgetError, match="calibration.json is damaged .*not that of its checksum"):
        load(path, "joint/3")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, "1", None, True])
def test_budgets_that_are_no_numbers(bad: Any) -> None:
    for of in (
        small().for_gmacs,
        small().for_ms,
        small().for_drop,
        lambda value: small().for_drop(1, confidence=value),
    ):
        with pytest.raises(BudgetError, match=f"a budget of {bad!r} .* is no finite number"):
            of(bad)


def of_zeros(scores: tuple[int, int], correct: tuple[int, int]) -> Calibration:
    """Of arrays of these shapes."""
    answers = np.zeros(correct, bool)
    return calibrate(np.zeros(scores), answers, answers[:, 0], GMACS, 0.0, "")


def test_arguments_out_of_range() -> None:
    for of, words in [
        (lambda: small().for_drop(-90), "a drop of -90 points cannot be kept: .* to .* can"),
        (
            lambda: small().for_drop(1, confidence=1.0),
            r"confidence of 1.0 does not lie in \[0, 1\)",
        ),
        (lambda: small().for_gmacs(-1), "a budget of -1 GMACs cannot be kept"),
        (lambda: small().for_ms(100, batch_size=-1), "batch_size=-1 must be an integer"),
        (lambda: small().for_ms(100, batch_size=1.5), "batch_size=1.5 must be an integer"),  # type: ignore[arg-type]
        (lambda: of_zeros((0, 3), (0, 3)), "of images"),
        (lambda: of_zeros((2, 3), (2, 2)), "of images"),
    ]:
        with pytest.raises(ValueError, match=words):
            of()


def test_equal_costs() -> None:
    scores = np.random.default_rng(0).normal(size=(9, 3))
    correct, gmacs = np.ones((9, 3), bool), np.array([2.0, 2.0, 1.0])
    found = calibrate(scores, correct, correct[:, 0], gmacs, 0.0, "")
    assert np.isfinite([entry.lam for entry in found.points]).all()


def test_one_resolution() -> None:
    correct = np.ones((5, 1), bool)
    found = calibrate(np.zeros((5, 1)), correct, correct[:, 0], GMACS[:1], 0.0, "pretrain/1")
    assert [entry.gmacs for entry in found.points] == [4.0]


def test_bound_is_that_of_clopper_and_pearson() -> None:
    """The limit is the fraction at which so few losses are as improbable as half the error."""
    curve = Calibration("", 500, (Point(0.0, 1.0, 0.9, (1.0,), lost=7, won=0),))
    allowed = [drop for drop in np.arange(1, 5, 0.01) if _kept(curve, drop, 0.9)]
    assert binom.cdf(7, 500, allowed[0] / 100) == pytest.approx(0.05, abs=2e-3)


def test_guarantee() -> None:
    """The true drop exceeds the budget in fewer runs than the confidence lets."""
    rng = np.random.default_rng(0)
    # By rising lambda: a true drop of 0 to 8 points; at most 4 are allowed.
    true_drops = np.linspace(0, 0.08, 17)
    runs, broken, cheapest = 400, 0, []
    for _ in range(runs):
        u, v = rng.uniform(size=(2, 1000))
        points = tuple(
            Point(
                step, 10.0 - step, 0.9, (1.0,), int((u < drop + 0.01).sum()), int((v < 0.01).sum())
            )
            for step, drop in enumerate(true_drops)
        )
        chosen = Calibration("", 1000, points).for_drop(4.0, confidence=0.9)
        broken += true_drops[int(chosen.lam)] > 0.04
        cheapest.append(chosen.lam)
    assert broken / runs <= 0.1
    # And it is not for doing nothing.
    assert np.mean(cheapest) > 2


def _kept(curve: Calibration, drop: float, confidence: float) -> bool:
    try:
        curve.for_drop(drop, confidence)
    except BudgetError:
        return False
    return True
