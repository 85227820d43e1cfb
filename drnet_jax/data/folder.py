"""A folder of pictures: `split/class/picture`, or one folder of classes, split by seed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drnet_jax.data.decode import SUFFIXES
from drnet_jax.data.index_cache import digest
from drnet_jax.data.sources import DataError, LabelledImages
from drnet_jax.data.splits import official_splits


@dataclass(frozen=True)
class FileReader:
    """Pictures in files of their own.

    Attributes:
      paths: of the files.
    """

    paths: tuple[Path, ...]

    def read(self, position: int) -> bytes:
        """The file's content."""
        return self.paths[position].read_bytes()

    def name(self, position: int) -> str:
        """The file's path."""
        return str(self.paths[position])


class Folder:
    """Pictures in folders named by their class; classes are numbered in sorted order.

    Args:
      root: holds `train` and `test` (or `val`, `validation`), and optionally `calibration`, with
        one folder per class in each; or, without `train`, the folders of the classes.

    Raises:
      DataError: no such folder, a class without pictures, or splits with different classes.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"data.dir={str(root)!r} is not a folder of pictures; set it to one")
        # A folder of pictures named train is a class, not a split.
        folders = [path for path in root.iterdir() if path.is_dir()]
        names = official_splits([path.name for path in folders if _subfolders(path)])
        self._root = root
        self._folders = {split: root / name for split, name in names.items()}
        if "train" not in self._folders:
            self._folders = {"all": root}
        elif "test" not in self._folders:
            raise DataError(
                f"{root} has a folder train, and none named test, val or validation; add one, or "
                f"set data.dir={str(root / 'train')!r}, whose classes are then split by seed"
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
        """
        folder = self._folders[split]
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(self.classes):
            pictures = sorted(path for path in (folder / name).iterdir() if _is_picture(path))
            if not pictures:
                raise DataError(
                    f"{folder / name} has no picture ({', '.join(SUFFIXES)}) in it; add some, or "
                    "remove the class"
                )
            paths += pictures
            labels += [label] * len(pictures)
        return LabelledImages(
            FileReader(tuple(paths)),
            np.arange(len(paths)),
            np.array(labels, np.int32),
            digest([path.relative_to(self._root).as_posix() for path in paths]),
        )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _subfolders(folder: Path) -> list[str]:
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(name for name in names if not name.startswith("."))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = _subfolders(folder)
    if len(names) < 2:
        raise DataError(f"{folder} needs two folders or more, one per class, with pictures in them")
    return tuple(names)


def _check_classes(split: str, folder: Path, classes: tuple[str, ...]) -> None:
    others = _class_names(folder)
    missing, unknown = set(classes) - set(others), set(others) - set(classes)
    if missing or unknown:
        what = [f"lacks {', '.join(sorted(missing))}"] if missing else []
        what += [f"has {', '.join(sorted(unknown))}, which train lacks"] if unknown else []
        raise DataError(f"the {split} split {folder} {' and '.join(what)}")
