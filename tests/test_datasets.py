"""Folders of pictures and their splits; unusable data is one clear error."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import DataError, EncodedSource
from drnet_jax.data.splits import official_splits, some_of_each_class, split_by_class


def write_pictures(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        picture = Image.new("RGB", (20, 16), (number % 256, 0, 0))
        picture.save(folder / f"{number:03}.{('jpg', 'png', 'webp')[number % 3]}")


def folder_settings(root: Path, **further: object) -> DataSettings:
    return DataSettings("folder", dir=str(root), size=16, **further)


def encoded(settings: DataSettings, split: str) -> EncodedSource:
    source = DataSplits(settings).load(split)
    assert isinstance(source, EncodedSource)
    return source


def paths(source: EncodedSource) -> set[str]:
    return {source.name(index) for index in range(len(source))}


@pytest.fixture
def classes_only(tmp_path: Path) -> Path:
    for name, count in (("cat", 30), ("ant", 20), ("bee", 10)):
        write_pictures(tmp_path / name, count)
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    # macOS leaves these in archives.
    (tmp_path / "cat" / "._000.jpg").write_bytes(b"no picture")
    (tmp_path / "cat" / "folder.jpg").mkdir()
    return tmp_path


def test_one_folder_of_classes_is_split_by_seed(classes_only: Path) -> None:
    """Every class in the same parts, no picture twice, the same parts every time."""
    settings = folder_settings(classes_only)
    assert DataSplits(settings).classes == ("ant", "bee", "cat")
    parts = {split: encoded(settings, split) for split in ("train", "calibration", "test")}
    counts = {split: np.bincount(source.labels).tolist() for split, source in parts.items()}
    assert counts == {"train": [14, 7, 21], "calibration": [2, 1, 3], "test": [4, 2, 6]}
    together = Counter(path for source in parts.values() for path in paths(source))
    assert len(together) == 60 and set(together.values()) == {1}
    for source in parts.values():
        for index in range(len(source)):
            assert (
                Path(source.name(index)).parent.name
                == DataSplits(settings).classes[source.labels[index]]
            )
            assert source[index]["encoded"] == Path(source.name(index)).read_bytes()
    assert paths(encoded(settings, "test")) == paths(parts["test"])
    other = folder_settings(classes_only, split_seed=1)
    assert paths(encoded(other, "test")) != paths(parts["test"])


def test_a_folder_with_splits(tmp_path: Path) -> None:
    for number, name in enumerate(("ant", "bee")):
        write_pictures(tmp_path / "train" / name, 10, 100 * number)
        write_pictures(tmp_path / "val" / name, 3, 50 + 100 * number)
    settings = folder_settings(tmp_path)
    assert np.bincount(encoded(settings, "train").labels).tolist() == [9, 9]
    assert np.bincount(encoded(settings, "calibration").labels).tolist() == [1, 1]
    assert all("/val/" in path for path in paths(encoded(settings, "test")))
    # With a test folder beside it, val serves for calibration.
    for name in ("ant", "bee"):
        write_pictures(tmp_path / "test" / name, 2)
    assert len(encoded(settings, "train")) == 20
    assert all("/val/" in path for path in paths(encoded(settings, "calibration")))
    assert all("/test/" in path for path in paths(encoded(settings, "test")))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        write_pictures(tmp_path / name, 20)
    assert DataSplits(folder_settings(tmp_path)).classes == ("bus", "train")


def test_identity_is_that_of_the_split(classes_only: Path) -> None:
    """Not of the part of it that is used; another picture or split is another identity."""
    settings = folder_settings(classes_only)
    whole = DataSplits(settings).load("test")
    few = folder_settings(classes_only, eval_images=5)
    assert DataSplits(few).load("test").identity == whole.identity
    assert DataSplits(settings).load("train").identity != whole.identity
    other = folder_settings(classes_only, split_seed=1)
    assert DataSplits(other).load("test").identity != whole.identity
    (classes_only / "bee" / "000.jpg").rename(classes_only / "bee" / "0000.jpg")
    assert DataSplits(settings).load("test").identity != whole.identity


def test_subsets(classes_only: Path) -> None:
    settings = folder_settings(classes_only, images_per_class=8, train_images=0)
    assert np.bincount(encoded(settings, "train").labels).tolist() == [8, 7, 8]
    few = folder_settings(classes_only, train_images=20, eval_images=5)
    assert len(encoded(few, "train")) == 20 and len(encoded(few, "test")) == 5
    assert set(encoded(few, "train").labels) == {0, 1, 2}
    with pytest.raises(DataError, match="the test split of folder has 12 images, not 13"):
        DataSplits(folder_settings(classes_only, eval_images=13)).load("test")


def test_unusable_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs data.dir"):
        DataSplits(DataSettings("folder")).load("train")
    with pytest.raises(DataError, match="not a folder of pictures"):
        DataSplits(folder_settings(tmp_path / "none")).load("train")
    with pytest.raises(DataError, match="two folders or more"):
        DataSplits(folder_settings(tmp_path)).load("train")
    for name in ("ant", "bee"):
        write_pictures(tmp_path / "train" / name, 10)
    with pytest.raises(DataError, match="none named test, val, validation or valid"):
        DataSplits(folder_settings(tmp_path)).load("train")
    write_pictures(tmp_path / "test" / "ant", 3)
    write_pictures(tmp_path / "test" / "cow", 3)
    with pytest.raises(DataError, match="lacks bee and has cow, which train lacks"):
        DataSplits(folder_settings(tmp_path)).load("train")
    (tmp_path / "test" / "cow").rename(tmp_path / "test" / "bee")
    for picture in (tmp_path / "test" / "bee").iterdir():
        picture.unlink()
    with pytest.raises(DataError, match="bee has no picture"):
        DataSplits(folder_settings(tmp_path)).load("test")


def test_a_class_missing_from_a_split(tmp_path: Path) -> None:
    write_pictures(tmp_path / "ant", 40)
    write_pictures(tmp_path / "bee", 3)
    with pytest.raises(DataError, match=r"the calibration split .* has no image of 1 of 2 .*bee"):
        DataSplits(folder_settings(tmp_path)).load("calibration")


def test_pictures_without_labels_too_few_to_train(tmp_path: Path) -> None:
    """Of two pictures 0.3 is one, twice: what is left is none."""
    write_pictures(tmp_path / "any", 2)
    settings = folder_settings(
        tmp_path, labelled=False, calibration_fraction=0.3, test_fraction=0.3
    )
    with pytest.raises(DataError, match=r"the train split .* has no image: add images, or lower"):
        DataSplits(settings).identity("train")


def test_what_is_left_out_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though an evaluation opens the pictures of its training again."""
    write_pictures(tmp_path / "any", 30)
    (tmp_path / "any" / "notes.txt").write_text("no picture")
    for _ in range(2):
        assert len(DataSplits(folder_settings(tmp_path, labelled=False)).load("train")) > 0
    assert capsys.readouterr().out.count("any/notes.txt") == 1


def test_official_splits() -> None:
    assert official_splits(["train", "validation"]) == {"train": "train", "test": "validation"}
    assert official_splits(["validation", "test", "train"]) == {
        "train": "train",
        "test": "test",
        "calibration": "validation",
    }


def test_split_by_class_and_some_of_each() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    parts = split_by_class(labels, {"calibration": 0.1, "test": 0.3}, seed=3)
    assert {name: np.bincount(labels[part]).tolist() for name, part in parts.items()} == {
        "calibration": [10, 5, 1],
        "test": [30, 15, 3],
        "train": [60, 30, 6],
    }
    np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(160))
    chosen = some_of_each_class(labels, 20, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [20, 20, 10]
    assert len(set(chosen.tolist())) == 50
