"""ImageNet-2012 from its two tar files as they are."""

import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from drnet_jax.data.files import version
from drnet_jax.data.index_cache import cached, digest
from drnet_jax.data.sources import DataError, LabelledImages

TRAIN_TAR = "ILSVRC2012_img_train.tar"
TEST_TAR = "ILSVRC2012_img_val.tar"


@dataclass(frozen=True)
class TarReader:
    """Files of an uncompressed tar, of tars in it too, by where they begin.

    Attributes:
      path: of the tar.
      index: `[n]` records: `offset` of the first byte, `size` in bytes, `name`, `label`.
    """

    path: Path
    index: np.ndarray

    def read(self, position: int) -> bytes:
        """The file's content."""
        with self.path.open("rb") as file:
            file.seek(int(self.index[position]["offset"]))
            return file.read(int(self.index[position]["size"]))

    def name(self, position: int) -> str:
        """The tar's path and the file's name in it."""
        return f"{self.path}:{self.index[position]['name']}"

    def version(self, position: int) -> str:
        """That of the whole tar."""
        del position
        return version(self.path)


class ImagenetTars:
    """ImageNet-2012 without preparation.

    Args:
      root: holds the two tar files of image-net.org.
      cache_dir: where their index is kept if `root` is read-only.
      classes: WordNet ids in the order of their labels, the only ones read; None: all, sorted.

    Raises:
      DataError: a tar file is missing, damaged or compressed, or lacks a class.
    """

    official = ("train", "test")

    def __init__(self, root: Path, cache_dir: Path, classes: tuple[str, ...] | None = None) -> None:
        for name in (TRAIN_TAR, TEST_TAR):
            if not (root / name).is_file():
                raise DataError(f"{root} lacks {name} (image-net.org); put both tar files there")
        self._paths = {"train": root / TRAIN_TAR, "test": root / TEST_TAR}
        self._directories = (root, cache_dir)
        found = _list_classes(self._paths["train"])
        self.classes = classes or tuple(sorted(found))
        missing = sorted(set(self.classes) - set(found))
        if missing:
            raise DataError(f"{root / TRAIN_TAR} lacks {len(missing)} classes: {missing[:5]}")

    def read_split(self, split: str) -> LabelledImages:
        """Images of `'train'` or `'test'`; where they are is found out once. Their names tell them
        from others.
        """
        path = self._paths[split]
        index_split = _index_train if split == "train" else _index_test
        name = f"{path.stem}_{digest(path.stat().st_size, path.stat().st_mtime_ns, self.classes)}"
        index = cached(name, self._directories, lambda: index_split(path, self.classes))
        identity = digest(index["name"].tobytes())
        reader, positions = TarReader(path, index), np.arange(len(index))
        return LabelledImages(reader, positions, index["label"], identity, index["size"])


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise DataError(f"{path} is no whole, uncompressed tar: {error}") from error


def _list_classes(path: Path) -> list[str]:
    with _clear_errors(path), tarfile.open(path, "r:") as tar:
        return [Path(member.name).stem for member in tar if _is_tar(member)]


def _is_tar(member: tarfile.TarInfo) -> bool:
    """A file: a folder or a link of such a name has nothing in it."""
    return member.isfile() and member.name.endswith(".tar")


def _index_train(path: Path, classes: tuple[str, ...]) -> np.ndarray:
    """A tar of `<wnid>.tar`: neither is compressed, so the offsets add up."""
    labels = {name: label for label, name in enumerate(classes)}
    rows = []
    with _clear_errors(path), tarfile.open(path, "r:") as tar:
        tars = [member for member in tar if _is_tar(member)]
        inner_tars = [member for member in tars if Path(member.name).stem in labels]
        for member in tqdm(inner_tars, desc=f"indexing {path.name}", unit="class", leave=False):
            label = labels[Path(member.name).stem]
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                rows += [
                    (member.offset_data + file.offset_data, file.size, file.name, label)
                    for file in inner
                    if file.isfile()
                ]
    return _as_records(rows)


def _index_test(path: Path, classes: tuple[str, ...]) -> np.ndarray:
    """A tar of images; TFDS lists the classes of the validation images by their numbers."""
    import tensorflow_datasets as tfds

    text = Path(str(tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")))
    wnids = text.read_text().split()
    labels = {name: label for label, name in enumerate(classes)}
    rows = []
    with _clear_errors(path), tarfile.open(path, "r:") as tar:
        for file in tar:
            if not file.isfile():
                continue
            number = re.search(r"_val_(\d{8})\.", file.name)
            if number is None or not 1 <= int(number[1]) <= len(wnids):
                raise DataError(f"{path} holds {file.name}, which is no validation image")
            wnid = wnids[int(number[1]) - 1]
            if wnid in labels:
                rows.append((file.offset_data, file.size, file.name, labels[wnid]))
    return _as_records(sorted(rows, key=lambda row: row[2]))


def _as_records(rows: list[tuple[int, int, str, int]]) -> np.ndarray:
    longest = max((len(name) for _, _, name, _ in rows), default=1)
    fields = [("offset", np.int64), ("size", np.int64), ("name", f"U{longest}")]
    return np.array(rows, [*fields, ("label", np.int32)])
