"""One program a batch: equal to exact dispatch where the places are the choices, and what it is."""

import glob
import re
from collections import Counter
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.checkpoints.finite import NotFiniteError
from drnet_jax.inference.arrays import ArrayClassifier
from drnet_jax.inference.engine import Classified
from drnet_jax.inference.fused import FusedClassifier
from drnet_jax.inference.fused_program import FusedOutput, FusedProgram
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import model_cost
from drnet_jax.models.variables import classifier_variables
from tests.test_capacity import by_hand
from tests.test_inference import MEAN, NUM_CLASSES, STD, Case, compilations
from tests.test_inference_glance import KINDS, costs

__all__ = ["compilations"]

NORMALISE: dict[str, Any] = {"mean": MEAN, "std": STD}
# By batch size; of two images no place at the middle resolution.
CAPACITIES = {1: None, 2: (1, 0, 1), 8: (3, 3, 2), 32: (12, 9, 11)}
COUNTS = {size: places or (0, 1, 0) for size, places in CAPACITIES.items()}


@cache
def made(kind: str) -> tuple[Case, ArrayClassifier]:
    """The case and its exact engine, compiled once."""
    case = Case(**KINDS[kind] | {"model.args": "stage_sizes=(1,), width=4, stem='small'"})
    return case, case.engine(fold=False, buckets=(8,))


@cache
def fused(kind: str, batch_size: int, lam: float = 0.0) -> FusedClassifier:
    """Compiled once."""
    case, _ = made(kind)
    return FusedClassifier(
        case.model,
        case.variables,
        **NORMALISE,
        batch_size=batch_size,
        capacities=CAPACITIES[batch_size],
        lam=lam,
        fold=False,
    )


def rows_that_choose(choices: np.ndarray, counts: tuple[int, ...], seed: int) -> np.ndarray:
    """Rows of images in any order, so many of each choice."""
    rng = np.random.default_rng(seed)
    rows = [rng.choice(np.flatnonzero(choices == j), count) for j, count in enumerate(counts)]
    return rng.permutation(np.concatenate(rows))


def check_equal(case: Case, got: Classified, exact: Classified, tolerance: float = 1e-5) -> None:
    """Image by image, in all that is said of them."""
    bound = tolerance * case.branches.std()
    assert got.logits.dtype == np.float32 and got.choices.dtype == exact.choices.dtype
    assert got.logits.flags.writeable and got.choices.flags.writeable
    np.testing.assert_array_equal(got.choices, exact.choices)
    np.testing.assert_array_equal(got.resolutions, exact.resolutions)
    np.testing.assert_array_equal(got.macs, exact.macs)
    np.testing.assert_allclose(got.logits, exact.logits, rtol=0, atol=bound)
    np.testing.assert_allclose(got.scores, exact.scores, rtol=0, atol=tolerance)
    assert (got.first_logits is None) == (exact.first_logits is None)
    if got.first_logits is not None:
        np.testing.assert_allclose(got.first_logits, exact.first_logits, rtol=0, atol=bound)


@pytest.mark.parametrize("batch_size", CAPACITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_exact_dispatch_where_the_places_are_the_choices(
    kind: str, batch_size: int
) -> None:
    case, engine = made(kind)
    chosen = engine.classify(case.images).choices
    counts = [COUNTS[batch_size]] if batch_size > 1 else [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    for seed, of_each in enumerate(counts * 2):
        rows = rows_that_choose(chosen, of_each, seed)
        exact = engine.classify(case.images[rows])
        assert np.bincount(exact.choices, minlength=3).tolist() == list(of_each)
        check_equal(case, fused(kind, batch_size).classify(case.images[rows]), exact)


def test_equal_with_batch_norm_folded() -> None:
    """As it is by default, up to what folding rounds."""
    case, engine = made("glance with reuse")
    exact = engine.classify(case.images[:20])
    capacities = np.bincount(exact.choices, minlength=3).tolist()
    got = FusedClassifier(
        case.model, case.variables, **NORMALISE, batch_size=20, capacities=capacities
    ).classify(case.images[:20])
    check_equal(case, got, exact, tolerance=1e-4)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_lambda(batch_size: int) -> None:
    """Choices by gain minus lambda times cost: other ones than without."""
    case, engine = made("pixels")
    lam = 300.0
    exact = engine.classify(case.images, lam=lam)
    assert (exact.choices != engine.classify(case.images).choices).mean() > 0.1
    classifier = fused("pixels", batch_size, lam)
    if batch_size == 1:
        for row in range(10):
            one = classifier.classify(case.images[[row]])
            assert one.choices == exact.choices[[row]]
        return
    rows = np.arange(8)
    values = exact.scores[rows] - lam * np.array(engine.cost.choice_costs)
    expected = by_hand(values, CAPACITIES[8], 8)
    np.testing.assert_array_equal(classifier.classify(case.images[rows]).choices, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_any_batch(kind: str, count: int) -> None:
    """Whatever the images choose: the places by the rule, the answers those of the dense model."""
    case, engine = made(kind)
    for seed in range(3):
        rows = np.random.default_rng(seed).integers(0, 60, count)
        got = fused(kind, 8).classify(case.images[rows])
        expected = np.array(by_hand(case.scores[rows], CAPACITIES[8], count), int)
        np.testing.assert_array_equal(got.choices, expected)
        bound = 1e-5 * case.branches.std()
        assert got.logits.shape == (count, NUM_CLASSES)
        assert np.abs(got.logits - case.answers[rows, expected]).max(initial=0) <= bound
        np.testing.assert_array_equal(got.macs, costs(engine)[expected])
        np.testing.assert_array_equal(got.resolutions, np.array((48, 32, 16))[expected])
        np.testing.assert_array_equal(
            got.looks, np.where((kind != "pixels") & (expected < 2), 2, 1)
        )


def test_padding_takes_no_place() -> None:
    """Five images of eight places get what they choose, as by exact dispatch."""
    case, engine = made("glance with reuse")
    chosen = engine.classify(case.images).choices
    rows = rows_that_choose(chosen, (2, 1, 2), seed=0)
    exact = engine.classify(case.images[rows])
    check_equal(case, fused("glance with reuse", 8).classify(case.images[rows]), exact)


def test_what_runs_on_the_device_alone() -> None:
    """Costs there are those of the result, and rows of padding do not matter."""
    case, _ = made("glance")
    classifier = fused("glance", 8)
    images = case.images[:8].copy()
    outputs = []
    for fill in (0, 255):
        images[6:] = fill
        outputs.append(classifier.run(classifier.upload(images), jnp.int32(6)))
    got = classifier.classify(case.images[:6])
    for output in outputs:
        assert output.logits.dtype == output.gmacs.dtype == jnp.float32
        np.testing.assert_array_equal(output.logits[:6], got.logits)
        np.testing.assert_array_equal(output.choices[:6], got.choices)
        np.testing.assert_allclose(output.gmacs[:6], got.macs / 1e9, rtol=1e-6)


def test_one_resolution() -> None:
    """Without a predictor, of images that are larger."""
    case, _ = made("pixels")
    classifier = FusedClassifier(
        DRNet(case.model.classifier, None, (32,)),
        classifier_variables(case.variables),
        **NORMALISE,
        batch_size=5,
        capacities=(5,),
        image_size=(48, 48),
        fold=False,
    )
    # There is nothing to choose.
    assert not re.search(r"\b(sort|scatter|gather)\(", classifier._executable.as_text())
    assert " sort(" in fused("pixels", 8)._executable.as_text()
    got = classifier.classify(case.images[:4])
    assert np.abs(got.logits - case.branches[:4, 1]).max() <= 1e-5 * case.branches.std()
    assert set(got.macs) == set(classifier.cost.classifier) and set(got.resolutions) == {32}


@pytest.mark.parametrize("kind", ["pixels", "glance with reuse"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_one_launch_and_no_transfer(
    kind: str, batch_size: int, compilations: list[str], tmp_path: Path
) -> None:
    """Between upload and result, by JAX's profiler and transfer guard; nothing is compiled.

    The guard lets a CPU's arrays be read by the host, which a second launch would follow.
    """
    case, _ = made(kind)
    classifier = fused(kind, batch_size)
    images = jax.block_until_ready(classifier.upload(case.images[:batch_size]))
    trivial, number = jax.jit(lambda x: x + 1), jnp.float32(1)
    jax.block_until_ready([trivial(number), classifier.run(images)])
    compilations.clear()
    with jax.transfer_guard("disallow"):
        once = launches(lambda: trivial(number), tmp_path / "trivial")
        batch = launches(lambda: classifier.run(images), tmp_path / "batch")
    assert once and set(once.values()) == {1}
    assert batch == once
    assert not compilations


def launches(run: Callable[[], Any], directory: Path) -> Counter[str]:
    """How often each event of an executable that is started stands in a profile."""
    with jax.profiler.trace(str(directory)):
        jax.block_until_ready(run())
    (file,) = glob.glob(f"{directory}/**/*.xplane.pb", recursive=True)
    planes = jax.profiler.ProfileData.from_file(file).planes
    names = [event.name for plane in planes for line in plane.lines for event in line.events]
    return Counter(name for name in names if "LoadedExecutable::Execute" in name)


def test_one_image_runs_at_its_own_resolution_only() -> None:
    """Counted while it runs: only the classifier that is chosen, and none after a first look."""
    case, _ = made("glance with reuse")
    program = FusedProgram(
        case.model,
        case.variables,
        **NORMALISE,
        capacities=None,
        lam=0.0,
        fold=True,
        cost=model_cost(case.model),
    )
    started: list[int] = []

    def noting(apply: Any, j: int, variables: Any, images: jax.Array) -> jax.Array:
        """Says that it runs."""
        jax.debug.callback(lambda: started.append(j))
        logits: jax.Array = apply(variables, images)
        return logits

    program._classifiers = tuple(
        replace(network, apply=partial(noting, network.apply, j))
        for j, network in enumerate(program._classifiers)
    )
    jitted = jax.jit(program.__call__)
    for choice in range(3):
        row = np.flatnonzero(case.scores.argmax(1) == choice)[0]
        started.clear()
        output = jitted(program.variables, (case.images[[row]],), np.int32(1))
        jax.block_until_ready(output)
        jax.effects_barrier()
        assert output.choices == choice
        assert started == ([choice] if choice < 2 else [])


def test_outputs_that_are_not_finite() -> None:
    """Name the images that they are of."""
    case, engine = made("pixels")
    classifier = copy(fused("pixels", 8))
    networks = list(classifier._variables["classifiers"])
    networks[1] = jax.tree.map(lambda leaf: leaf * np.nan, networks[1])
    classifier._variables = classifier._variables | {"classifiers": tuple(networks)}
    chosen = engine.classify(case.images).choices
    rows = rows_that_choose(chosen, CAPACITIES[8], seed=1)
    with pytest.raises(NotFiniteError, match="of the model are not finite for images") as error:
        classifier.classify(case.images[rows])
    np.testing.assert_array_equal(error.value.rows, np.flatnonzero(chosen[rows] == 1))
    with pytest.raises(NotFiniteError, match="are not finite for x 1, x 4$"):
        classifier._check_finite(
            ["x 0", "x 1", "x 2", "x 3", "x 4"],
            FusedOutput(np.array([[0.0], [np.nan], [0], [np.inf], [np.nan]]), *[np.zeros(5)] * 4),
            {3: "unreadable"},
        )


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 48, 48, 3), np.float32), r"expected uint8 .*, got float32 \[2, 48, 48, 3\]"),
        (np.zeros((2, 64, 48, 3), np.uint8), r"expected uint8 .*, got uint8 \[2, 64, 48, 3\]"),
        ([1], r"expected uint8 images \[n, 48, 48, 3\], got list"),
        (np.zeros((9, 48, 48, 3), np.uint8), "9 images are more than batch_size=8: give them in"),
    ],
)
def test_bad_images(images: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fused("pixels", 8).classify(images)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"batch_size": 0}, "batch_size=0 must be an integer, 1 or more"),
        ({"capacities": 8}, "capacities=8 must be places for each of 3 resolutions"),
        ({"capacities": None}, "capacities=None must be places for each of 3 resolutions"),
        ({"capacities": (4, 4, 1), "batch_size": 16}, "must have places for a batch of 16"),
        ({"lam": np.nan}, "lam=nan must be a finite number"),
        ({"image_size": (48,)}, r"image_size=\(48,\) must be height and width"),
        ({"std": (0.5, 0.0, 0.5)}, "std=.* must be three finite numbers above zero"),
    ],
)
def test_bad_arguments(argument: dict[str, Any], words: str) -> None:
    """Before anything is compiled."""
    case, _ = made("pixels")
    settings = NORMALISE | {"batch_size": 8, "capacities": (3, 3, 2)} | argument
    with pytest.raises(ValueError, match=words):
        FusedClassifier(case.model, case.variables, **settings)
