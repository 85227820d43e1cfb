"""Predictions by a model that takes a first look: what it said is in the rows and on the page."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from drnet_jax.checkpoints.restore import RestoredModel, restore_model
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.data.eval_view import EvalView
from drnet_jax.data.preprocess import normalise
from drnet_jax.inference.create import file_classifier
from drnet_jax.predict import restore_and_predict
from tests.pictures import png
from tests.random_model import write_run
from tests.small_run import GLANCE, small_config
from tests.test_gallery import Page
from tests.test_predict import CLASSES, MEAN, STD
from tests.test_predict_resume import Interruption, contents, interruption

__all__ = ["interruption"]

NUM_IMAGES, BATCH = 30, 8
FIELDS = GLANCE | {"inference.fold": False, "eval.batch_size": BATCH, "predict.gallery": 4}


def config_for(root: Path, output: Path, **further: Any) -> Any:
    places = {"predict.input": str(root), "predict.output": str(output)}
    return small_config(**(FIELDS | places | further))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("trained")
    write_run(small_config(**FIELDS), workdir, CLASSES)
    return workdir


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return compose("test", NUM_IMAGES)["image"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> Path:
    """Pictures, one of which is none."""
    root = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(images):
        (root / f"{number:02}.png").write_bytes(png(image))
    (root / "05b.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def whole(workdir: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a prediction that was not interrupted."""
    output = tmp_path_factory.mktemp("whole")
    restore_and_predict(config_for(root, output), workdir)
    return output


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """By Pillow itself, from the 64 px that pictures of the embedded data are decoded to."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


class Reference:
    """By hand from the networks: each look at its own size, as resized on the host."""

    def __init__(self, restored: RestoredModel, images: np.ndarray) -> None:
        model, variables = restored.model, restored.variables
        parts = {
            part: {name: tree[part] for name, tree in variables.items() if part in tree}
            for part in ("classifier", "predictor")
        }
        looks = {}
        for size in (32, 16):
            seen = normalise(np.stack([resized(image, size) for image in images]), MEAN, STD)
            looks[size] = model.classifier.apply(
                parts["classifier"], seen, resolution=size, train=False, method="look"
            )
        first, second = (np.asarray(looks[size].logits) for size in (16, 32))
        scores = np.asarray(model.predictor.apply(parts["predictor"], looks[16]))
        self.second = scores.argmax(axis=1) == 0
        weight = float(variables["fitted"]["predictor"]["weight"][0])
        self.first = first
        self.logits = np.where(self.second[:, None], second + weight * first, first)


def said(logits: np.ndarray) -> list[tuple[str, float]]:
    """Label and confidence of every row."""
    p = softmax(logits.astype(np.float64), axis=1)
    return [(CLASSES[k], float(row[k])) for k, row in zip(p.argmax(1), p, strict=True)]


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [*csv.DictReader(file)]
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_rows(
    workdir: Path, root: Path, images: np.ndarray, whole: Path, form: str, tmp_path: Path
) -> None:
    output = whole
    if form == "jsonl":
        output = tmp_path / "output"
        restore_and_predict(config_for(root, output, **{"predict.format": form}), workdir)
    rows = read(output / f"predictions.{form}")
    config = small_config(**FIELDS)
    restored = restore_model(config, workdir)
    expected = Reference(restored, images)
    assert 5 < expected.second.sum() < NUM_IMAGES - 5
    cost = file_classifier(config, restored, EvalView(64, 1.0)).cost
    answers, firsts = said(expected.logits), said(expected.first)
    assert answers != firsts
    for number, row in enumerate(rows):
        assert list(row)[-3:] == ["looks", "first_label", "first_confidence"]
        second = expected.second[number]
        assert row["file"] == f"{number:02}.png"
        assert (int(row["looks"]), int(row["resolution"])) == ((2, 32) if second else (1, 16))
        for prefix, (label, confidence) in (("", answers[number]), ("first_", firsts[number])):
            assert row[f"{prefix}label"] == label
            assert float(row[f"{prefix}confidence"]) == pytest.approx(confidence, abs=1e-5)
        macs = cost.predictor + cost.classifier[1] + (cost.classifier[0] if second else 0)
        assert float(row["gmacs"]) == pytest.approx(macs / 1e9, rel=1e-9)
    assert len(rows) == NUM_IMAGES


def test_resumed(
    workdir: Path, root: Path, whole: Path, interruption: Interruption, tmp_path: Path
) -> None:
    """With half a last row, as if it had not been interrupted."""
    config = config_for(root, tmp_path)
    interruption.stop_at = 3 * BATCH
    with pytest.raises(KeyboardInterrupt):
        restore_and_predict(config, workdir)
    table = tmp_path / "predictions.csv"
    table.write_bytes(table.read_bytes()[:-4])
    interruption.stop_at, interruption.decoded = None, []
    restore_and_predict(config, workdir)
    assert len(interruption.decoded) == NUM_IMAGES + 1
    assert contents(tmp_path) == contents(whole)


def test_the_page_shows_both_looks(whole: Path, images: np.ndarray) -> None:
    """At the very pixels, and with what the first one said."""
    rows = {row["file"]: row for row in read(whole / "predictions.csv")}
    page = Page((whole / "gallery.html").read_text())
    shown = [value or "" for name, value in page.attributes if name == "alt"]
    sources = [value or "" for name, value in page.attributes if name == "src"]
    second = [name for name in shown if name in rows and rows[name]["looks"] == "2"]
    assert len(second) == 4 and len(shown) == 2 * 4 + 4
    assert [name.split(", ")[0] for name in shown if name.endswith(", first look")] == second
    for name, source in zip(shown, sources, strict=True):
        file, first = name.removesuffix(", first look"), name.endswith(", first look")
        side = 16 if first else int(rows[file]["resolution"])
        pixels = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))
        np.testing.assert_array_equal(pixels, resized(images[int(file[:2])], side))
    for name in second:
        assert f"first look: {rows[name]['first_label']}" in page.text
