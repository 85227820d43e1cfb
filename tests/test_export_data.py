"""--mode=export on folders of pictures: how they are seen, and what their labels are."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnxruntime
import pytest
from ml_collections import ConfigDict

from drnet_jax import load_run
from drnet_jax.checkpoints.answers import write_answers
from drnet_jax.checkpoints.restore import write_data
from drnet_jax.config import SPLITS, ConfigError
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.eval_view import EvalView
from drnet_jax.data.settings import data_settings
from drnet_jax.data.sources import DataError, EncodedSource
from drnet_jax.export import restore_and_export
from drnet_jax.exports import files as exporter
from drnet_jax.exports import int8
from drnet_jax.library import save_pretrained
from tests.conversion_data import CLASSES, write_pictures
from tests.random_model import write_run
from tests.small_run import GLANCE, small_config


def write_picture_run(
    place: Path, classes: tuple[str, ...] = tuple(sorted(CLASSES)), **fields: Any
) -> ConfigDict:
    """A run of random weights in `place/run`, of the pictures in `place/pictures`."""
    write_pictures(place / "pictures", 20)
    config = small_config(
        **GLANCE
        | {"data.name": "folder", "data.dir": str(place / "pictures"), "data.train_images": 0}
        | {"data.eval_images": 0, "data.test_fraction": 0.3, "data.calibration_fraction": 0.3}
        | fields
    )
    write_run(config, place / "run", classes)
    splits = DataSplits(data_settings(config, place / "run"))
    write_data(place / "run", classes, {split: splits.identity(split) for split in SPLITS})
    config.export.output = str(place / "export")
    config.export.int8 = True
    return config


def float32_top1(folder: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Of the classifier at the largest resolution, in %."""
    session = onnxruntime.InferenceSession(folder / "classifier_32.onnx")
    (logits,) = session.run(["logits"], {"images": images})
    return float(100 * (logits.argmax(1) == labels).mean())


def seen(config: ConfigDict, workdir: Path, fraction: float) -> tuple[np.ndarray, EncodedSource]:
    """The test split's pictures, of which a fraction of the shorter side is seen."""
    source = DataSplits(data_settings(config, workdir)).load("test")
    assert isinstance(source, EncodedSource)
    view = EvalView(32, fraction)
    return np.stack([view.decode(source.read(i)) for i in range(len(source))]), source


def test_pictures_are_seen_as_the_folder_of_a_model_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_picture_run(tmp_path, **{"data.eval_crop": 0.5})
    save_pretrained(load_run(tmp_path / "run"), tmp_path / "folder")
    config.restore_from = str(tmp_path / "folder")
    config.data.eval_crop = 1.0
    compared = Mock(side_effect=int8.compare_accuracy)
    monkeypatch.setattr(int8, "compare_accuracy", compared)
    found = restore_and_export(config, tmp_path / "nothing")
    assert found["preprocessing"]["outside"]["crop_fraction_of_shorter_side"] == 0.5
    assert found["int8"]["accuracy"]["labels"] == "the data set's"
    images, source = seen(config, tmp_path / "nothing", 0.5)
    np.testing.assert_array_equal(compared.call_args.args[2], images)
    np.testing.assert_array_equal(compared.call_args.args[3], source.labels)


def test_answers_in_the_place_of_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said of a run that top-1 is of answers; a folder has none, and says nothing else."""
    config = write_picture_run(tmp_path, ("a", "b", "c", "d"), **{"convert.labels": False})
    answers = np.arange(3 * 20) % 4
    write_answers(tmp_path / "run", answers)
    found = restore_and_export(config, tmp_path / "run")["int8"]["accuracy"]
    images, source = seen(config, tmp_path / "run", config.data.eval_crop)
    expected = float32_top1(tmp_path / "export", images, answers[source.positions])
    assert found["resolutions"][0]["float32"] == pytest.approx(expected)
    said = "top-1 is agreement with the imported network at 32 px, right or wrong, no accuracy"
    assert found["labels"] == said
    assert said in capsys.readouterr().out.splitlines()
    assert json.loads((tmp_path / "export" / "manifest.json").read_text())["int8"][
        "accuracy"
    ] == json.loads(json.dumps(found))

    save_pretrained(load_run(tmp_path / "run"), tmp_path / "folder")
    config.restore_from = str(tmp_path / "folder")
    config.export.output = str(tmp_path / "other")
    with pytest.raises(ConfigError, match="told by labels, and .*folder has none of pictures that"):
        restore_and_export(config, tmp_path / "nothing")
    config.export.int8 = False
    assert restore_and_export(config, tmp_path / "nothing")["usable"]


def test_pictures_for_int8_are_read_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_picture_run(tmp_path)
    source = DataSplits(data_settings(config, tmp_path / "run")).load("calibration")
    for index in range(len(source)):
        (tmp_path / "pictures" / source.name(index)).write_bytes(b"no picture")
    monkeypatch.setattr(exporter, "onnx_model", Mock(side_effect=AssertionError("too late")))
    with pytest.raises(DataError, match="none of the images of the calibration split can be read"):
        restore_and_export(config, tmp_path / "run")
