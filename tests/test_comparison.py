"""Settings over seeds: means, Student's intervals and paired differences against SciPy."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from drnet_jax.evaluation.intervals import Interval, over_seeds, proportion
from drnet_jax.reports.comparison import (
    Setting,
    difference,
    figures,
    markdown,
    points,
    rows,
    to_json,
)


def summary(seed: int, top1: float, shares: tuple[float, float] = (0.5, 0.5)) -> dict[str, Any]:
    """An `eval.json` at two resolutions of 4 and 1 GMACs; the predictor costs 0.5."""
    gmacs = 4 * shares[0] + shares[1] + 0.5
    return {
        "top1": top1,
        "gmacs": gmacs,
        "shares": list(shares),
        "resolutions": [64, 32],
        "fixed": [
            {"resolution": 64, "gmacs": 4.0, "top1": 0.8},
            {"resolution": 32, "gmacs": 1.0, "top1": 0.5},
        ],
        "config": {"seed": seed},
    }


A = Setting("a", (summary(0, 0.70), summary(1, 0.74), summary(2, 0.72)))
B = Setting("b", (summary(1, 0.71), summary(2, 0.70), summary(3, 0.75)))
ALONE = Setting("alone", (summary(0, 0.71),))


def test_figures() -> None:
    found = figures(A.summaries[0])
    assert found["relative_cost"] == pytest.approx(3 / 4)
    assert found["hull"] == pytest.approx(0.5 + 0.3 * (3 - 1) / 3)
    assert found["matched_random"] == pytest.approx(0.65)
    assert found["drnet - hull"] == pytest.approx(0.0)
    assert found["drnet - matched_random"] == pytest.approx(0.05)


def test_over_seeds() -> None:
    values = np.array([0.70, 0.74, 0.72])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert A.interval("drnet") == Interval(pytest.approx(0.72), *map(pytest.approx, expected))
    assert over_seeds(np.full(3, 0.5)) == Interval(0.5, 0.5, 0.5)


def test_differences_are_paired_by_seed() -> None:
    got = difference(B, A, "drnet")
    expected = stats.ttest_rel([0.71, 0.70], [0.74, 0.72]).confidence_interval(0.95)
    assert got == Interval(pytest.approx(-0.025), *map(pytest.approx, expected))
    assert np.isnan(difference(ALONE, A, "drnet").low)
    with pytest.raises(ValueError, match="no seed in common"):
        difference(ALONE, B, "drnet")


def test_of_one_seed_the_interval_is_over_images() -> None:
    known = {"value": 0.71, "low": 0.69, "high": 0.73}
    one = summary(0, 0.71) | {"controls": {"intervals": {"drnet": known}}}
    assert Setting("s", (one,)).interval("drnet") == Interval(**known)
    assert np.isnan(ALONE.interval("drnet").low)


def test_table() -> None:
    half = 100 * (stats.t.ppf(0.975, 2) * 0.02 / np.sqrt(3))
    first, second, alone = rows([A, B, ALONE])
    assert first[:7] == ["a", "3", "64/32", "80.0", f"72.0 ± {half:.1f}", "", "0.750"]
    assert second[5].startswith("-2.5 ± ") and alone[5] == "+1.0" and alone[-1] == "50/50"
    text = markdown({"question": [A, B], "later": [Setting("c", ())]})
    assert "**question**" in text and text.count("\n| ") == 7 and "| c | not finished |" in text
    assert to_json({"q": [A]})["q"]["a"][1]["drnet"] == 0.74
    assert points(Interval(0.5, 0.4, 0.7), sign=True) == "+50.0 ± 15.0"


def test_a_proportion_has_wilsons_interval() -> None:
    """Its ends p are where a z-test of 31 of 40 turns: |31/40 - p| = 1.96 sqrt(p (1 - p) / 40)."""
    got = proportion(np.arange(40) < 31)
    assert got.value == 31 / 40
    for end in (got.low, got.high):
        assert abs(31 / 40 - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / 40))
    theirs = stats.binomtest(31, 40).proportion_ci(0.95, method="wilson")
    assert (got.low, got.high) == (theirs.low, theirs.high)
    certain = proportion(np.ones(50))
    assert certain.value == certain.high == 1 and 0.9 < certain.low < 0.95


def test_what_is_not_defined_is_null() -> None:
    undefined = {"intervals": {"oracle_gap_closed": {"value": None, "low": None, "high": None}}}
    one = Setting("s", (summary(0, 0.7) | {"controls": undefined},))
    assert to_json({"q": [one]})["q"]["s"][0]["oracle_gap_closed"] is None


def compared(gains: dict[str, float], gmacs: float | None) -> dict[str, Any]:
    """A run's differences to its controls, and the cost at which it is as good as the largest."""
    known = {name: {"value": gain, "low": -1.0, "high": 1.0} for name, gain in gains.items()}
    as_good = {"drnet": {"gmacs": gmacs}}
    return {"controls": {"intervals": known, "as_good_as_largest": as_good}}


def test_the_better_cascade_and_the_cost_of_equal_accuracy() -> None:
    """The cascade that leaves less; the largest resolution costs 4 GMACs."""
    first, second = ((0.03, 0.01, 2.0), (0.01, 0.02, 3.0))
    names = ("drnet - cascade", "drnet - margin_cascade")
    found = [
        summary(seed, 0.7) | compared(dict(zip(names, row[:2], strict=True)), row[2])
        for seed, row in enumerate((first, second))
    ]
    *_, cascade, as_good, _ = rows([Setting("s", tuple(found))])[0]
    assert cascade.startswith("+1.5 ± ") and cascade.endswith(" m") and as_good == "0.625"
    early = summary(2, 0.7) | compared({names[0]: 0.05}, None)
    *_, cascade, as_good, _ = rows([Setting("s", (*found, early))])[0]
    assert cascade.startswith("+3.0 ± ") and cascade[-1] != "m" and as_good == "0.625 (2 of 3)"
    assert rows([Setting("s", (early,))])[0][-2] == "no cost"


def test_a_seed_without_controls_leaves_the_cell_empty() -> None:
    known = {"drnet - cascade": {"value": 0.1, "low": 0.0, "high": 0.2}}
    mixed = Setting("m", (summary(0, 0.7) | {"controls": {"intervals": known}}, summary(1, 0.7)))
    assert rows([mixed])[0][-3:-1] == ["", ""]
