"""The embedded data: reproducible, without leaks between splits, and drawn as described."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import datasets

from drnet_jax.data import digits_on_photos
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.digits_on_photos import DIGITS, IMAGES, compose
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import ArraySource, DataError

NUM_DIGITS = 1797
FIELDS = ("image", "label", "apparent_size", "origin")


@pytest.fixture
def coded_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces digit i by a picture of the number i, labelled i % 10."""
    index = np.arange(NUM_DIGITS)
    pictures = np.zeros((NUM_DIGITS, 8, 8))
    for place in range(3):
        pictures[:, 0, place] = index // 16**place % 16
    fake = SimpleNamespace(images=pictures, target=index % 10)
    monkeypatch.setattr(datasets, "load_digits", lambda: fake)


def decode(glyphs: np.ndarray) -> np.ndarray:
    values = np.round(glyphs[..., 0, :3].astype(np.float64) * (16 / 255)).astype(int)
    return values @ [1, 16, 256]


@pytest.mark.parametrize("split", list(DIGITS))
def test_compose_is_deterministic_and_a_prefix(split: str) -> None:
    long, short, again = compose(split, 80), compose(split, 50), compose(split, 50)
    assert set(long) == set(FIELDS)
    for field in FIELDS:
        np.testing.assert_array_equal(short[field], again[field])
        np.testing.assert_array_equal(short[field], long[field][:50])


def test_splits_have_other_images() -> None:
    seen = {image.tobytes() for split in DIGITS for image in compose(split, 50)["image"]}
    assert len(seen) == 150


def test_image_fields() -> None:
    data = compose("calibration", 30)
    assert data["image"].shape == (30, 64, 64, 3)
    assert [data[field].dtype for field in FIELDS] == [np.uint8, *[np.int32] * 3]


def test_unknown_split() -> None:
    with pytest.raises(KeyError):
        compose("validation")


def test_unknown_split_with_a_number_of_images() -> None:
    with pytest.raises(KeyError):
        compose("validation", 1)


@pytest.mark.usefixtures("coded_digits")
def test_every_digit_belongs_to_exactly_one_split_and_keeps_its_label() -> None:
    everything = []
    for split, size in DIGITS.items():
        glyphs, labels, numbers = digits_on_photos._digits(split)
        indices = decode(glyphs)
        np.testing.assert_array_equal(numbers, indices)
        assert len(set(indices)) == size
        np.testing.assert_array_equal(labels, indices % 10)
        everything.extend(indices)
    assert sorted(everything) == list(range(NUM_DIGITS))


@pytest.mark.usefixtures("coded_digits")
@pytest.mark.parametrize("split", list(DIGITS))
def test_facts_are_those_of_the_drawn_digits(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []

    def record(glyph: np.ndarray, side: int, photos: Any, rng: Any) -> np.ndarray:
        drawn.append((int(decode(glyph)), int(side)))
        return np.zeros((64, 64, 3), np.uint8)

    monkeypatch.setattr(digits_on_photos, "_draw", record)
    data = compose(split)
    indices, sides = np.array(drawn).T
    assert len(data["label"]) == len(indices) == IMAGES[split]
    np.testing.assert_array_equal(data["label"], indices % 10)
    np.testing.assert_array_equal(data["apparent_size"], sides)
    np.testing.assert_array_equal(data["origin"], indices)
    # Uniform over the split's own digits.
    own = decode(digits_on_photos._digits(split)[0])
    counts = np.array([(indices == index).sum() for index in own])
    assert counts.sum() == IMAGES[split]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_data_set() -> None:
    """Splits hold the first images composed, what is known of each, and the split's name."""
    splits = DataSplits(DataSettings("digits_on_photos", train_images=30, eval_images=20))
    assert splits.classes == tuple("0123456789")
    for split, count in (("train", 30), ("calibration", 20), ("test", 20)):
        source, composed = splits.load(split), compose(split, 40)
        assert isinstance(source, ArraySource)
        np.testing.assert_array_equal(source.images, composed["image"][:count])
        np.testing.assert_array_equal(source.labels, composed["label"][:count])
        assert set(source.metadata) == {"apparent_size", "origin"}
        for name, values in source.metadata.items():
            np.testing.assert_array_equal(values, composed[name][:count])
        assert splits.identity(split) == source.identity == split


def test_unusable_settings() -> None:
    few = DataSplits(DataSettings("digits_on_photos", eval_images=2001))
    assert len(few.load("test")) == 2001
    for ask in (few.load, few.identity):
        with pytest.raises(DataError, match="calibration split .* has 2000 images, not 2001"):
            ask("calibration")
    with pytest.raises(DataError, match="set data.train_images instead"):
        DataSplits(DataSettings("digits_on_photos", images_per_class=5))


def test_label_counts_follow_the_digits_of_the_split() -> None:
    data = compose("test", 1000)
    own = np.bincount(digits_on_photos._digits("test")[1], minlength=10)
    counts = np.bincount(data["label"], minlength=10)
    assert counts.shape == (10,)
    assert stats.chisquare(counts, 1000 * own / own.sum()).pvalue > 1e-3


def test_apparent_sizes_are_log_uniform_between_10_and_56() -> None:
    sides = compose("train", 1000)["apparent_size"]
    assert sides.min() >= 10
    assert sides.max() <= 56
    edges = np.array([10, 13.5, 18.5, 25.5, 35.5, 46.5, 56])
    counts = np.histogram(sides, edges)[0]
    expected = 1000 * np.diff(np.log(edges)) / np.log(5.6)
    assert stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("side", [10, 33, 56])
def test_a_full_glyph_is_a_square_of_its_side_in_one_visible_colour(side: int) -> None:
    photo = np.full((80, 90, 3), 100.0, np.float32)
    glyph = np.full((8, 8), 255, np.uint8)
    for seed in range(20):
        image = digits_on_photos._draw(glyph, side, [photo], np.random.default_rng(seed))
        changed = (image != 100).any(axis=-1)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert changed.sum() == side**2
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (side, side)
        colors = np.unique(image[changed], axis=0)
        assert len(colors) == 1
        assert np.abs(colors[0] - 100.0).mean() >= 70.0 - 0.5
    np.testing.assert_array_equal(photo, 100.0)


def test_an_empty_glyph_leaves_the_photo_at_reduced_contrast() -> None:
    photo = np.random.default_rng(0).uniform(0, 255, (64, 64, 3)).astype(np.float32)
    before = photo.copy()
    image = digits_on_photos._draw(
        np.zeros((8, 8), np.uint8), 20, [photo], np.random.default_rng(0)
    )
    expected = 0.4 * photo.astype(np.float64) + 0.6 * photo.mean(dtype=np.float64)
    np.testing.assert_allclose(image, expected, atol=0.51)
    np.testing.assert_array_equal(photo, before)
