"""Before and after: every cell of the report's table by hand, and what is said beside it."""

from typing import Any

import pytest

from drnet_jax.reports.conversion import conversion_section

TIMES = {
    "setting": "cpu (x86_64), 2 threads",
    "lambda": 0.5,
    "milliseconds": [{"batch_size": 8, "fixed": [4.0, 1.0], "adaptive": 2.5}],
}
NOTED = {
    "new_head": False,
    "outputs": 1000,
    "labels": True,
    "before": {"test": {"num_images": 100, "fixed": [{"top1": 0.875}, {"top1": 0.5}]}},
    "seconds": {"outputs": 60.0, "pretrain": 90.0},
    "times": TIMES,
}


def summary(**further: Any) -> dict[str, Any]:
    """An `eval.json` at sizes of 4 and 1 GMACs, at a mean cost of 3."""
    cascade = {"value": 0.75, "low": 0.7, "high": 0.8}
    return {
        "split": "test",
        "resolutions": [64, 32],
        "fixed": [
            {"resolution": 64, "gmacs": 4.0, "top1": 0.9},
            {"resolution": 32, "gmacs": 1.0, "top1": 0.6},
        ],
        "top1": 0.85,
        "gmacs": 3.0,
        "lambda": 0.5,
        "controls": {
            "intervals": {"cascade": cascade, "margin_cascade": cascade | {"value": 0.7}},
            "gmacs": {"cascade": 2.0, "margin_cascade": 3.0},
        },
        "config": {"pretrain.train": "all"},
        "conversion": NOTED,
        **further,
    }


def shown(found: dict[str, Any] | None) -> dict[str, list[Any]]:
    """By its name, a row's before, after, GMACs, share of the largest size's, and times."""
    assert found is not None
    rows = {}
    for row in found["rows"]:
        before, *others = (row[name] for name in ("before", "after", "gmacs", "share"))
        rows[row["name"]] = [before, *map(pytest.approx, others), *row["ms"]]
    return rows


def test_every_row() -> None:
    found = conversion_section(summary(), 10)
    assert shown(found) == {
        "fixed 64 px": [87.5, 90, 4, 1, 4.0],
        "fixed 32 px": [50.0, 60, 1, 0.25, 1.0],
        "adaptive": [None, 85, 3, 0.75, 2.5],
        # Two thirds of the way from 60 to 90.
        "hull of the fixed sizes": [None, 80, 3, 0.75, None],
        "confidence cascade": [None, 75, 2, 0.5, None],
        "margin cascade": [None, 70, 3, 0.75, None],
    }
    assert found is not None
    assert found["batch_sizes"] == [8]
    assert found["notes"] == [
        "Milliseconds: mean, images in memory. cpu (x86_64), 2 threads",
        "2.5 minutes, this evaluation aside: outputs of the imported network 1.0, training 1.5",
    ]


@pytest.mark.parametrize(
    ("train", "labels", "words"),
    [
        ("auto", True, "Trained: its last two stages and the head."),
        ("auto", False, "Trained: BatchNorm at the smaller sizes, nothing of the largest."),
        ("all", False, "Trained: all of the network."),
    ],
)
def test_what_was_trained_is_said(train: str, labels: bool, words: str) -> None:
    noted = NOTED | {"labels": labels}
    found = conversion_section(summary(config={"pretrain.train": train}, conversion=noted), 10)
    assert found is not None and found["words"].endswith(words)


def test_what_there_was_no_time_for_is_said() -> None:
    found = conversion_section(
        summary(conversion=NOTED | {"times": TIMES | {"left_out": [32, 128]}}), 10
    )
    assert found is not None
    assert "Not timed within benchmark.max_seconds: batch 32, 128." in found["notes"]


def test_another_choice_has_not_the_times_of_the_one_that_was_timed() -> None:
    rows = shown(conversion_section(summary(**{"lambda": 0.25}), 10))
    assert rows["adaptive"][-1] is None and rows["fixed 64 px"][-1] == 4.0


@pytest.mark.parametrize("chosen", [True, False])
def test_a_subset_of_the_head_s_classes_is_said_after_stage_1_too(chosen: bool) -> None:
    given = {} if chosen else {"top1": None, "gmacs": None}
    found = conversion_section(summary(**given), 10)
    assert found is not None and len(shown(found)) == (6 if chosen else 2)
    assert "10 of its 1000 classes: every figure, before and after" in found["words"]
    whole = conversion_section(summary(**given), 1000)
    assert whole is not None and "classes" not in whole["words"]


def test_of_another_split_nothing_is_known_before() -> None:
    rows = shown(conversion_section(summary(split="train"), 10))
    assert rows["fixed 64 px"][0] is None and rows["fixed 64 px"][1] == 90
