"""Pictures that change between the training and the evaluation: refused, or said."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from drnet_jax.calibrate import restore_and_calibrate
from drnet_jax.checkpoints.picture_sizes import write_sizes
from drnet_jax.checkpoints.restore import write_data
from drnet_jax.config import SPLITS
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.settings import data_settings
from drnet_jax.data.sources import DataError
from drnet_jax.evaluate import restore_and_evaluate
from tests.random_model import write_run
from tests.small_run import small_config


def draw(path: Path, seed: int) -> None:
    """Noise, of which hardly two files have the same size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 30 + seed % 7, 40, 3
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, np.uint8)).save(path)


def configured(data: Path) -> ConfigDict:
    fields = {"data.name": "folder", "data.dir": str(data), "data.max_corrupt": 1}
    fields |= {"data.train_images": 0, "data.eval_images": 0, "stages": ("joint",)}
    return small_config(**fields, **{"eval.controls": False, "eval.batch_size": 8})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, `data`, and `run`, finished on them with random weights."""
    root = tmp_path_factory.mktemp("trained")
    for number in range(24):
        draw(root / "data" / "ab"[number % 2] / f"{number:02}.png", number)
    config = configured(root / "data")
    write_run(config, root / "run", ("a", "b"))
    splits = DataSplits(data_settings(config, root / "run"))
    identities = {split: splits.identity(split) for split in SPLITS}
    write_data(root / "run", splits.classes, identities)
    write_sizes(root / "run", {split: splits.sizes(split) for split in SPLITS})
    return root


@pytest.fixture
def config(trained: Path, tmp_path: Path) -> ConfigDict:
    """Of a copy of both."""
    for name in ("data", "run"):
        shutil.copytree(trained / name, tmp_path / name)
    return configured(tmp_path / "data")


def pictures_of_test(config: ConfigDict, workdir: Path) -> list[Path]:
    """The pictures of the test split."""
    source = DataSplits(data_settings(config, workdir)).load("test")
    return [Path(source.name(index)) for index in range(len(source))]


def add(pictures: list[Path]) -> None:
    draw(pictures[0].with_name("new.png"), 99)


def remove(pictures: list[Path]) -> None:
    pictures[0].unlink()


def rename(pictures: list[Path]) -> None:
    pictures[0].rename(pictures[0].with_name("renamed.png"))


def relabel(pictures: list[Path]) -> None:
    other = pictures[0].parents[1] / {"a": "b", "b": "a"}[pictures[0].parent.name]
    pictures[0].rename(other / pictures[0].name)


def replace_two(pictures: list[Path]) -> None:
    for number, path in enumerate(pictures[:2]):
        draw(path, 50 + number)


def rename_class(pictures: list[Path]) -> None:
    folder = pictures[0].parent
    folder.rename(folder.with_name("c"))


OTHER = "the images of test are not those that .* Restore them, or train in another"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (add, OTHER),
        (remove, OTHER),
        (rename, OTHER),
        (relabel, OTHER),
        (replace_two, r"replaced under the same names .* \(2 of test; more than"),
        (rename_class, r"not the same ones in the same order \(lacking: \['.'\], new: \['c'\]\)"),
    ],
)
def test_an_evaluation_is_refused(
    change: Callable[[list[Path]], None],
    words: str,
    config: ConfigDict,
    tmp_path: Path,
) -> None:
    """Before the model runs; and nothing is written."""
    before = sorted((tmp_path / "run").rglob("*"))
    change(pictures_of_test(config, tmp_path / "run"))
    with pytest.raises(DataError, match=words):
        restore_and_evaluate(config, tmp_path / "run")
    assert sorted((tmp_path / "run").rglob("*")) == before


@pytest.mark.parametrize("change", [add, remove, rename])
def test_so_is_a_calibration(
    change: Callable[[list[Path]], None], config: ConfigDict, tmp_path: Path
) -> None:
    """One picture draws the calibration split anew."""
    change(pictures_of_test(config, tmp_path / "run"))
    with pytest.raises(DataError, match="the images of calibration are not those"):
        restore_and_calibrate(config, tmp_path / "run")


def test_few_that_were_replaced_are_said_and_evaluated(
    config: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They may have been repaired: up to `data.max_corrupt`."""
    workdir = tmp_path / "run"
    first = restore_and_evaluate(config, workdir)
    draw(pictures_of_test(config, workdir)[0], 50)
    capsys.readouterr()
    second = restore_and_evaluate(config, workdir)
    said = capsys.readouterr().out
    assert f"other sizes than {workdir} was trained with (1 of test): taken for repaired" in said
    assert "and of 1 images that it lacks, or had before they were changed" in said
    assert second["num_images"] == first["num_images"]
