"""Which head an imported network gets; what keeps weights and pictures from fitting each other."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from drnet_jax.config import ConfigError
from drnet_jax.config_checks import check_config
from drnet_jax.convert import convert
from drnet_jax.data.sources import DataError
from drnet_jax.models.create import create_model
from drnet_jax.pretrained.arrays import read_arrays
from drnet_jax.pretrained.errors import WeightsError
from drnet_jax.train import prepare
from drnet_jax.training.imported import read_imported
from tests.conversion_data import conversion, random_variables, write_pictures, write_weights
from tests.pictures import png
from tests.small_run import small_config

# In the order of the data's labels.
CLASSES = ("one", "two", "zero")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, weights of five classes, and a file of their names."""
    folder = tmp_path_factory.mktemp("imported")
    write_pictures(folder / "pictures", per_class=20)
    write_weights(folder / "weights.safetensors", 5)
    write_weights(folder / "three.safetensors", 3)
    arrays = read_arrays(folder / "three.safetensors")
    headless = {name: array for name, array in arrays.items() if not name.startswith("fc.")}
    save_file(headless, folder / "headless.safetensors")
    (folder / "classes.txt").write_text("four\ntwo\nfive\nzero\none\n")
    (folder / "others.txt").write_text("four\ntwo\nfive\nzero\nsix\n")
    (folder / "unknown.txt").write_text("four\nTwo\nfive\nZero\nsix\n")
    (folder / "short.txt").write_text("four\ntwo\nfive\nzero\n")
    (folder / "twice.txt").write_text("four\ntwo\nfive\ntwo\none\n")
    (folder / "empty").mkdir()
    return folder


def fields(place: Path, **given: Any) -> dict[str, Any]:
    """By the names that tests use, with paths in the place."""
    paths = ("convert.weights", "convert.classes", "data.dir")
    return {n: str(place / v) if n in paths else v for n, v in given.items()}


@pytest.mark.parametrize(
    ("weights", "classes", "head", "columns"),
    [
        ("weights.safetensors", "classes.txt", "auto", [4, 1, 3]),
        ("weights.safetensors", "classes.txt", "keep", [4, 1, 3]),
        ("weights.safetensors", "unknown.txt", "auto", None),
        ("weights.safetensors", "", "auto", None),
        ("weights.safetensors", "classes.txt", "new", None),
        ("three.safetensors", "", "auto", [0, 1, 2]),
        ("three.safetensors", "", "new", None),
    ],
)
def test_the_head(
    weights: str, classes: str, head: str, columns: list[int] | None, place: Path
) -> None:
    given = {"convert.weights": weights, "convert.head": head}
    given |= {"convert.classes": classes} if classes else {}
    config = conversion(place, **fields(place, **given))
    found = read_imported(config, create_model(config, 3), CLASSES)
    kernel, bias = (
        found.variables["params"]["fc"]["kernel"],
        found.variables["params"]["fc"]["bias"],
    )
    assert found.new_head == (columns is None)
    if columns is None:
        assert not kernel.any() and not bias.any() and kernel.shape[1] == 3
    else:
        theirs = random_variables(found.outputs or 0)["params"]["fc"]
        np.testing.assert_array_equal(kernel, theirs["kernel"][:, np.array(columns)])
        np.testing.assert_array_equal(bias, theirs["bias"][np.array(columns)])


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"convert.weights": "none.pth"}, WeightsError, "none.pth cannot be read: No such file"),
        ({"convert.head": "keep"}, ConfigError, "has 5 classes, the data 3: name its classes"),
        (
            {"convert.head": "keep", "convert.classes": "others.txt"},
            ConfigError,
            r"1 of the data's 3 classes are not in .*others.txt \(one\): rename them, or give",
        ),
        ({"convert.classes": "others.txt"}, ConfigError, "'auto', and 1 of the data's 3 classes"),
        (
            {"convert.weights": "headless.safetensors", "convert.classes": "classes.txt"},
            ConfigError,
            "names outputs of a classifier, and .*headless.safetensors has none: leave it out",
        ),
        (
            {"convert.weights": "headless.safetensors", "convert.head": "keep"},
            ConfigError,
            "headless.safetensors has no classifier: give 'new'",
        ),
        (
            {"convert.weights": "headless.safetensors", "convert.labels": False},
            ConfigError,
            "it has no classifier: give weights with one",
        ),
        ({"convert.classes": "short.txt"}, ConfigError, "has 4 lines: .* each of the 5 classes"),
        ({"convert.classes": "twice.txt"}, ConfigError, "names 'two' twice"),
        ({"convert.classes": "none.txt"}, ConfigError, "none.txt'?: No such file"),
        ({"model.args": "width=8, stem='small'"}, WeightsError, "does not fit the network"),
        ({"data.dir": "pictures/zero"}, DataError, "two folders or more"),
        ({"data.dir": "empty", "convert.labels": False}, DataError, "has no picture in it"),
        ({"data.dir": "nowhere", "convert.labels": False}, DataError, "not a folder of pictures"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    given: dict[str, Any], error: type[Exception], words: str, place: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    with pytest.raises(error, match=words):
        prepare(conversion(place, **fields(place, **given)), workdir)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "--mode=convert needs weights"),
        ({"pretrain.train": "head"}, "pretrain.train='head' is of imported weights"),
        (
            {
                "convert.weights": "x",
                "pretrain.train": "smaller_batch_norm",
                "model.resolution_aware": False,
            },
            "pretrain.train='smaller_batch_norm' trains BatchNorms of the smaller resolutions",
        ),
        ({"convert.labels": False}, "convert.labels=False is of imported weights"),
        ({"convert.weights": "x", "stages": ("single",)}, "are what stage 1 starts from"),
        ({"convert.weights": "x", "stages": ("pretrain",)}, "a classifier that chooses"),
        ({"convert.weights": "x", "convert.labels": False}, "needs a folder of pictures"),
        (
            {
                "convert.weights": "x",
                "convert.labels": False,
                "convert.head": "new",
                "data.name": "folder",
            },
            "is fitted to labels",
        ),
    ],
    ids=str,
)
def test_fields_that_do_not_go_together(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = small_config(**given)
    with pytest.raises(ConfigError, match=words):
        check_config(config, jax.device_count(), "convert")
    with pytest.raises(ConfigError, match=words):
        convert(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_saved_model_needs_no_weights(tmp_path: Path) -> None:
    config = small_config(**{"pretrain.train": "last_two_stages", "restore_from": str(tmp_path)})
    check_config(config, jax.device_count(), "export")
    with pytest.raises(ConfigError, match="is of imported weights"):
        check_config(config, jax.device_count(), "train")


def test_too_few_pictures_without_labels(place: Path, tmp_path: Path) -> None:
    """Of two pictures a tenth is none."""
    (tmp_path / "pictures").mkdir()
    for index in range(2):
        (tmp_path / "pictures" / f"{index}.png").write_bytes(png(np.zeros((64, 64, 3), np.uint8)))
    given = {"data.dir": str(tmp_path / "pictures"), "data.calibration_fraction": 0.1}
    config = conversion(place, **given, **{"convert.labels": False})
    with pytest.raises(DataError, match="the calibration split of folder .* has no image"):
        prepare(config, tmp_path / "run")
