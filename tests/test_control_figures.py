"""The controls of `eval.json`: figures by hand, intervals against theory, verdicts in words."""

from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from drnet_jax.data.sources import ArraySource
from drnet_jax.evaluate import evaluation
from drnet_jax.evaluation.cascades import at_cost, cascade_threshold, through_some
from drnet_jax.evaluation.control_figures import control_figures
from drnet_jax.evaluation.controls import cascade
from drnet_jax.evaluation.curves import as_good_as_largest, cascade_curve, drnet_curve
from drnet_jax.evaluation.inputs import with_origin
from drnet_jax.evaluation.intervals import (
    Interval,
    auroc_interval,
    effective_count,
    intervals,
    proportion,
)
from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.evaluation.verdicts import verdict, verdicts
from drnet_jax.models.macs import ModelCost
from tests.small_run import small_config
from tests.synthetic import synthetic_model

COST = ModelCost(100_000_000, (4_000_000_000, 2_000_000_000, 1_000_000_000))
COSTS = np.array([4.0, 2.0, 1.0])
SIZES = (64, 48, 32)


def records(seed: int, count: int = 400, skill: float = 3.0) -> EvalRecords:
    """Images of a random difficulty, which accuracy, confidence and scores follow."""
    rng = np.random.default_rng(seed)
    difficulty = rng.random((count, 1))
    top1 = rng.random((count, 3)) < np.array([0.95, 0.9, 0.85]) - difficulty * [0.1, 0.3, 0.6]
    confidence = np.clip(1 - 0.6 * difficulty + rng.normal(0, 0.1, (count, 3)), 0.1, 1)
    scores = skill * difficulty * [1.0, 0.3, -1.0] + rng.normal(0, 0.3, (count, 3))
    return EvalRecords(
        ce=np.zeros((count, 3)),
        top1=top1,
        answer_top1=top1,
        answer_top5=top1,
        choice=scores.argmax(1),
        scores=scores,
        confidence=confidence,
        margin=np.clip(2 * confidence - 1 + rng.normal(0, 0.1, (count, 3)), 0, 1),
        index=np.arange(count),
        label=np.zeros(count, int),
    )


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return control_figures(records(0), records(1), COST, 0.0, SIZES)


def test_figures(figures: dict[str, Any]) -> None:
    test = records(0)
    value = {name: entry["value"] for name, entry in figures["intervals"].items()}
    correct = test.top1[np.arange(400), test.choice]
    assert value["drnet"] == pytest.approx(correct.mean())
    shares = np.bincount(test.choice, minlength=3) / 400
    assert value["matched_random"] == pytest.approx(shares @ test.top1.mean(0))
    assert value["uniform_random"] == pytest.approx(test.top1.mean())
    assert value["oracle"] == pytest.approx(test.top1.any(1).mean())
    assert value["regret"] == pytest.approx((test.top1.any(1) & ~correct).mean())
    assert figures["gmacs"]["drnet"] == pytest.approx(shares @ COSTS + 0.1)
    assert figures["gmacs"]["matched_random"] == pytest.approx(shares @ COSTS)
    large, middle, small = test.top1.mean(0)
    cost = figures["gmacs"]["drnet"]
    hull = np.interp(cost, [1, 2, 4], [small, middle, large])
    assert value["hull"] == pytest.approx(hull)
    for name in ("hull", "matched_random", "cascade"):
        assert value[f"drnet - {name}"] == pytest.approx(value["drnet"] - value[name])
    closed = (value["drnet"] - hull) / (value["oracle"] - hull)
    assert value["oracle_gap_closed"] == pytest.approx(closed)
    for entry in figures["intervals"].values():
        assert entry["low"] <= entry["value"] <= entry["high"]


def confusion(choices: np.ndarray, answers: np.ndarray) -> list[list[int]]:
    """Chosen by needed resolution, the smallest last, image by image."""
    expected = np.zeros((3, 4), int)
    for choice, correct in zip(choices, answers, strict=True):
        cheapest = [column for column in (2, 1, 0) if correct[column]]
        expected[choice, cheapest[0] if cheapest else 3] += 1
    counts: list[list[int]] = expected.tolist()
    return counts


def test_confusion(figures: dict[str, Any]) -> None:
    test = records(0)
    assert figures["chosen_by_needed"] == confusion(test.choice, test.top1)


def test_a_skilled_predictor_ranks(figures: dict[str, Any]) -> None:
    auroc = figures["auroc_larger_needed"]
    assert 0.5 < auroc["low"] < auroc["value"] < auroc["high"]
    blind = control_figures(records(0, skill=0.0), records(1, skill=0.0), COST, 0.0, SIZES)
    assert 0.4 < blind["auroc_larger_needed"]["value"] < 0.6


def test_the_cascade_is_chosen_on_the_calibration_images(figures: dict[str, Any]) -> None:
    calibration, threshold = records(1), figures["cascade_threshold"]
    spent = COSTS[calibration.choice].mean() + 0.1
    arguments = calibration.top1, calibration.confidence, COSTS
    assert cascade(*arguments, threshold).gmacs <= spent
    above = calibration.confidence[calibration.confidence > threshold].min()
    assert cascade(*arguments, above).gmacs > spent
    # Nothing costs less than the cheapest resolution.
    assert cascade_threshold(calibration.confidence, COSTS, 0.5) == 0.0
    # A budget for every pass of every image is spent, on those that are wholly sure too.
    sure = np.array([[1.0, 1.0, 1.0], [0.9, 0.8, 0.7]])
    always = cascade_threshold(sure, COSTS, 7.0)
    assert cascade(np.ones((2, 3), bool), sure, COSTS, always).cost.tolist() == [7.0, 7.0]
    assert cascade_threshold(sure, COSTS, 6.9) == 1.0


def test_curves(figures: dict[str, Any]) -> None:
    thresholds, costs, top1, *ends = zip(*figures["cascade_curve"], strict=True)
    assert list(thresholds) == sorted(thresholds) and list(costs) == sorted(costs)
    assert (costs[0], costs[-1]) == (1.0, 7.0)
    assert top1[0] == records(0).top1[:, 2].mean() and top1[-1] == records(0).top1[:, 0].mean()
    assert all(low < p < high for low, p, high in zip(ends[0], top1, ends[1], strict=True))
    lambdas, costs, top1, *_ = zip(*figures["lambda_curve"], strict=True)
    assert list(lambdas) == sorted(lambdas) and list(costs) == sorted(costs, reverse=True)
    at_zero = lambdas.index(0.0)
    assert top1[at_zero] == pytest.approx(figures["intervals"]["drnet"]["value"])


def test_a_budget_moves_the_cascade() -> None:
    test = records(0)
    moved = replace(test, choice=np.full(400, 2))
    cheap = control_figures(moved, records(1), COST, 100.0, SIZES)
    usual = control_figures(test, records(1), COST, 0.0, SIZES)
    assert cheap["cascade_threshold"] < usual["cascade_threshold"]


@pytest.mark.filterwarnings("error")
def test_no_gap_is_null() -> None:
    """The cheapest resolution is correct wherever any is: the hull is the oracle."""
    correct = np.repeat(np.arange(50)[:, None] > 4, 3, axis=1)
    test = replace(records(0, 50), top1=correct)
    gap = control_figures(test, test, COST, 0.0, SIZES)["intervals"]["oracle_gap_closed"]
    assert gap == {"value": None, "low": None, "high": None}


def test_intervals_are_those_of_theory() -> None:
    """Of a mean, a paired difference and a constant."""
    rng = np.random.default_rng(0)
    first = rng.normal(5, 2, 2000)
    second = first + rng.normal(1, 0.1, 2000)
    got = intervals(
        np.stack([first, second], 1),
        lambda means: np.stack([means[:, 0], means[:, 1] - means[:, 0], 0 * means[:, 0] + 7], 1),
    )
    for found, sample in zip(got, (first, second - first), strict=False):
        half = 1.96 * sample.std() / np.sqrt(2000)
        assert found.value == pytest.approx(sample.mean())
        assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert got[2] == Interval(7.0, 7.0, 7.0)
    (alone,) = intervals(np.array([[3.0]]), lambda means: means)
    assert alone == Interval(3.0, 3.0, 3.0)


def linear(means: np.ndarray) -> np.ndarray:
    return np.stack([means[:, 0], means[:, 1] - means[:, 0]], axis=1)


def test_images_of_one_origin_are_drawn_together() -> None:
    """Four copies of an image tell no more than one: the very same draws, and intervals."""
    rng = np.random.default_rng(0)
    columns, copies = rng.random((300, 2)), np.repeat(rng.permutation(300), 4)
    for got, want in zip(
        intervals(columns[copies], linear, copies), intervals(columns, linear), strict=True
    ):
        assert astuple(got) == pytest.approx(astuple(want))
    positive, score = columns[:, 0] < 0.3, columns[:, 0] + columns[:, 1]
    got = auroc_interval(positive[copies], score[copies], copies)
    want = auroc_interval(positive, score)
    assert astuple(got) == pytest.approx(astuple(want))
    (alone,) = intervals(columns[:9, :1], lambda means: means, np.zeros(9))
    assert alone.low == alone.value == alone.high


def test_origins_of_unequal_size() -> None:
    """The variance of a ratio of sums, by its linearisation."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 20, 400)
    origin = np.repeat(np.arange(400), sizes)
    values = rng.normal(5, 2, 400)[origin] + rng.normal(0, 1, len(origin))
    (got,) = intervals(values[:, None], lambda means: means, origin)
    residual = np.bincount(origin, values - values.mean())
    error = np.sqrt(400 / 399 * (residual**2).sum()) / len(origin)
    assert got.value == pytest.approx(values.mean())
    assert got.high - got.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    (narrow,) = intervals(values[:, None], lambda means: means)
    assert got.high - got.low > 2 * (narrow.high - narrow.low)


def test_proportions_of_images_that_are_alike() -> None:
    """Images of an origin share its chance: nearly every interval has to cover the mean chance."""
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(400):
        chance = rng.beta(1.6, 0.4, 60)
        origin = np.repeat(np.arange(60), rng.integers(1, 20, 60))
        correct = rng.random(len(origin)) < chance[origin]
        found = proportion(correct, origin), proportion(correct)
        covered.append([interval.low <= 0.8 <= interval.high for interval in found])
    together, apart = np.mean(covered, axis=0)
    assert 0.92 < together < 0.98 and apart < 0.75


def test_the_effective_number_of_images() -> None:
    origin = np.array([0, 0, 1, 1, 1, 2])
    correct = np.array([1, 1, 0, 1, 0, 1])
    # p = 4/6; sums - p * counts = 2/3, -1, 1/3.
    variance = 3 / 2 * (4 / 9 + 1 + 1 / 9) / 36
    assert effective_count(correct, origin) == pytest.approx(4 / 6 * 2 / 6 / variance)
    # One of every origin is wrong: spread more evenly than by chance, which does not count.
    assert effective_count(np.tile([1, 0], 5), np.repeat(np.arange(5), 2)) == 10
    assert effective_count(np.ones(6), origin) == effective_count(np.zeros(6), origin) == 3
    assert effective_count(correct, np.zeros(6)) == 1


def test_an_evaluation_resamples_origins() -> None:
    """Every interval is that of the images without their copies."""
    config = small_config(**{"model.resolutions": (64, 48, 32)})
    trained = synthetic_model(config, ("a",), Path("run"))
    single, calibration = records(0), records(1)
    rows = np.repeat(np.arange(400), 4)
    # Of 3,200 images in the source those of even index; the source numbers the origins backwards.
    copies = replace(single.take(rows), index=np.arange(0, 3200, 2))
    origin = np.zeros(3200, np.int32)
    origin[copies.index] = 1000 - rows
    source = ArraySource(np.zeros((3200, 1, 1, 3), np.uint8), origin, "all", {"origin": origin})
    got = evaluation(trained, with_origin(copies, source), calibration, 0.0, None)
    want = evaluation(trained, single, calibration, 0.0, None)
    assert got["resampled"] == {"by": "origin", "count": 400}
    assert want["resampled"] == {"by": "image", "count": 400}
    plain = ArraySource(source.images, origin, "all")
    assert with_origin(copies, plain) is copies
    for name, entry in want["controls"]["intervals"].items():
        width = entry["high"] - entry["low"]
        ours = got["controls"]["intervals"][name]
        assert ours["high"] - ours["low"] == pytest.approx(width, rel=0.15), name
    for part in ("fixed", "by_class", "by_resolution"):
        for ours, theirs in zip(got[part], want[part], strict=True):
            width, expected = (np.diff(entry["interval"])[0] for entry in (ours, theirs))
            # One origin fewer than images: the design effect is of an estimated variance.
            assert width == pytest.approx(expected, rel=0.1)
    for curve in ("cascade_curve", "lambda_curve"):
        ours, theirs = np.array(got["controls"][curve]), np.array(want["controls"][curve])
        # Settings, costs and top-1; then the ends.
        np.testing.assert_allclose(ours[:, 1:3], theirs[:, 1:3], rtol=1e-6)
        np.testing.assert_allclose(ours[:, 3:], theirs[:, 3:], atol=1e-3)


DIFFERENCES = {
    "hull": Interval(0.02, 0.01, 0.03),
    "matched_random": Interval(0.03, 0.02, 0.04),
    "cascade": Interval(0.02, -0.01, 0.05),
    "margin_cascade": Interval(-0.02, -0.03, -0.01),
    "64 px": Interval(0.01, -0.02, 0.04),
    "48 px": Interval(-0.01, -0.03, 0.02),
    "32 px": Interval(0.2, 0.1, 0.3),
}


def test_verdicts() -> None:
    """Above and below where the interval is; the best fixed resolution is not the largest."""
    relative = {"64 px": 0.6, "48 px": 1.25, "32 px": 3.0}
    lines = verdicts(DIFFERENCES, relative)
    assert list(lines) == list(DIFFERENCES)
    hull = "above the hull of the fixed resolutions: +2.00 points (+1.00 to +3.00)"
    assert lines["hull"] == hull
    assert lines["margin_cascade"].startswith("below a margin cascade: -2.00 points")
    assert lines["64 px"].startswith("level with 64 px at 0.60 of its cost: +1.00")
    assert verdict(DIFFERENCES, relative) == (
        "above the hull of the fixed resolutions and a random choice with its "
        "shares; level with a confidence cascade, 64 px at 0.60 of its cost and "
        "48 px at 1.25 of its cost; below a margin cascade"
    )
    best = DIFFERENCES | {"48 px": Interval(0.05, 0.01, 0.09)}
    assert "48 px" not in verdict(best, relative)


def glancing_records(seed: int, count: int = 400) -> EvalRecords:
    """Whose second looks get right one image more in five than the looks alone."""
    found = records(seed, count)
    mended = found.top1 | (np.arange(count)[:, None] % 5 == 0)
    return replace(found, answer_top1=np.column_stack([mended[:, :2], found.top1[:, 2]]))


GLANCE_COST = ModelCost(0, COST.classifier, glances=True)


def test_controls_of_a_first_look() -> None:
    """It costs 1 GMAC beside a second one; the fixed resolutions and cascades are without."""
    test, calibration = glancing_records(0), glancing_records(1)
    figures = control_figures(test, calibration, GLANCE_COST, 0.0, SIZES)
    value = {name: entry["value"] for name, entry in figures["intervals"].items()}
    drnet = test.answer_top1[np.arange(400), test.choice].mean()
    assert value["drnet"] == pytest.approx(drnet)
    spent = np.array([5.0, 3.0, 1.0])
    shares = np.bincount(test.choice, minlength=3) / 400
    gmacs = spent[test.choice].mean()
    assert figures["gmacs"]["drnet"] == pytest.approx(gmacs)
    assert figures["gmacs"]["matched_random"] == pytest.approx(gmacs)
    assert value["matched_random"] == pytest.approx(shares @ test.answer_top1.mean(0))
    small, middle, large = test.top1.mean(0)[::-1]
    hull = np.interp(gmacs, [1, 2, 4], [small, middle, large])
    assert value["hull"] == pytest.approx(hull)
    for size, top1 in zip(SIZES, (large, middle, small), strict=True):
        assert value[f"drnet - {size} px"] == pytest.approx(drnet - top1)
    assert f"at {gmacs / 4:.2f} of its cost" in figures["verdicts"]["64 px"]
    for name, sureness in (("cascade", "confidence"), ("margin_cascade", "margin")):
        steps = [SIZES.index(size) for size in figures["cascade_sizes"][name]]
        outcome = cascade(
            *(test.top1[:, steps], getattr(test, sureness)[:, steps], COSTS[steps]),
            figures[f"{name}_threshold"],
        )
        assert value[name] == pytest.approx(outcome.top1)
        assert figures["gmacs"][name] == pytest.approx(outcome.gmacs)
        assert value[f"drnet - {name}"] == pytest.approx(drnet - outcome.top1)
        assert figures[f"{name}_curve"][-1][1] == COSTS[steps].sum()


def test_what_is_needed_goes_by_the_answers() -> None:
    """A second look may be correct only because it reuses the first."""
    test = glancing_records(0)
    figures = control_figures(test, glancing_records(1), GLANCE_COST, 0.0, SIZES)
    assert confusion(test.choice, test.answer_top1) != confusion(test.choice, test.top1)
    assert figures["chosen_by_needed"] == confusion(test.choice, test.answer_top1)
    larger = ~test.answer_top1[:, 2] & test.answer_top1[:, :2].any(1)
    expected = np.exp(log_softmax(test.scores, axis=1)) @ [5.0, 3.0, 1.0]
    pairs = expected[larger][:, None] - expected[~larger]
    auroc = (pairs > 0).mean() + (pairs == 0).mean() / 2
    assert figures["auroc_larger_needed"]["value"] == pytest.approx(auroc)


def tried(calibration: EvalRecords, steps: list[int], threshold: float) -> tuple[float, float]:
    """Mean cost and accuracy of a margin cascade, image by image."""
    spent, correct = 0.0, 0
    for top1, margin in zip(calibration.top1, calibration.margin, strict=True):
        for step in steps[::-1]:
            spent += COSTS[step]
            if margin[step] >= threshold or step == steps[0]:
                correct += top1[step]
                break
    return spent / len(calibration.top1), correct / len(calibration.top1)


def test_the_margin_cascade_is_the_best_of_all(figures: dict[str, Any]) -> None:
    """Of every set of resolutions at the highest threshold within DRNet's cost."""
    calibration = records(1)
    budget = COSTS[calibration.choice].mean() + 0.1
    best = {}
    for steps in ([0, 1], [0, 2], [1, 2], [0, 1, 2]):
        within = [
            threshold
            for threshold in (*np.unique(calibration.margin[:, steps]), 2.0)
            if tried(calibration, steps, threshold)[0] <= budget
        ]
        if within:
            best[tuple(steps)] = (tried(calibration, steps, max(within))[1], max(within))
    want = max(best, key=lambda steps: best[steps][0])
    assert len(best) > 2
    assert figures["cascade_sizes"]["margin_cascade"] == [SIZES[step] for step in want]
    assert figures["margin_cascade_threshold"] == best[want][1]
    assert figures["cascade_sizes"]["cascade"] == list(SIZES)
    # Those that begin with the middle one are more accurate, and cost more than that.
    cheap, threshold = at_cost(through_some("margin", (4, 2, 1)), calibration, 1.05)
    assert cheap.steps[-1] == 2 and cheap.outcome(calibration, threshold).gmacs <= 1.05


def test_the_least_cost_of_being_as_good_as_the_largest() -> None:
    """The setting is the calibration images', tried on others."""
    test, calibration = glancing_records(0), glancing_records(1)
    curve = drnet_curve(calibration, GLANCE_COST)
    spent = np.array([5.0, 3.0, 1.0])
    log_p = log_softmax(calibration.scores, axis=1)
    enough, good = calibration.top1[:, 0].mean(), {}
    for lam in curve.settings:
        choice = (log_p - lam * spent).argmax(1)
        if calibration.answer_top1[np.arange(400), choice].mean() >= enough:
            good[spent[choice].mean()] = lam
    assert 0 < len(good) < len(curve.settings)
    got = as_good_as_largest([curve], test, calibration)
    assert got["setting"] == good[min(good)]
    choice = (log_softmax(test.scores, axis=1) - got["setting"] * spent).argmax(1)
    correct = test.answer_top1[np.arange(400), choice]
    assert got["gmacs"] == pytest.approx(spent[choice].mean())
    assert got["top1"] == pytest.approx(correct.mean())
    change = got["minus_largest"]
    assert change["value"] == pytest.approx(correct.mean() - test.top1[:, 0].mean())
    assert change["low"] < change["value"] < change["high"]
    wrong = replace(calibration, answer_top1=np.zeros((400, 3), bool))
    assert set(as_good_as_largest([curve], test, wrong).values()) == {None}
    # Of several methods the cheapest at which that is so.
    cascades = [cascade_curve(calibration, one) for one in through_some("margin", (4, 2, 1))]
    each = [as_good_as_largest([one], calibration, calibration) for one in cascades]
    known = [one["gmacs"] for one in each if one["gmacs"] is not None]
    assert len(set(known)) > 1
    assert as_good_as_largest(cascades, calibration, calibration)["gmacs"] == min(known)
