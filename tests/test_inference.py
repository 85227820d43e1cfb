"""Adaptive inference: equal to the dense model, whatever the batch size, order and budget."""

import threading
from collections.abc import Iterator
from copy import copy
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from drnet_jax.checkpoints.finite import NotFiniteError
from drnet_jax.config import default_config
from drnet_jax.data.preprocess import normalise
from drnet_jax.inference.arrays import ArrayClassifier
from drnet_jax.inference.buckets import BucketPlan
from drnet_jax.inference.decision import choose, lambda_changes
from drnet_jax.inference.engine import Classified
from drnet_jax.inference.folding import fold_batch_norm
from drnet_jax.inference.images import DeviceImages, HostImages
from drnet_jax.inference.programs import CostTable
from drnet_jax.models.create import create_model
from drnet_jax.models.resnet import ResNet
from drnet_jax.models.variables import init_variables
from tests.random_model import randomised, spread_choices

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
BUCKETS = (1, 2, 4, 8)
NUM_CLASSES = 7


class Case:
    """A model, images, and what the dense model says of them."""

    def __init__(self, **overrides: Any) -> None:
        config = default_config()
        config.update_from_flattened_dict(
            {
                "model.name": "resnet",
                "model.args": "stage_sizes=(1, 1), width=4, stem='small'",
                "model.resolutions": (48, 32, 16),
                "predictor.args": "stage_sizes=(1, 1, 1), width=4, stem='small'",
            }
            | overrides
        )
        self.model = create_model(config, NUM_CLASSES)
        rng = np.random.default_rng(1)
        size = self.model.resolutions[0]
        coarse = rng.integers(0, 256, (60, 4, 4, 3))
        images = np.repeat(np.repeat(coarse, size // 4, 1), size // 4, 2)
        self.images = (images * rng.uniform(0.2, 1, (60, 1, 1, 1))).astype(np.uint8)
        self.variables = randomised(init_variables(self.model, jax.random.key(0)), 0)
        if self.model.predictor is not None:
            self.variables = spread_choices(
                self.model, self.variables, normalise(self.images, MEAN, STD)
            )
        dense: Any = jax.jit(self.model.apply)(self.variables, normalise(self.images, MEAN, STD))
        self.branches = np.asarray(dense.branch_logits)
        self.answers = np.asarray(dense.answers)
        self.scores = np.asarray(dense.scores)

    def engine(self, **arguments: Any) -> ArrayClassifier:
        settings = {"mean": MEAN, "std": STD, "buckets": BUCKETS} | arguments
        return ArrayClassifier(self.model, self.variables, **settings)

    def check(self, got: Classified, rows: np.ndarray, *, tolerance: float) -> None:
        """Choices and logits of some images against the dense model's."""
        margins = np.sort(self.scores[rows], axis=1)
        clear = (
            margins[:, -1] - margins[:, -2] > 1e-5 if margins.shape[1] > 1 else margins[:, 0] == 0
        )
        np.testing.assert_array_equal(got.choices[clear], self.scores[rows].argmax(1)[clear])
        expected = self.answers[rows, got.choices]
        assert np.abs(got.logits - expected).max(initial=0) <= tolerance * self.branches.std()
        np.testing.assert_array_equal(got.labels, expected.argmax(1))


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.fixture(scope="module")
def engine(case: Case) -> ArrayClassifier:
    return case.engine(fold=False)


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    events: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if "compile" in event or "trace" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def test_every_resolution_is_chosen(case: Case) -> None:
    shares = np.bincount(case.scores.argmax(1), minlength=3) / len(case.images)
    assert shares.min() > 0.2


@pytest.mark.parametrize("count", [0, 1, 2, 7, 13, 60])
def test_any_batch_size(case: Case, engine: ArrayClassifier, count: int) -> None:
    got = engine.classify(case.images[:count])
    assert got.logits.shape == (count, NUM_CLASSES)
    case.check(got, np.arange(count), tolerance=1e-5)


def test_any_order(case: Case, engine: ArrayClassifier) -> None:
    rows = np.random.default_rng(2).permutation(60)
    case.check(engine.classify(case.images[rows]), rows, tolerance=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"model.resolution_aware": False},
    ],
)
def test_folded(overrides: dict[str, Any]) -> None:
    case = Case(**overrides)
    rows = np.arange(60)
    case.check(case.engine(fold=True, buckets=(20,)).classify(case.images), rows, tolerance=1e-4)


def test_folded_bottlenecks() -> None:
    network = ResNet(5, (1, 2), block="bottleneck", width=4)
    pixels = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    arguments = {"resolution": 32, "train": False}
    variables = randomised(network.init(jax.random.key(0), pixels, **arguments), 0)
    expected = np.asarray(network.apply(variables, pixels, **arguments))
    folded, params = fold_batch_norm(network, variables, 32)
    got = np.asarray(folded.apply(params, pixels, **arguments))
    np.testing.assert_allclose(got, expected, atol=1e-4 * expected.std(), rtol=0)


def test_a_norm_without_a_convolution_cannot_be_folded() -> None:
    norm = {"scale_32": np.ones(2), "bias_32": np.zeros(2)}
    variables = {
        "params": {"bn7": norm},
        "batch_stats_32": {"bn7": {"mean": np.zeros(2), "var": np.ones(2)}},
    }
    with pytest.raises(ValueError, match="no convolution before bn7"):
        fold_batch_norm(ResNet(5, (1,)), variables, 32)


def test_one_resolution_needs_no_predictor() -> None:
    case = Case(**{"model.resolutions": (32,)})
    got = (engine := case.engine(fold=False, buckets=(5,))).classify(case.images[:5])
    case.check(got, np.arange(5), tolerance=1e-5)
    assert set(got.macs) == set(engine.cost.classifier)


def test_costs(case: Case, engine: ArrayClassifier) -> None:
    got = engine.classify(case.images)
    for choice, resolution, macs in zip(got.choices, got.resolutions, got.macs, strict=True):
        assert resolution == (48, 32, 16)[choice]
        assert macs == engine.cost.predictor + engine.cost.classifier[choice]


@pytest.mark.parametrize("lam", [-1e6, -300.0, 0.0, 100.0, 1e6])
def test_lambda(case: Case, engine: ArrayClassifier, lam: float) -> None:
    got = engine.classify(case.images, lam=lam)
    costs = np.array(engine.cost.classifier_gmacs)
    values = log_softmax(case.scores.astype(np.float64), axis=1) - lam * costs
    np.testing.assert_array_equal(got.choices, values.argmax(1))
    if abs(lam) == 1e6:
        assert set(got.choices) == {0 if lam < 0 else 2}


@pytest.mark.parametrize("max_waiting", [0, 1, 3, 100])
def test_batches_in_order(case: Case, engine: ArrayClassifier, max_waiting: int) -> None:
    sizes = [5, 0, 1, 17, 2, 2, 8, 25]
    starts = np.cumsum([0, *sizes])
    batches = [case.images[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    results = list(engine.classify_batches(batches, max_waiting=max_waiting))
    assert [len(got.choices) for _, got in results] == sizes
    for batch, (given, got), start, size in zip(batches, results, starts, sizes, strict=False):
        assert given is batch
        case.check(got, np.arange(start, start + size), tolerance=1e-5)


def test_whatever_a_batch_is_comes_back(case: Case, engine: ArrayClassifier) -> None:
    """With labels, say, and in whatever order the buckets of later batches are done."""
    batches = [{"name": str(start), "pixels": case.images[start:][:9]} for start in range(0, 60, 9)]
    pairs = list(engine.classify_batches(batches, images=itemgetter("pixels"), max_waiting=3))
    assert [batch for batch, _ in pairs] == batches
    for batch, got in pairs:
        start = int(batch["name"])
        case.check(got, np.arange(start, min(start + 9, 60)), tolerance=1e-5)
        assert got.problems == {}


def test_waiting_batches_are_bounded(case: Case, engine: ArrayClassifier) -> None:
    """An endless stream: the results come though one resolution is never full."""
    rare, usual = (int(np.argmax(case.scores.argmax(1) == choice)) for choice in (0, 2))
    read = 0

    def stream() -> Iterator[np.ndarray]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield case.images[[rare if number == 0 else usual]]

    results = engine.classify_batches(stream(), max_waiting=10)
    case.check(next(results)[1], np.array([rare]), tolerance=1e-5)
    # As many as wait, the batch whose result came, and one whose predictor runs.
    assert read == 12


def test_full_buckets_only(case: Case, engine: ArrayClassifier, monkeypatch: Any) -> None:
    started: list[int] = []
    for program in engine.classifiers:
        original = program.run
        monkeypatch.setattr(
            program,
            "run",
            lambda images, original=original: started.append(len(images)) or original(images),
        )
    batches = [case.images[start : start + 6] for start in range(0, 60, 6)]
    list(engine.classify_batches(batches, max_waiting=100))
    counts = np.bincount(case.scores.argmax(1), minlength=3)
    # The rest of each queue comes last.
    rests = [bucket for rest in counts % 8 for bucket in (4, 2, 1) if rest & bucket]
    assert started == [8] * sum(counts // 8) + rests


def test_a_fixed_resolution(case: Case, engine: ArrayClassifier) -> None:
    got = engine.fixed(1).classify(case.images[:11])
    expected = case.branches[:11, 1]
    assert np.abs(got.logits - expected).max() <= 1e-5 * case.branches.std()
    assert set(got.resolutions) == {32} and set(got.macs) == {engine.cost.classifier[1]}


def test_everywhere(case: Case, engine: ArrayClassifier) -> None:
    scores, logits = engine.classify_everywhere(case.images[:13])
    assert scores is not None
    np.testing.assert_allclose(scores, case.scores[:13], atol=1e-5 * case.scores.std())
    np.testing.assert_allclose(logits, case.branches[:13], atol=1e-5 * case.branches.std())


def test_no_compilation_after_the_constructor(
    case: Case, engine: ArrayClassifier, compilations: list[str]
) -> None:
    jax.jit(lambda x: x + 1)(np.float32(1))
    assert compilations
    compilations.clear()
    rng = np.random.default_rng(3)
    for _ in range(200):
        rows = rng.integers(0, 60, rng.integers(0, 40))
        engine.classify(case.images[rows], lam=float(rng.normal(0, 100)))
    list(engine.classify_batches([case.images[:9]] * 5, max_waiting=2))
    assert not compilations


@pytest.mark.parametrize("where", [HostImages, DeviceImages])
def test_gathering(where: type, compilations: list[str]) -> None:
    """Rows of two batches, in buckets of other sizes; black after them."""
    rng = np.random.default_rng(0)
    arguments = () if where is HostImages else ((3, 5), jax.devices()[0])
    images = where((4, 6), *arguments)
    compilations.clear()
    batches = [rng.integers(1, 256, (count, 4, 6, 3), np.uint8) for count in (11, 4)]
    opened = [images.open(batches[0], [5, 3, 5])[0], images.open(batches[1], [5])[0]]
    assert [[part.count for part in parts] for parts in opened] == [[5, 3, 3], [4]]
    for part in (*opened[0], *opened[1]):
        assert not np.asarray(part.images)[part.count :].any()
    rows = [np.array([10, 0, 7]), np.array([2])]
    got = np.asarray(images.gather(0, 5, list(zip(opened, rows, strict=True))))
    expected = np.zeros((5, 4, 6, 3), np.uint8)
    expected[:3], expected[3] = batches[0][rows[0]], batches[1][2]
    np.testing.assert_array_equal(got, expected)
    assert not compilations


def test_extended(case: Case) -> None:
    """First what single images need, then what eight do; images in memory, and as on a GPU."""
    device = jax.devices()[0]
    for images in (HostImages((48, 48)), DeviceImages((48, 48), (1,), device)):
        engine = case.engine(fold=False, up_to=1)
        engine._images = images
        assert [program.buckets for program in engine.programs] == [(1,)] * 4
        assert engine.is_ready(1) and not engine.is_ready(4)
        assert (engine.lacking(1), engine.lacking(3)) == ([], [2, 4])
        case.check(engine.classify(case.images[:3]), np.arange(3), tolerance=1e-5)
        # None begins in time.
        late = engine.extended(8, until=0.0)
        assert late.lacking(8) == [2, 4, 8] and late.is_ready(1)
        larger = late.with_times(late.measure(1)).extended(8)
        assert larger.times is None and larger.lacking(8) == []
        timed = larger.with_times(larger.measure(1))
        assert timed.extended(6) is timed
        alone = larger.fixed(2)
        assert alone.is_ready(8) and alone.lacking(8) == [] and alone.extended(8) is alone
        assert [program.buckets for program in larger.programs] == [BUCKETS] * 4
        case.check(larger.classify(case.images), np.arange(60), tolerance=1e-5)
        assert engine.lacking(8) == [2, 4, 8]


def test_every_network_has_buckets_of_its_own(case: Case, monkeypatch: Any) -> None:
    """As on a GPU, where small images have larger ones: by dispatch, alone and everywhere."""
    own = {48: (1, 2), 32: (1, 2, 4), 16: (1, 2, 4, 8)}
    monkeypatch.setattr("drnet_jax.inference.engine.default_buckets", lambda side, *_: own[side])
    device = jax.devices()[0]
    monkeypatch.setattr(
        "drnet_jax.inference.arrays.memory_images",
        lambda size, buckets, _: DeviceImages(size, buckets, device),
    )
    engine = case.engine(fold=False, buckets=None)
    # The predictor sees 32 px.
    assert [program.buckets for program in engine.programs] == [own[s] for s in (32, 48, 32, 16)]
    rows = np.arange(60)
    for _, got in engine.classify_batches([case.images], max_waiting=2):
        case.check(got, rows, tolerance=1e-5)
    scores, logits = engine.classify_everywhere(case.images)
    np.testing.assert_allclose(scores, case.scores, atol=1e-4)
    np.testing.assert_allclose(logits, case.branches, atol=1e-4 * case.branches.std())
    smallest = engine.fixed(2).classify(case.images)
    np.testing.assert_allclose(smallest.logits, case.branches[:, 2], atol=1e-4)
    table = engine.measure(1)
    assert [set(times) for times in table.classifiers] == [{*own[s]} for s in (48, 32, 16)]
    timed = engine.with_times(table)
    case.check(timed.classify(case.images), rows, tolerance=1e-5)
    assert timed.classify_everywhere(case.images)[1].shape == logits.shape


def test_images_on_the_device(case: Case, engine: ArrayClassifier, monkeypatch: Any) -> None:
    """As on a GPU."""
    on_device = DeviceImages(engine.image_size, BUCKETS, jax.devices()[0])
    monkeypatch.setattr(engine, "_images", on_device)
    sizes = [5, 17, 0, 30]
    starts = np.cumsum([0, *sizes])
    batches = [case.images[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    for waiting in (0, 3):
        results = engine.classify_batches(batches, max_waiting=waiting)
        for (_, got), start, size in zip(results, starts[:-1], sizes, strict=True):
            case.check(got, np.arange(start, start + size), tolerance=1e-5)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 48, 48, 3), np.float32), r"got float32 \[2, 48, 48, 3\]"),
        (np.zeros((48, 48, 3), np.uint8), r"got uint8 \[48, 48, 3\]"),
        (np.zeros((2, 48, 48, 1), np.uint8), r"got uint8 \[2, 48, 48, 1\]"),
        (np.zeros((2, 64, 48, 3), np.uint8), r"got uint8 \[2, 64, 48, 3\]"),
        ([np.zeros((48, 48, 3), np.uint8)], "got list"),
    ],
)
def test_bad_images(case: Case, engine: ArrayClassifier, images: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 images \[n, 48, 48, 3\], " + words):
        engine.classify(images)
    # And none the worse for it.
    case.check(engine.classify(case.images[:3]), np.arange(3), tolerance=1e-5)


@pytest.mark.parametrize("lam", [np.nan, np.inf, -np.inf, "1", None, True, 1j])
def test_a_lambda_that_is_no_number(engine: ArrayClassifier, case: Case, lam: Any) -> None:
    """Any choice would follow from it."""
    with pytest.raises(
        ValueError, match=r"lam=.* must be a finite number, in units of the scores a"
    ):
        engine.classify(case.images[:2], lam=lam)
    with pytest.raises(ValueError, match=r"lam=.* must be a finite number"):
        choose(case.scores, np.array([3.0, 2.0, 1.0]), lam)


def test_scores_and_costs_that_are_no_numbers() -> None:
    scores, gmacs = np.zeros((2, 3)), np.array([3.0, 2.0, 1.0])
    for bad_scores, bad_gmacs, words in [
        (np.array([[0.0, np.nan, 1.0]]), gmacs, "scores must be finite"),
        (scores, np.array([np.inf, 2.0, 1.0]), "costs must be finite"),
        (scores[0], gmacs, r"expected scores \[n, m\] and m costs, got \[3\] and \[3\]"),
        (scores, gmacs[:2], r"got \[2, 3\] and \[2\]"),
        (scores[:, :0], gmacs[:0], r"got \[2, 0\] and \[0\]"),
    ]:
        for function in (partial(choose, lam=0.0), partial(choose, lam=1.0), lambda_changes):
            with pytest.raises(ValueError, match=words):
                function(bad_scores, bad_gmacs)


def broken(engine: ArrayClassifier, part: str) -> ArrayClassifier:
    """The same engine with one network whose weights are NaN; nothing is compiled."""
    other = copy(engine)
    program = copy(engine.predictor if part == "predictor" else engine.classifiers[1])
    assert program is not None
    program.network = copy(program.network)
    program.network.variables = jax.tree.map(lambda leaf: leaf * np.nan, program.network.variables)
    if part == "predictor":
        other.predictor = program
    else:
        other.classifiers = (engine.classifiers[0], program, engine.classifiers[2])
    return other


@pytest.mark.parametrize("waiting", [0, 3])
@pytest.mark.parametrize("part", ["predictor", "classifier"])
def test_outputs_that_are_not_finite(
    part: str, waiting: int, case: Case, engine: ArrayClassifier
) -> None:
    """Name the images whose outputs they are, and give nothing of their batch."""
    bad = broken(engine, part)
    affected = case.scores.argmax(1) == 1 if part == "classifier" else np.ones(60, bool)
    first = np.flatnonzero(affected)[0]
    expected = np.flatnonzero(affected[first : first + 20])
    batches = [case.images[:first], case.images[first : first + 20]]
    results = bad.classify_batches(batches, max_waiting=waiting)
    if len(batches[0]):
        case.check(next(results)[1], np.arange(first), tolerance=1e-5)
    with pytest.raises(NotFiniteError, match="of the model are not finite for images") as error:
        list(results)
    np.testing.assert_array_equal(error.value.rows, expected)
    assert error.value.batch is batches[1]
    with pytest.raises(NotFiniteError):
        bad.classify_everywhere(case.images[:3])
    case.check(engine.classify(case.images[:3]), np.arange(3), tolerance=1e-5)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"buckets": ()}, r"buckets=\(\) must be one or more batch sizes"),
        ({"buckets": 16}, "buckets=16 must be"),
        ({"buckets": (4, 0)}, "a bucket=0 must be an integer, 1 or more"),
        ({"buckets": (4.5,)}, "a bucket=4.5 must be an integer"),
        ({"buckets": (np.nan,)}, "a bucket=nan must be an integer"),
        ({"image_size": (48, -1)}, "a side of image_size=-1 must be"),
        ({"image_size": (48,)}, r"image_size=\(48,\) must be height and width"),
        ({"image_size": 48}, "image_size=48 must be height and width"),
        ({"image_size": (48.0, 48.0)}, "a side of image_size=48.0 must be an integer"),
        ({"mean": (0.5, np.nan, 0.5)}, "mean=.* must be three finite numbers$"),
        ({"mean": (0.5, 0.5)}, "mean=.* must be three finite numbers$"),
        ({"std": (0.5, 0.0, 0.5)}, "std=.* must be three finite numbers above zero"),
        ({"std": ("a", 1, 1)}, "std=.* must be three finite numbers above zero"),
    ],
)
def test_bad_arguments(case: Case, argument: dict[str, Any], words: str) -> None:
    """Before anything is compiled."""
    settings = {"mean": MEAN, "std": STD, "buckets": (1,)} | argument
    with pytest.raises(ValueError, match=words):
        ArrayClassifier(case.model, case.variables, **settings)


@pytest.mark.parametrize("waiting", [-1, 1.5, None])
def test_bad_waiting(case: Case, engine: ArrayClassifier, waiting: Any) -> None:
    with pytest.raises(ValueError, match=f"max_waiting={waiting} must be an integer, 0 or more"):
        list(engine.classify_batches([case.images], max_waiting=waiting))


def test_times_that_are_none() -> None:
    for seconds in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match="must be finite, zero or more"):
            BucketPlan({1: 1.0, 4: seconds})


def test_threads(case: Case, engine: ArrayClassifier) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(10):
                rows = rng.permutation(60)[: rng.integers(1, 30)]
                case.check(engine.classify(case.images[rows]), rows, tolerance=1e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_measured_times_pad_where_it_is_cheaper(case: Case, engine: ArrayClassifier) -> None:
    cheap = {1: 5.0, 2: 5.1, 4: 5.2, 8: 5.3}
    planned = engine.with_times(CostTable(cheap, (cheap,) * 3))
    assert planned.classifiers[0].plan.split(5) == [8]
    assert engine.classifiers[0].plan.split(5) == [4, 1]
    case.check(planned.classify(case.images[:21]), np.arange(21), tolerance=1e-5)
    with pytest.raises(ValueError, match="times of 2 resolutions"):
        engine.with_times(CostTable(cheap, (cheap,) * 2))
    with pytest.raises(ValueError, match="whether there is a predictor"):
        engine.with_times(CostTable(None, (cheap,) * 3))
    with pytest.raises(ValueError, match="max_waiting=-1"):
        next(engine.classify_batches([case.images[:2]], max_waiting=-1))
    with pytest.raises(ValueError, match="times of the buckets"):
        engine.with_times(CostTable(cheap, ({1: 1.0},) * 3))


def test_measured_times(engine: ArrayClassifier) -> None:
    table = engine.measure(repeats=1)
    assert table.predictor is not None
    for times in (table.predictor, *table.classifiers):
        assert tuple(times) == BUCKETS and min(times.values()) > 0
