"""Image classification sets prepared by TensorFlow Datasets, read without TensorFlow."""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from drnet_jax.data.index_cache import cached, digest
from drnet_jax.data.sources import DataError, LabelledImages
from drnet_jax.data.splits import official_splits

# Labels are withheld in their test split.
_WITHHELD = ("imagenet2012",)


@dataclass(frozen=True)
class TfdsReader:
    """The encoded images of one split.

    Attributes:
      records: TFDS's random-access source.
      split: what to call it in messages.
      files: of which data set the records are, and which files hold them: another value for others.
    """

    records: Any
    split: str
    files: str

    def read(self, position: int) -> bytes:
        """The encoded image, as the data set holds it.

        Raises:
          OSError: the record is damaged.
        """
        return self._record(position)["image"]

    def name(self, position: int) -> str:
        """The record's file name if it has one, and its number."""
        try:
            file_name = self._record(position).get("file_name", b"")
        except OSError:
            file_name = b""
        name = file_name.decode() if isinstance(file_name, bytes) else str(file_name)
        return f"{self.split}[{position}] {name}".strip()

    def version(self, position: int) -> str:
        """That of all files."""
        del position
        return self.files

    def _record(self, position: int) -> Any:
        try:
            return self.records[position]
        # Whatever the libraries below meet with.
        except Exception as error:
            raise OSError(errno.EIO, _one_line(error)) from error


class TfdsDataset:
    """A prepared data set with features `image` and `label`.

    Args:
      name: as TFDS writes it: `name`, `name/config` or `name/config:version`.
      data_dir: where TFDS keeps its data sets; None: its own default.
      cache_dir: where the labels are kept if the data set's directory is read-only.

    Raises:
      DataError: an unknown name, not prepared, not as ArrayRecord, damaged, or without such
        features.
      OSError: it may not be read.
    """

    def __init__(self, name: str, data_dir: str | None, cache_dir: Path) -> None:
        import tensorflow_datasets as tfds

        where = str(data_dir or "TFDS's default directory")
        try:
            # A damaged dataset_info.json makes TFDS raise whatever happens to go wrong.
            with _reading(name, where, passing=(ValueError,)):
                self._builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        except DataError:
            raise
        except tfds.core.registered.DatasetNotFoundError as error:
            raise DataError(
                f"data.name={name!r} is neither digits_on_photos, folder, imagenet100 nor a data "
                "set of TFDS (tensorflow.org/datasets/catalog)"
            ) from error
        except ValueError as error:
            # It is there as TFRecord, say.
            raise DataError(f"{_how_to_prepare(name, where)} ({_one_line(error)})") from error
        info = self._builder.info
        if not info.splits:
            raise DataError(_how_to_prepare(name, str(self._builder.data_path)))
        features = info.features
        has_class = "label" in features and isinstance(features["label"], tfds.features.ClassLabel)
        if "image" not in features or not has_class:
            raise DataError(f"data.name={name!r} has no features 'image' and 'label' (a class)")
        self.classes: tuple[str, ...] = tuple(features["label"].names)
        names = [
            split for split in info.splits if split != "test" or self._builder.name not in _WITHHELD
        ]
        self._splits = official_splits(names)
        if "train" not in self._splits:
            raise DataError(f"data.name={name!r} has no train split, only {', '.join(names)}")
        self._directories = (Path(str(self._builder.data_path)), cache_dir)

    @property
    def official(self) -> tuple[str, ...]:
        """Its own splits: of train, test and calibration."""
        return tuple(self._splits)

    def read_split(self, split: str) -> LabelledImages:
        """Images of one of its own splits; their labels are read once and kept. The split, and the
        version of the data set and how it was prepared, tell them from others.

        Raises:
          DataError: files are missing or damaged, or images have no label.
          OSError: they may not be read.
        """
        import tensorflow_datasets as tfds

        name = self._splits[split]
        keep_encoded = {"image": tfds.decode.SkipDecoding()}
        full_name = self._builder.info.full_name
        place = Path(str(self._builder.data_path))
        with _reading(full_name, str(place)):
            records = self._builder.as_data_source(name, decoders=keep_encoded)
            version = digest(full_name, (place / "dataset_info.json").read_bytes())
            # Copying the data set to another machine makes it no other one: not of the identity.
            files = digest(version, _files(self._builder.info.splits[name].filepaths))
        key = f"{full_name.replace('/', '_')}_{name}_labels_{files}"

        def read() -> np.ndarray:
            """Where there is no cache."""
            with _reading(full_name, str(place)):
                return _read_labels(records, key)

        labels = cached(key, self._directories, read)
        if labels.min(initial=0) < 0:
            raise DataError(f"the {name} split of {full_name} has images without a label")
        sizes = np.zeros(len(labels), np.int64)
        reader, identity = TfdsReader(records, name, files), digest(name, version)
        return LabelledImages(reader, np.arange(len(labels)), labels, identity, sizes)


def _files(paths: Iterable[Any]) -> list[tuple[str, int, int]]:
    """Names, sizes in bytes and times of the last change of files."""
    found = [(Path(str(path)).name, Path(str(path)).stat()) for path in paths]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]


def _read_labels(records: Any, name: str) -> np.ndarray:
    labels = np.empty(len(records), np.int32)
    for position in tqdm(range(len(records)), desc=f"reading {name}", unit="record", leave=False):
        labels[position] = records[position]["label"]
    return labels


@contextmanager
def _reading(name: str, place: str, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Whatever TFDS and the libraries below raise is damage, but for what has other causes.

    Raises:
      DataError: the files are damaged or missing, or a package is.
      PermissionError: the user may not read them.
      MemoryError: there is too little.
    """
    try:
        yield
    except (PermissionError, MemoryError):
        raise
    except passing:
        raise
    except ImportError as error:
        raise DataError(
            f"data set {name!r} in {place} is read by a package that cannot be imported "
            f"({_one_line(error)}): pip install array_record, or what is named"
        ) from error
    except Exception as error:
        raise DataError(
            f"data set {name!r} in {place} is damaged, or files of it are missing "
            f"({_one_line(error)}): compare the files with their source, and copy or prepare "
            "anew what differs"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _how_to_prepare(name: str, path: str) -> str:
    command = f"python -m drnet_jax.data.prepare {name} --data_dir=DIR"
    if name.startswith("imagenet2012"):
        command += " --manual_dir=FOLDER_OF_THE_TARS"
    text = (
        f"data set {name!r} is not prepared as ArrayRecord in {path}; once, in an environment of "
        f"its own: pip install -e '.[prepare]' && {command}; then --config.data.dir=DIR"
    )
    if name.startswith("imagenet2012"):
        text += (
            ". Or without preparation: data.dir = the folder of ILSVRC2012_img_train.tar and "
            "ILSVRC2012_img_val.tar (from image-net.org)"
        )
    return text
