"""A folder of pictures: `split/class/picture`, or one folder of classes, split by seed."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drnet_jax.data.decode import SUFFIXES
from drnet_jax.data.files import (
    LeftOut,
    PictureFile,
    describe,
    list_pictures,
    read_picture,
    version,
)
from drnet_jax.data.index_cache import digest
from drnet_jax.data.sources import DataError, LabelledImages
from drnet_jax.data.splits import official_splits
from drnet_jax.runtime.progress import log_once


@dataclass(frozen=True)
class FileReader:
    """Pictures in files of their own.

    Attributes:
      paths: of the files.
    """

    paths: tuple[Path, ...]

    def read(self, position: int) -> bytes:
        """The file's content."""
        return read_picture(self.paths[position])

    def name(self, position: int) -> str:
        """The file's path."""
        return str(self.paths[position])

    def version(self, position: int) -> str:
        """See `files.version`."""
        return version(self.paths[position])


class Folder:
    """Pictures in folders named by their class; classes are numbered in sorted order.

    What lies deeper, beside the classes or beside the splits, and what is no picture, is left out;
    a line on the terminal counts and names it.

    Args:
      root: holds `train` and `test` (or `val`, `validation`, `valid`), and optionally
        `calibration`, with one folder per class in each; or, without `train`, the folders of the
        classes. With `test` beside it, `val` serves for calibration.

    Raises:
      DataError: no such folder, a class without pictures, or splits with different classes.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"data.dir={str(root)!r} is not a folder of pictures; set it to one")
        # A folder of pictures named train is a class, not a split.
        folders = _subfolders(root)
        names = official_splits([name for name in folders if _subfolders(root / name)])
        self._root = root
        self._folders = {split: root / name for split, name in names.items()}
        if "train" not in self._folders:
            self._folders = {"all": root}
        elif "test" not in self._folders:
            raise DataError(
                f"{root} has a folder train, and none named test, val, validation or valid; add "
                f"one, or set data.dir={str(root / 'train')!r}, whose classes are then split by "
                "seed"
            )
        first, *others = self._folders
        self.classes = _class_names(self._folders[first])
        for split in others:
            _check_classes(split, self._folders[split], self.classes)

    @property
    def official(self) -> tuple[str, ...]:
        """Its own splits: of train, test and calibration; or `'all'`."""
        return tuple(self._folders)

    def read_split(self, split: str) -> LabelledImages:
        """Pictures of one of its own splits, by class and name; their paths from the root tell
        them from others.

        Raises:
          DataError: a class has no pictures.
          OSError: a folder cannot be listed.
        """
        place = self._folders[split].relative_to(self._root)
        pictures: list[PictureFile] = []
        labels: list[int] = []
        left_out: list[LeftOut] = []
        for label, name in enumerate(self.classes):
            mine, others = self._list_class(place / name)
            pictures += mine
            labels += [label] * len(mine)
            left_out += others
        left_out += _beside(self._root, place, self.classes)
        if "all" not in self._folders:
            left_out += _beside(self._root, Path(), [f.name for f in self._folders.values()])
        if left_out:
            log_once(describe(left_out, self._root))
        return LabelledImages(
            FileReader(tuple(self._root / picture.name for picture in pictures)),
            np.arange(len(pictures)),
            np.array(labels, np.int32),
            digest([picture.name for picture in pictures]),
            np.array([picture.size for picture in pictures], np.int64),
        )

    def _list_class(self, place: Path) -> tuple[list[PictureFile], list[LeftOut]]:
        """The pictures of a class, and what else is in its folder."""
        found = list_pictures(self._root, place)
        by_depth: tuple[list[PictureFile], list[PictureFile]] = [], []
        for file in found.pictures:
            by_depth[file.name.rpartition("/")[0] != place.as_posix()].append(file)
        mine, deeper = by_depth
        if not mine:
            raise DataError(
                f"{self._root / place} has no picture ({', '.join(SUFFIXES)}) in it, folders in it "
                "aside; add some, or remove this class from data.dir"
            )
        others = [LeftOut(file.name, "in a folder of a class") for file in deeper]
        return mine, [*found.left_out, *others]


def _beside(root: Path, place: Path, names: Collection[str]) -> list[LeftOut]:
    """All that is in a folder apart from these folders in it."""
    found = list_pictures(root, place, without=names)
    return [*found.left_out, *(LeftOut(file.name, "in no class") for file in found.pictures)]


def _subfolders(folder: Path) -> list[str]:
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(name for name in names if not name.startswith("."))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = _subfolders(folder)
    if len(names) < 2:
        raise DataError(
            f"{folder} needs two folders or more, one per class, with pictures in them; pictures "
            "without labels need --mode=convert and convert.labels=False"
        )
    return tuple(names)


def _check_classes(split: str, folder: Path, classes: tuple[str, ...]) -> None:
    others = _class_names(folder)
    missing, unknown = set(classes) - set(others), set(others) - set(classes)
    if missing or unknown:
        what = [f"lacks {', '.join(sorted(missing))}"] if missing else []
        what += [f"has {', '.join(sorted(unknown))}, which train lacks"] if unknown else []
        raise DataError(f"the {split} split {folder} {' and '.join(what)}")
