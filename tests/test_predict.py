"""Predictions for a folder of pictures: numbers, order, what cannot be read, and the page."""

import base64
import csv
import io
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax, softmax

from drnet_jax.budgets.calibration import BudgetError
from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.checkpoints.finite import NotFiniteError
from drnet_jax.checkpoints.restore import RestoredModel, restore_model
from drnet_jax.config import ConfigError
from drnet_jax.config_checks import check_config
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.data.eval_view import EvalView
from drnet_jax.data.preprocess import normalise
from drnet_jax.data.sources import DataError
from drnet_jax.inference.create import file_classifier
from drnet_jax.inference.files import FileClassifier
from drnet_jax.models.create import create_model
from drnet_jax.models.resnet import ResNet
from drnet_jax.models.variables import init_variables
from drnet_jax.predict import restore_and_predict
from drnet_jax.reports.pages import spread
from drnet_jax.reports.prediction_batches import classify_files
from tests.pictures import png
from tests.random_model import write_overflowing, write_run
from tests.small_run import small_config
from tests.test_gallery import NAMES, Page

NUM_IMAGES = 37
CLASSES = tuple(f"digit {digit}" for digit in range(10))
# Another size than either resolution, so that the predictor's view is one of its own.
MEAN, STD = (0.5,) * 3, (0.25,) * 3
MODEL = {"predictor.size": 24, "inference.fold": False}


def config_for(root: Path, output: Path, **further: Any) -> Any:
    fields = {"predict.input": str(root), "predict.output": str(output), "predict.gallery": 4}
    return small_config(**MODEL, **(fields | further))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a finished run leaves it, without the minute of training: the weights are random."""
    workdir = tmp_path_factory.mktemp("trained")
    write_run(small_config(**MODEL), workdir, CLASSES)
    return workdir


@pytest.fixture(scope="module")
def restored(workdir: Path) -> RestoredModel:
    return restore_model(small_config(**MODEL), workdir)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """`[n, 64, 64, 3]`, in the order of the files of `root`."""
    return compose("test", NUM_IMAGES)["image"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> Path:
    """Pictures in folders and beside them, and a few that are none."""
    root = tmp_path_factory.mktemp("pictures")
    for folder in ("a", "a/deep", "c"):
        (root / folder).mkdir()
    for number, image in enumerate(images):
        folder = ("a", "a/deep", "c")[number * 3 // NUM_IMAGES]
        (root / folder / f"{number:02}.PNG").write_bytes(png(image))
    (root / ".hidden").mkdir()
    (root / ".hidden" / "thumbnail.png").write_bytes(png(images[0]))
    (root / "notes.txt").write_text("no picture")
    return root


def with_broken(root: Path, images: np.ndarray, place: Path) -> tuple[Path, list[str]]:
    """A copy with three pictures that cannot be read, whose names these are, and a dead link."""
    shutil.copytree(root, place)
    jpeg = io.BytesIO()
    Image.fromarray(images[0]).save(jpeg, "JPEG")
    (place / "a" / "05b_empty.jpg").write_bytes(b"")
    (place / "a" / "05c_ends_early.jpg").write_bytes(jpeg.getvalue()[:-30])
    (place / "a" / "zz_text.jpg").write_text("no picture either")
    (place / "b.webp").symlink_to("nowhere")
    names = ["a/05b_empty.jpg", "a/05c_ends_early.jpg", "a/zz_text.jpg"]
    return place, names


def files_of(root: Path) -> list[Path]:
    return [
        *sorted(root.glob("a/*.PNG")),
        *sorted(root.glob("a/deep/*")),
        *sorted(root.glob("c/*")),
    ]


def triangle(image: np.ndarray, size: int) -> np.ndarray:
    """Antialiased resize of `[s, s, 3]` by its definition, each axis rounded to integers."""
    scale = len(image) / size
    centres = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(len(image)) + 0.5 - centres[:, None]) / max(scale, 1)
    weights = np.maximum(1 - distance, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    across = np.floor(np.einsum("oi,hic->hoc", weights, image.astype(float)) + 0.5)
    return np.floor(np.einsum("oi,iwc->owc", weights, across) + 0.5).astype(np.uint8)


def halved(images: np.ndarray) -> np.ndarray:
    """Images of 64 px as they are decoded, at 32 px."""
    return np.stack([triangle(image, 32) for image in images])


def apply(network: ResNet, variables: Any, squares: np.ndarray, size: int) -> np.ndarray:
    """A network's outputs of squares, resized to what it takes."""
    views = np.stack([triangle(square, size) for square in squares])
    run = jax.jit(partial(network.apply, resolution=size, train=False))
    return np.asarray(run(variables, normalise(views, MEAN, STD)))


def _with(variables: Any, part: str) -> list[tuple[str, Any]]:
    return [(name, tree) for name, tree in variables.items() if part in tree]


class Reference:
    """What the dense model says of squares `[n, 32, 32, 3]`, each network at its own size."""

    def __init__(self, restored: RestoredModel, squares: np.ndarray) -> None:
        model, variables = restored.model, restored.variables
        assert model.predictor is not None
        scorer = {
            name: tree["predictor"]["network"] for name, tree in _with(variables, "predictor")
        }
        self.scores = apply(model.predictor.network, scorer, squares, 24)
        classifier = {name: tree["classifier"] for name, tree in _with(variables, "classifier")}
        branches = [apply(model.classifier, classifier, squares, size) for size in (32, 16)]
        self.logits = np.stack(branches, axis=1)
        gain = (log_softmax(self.scores, axis=1) @ [1, -1]).astype(np.float64)
        self.gain = np.sort(gain)
        self._log_p = log_softmax(self.scores.astype(np.float64), axis=1)

    def lam(self, gmacs: np.ndarray) -> float:
        """That which sends half of the images to each resolution."""
        middle = len(self.gain) // 2
        return float((self.gain[middle - 1] + self.gain[middle]) / 2 / (gmacs[0] - gmacs[1]))

    def choices(self, gmacs: np.ndarray, lam: float) -> np.ndarray:
        return (self._log_p - lam * gmacs).argmax(axis=1)


def test_outputs_that_are_not_finite(
    workdir: Path, restored: RestoredModel, root: Path, tmp_path: Path
) -> None:
    """Stop the job, with the files and the checkpoint; none of their rows is written."""
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    broken = write_overflowing(restored, copy)
    with pytest.raises(NotFiniteError, match=rf"of {broken} .* for {root}/[ac]/.*step 1 is intact"):
        restore_and_predict(config_for(root, tmp_path / "out"), copy)
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) <= 1


@pytest.mark.parametrize(
    ("view", "batch_size"),
    [
        (EvalView(32, 1.0), 7),
        # The centre is as large as the largest resolution.
        (EvalView(32, 0.5), 40),
    ],
)
def test_numbers_of_the_dense_networks(
    restored: RestoredModel, root: Path, images: np.ndarray, view: EvalView, batch_size: int
) -> None:
    squares = halved(images) if view.fraction == 1 else images[:, 16:48, 16:48]
    expected = Reference(restored, squares)
    engine = file_classifier(small_config(**MODEL), restored, view)
    gmacs = np.array(engine.cost.classifier_gmacs)
    lam = expected.lam(gmacs)
    choices = expected.choices(gmacs, lam)
    assert 0.4 < choices.mean() < 0.6
    files = files_of(root)
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    pairs = list(engine.classify_batches(batches, lam=lam, max_waiting=2))
    assert [batch for batch, _ in pairs] == batches
    found = [got for _, got in pairs]
    assert not any(got.problems for got in found)
    np.testing.assert_array_equal(np.concatenate([got.choices for got in found]), choices)
    logits = expected.logits[np.arange(NUM_IMAGES), choices]
    got_logits = np.concatenate([got.logits for got in found])
    assert np.abs(got_logits - logits).max() <= 1e-5 * logits.std()

    # At one resolution alone a picture looks the same as where it was chosen.
    ((_, alone),) = engine.fixed(1).classify_batches([files])
    assert np.abs(alone.logits - expected.logits[:, 1]).max() <= 1e-5 * logits.std()

    names = [file.relative_to(root).as_posix() for file in files]
    rows = list(classify_files(engine, root, names, CLASSES, lam=lam, batch_size=batch_size))
    predictions = [prediction for part, _ in rows for prediction in part]
    assert not any(unreadable for _, unreadable in rows)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    for row, prediction in enumerate(predictions):
        best = int(logits[row].argmax())
        assert prediction.file == files[row].relative_to(root).as_posix()
        assert (prediction.label, prediction.class_index) == (CLASSES[best], best)
        assert prediction.confidence == pytest.approx(probabilities[row, best], abs=1e-5)
        assert prediction.resolution == (32, 16)[choices[row]]
        cost = engine.cost.predictor_gmacs + gmacs[choices[row]]
        assert prediction.gmacs == pytest.approx(cost)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_every_file_once_in_order(
    workdir: Path,
    root: Path,
    images: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = tmp_path / "whole"
    summary = restore_and_predict(config_for(root, whole), workdir)
    rows = read_csv(whole / "predictions.csv")
    names = [file.relative_to(root).as_posix() for file in files_of(root)]
    assert [row["file"] for row in rows] == names
    assert summary["num_images"] == NUM_IMAGES and summary["num_unreadable"] == 0
    assert summary["gmacs"] == pytest.approx(np.mean([float(row["gmacs"]) for row in rows]))
    assert sum(summary["shares"]) == pytest.approx(1)
    assert read_csv(whole / "unreadable.csv") == []

    broken_root, broken = with_broken(root, images, tmp_path / "broken")
    output = tmp_path / "output"
    config = config_for(broken_root, output, **{"predict.format": "jsonl", "eval.batch_size": 8})
    summary = restore_and_predict(config, workdir)
    assert summary["num_unreadable"] == len(broken)
    said = capsys.readouterr().out
    assert "2 files (link to nothing 1, .txt 1): b.webp, notes.txt\n" in said
    listed = read_csv(output / "unreadable.csv")
    assert [row["file"] for row in listed] == broken
    words = ("no picture of a known format", "truncated", "no picture of a known")
    for word, row in zip(words, listed, strict=True):
        assert word in row["reason"]
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == names
    for row, line in zip(rows, lines, strict=True):
        assert list(row) == list(line)
        assert float(row.pop("confidence")) == pytest.approx(line.pop("confidence"), abs=2e-6)
        assert row == {name: str(value) for name, value in line.items()}
    assert not list(output.glob("*.tmp"))


def test_nothing_is_overwritten(workdir: Path, root: Path, tmp_path: Path) -> None:
    config = config_for(root, "", **{"predict.gallery": 0})
    own = tmp_path / "workdir"
    config.restore_from = str(workdir)
    output = restore_and_predict(config, own)["output"]
    assert output == own / "predictions" / root.name
    found = sorted(path.name for path in output.iterdir())
    assert found == ["predict.json", "predictions.csv", "unreadable.csv"]
    written = (output / "predictions.csv").read_bytes()
    config.predict.format = "jsonl"
    # Before any work: not even the model is looked for.
    config.restore_from = str(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"predictions/.* is finished, .*--config.predict.outp"):
        restore_and_predict(config, own)
    assert (output / "predictions.csv").read_bytes() == written


def test_clear_errors(workdir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="predict.input is not set"):
        restore_and_predict(small_config(), tmp_path)
    for folder, words in [("none", "is not a folder"), ("empty", "has no picture")]:
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=f"predict.input='.*{folder}' {words}"):
            restore_and_predict(config_for(tmp_path / folder, tmp_path / "out"), tmp_path)
    (tmp_path / "empty" / "0.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 1 pictures in .*unreadable.csv says why"):
        restore_and_predict(config_for(tmp_path / "empty", tmp_path / "out"), workdir)
    (row,) = read_csv(tmp_path / "out" / "unreadable.csv")
    assert row["file"] == "0.jpg" and read_csv(tmp_path / "out" / "predictions.csv") == []
    (tmp_path / "empty" / "1.png").write_bytes(b"")
    with pytest.raises(BudgetError, match="calibration.json is missing"):
        budget = {"budget.gmacs": 1.0}
        restore_and_predict(config_for(tmp_path / "empty", tmp_path / "two", **budget), workdir)
    with pytest.raises(ConfigError, match="use budget.gmacs or budget.max_drop"):
        budget = {"budget.ms": 1.0}
        restore_and_predict(config_for(tmp_path / "empty", tmp_path / "two", **budget), workdir)
    write_run(small_config(**MODEL), tmp_path / "stage 1", CLASSES, stage="pretrain")
    with pytest.raises(CheckpointError, match="holds stage 1 only"):
        # Before the budget, which nothing could calibrate.
        budget = {"budget.gmacs": 1.0}
        config = config_for(tmp_path / "empty", tmp_path / "two", **budget)
        restore_and_predict(config, tmp_path / "stage 1")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="file exists and is not overwritten"):
        restore_and_predict(config_for(tmp_path / "empty", tmp_path / "file"), workdir)
    with pytest.raises(ConfigError, match="predict.format='xml' must be one of 'csv', 'jsonl'"):
        check_config(small_config(**{"predict.format": "xml"}), 1)
    with pytest.raises(ConfigError, match="predict.gallery=-1 must be zero or more"):
        check_config(small_config(**{"predict.gallery": -1}), 1)


def test_odd_names_in_every_file(workdir: Path, images: np.ndarray, tmp_path: Path) -> None:
    root = tmp_path / "odd"
    root.mkdir()
    # The last is no UTF-8.
    names = [name.replace("/", "|") for name in NAMES] + [os.fsdecode(b"\xff.png")]
    for name, image in zip(names, images, strict=False):
        (root / name).write_bytes(png(image))
    restore_and_predict(config_for(root, tmp_path / "out"), workdir)
    got = [row["file"] for row in read_csv(tmp_path / "out" / "predictions.csv")]
    assert sorted(got) == sorted(names)


def test_the_page_shows_the_pixels_that_were_classified(
    workdir: Path, root: Path, images: np.ndarray, tmp_path: Path
) -> None:
    restore_and_predict(config_for(root, tmp_path, **{"predict.gallery": 3}), workdir)
    rows = read_csv(tmp_path / "predictions.csv")
    page = Page((tmp_path / "gallery.html").read_text())
    shown = [value for name, value in page.attributes if name == "alt"]
    sources = [value or "" for name, value in page.attributes if name == "src"]
    expected = []
    for resolution in (32, 16):
        mine = [row["file"] for row in rows if int(row["resolution"]) == resolution]
        expected += [mine[index] for index in spread(len(mine), 3)]
    assert shown == expected
    names = [row["file"] for row in rows]
    for name, source in zip(shown, sources, strict=True):
        row = names.index(name or "")
        side = int(rows[row]["resolution"])
        square = Image.fromarray(images[row]).resize((side, side), Image.Resampling.BILINEAR)
        pixels = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))
        np.testing.assert_array_equal(pixels, square)


def test_one_resolution(images: np.ndarray, tmp_path: Path) -> None:
    config = small_config(**{"model.resolutions": (32,)})
    model = create_model(config, 10)
    variables = init_variables(model, jax.random.key(0))
    settings = {"mean": MEAN, "std": STD, "buckets": (1, 16), "fold": False}
    engine = FileClassifier(model, variables, view=EvalView(32, 1.0), **settings)
    files = [tmp_path / f"{row}.png" for row in range(8)]
    for file, image in zip(files[:7], images, strict=False):
        file.write_bytes(png(image))
    classifier = {name: tree["classifier"] for name, tree in variables.items()}
    expected = apply(model.classifier, classifier, halved(images[:7]), 32)
    for batch, got in engine.classify_batches([files] * 2, max_waiting=1):
        assert batch is files
        assert got.problems == {7: "No such file or directory"}
        assert np.abs(got.logits[:7] - expected).max() <= 1e-5 * expected.std()
        assert set(got.resolutions) == {32} and set(got.macs) == set(engine.cost.classifier)
