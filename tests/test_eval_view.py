"""Evaluation's view of a picture is the same wherever it is made."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drnet_jax.benchmark import picture_pool
from drnet_jax.data.crops import EvalCrop, is_corrupt
from drnet_jax.data.datasets import eval_view
from drnet_jax.data.decode import CorruptImageError
from drnet_jax.data.eval_view import EvalView, eval_image, view_of
from drnet_jax.data.folder import FileReader
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import ArraySource, EncodedSource
from drnet_jax.inference.encoded import EncodedImages
from drnet_jax.reports.evaluation_report import pictures

SIZE, FRACTION = 24, 0.8
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 61, 3), np.uint8)
# 0.8 of the shorter side, centred.
SQUARE = np.asarray(
    Image.fromarray(PIXELS).resize(
        (SIZE, SIZE), Image.Resampling.BILINEAR, box=(14, 4, 14 + 32, 4 + 32)
    )
)


@pytest.fixture
def source(tmp_path: Path) -> EncodedSource:
    """A picture, and a file that is none."""
    paths = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(PIXELS).save(paths[0])
    paths[1].write_bytes(b"no picture")
    labels = np.zeros(2, np.int32)
    return EncodedSource(FileReader(paths), np.arange(2), labels, "", SIZE, (0.1, 1), FRACTION)


def test_every_way_gives_the_same_square(source: EncodedSource) -> None:
    encoded = source[0]["encoded"]
    assert view_of(source) == EvalView(SIZE, FRACTION)
    with ThreadPoolExecutor(1) as threads:
        images = EncodedImages(EvalView(SIZE, FRACTION), SIZE, (SIZE,), threads)
        (part,), problems = images.open([source.reader.paths[0]], (1,))
        _, unreadable = images.open(source.reader.paths, (1, 1))
    assert problems == {}
    assert unreadable == {1: "it is no picture of a known format"}
    pool = picture_pool(source)
    for square in (
        EvalView(SIZE, FRACTION).decode(encoded),
        EvalCrop(view_of(source)).map(source[0])["image"],
        eval_image(source, 0, SIZE),
        pictures(source)(0, SIZE),
        part.images[0],
        pool.pixels[0],
        pool.decode(pool.encoded[0]),
    ):
        np.testing.assert_array_equal(square, SQUARE)
    # That it cannot be decoded is seen too.
    assert len(pool.pixels) == 1 and (is_corrupt(source, 0), is_corrupt(source, 1)) == (False, True)
    with pytest.raises(CorruptImageError):
        eval_image(source, 1, SIZE)


def test_a_smaller_side_is_resized_from_the_square(source: EncodedSource) -> None:
    small = Image.fromarray(SQUARE).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(eval_image(source, 0, 16), np.asarray(small))


def test_images_in_memory_are_seen_whole() -> None:
    images = PIXELS[None, :, :40]
    memory = ArraySource(images, np.zeros(1, np.int32), "")
    assert view_of(memory) == EvalView(40, 1.0)
    np.testing.assert_array_equal(eval_image(memory, 0, 40), images[0])
    encoded = io.BytesIO()
    Image.fromarray(images[0]).save(encoded, "PNG")
    np.testing.assert_array_equal(view_of(memory).decode(encoded.getvalue()), images[0])
    assert not is_corrupt(memory, 0)


def test_view_of_settings() -> None:
    """The embedded images are composed at their size; nothing of them is cropped."""
    digits = DataSettings("digits_on_photos", size=64, eval_crop=0.875)
    assert eval_view(digits) == EvalView(64, 1.0)
    assert eval_view(DataSettings("folder", size=32, eval_crop=0.5)) == EvalView(32, 0.5)
