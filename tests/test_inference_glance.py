"""Inference with a first look: equal to the dense model, for every predictor and reuse."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drnet_jax.budgets.calibration import Times
from drnet_jax.inference.arrays import ArrayClassifier
from drnet_jax.inference.engine import Classified
from drnet_jax.inference.images import DeviceImages, HostImages
from drnet_jax.inference.programs import CostTable
from tests.test_inference import MEAN, NUM_CLASSES, STD, Case, compilations

__all__ = ["compilations"]

BUCKETS = (1, 4)
INPUTS = {"predictor.inputs": ("margin", "entropy", "norm_logit", "pooled")}
KINDS: dict[str, dict[str, Any]] = {
    "pixels": {"predictor.args": "stage_sizes=(1,), width=4, stem='small'"},
    "glance": {"predictor.kind": "glance", "predictor.objective": "correctness"} | INPUTS,
    "glance with reuse": {"predictor.kind": "glance", "model.reuse": "logits"} | INPUTS,
}
_CASES: dict[str, tuple[Case, ArrayClassifier]] = {}


def made(kind: str) -> tuple[Case, ArrayClassifier]:
    """The case and its engine, compiled once."""
    if kind not in _CASES:
        case = Case(**KINDS[kind])
        engine = ArrayClassifier(
            case.model, case.variables, mean=MEAN, std=STD, buckets=BUCKETS, fold=False
        )
        _CASES[kind] = case, engine
    return _CASES[kind]


def costs(engine: ArrayClassifier) -> np.ndarray:
    """MACs of an image by its choice, the predictor's included, counted by hand."""
    large, middle, small = engine.cost.classifier
    first = small if engine.cost.glances else 0
    return engine.cost.predictor + np.array([first + large, first + middle, small])


def check(
    kind: str, got: Classified, rows: np.ndarray, lam: float = 0.0, tolerance: float = 1e-5
) -> None:
    """Everything that is said of some images against the dense model."""
    case, engine = made(kind)
    values = case.scores[rows].astype(np.float64) - lam * costs(engine) / 1e9
    best = np.sort(values, axis=1)
    clear = best[:, -1] - best[:, -2] > 1e-4
    np.testing.assert_array_equal(got.choices[clear], values.argmax(1)[clear])
    expected = case.answers[rows, got.choices]
    bound = tolerance * case.branches.std()
    assert np.abs(got.logits - expected).max(initial=0) <= bound
    np.testing.assert_array_equal(got.resolutions, np.array((48, 32, 16))[got.choices])
    np.testing.assert_array_equal(got.macs, costs(engine)[got.choices])
    if kind == "pixels":
        assert got.first_logits is None and set(got.looks) <= {1}
        return
    assert got.first_logits is not None
    assert np.abs(got.first_logits - case.branches[rows, 2]).max(initial=0) <= bound
    np.testing.assert_array_equal(got.looks, np.where(got.choices == 2, 1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_the_case_is_not_trivial(kind: str) -> None:
    """Every resolution is chosen, and a first look that is reused changes some answers."""
    case, _ = made(kind)
    assert np.bincount(case.scores.argmax(1), minlength=3).min() > 10
    weight = np.zeros(3)
    if kind == "glance with reuse":
        weight = np.asarray(case.variables["fitted"]["predictor"]["weight"])
        assert np.abs(weight[:2]).min() > 0.05 and weight[2] == 0
        assert (case.answers.argmax(2) != case.branches.argmax(2)).any()
    by_hand = case.branches + weight[None, :, None] * case.branches[:, 2:]
    np.testing.assert_allclose(case.answers, by_hand, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("where", [HostImages, DeviceImages])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 13), min_size=1, max_size=6),
    waiting=st.integers(0, 4),
    lam=st.sampled_from([0.0, -50.0, 30.0, 300.0, -1e6, 1e6]),
    seed=st.integers(0, 99),
)
def test_equal_to_the_dense_model(
    kind: str, where: type, sizes: list[int], waiting: int, lam: float, seed: int
) -> None:
    """Batches of any sizes, streamed or not, from memory or from the device, in any order."""
    case, engine = made(kind)
    before = engine._images
    if where is DeviceImages:
        engine._images = _on_device(engine)
    rows = [np.random.default_rng(seed).integers(0, 60, size) for size in sizes]
    batches = [case.images[mine] for mine in rows]
    results = list(engine.classify_batches(batches, lam=lam, max_waiting=waiting))
    engine._images = before
    assert len(results) == len(batches)
    for mine, batch, (given_back, got) in zip(rows, batches, results, strict=True):
        assert given_back is batch and got.logits.shape == (len(mine), NUM_CLASSES)
        check(kind, got, mine, lam)


_ON_DEVICE: list[DeviceImages] = []


def _on_device(engine: ArrayClassifier) -> DeviceImages:
    """The gather of a GPU, compiled once: it is the same for all engines."""
    if not _ON_DEVICE:
        _ON_DEVICE.append(DeviceImages(engine.image_size, BUCKETS, jax.devices()[0]))
    return _ON_DEVICE[0]


def test_folded() -> None:
    case, _ = made("glance with reuse")
    got = case.engine(fold=True, buckets=(20,)).classify(case.images)
    check("glance with reuse", got, np.arange(60), tolerance=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_one_resolution_or_all(kind: str) -> None:
    """A fixed resolution is without a first look; everywhere is what the dense model computes."""
    case, engine = made(kind)
    bound = 1e-5 * case.branches.std()
    for choice, resolution in enumerate((48, 32, 16)):
        got = engine.fixed(choice).classify(case.images[:9])
        assert np.abs(got.logits - case.branches[:9, choice]).max() <= bound
        assert set(got.macs) == {engine.cost.classifier[choice]}
        assert set(got.resolutions) == {resolution} and got.first_logits is None
        scores, logits = engine.fixed(choice).classify_everywhere(case.images[:5])
        assert scores is None
        assert np.abs(logits - case.branches[:5, [choice]]).max() <= bound
    scores, logits = engine.classify_everywhere(case.images[:13])
    assert scores is not None
    np.testing.assert_allclose(scores, case.scores[:13], atol=1e-5 * case.scores.std())
    np.testing.assert_allclose(logits, case.branches[:13], atol=bound)


def test_nothing_runs_where_the_first_look_is_enough(monkeypatch: Any) -> None:
    """And nothing is compiled, for the smallest resolution not even beforehand."""
    case, engine = made("glance with reuse")
    assert engine.classifiers[2] is engine.predictor
    started: list[int] = []
    for program in engine.classifiers:
        side = engine.classifiers.index(program)
        original = program.run
        monkeypatch.setattr(
            program,
            "run",
            lambda images, original=original, side=side: started.append(side) or original(images),
        )
    rows = np.flatnonzero(case.scores.argmax(1) == 2)[:8]
    check("glance with reuse", engine.classify(case.images[rows]), rows)
    assert started == [2, 2]


def test_no_compilation_after_the_constructor(compilations: list[str]) -> None:
    case, engine = made("glance with reuse")
    jax.jit(lambda x: x + 2)(np.float32(1))
    assert compilations
    compilations.clear()
    rng = np.random.default_rng(3)
    for _ in range(50):
        rows = rng.integers(0, 60, rng.integers(0, 40))
        engine.classify(case.images[rows], lam=float(rng.normal(0, 100)))
    list(engine.classify_batches([case.images[:9]] * 5, max_waiting=2))
    engine.fixed(2).classify(case.images[:5])
    assert not compilations


def test_measured_times() -> None:
    """They say whether there is a first look, and are refused where that differs."""
    case, engine = made("glance")
    table = engine.measure(repeats=1)
    assert table.glances and table.predictor is not None and len(table.classifiers) == 3
    check("glance", engine.with_times(table).classify(case.images[:21]), np.arange(21))
    without = CostTable(table.predictor, table.classifiers)
    with pytest.raises(ValueError, match="differ in whether there is a first look"):
        engine.with_times(without)
    with pytest.raises(ValueError, match="differ in whether there is a first look"):
        made("pixels")[1].with_times(table)


def test_times_of_an_image() -> None:
    """Choosing the smallest costs the first look alone: by hand, at one image and at batches."""
    first, large, small = {1: 0.002}, {1: 0.010, 2: 0.012}, {1: 0.5}
    table = CostTable(first, (large, small), glances=True)
    shares = np.array([[0.25, 0.75], [0.0, 1.0], [1.0, 0.0]])
    times = Times("cpu", table)
    np.testing.assert_allclose(times.milliseconds(shares), [2 + 0.25 * 6, 2, 8])
    np.testing.assert_allclose(times.milliseconds(shares, 1), [2 + 0.25 * 10, 2, 12])
    # Of two images none, one or both take a second look.
    both = (0.25**2 * 12 + 2 * 0.25 * 0.75 * 10) / 2
    np.testing.assert_allclose(times.milliseconds(shares, 2), [2 + both, 2, 8])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, CostTable({1: 0.5}, ({1: 2.0}, {1: 1.0}))),
        ({"glances": True}, CostTable({1: 0.5}, ({1: 2.0}, {1: 1.0}), glances=True)),
        ({"glances": "yes"}, None),
        ({"glances": True, "predictor": None}, None),
    ],
    ids=str,
)
def test_tables_of_json(content: dict[str, Any], expected: CostTable | None) -> None:
    """Those of earlier versions, which know no first look, are read."""
    content = {"predictor": {"1": 0.5}, "classifiers": [{"1": 2.0}, {"1": 1.0}]} | content
    if expected is not None:
        assert CostTable.from_json(content) == expected
        return
    with pytest.raises(ValueError, match="glances=.* does not go with its predictor"):
        CostTable.from_json(content)
