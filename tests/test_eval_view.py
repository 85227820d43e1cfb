"""Evaluation's view of a picture is the same wherever it is made."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from drnet_jax.benchmark import picture_pool
from drnet_jax.checkpoints.restore import restore_model
from drnet_jax.data.crops import EvalCrop, problem
from drnet_jax.data.datasets import eval_view
from drnet_jax.data.decode import CorruptImageError, resize_square
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.data.eval_view import EvalView, eval_image, view_of
from drnet_jax.data.folder import FileReader
from drnet_jax.data.preprocess import normalise
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import ArraySource, EncodedSource
from drnet_jax.inference.encoded import EncodedImages
from drnet_jax.models.layers import resize
from drnet_jax.predict import restore_and_predict
from drnet_jax.reports.evaluation_report import pictures
from drnet_jax.reports.predictions import Prediction
from drnet_jax.runtime.table import Table
from tests.pictures import png
from tests.random_model import write_run
from tests.small_run import small_config

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
    assert len(pool.pixels) == 1 and problem(source, 0) == ""
    assert problem(source, 1) == "it is no picture of a known format"
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
    assert problem(memory, 0) == ""


def test_view_of_settings() -> None:
    """The embedded images are composed at their size; nothing of them is cropped."""
    for size in (48, 64, 96):
        digits = DataSettings("digits_on_photos", size=size, eval_crop=0.875)
        assert eval_view(digits) == EvalView(64, 1.0)
    assert eval_view(DataSettings("folder", size=32, eval_crop=0.5)) == EvalView(32, 0.5)


@pytest.mark.parametrize("sides", [(224, 128), (224, 112), (64, 48), (30, 32)])
def test_resizes_as_the_device(sides: tuple[int, int]) -> None:
    before, after = sides
    square = np.tile(compose("test", 1)["image"][0], (4, 4, 1))[:before, :before]
    on_device = np.asarray(resize(square[None].astype(np.float32), after))[0]
    assert np.abs(resize_square(square, after) - on_device).max() <= 1.01


def test_predict_sees_the_embedded_images_as_evaluation_does(tmp_path: Path) -> None:
    """Below their 64 px: 32 px are resized from these at once, not from 48 px."""
    config = small_config(**{"model.resolutions": (48, 32), "predict.gallery": 0})
    run, root = tmp_path / "run", tmp_path / "pictures"
    write_run(config, run, tuple("0123456789"))
    root.mkdir()
    # Noise, as 32 px from 48 px differ in fine detail.
    noise = np.random.default_rng(0).integers(-100, 101, (24, 64, 64, 3))
    images = (compose("test", 24)["image"] + noise).clip(0, 255).astype(np.uint8)
    for row, image in enumerate(images):
        (root / f"{row:02}.png").write_bytes(png(image))
    config.predict.input, config.predict.output = str(root), str(tmp_path / "output")
    restore_and_predict(config, run)
    found = Table(tmp_path / "output" / "predictions.csv", Prediction).read()
    assert {row.resolution for row in found} == {48, 32}
    state = json.loads((tmp_path / "output" / "predict.json").read_text())
    assert state["job"]["view"] == {"size": 64, "fraction": 1.0}

    restored = restore_model(config, run)
    pixels = normalise(images, tuple(config.data.mean), tuple(config.data.std))
    dense: Any = jax.jit(restored.model.apply)(restored.variables, pixels)
    branches = softmax(np.asarray(dense.branch_logits, np.float64), axis=-1)
    choices = np.array([(48, 32).index(row.resolution) for row in found])
    np.testing.assert_array_equal(choices, np.asarray(dense.scores).argmax(axis=1))
    labels = [row.class_index for row in found]
    expected = branches[np.arange(24), choices, labels]
    difference = np.abs([row.confidence for row in found] - expected)
    # What rounding to whole pixel values does: 0.00007 on average at 32 px, by way of 48 px 0.0006.
    assert difference.max() < 0.001 and difference[choices == 1].mean() < 0.0002
