"""drnet_runtime says of an export what the engine says of its run, and keeps the same budgets."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from drnet_jax import load_calibration, load_classifier, load_run
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.hub.classifier import AdaptiveClassifier
from drnet_runtime import AdaptiveModel, BudgetError, sessions
from tests.pictures import png
from tests.small_export import CLASSES, write_export
from tests.small_run import GLANCE

KINDS: dict[str, dict[str, Any]] = {
    "predictor": {"model.resolutions": (48, 32, 16)},
    "first look": GLANCE,
    "first look at three": GLANCE | {"model.resolutions": (48, 32, 16)},
    "one resolution": {"model.resolutions": (32,)},
}
LAMBDAS = (0.0, 8.0, -20.0)


@dataclass
class Case:
    """An export, and the engine of its run."""

    kind: str
    place: Path
    model: AdaptiveModel
    engine: AdaptiveClassifier


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    place = tmp_path_factory.mktemp("case")
    write_export(place, calibrated=request.param == "first look", **KINDS[request.param])
    engine = load_classifier(load_run(place / "run"), image_size=(64, 64), buckets=(1, 16))
    return Case(request.param, place, AdaptiveModel.load(place / "export"), engine)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return compose("test", 30)["image"]


def without_ties(scores: np.ndarray | None, costs: np.ndarray, lam: float, n: int) -> np.ndarray:
    """Images whose best two resolutions differ by more than rounding does."""
    if scores is None:
        return np.ones(n, bool)
    values = np.sort(log_softmax(scores.astype(float), axis=1) - lam * costs, axis=1)
    return values[:, -1] - values[:, -2] > 1e-5


def test_what_a_model_says_of_itself(case: Case) -> None:
    model, engine = case.model, case.engine
    assert model.classes == CLASSES and model.resolutions == engine.resolutions
    assert model.image_size == 64
    assert model.macs == tuple(engine.cost.predictor + macs for macs in engine.cost.choice)
    assert model.largest_macs == engine.cost.classifier[0]
    assert model.has_first_look == ("look" in case.kind)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_answers_are_the_engines(case: Case, images: np.ndarray, lam: float) -> None:
    expected = case.engine.classify(images, lam=lam)
    found = case.model.classify(images, lam)
    single = len(case.model.resolutions) == 1
    scores = None if single else expected.scores
    sure = without_ties(scores, np.array(case.engine.cost.choice_costs), lam, len(images))
    assert sure.sum() > 20
    same = found.choices == expected.choices
    assert same[sure].all()
    np.testing.assert_allclose(found.logits[same], expected.logits[same], rtol=0, atol=1e-4)
    best = np.sort(expected.logits, axis=1)
    clear = same & (best[:, -1] - best[:, -2] > 1e-3)
    np.testing.assert_array_equal(found.labels[clear], expected.labels[clear])
    assert clear.sum() > 20
    for name in ("resolutions", "macs", "looks"):
        wanted = np.ones(len(images)) if single and name == "looks" else getattr(expected, name)
        np.testing.assert_array_equal(getattr(found, name)[same], wanted[same], err_msg=name)
    np.testing.assert_allclose(found.probabilities, softmax(found.logits.astype(float), axis=1))
    if single:
        assert found.scores is None
    else:
        np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-4)
        if lam == 0:
            assert len(set(found.choices.tolist())) == len(case.model.resolutions)
    if expected.first_logits is None:
        assert found.first_logits is None
    else:
        np.testing.assert_allclose(found.first_logits, expected.first_logits, rtol=0, atol=1e-4)


def test_each_image_may_have_its_own_lambda(case: Case, images: np.ndarray) -> None:
    lambdas = np.resize([*LAMBDAS, 1e9], len(images))
    found = case.model.classify(images, lambdas)
    for lam in set(lambdas.tolist()):
        rows = lambdas == lam
        alone = case.model.classify(images, lam)
        np.testing.assert_array_equal(found.choices[rows], alone.choices[rows])
        np.testing.assert_allclose(found.logits[rows], alone.logits[rows], rtol=0, atol=1e-5)
    assert (found.choices[lambdas == 1e9] == len(case.model.resolutions) - 1).all()


def test_batches_of_any_size_and_chunk(
    case: Case, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = case.model.classify(images)
    monkeypatch.setattr(sessions, "_MOST_PIXELS", 3 * 32 * 32)
    chunked = AdaptiveModel.load(case.place / "export", threads=1, verify=False)
    for count in (0, 1, 7, 30):
        found = chunked.classify(images[:count])
        assert found.logits.shape == (count, 10) and found.logits.dtype == np.float32
        np.testing.assert_allclose(found.logits, whole.logits[:count], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(found.choices, whole.choices[:count])
        np.testing.assert_array_equal(found.macs, whole.macs[:count])
    # A view whose images do not lie one after the other.
    strided = np.repeat(images, 2, axis=0)[::2]
    np.testing.assert_array_equal(case.model.classify(strided).choices, whole.choices)


def test_threads_share_a_model(case: Case, images: np.ndarray) -> None:
    parts = [np.roll(np.arange(30), shift)[: 5 + shift] for shift in range(12)]
    expected = [case.model.classify(images[rows]) for rows in parts]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            found = pool.map(lambda rows: case.model.classify(images[rows]), parts)
            for got, wanted in zip(found, expected, strict=True):
                np.testing.assert_array_equal(got.choices, wanted.choices)
                np.testing.assert_array_equal(got.logits, wanted.logits)


def test_files_are_the_engines(case: Case, images: np.ndarray, tmp_path: Path) -> None:
    files = [tmp_path / f"{index}.png" for index in range(9)]
    for file, image in zip(files, images, strict=False):
        file.write_bytes(png(image))
    files[4].write_bytes(b"no picture")
    files.append(tmp_path / "missing.png")
    expected = case.engine.classify_files(files, batch_size=4)
    found = case.model.classify_files(files, batch_size=4, workers=2)
    batches = list(case.model.classify_batches(files, batch_size=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [answer for batch in batches for answer in batch] == found
    arrays = case.model.classify(np.stack([case.model.decode(files[row]) for row in range(4)]))
    for row, (answer, wanted) in enumerate(zip(found, expected, strict=True)):
        if row in (4, 9):
            assert answer.reason == wanted.reason.removeprefix("[Errno 2] ").split(":")[0]
            assert answer.label is None and answer.gmacs is None
            continue
        assert answer.reason is None and answer.file == str(files[row])
        # The engine resizes pictures of files on the host, in whole steps of 1/255.
        assert answer.confidence == pytest.approx(wanted.confidence, abs=0.05)
        if row < 4:
            assert answer.class_index == arrays.labels[row]
            assert answer.label == CLASSES[arrays.labels[row]]
            assert answer.confidence == pytest.approx(arrays.probabilities[row].max(), abs=1e-5)
            assert answer.resolution == arrays.resolutions[row]
            assert answer.looks == arrays.looks[row]
            assert answer.gmacs == pytest.approx(arrays.macs[row] / 1e9)
            if arrays.first_logits is None:
                assert answer.first_label is None
            else:
                assert answer.first_label == CLASSES[arrays.first_logits[row].argmax()]
    assert case.model.classify_files([]) == []
    assert [a.reason for a in case.model.classify_files(files[4:5])] == [found[4].reason]


def test_budgets_are_the_runs(case: Case, images: np.ndarray) -> None:
    if case.kind != "first look":
        assert case.model.points == ()
        with pytest.raises(BudgetError, match="nothing is calibrated: run drnet_jax's --mode=cal"):
            case.model.lam_for(drop=1.0)
        return
    known = load_calibration(load_run(case.place / "run"))
    points = case.model.points
    assert [(p.lam, p.gmacs, p.top1, p.shares, p.lost, p.won) for p in points] == [
        (p.lam, p.gmacs, p.top1, p.shares, p.lost, p.won) for p in known.points
    ]
    largest = case.engine.cost.classifier_gmacs[0]
    for point in points:
        assert point.cost == pytest.approx(point.gmacs / largest)
        assert point.saving == pytest.approx(1 - point.gmacs / largest)
    for gmacs in np.linspace(points[-1].gmacs, points[0].gmacs, 9).tolist():
        lam = case.model.lam_for(gmacs=gmacs)
        assert lam == known.for_gmacs(gmacs).lam
        assert case.model.lam_for(fraction=gmacs / largest * (1 + 1e-9)) == lam
    for drop in (0.0, 1.0, 5.0, 100.0):
        assert case.model.lam_for(drop=drop) == known.for_drop(drop).lam
    assert case.model.lam_for(drop=90.0, confidence=0.9) == known.for_drop(90.0, 0.9).lam
    for given in ({}, {"gmacs": 1.0, "drop": 1.0}, {"gmacs": 1.0, "confidence": 0.9}):
        with pytest.raises(TypeError, match="give one of gmacs, fraction and drop"):
            case.model.lam_for(**given)


def wrong_arguments() -> Iterator[tuple[Any, Any, str]]:
    good = np.zeros((2, 64, 64, 3), np.uint8)
    yield good.astype(np.float32), 0.0, r"uint8 \[n, 64, 64, 3\], got float32 \[2, 64, 64, 3\]"
    yield good[0], 0.0, r"got uint8 \[64, 64, 3\]: decode\(\) gives them"
    yield good[:, :32], 0.0, r"got uint8 \[2, 32, 64, 3\]"
    yield good.tolist(), 0.0, "must be a NumPy array, got list"
    yield good, np.inf, "lam must be finite, got inf"
    yield good, np.zeros(3), "one for each of the 2 images"
    yield good, np.zeros((2, 1)), "one for each of the 2 images"
    yield good, "1", "lam must be a number"
    yield good, True, "lam must be a number"
    yield good, None, "lam must be a number"


@pytest.mark.parametrize(("given", "lam", "message"), list(wrong_arguments()))
def test_wrong_arguments(case: Case, given: Any, lam: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        case.model.classify(given, lam)


def test_wrong_arguments_for_files(case: Case) -> None:
    for name, value in (("batch_size", 0), ("workers", 1.5), ("batch_size", True)):
        with pytest.raises(ValueError, match=f"{name}={value} must be an integer >= 1"):
            case.model.classify_files(["a.png"], **{name: value})
    with pytest.raises(ValueError, match="'a.png' must be a sequence of paths"):
        case.model.classify_files("a.png")
    with pytest.raises(ValueError, match="one for each of the 1 images"):
        case.model.classify_files(["a.png"], np.zeros(2))
    for threads in (-1, 1.0, True):
        with pytest.raises(ValueError, match=f"threads={threads} must be an integer >= 0"):
            AdaptiveModel.load(case.place / "export", threads=threads)
