"""The table of pruning and resolution at equal multiply-adds, on made-up records."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drnet_jax.evaluation.metrics import EvalRecords
from drnet_jax.models.macs import ModelCost
from experiments.first_look_methods import adaptive, cell
from experiments.first_look_runs import Run, save
from experiments.pruning import at_target, of_rate, read_runs, table, table_alone

# Of the largest size, and how often it is right.
RATES = {"none": (1000, 0.9), "0.25": (750, 0.88), "0.5": (500, 0.7), "0.75": (300, 0.6)}


def records(count: int, seed: int, right: float) -> EvalRecords:
    """The first look is right where it is sure."""
    rng = np.random.default_rng(seed)
    sure = rng.random(count, np.float32)
    top1 = np.stack([rng.random(count) < right, rng.random(count) < (right - 0.5) + sure], axis=1)
    scores = np.stack([np.full(count, 0.9, np.float32), sure], axis=1)
    each, index = np.stack([sure, sure], axis=1), np.arange(count, dtype=np.int32)
    return EvalRecords(
        each, top1, top1, top1, scores.argmax(axis=1), scores, each, each, index, index
    )


def runs() -> dict[str, list[Run]]:
    return {
        rate: [
            Run(
                rate,
                seed,
                (96, 32),
                ModelCost(0, (macs * 10**6, macs * 10**5), glances=True),
                records(400, seed, right),
                records(400, 50 + seed, right),
            )
            for seed in (0, 1)
        ]
        for rate, (macs, right) in RATES.items()
    }


def test_methods_at_a_target() -> None:
    found, rates = at_target(runs(), "0.75", {"pruned": 2.0, "both": 1.0}), runs()
    assert (found["target"], found["pruned"]["rate"], found["dynamic"]["rate"]) == (
        pytest.approx(0.3),
        "0.75",
        "none",
    )
    # 0.25 is hardly less accurate than without pruning, and leaves more for second looks.
    assert found["both"]["rate"] == "0.25"

    def mean(values: Any) -> float:
        return 100 * float(np.mean(values))

    both = mean([adaptive(run)(0.3, run.test).top1 for run in rates["0.25"]])
    dynamic = mean([adaptive(run)(0.3, run.test).top1 for run in rates["none"]])
    pruned = mean([run.test.top1[:, 0].mean() for run in rates["0.75"]])
    assert found["both"]["top1"] == pytest.approx(both)
    assert found["both minus pruned"][0] == pytest.approx(both - pruned)
    assert found["both minus dynamic"][0] == pytest.approx(both - dynamic)
    largest = mean([run.test.top1[:, 0].mean() for run in rates["none"]])
    assert found["both minus largest"][0] == pytest.approx(both - largest)
    assert found["dynamic minus pruned"][0] == pytest.approx(dynamic - pruned)
    assert found["pruned"]["cost"] == pytest.approx(0.3)
    assert found["both"]["cost"] == pytest.approx(0.3, abs=0.04)
    assert (found["pruned"]["ms"], found["both"]["ms"]) == (2.0, 1.0)
    assert f"{both:.1f} at" in table([{"chooser": "first look", **found}])


def test_nothing_is_between_the_mildest_rate_and_none() -> None:
    found = at_target(runs(), "0.25", {})
    assert "both" not in found and "ms" not in found["pruned"]


def test_filters_are_compared_at_the_largest_size() -> None:
    fpgm, others = runs()["0.5"], runs()["0.75"]
    found = of_rate("L1 norm", others, fpgm)
    expected = [100 * float(np.mean([r.test.top1[:, 0] for r in each])) for each in (others, fpgm)]
    low, high = found["minus FPGM"][1:]
    assert found["minus FPGM"][0] == pytest.approx(expected[0] - expected[1])
    assert low < found["minus FPGM"][0] < high
    assert of_rate("FPGM", fpgm)["minus FPGM"] is None
    assert cell(found["minus FPGM"]) in table_alone([found])
    # 0.65 of 300, the cost of the largest size.
    chosen = 100 * float(np.mean([adaptive(run)(0.195, run.test).top1 for run in others]))
    assert found["minus largest"][0] == pytest.approx(chosen - expected[0])
    assert found["share"] == pytest.approx(0.65, abs=0.1)


def test_a_question_has_the_seeds_that_all_of_it_have(tmp_path: Path) -> None:
    for rate, found in runs().items():
        for run in found[: 1 if rate == "0.5" else 2]:
            save(replace(run, variant=f"first look: {rate}"), tmp_path)
    kept = read_runs(tmp_path)
    assert [*kept] == ["first look"] and [*kept["first look"]] == [*RATES]
    assert [run.seed for found in kept["first look"].values() for run in found] == [0] * 4
    (whole,) = kept["first look"]["0.25"]
    np.testing.assert_array_equal(whole.test.scores, runs()["0.25"][0].test.scores)
