"""A trained model in use: pictures in memory or in files, each at its own resolution."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Self, TypeVar

import numpy as np

from drnet_jax.budgets.calibration import Calibration, Times
from drnet_jax.budgets.solve import times_setting
from drnet_jax.config_checks import check_config
from drnet_jax.hub.folder import FILES, read_folder, write_folder
from drnet_jax.hub.mixin import HubMixin, downloaded
from drnet_jax.hub.saved_model import SavedModel, get_calibration
from drnet_jax.inference.arguments import check_count, checked_buckets, checked_size
from drnet_jax.inference.arrays import ArrayClassifier
from drnet_jax.inference.create import array_classifier, file_classifier, fused_classifier
from drnet_jax.inference.engine import Classified
from drnet_jax.inference.files import FileClassifier
from drnet_jax.inference.fused import FusedClassifier
from drnet_jax.reports.predictions import Prediction, Unreadable, as_predictions
from drnet_jax.runtime.files import check_new_folder

T = TypeVar("T")


class AdaptiveClassifier(HubMixin):
    """Classifies every picture at the resolution that the model picks for it, and at no other.

    Made by `from_pretrained`, or of a run by `load_classifier`. The networks are compiled once for
    images in memory and once for files, whose views are resized on the host: each at the first call
    that needs it, or by `compile`. Any number of threads may share a classifier.

    Args:
      saved: the model.
      image_size: height and width of images in memory; default: the largest resolution.
      buckets: batch sizes to compile; groups of other sizes are split. Default: the model's
        `inference.buckets`.
      measure: time every bucket first, and split groups as is then fastest. Default: the model's
        `inference.measure`.

    Attributes:
      classes: their names, in the order of the logits.
      resolutions: the candidate sides in pixels, largest first.
      cost: multiply-adds of the networks.
      image_size: height and width of images in memory.
      view: what is classified of a picture file.

    Raises:
      ConfigError: a value of the model's configuration that this version refuses.
      ValueError: buckets or an image size that are not what they should be.
    """

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Without `ModelHubMixin`'s, which would copy the arguments, weights and all."""
        return object.__new__(cls)

    def __init__(
        self,
        saved: SavedModel,
        *,
        image_size: tuple[int, int] | None = None,
        buckets: Sequence[int] | None = None,
        measure: bool | None = None,
    ) -> None:
        config = saved.config.copy_and_resolve_references()
        if buckets is not None:
            config.inference.buckets = checked_buckets(buckets)
        if measure is not None:
            config.inference.measure = bool(measure)
        check_config(config, 1)
        largest = saved.model.resolutions[0]
        self.image_size = checked_size((largest, largest) if image_size is None else image_size)
        self.classes = saved.classes
        self.resolutions = saved.model.resolutions
        self.cost = saved.cost
        self.view = saved.view
        self._saved = saved
        self._config = config
        self._compiling = Lock()
        self._arrays: ArrayClassifier | None = None
        self._files: FileClassifier | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        image_size: tuple[int, int] | None = None,
        buckets: Sequence[int] | None = None,
        measure: bool | None = None,
        **download: Any,
    ) -> Self:
        """The model that `save_pretrained` wrote.

        Args:
          folder: on this machine; or, where `huggingface_hub` is installed, `owner/name`.
          image_size: see the class.
          buckets: see the class.
          measure: see the class.
          **download: of `huggingface_hub.snapshot_download`, only for what is not on this machine.

        Raises:
          CheckpointError: there is no such folder; or a file is missing, damaged, of another
            program or of a newer format; or the weights are not those of the network, or not
            finite.
          TypeError: arguments of a download for a folder on this machine.
          ValueError: buckets or an image size that are not what they should be.
        """
        path = Path(folder)
        if not path.exists():
            path = downloaded(str(folder), FILES, **download)
        elif download:
            raise TypeError(
                f"{', '.join(download)}: not for {path}, which is on this machine; from_pretrained "
                "takes image_size, buckets and measure there"
            )
        return cls(read_folder(path), image_size=image_size, buckets=buckets, measure=measure)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Writes the model as a folder, see `write_folder`.

        Args:
          save_directory: empty, or not there yet.
          **options: of `ModelHubMixin.save_pretrained`: `push_to_hub`, `repo_id` and more.

        Returns:
          The URL of what was uploaded; None: nothing was told to be.

        Raises:
          FileExistsError: the folder holds something, or is no folder.
          CheckpointError: the model holds values that are not finite, or its `eval.json` is
            damaged.
          BudgetError: its calibration is damaged, or of another model.
        """
        # The mixin would remove a config.json that is there.
        check_new_folder(Path(save_directory))
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_folder(self._saved, save_directory)

    @property
    def calibration(self) -> Calibration:
        """Which lambda keeps which budget: `calibration.for_drop(0.5).lam`, say.

        With the times of this classifier for images in memory where those are compiled and measured
        (`measure`), else with those of the run, if it has any; a folder has none.

        Raises:
          BudgetError: nothing is calibrated, or the file is damaged or of another model.
        """
        found = get_calibration(self._saved)
        engine = self._arrays
        if engine is None or engine.times is None:
            return found
        setting = times_setting(self._config, self.image_size)
        return replace(found, times=Times(setting, engine.times))

    def compile(self, *, arrays: bool = False, files: bool = False) -> Self:
        """Compiles now for images in memory, for files, or for both; gives itself.

        Raises:
          ConfigError: several hosts, or buckets that do not fit into the memory.
        """
        if arrays:
            self._array_engine()
        if files:
            self._file_engine()
        return self

    def classify(self, images: np.ndarray, *, lam: float = 0.0) -> Classified:
        """Classifies one batch of images in memory; see `ArrayClassifier.classify`."""
        return self._array_engine().classify(images, lam=lam)

    def classify_batches(
        self,
        batches: Iterable[T],
        *,
        images: Callable[[T], np.ndarray] | None = None,
        lam: float = 0.0,
        max_waiting: int = 0,
    ) -> Iterator[tuple[T, Classified]]:
        """Classifies a stream of batches; see `ArrayClassifier.classify_batches`."""
        return self._array_engine().classify_batches(
            batches, images=images, lam=lam, max_waiting=max_waiting
        )

    def classify_files(
        self, files: Sequence[str | Path], *, lam: float = 0.0, batch_size: int = 256
    ) -> list[Prediction | Unreadable]:
        """Classifies picture files, as `--mode=predict` does.

        Args:
          files: their paths; of any format and size.
          lam: lambda, see `choose`; `calibration` gives it for a budget.
          batch_size: files that are read at once.

        Returns:
          By file, in their order: the class, its confidence, the resolution and the cost; or an
          `Unreadable`, which says why.

        Raises:
          ValueError: `files` is a single path, `batch_size` no integer above zero, or `lam` no
            finite number.
          NotFiniteError: outputs are not finite; the files are named.
        """
        if isinstance(files, (str, bytes, os.PathLike)):
            raise ValueError(f"files={str(files)!r} must be a sequence of paths: put it in a list")
        check_count("batch_size", batch_size, least=1)
        paths = [Path(file) for file in files]
        batches = (paths[start : start + batch_size] for start in range(0, len(paths), batch_size))
        return [
            row
            for batch, result in self._file_engine().classify_batches(batches, lam=lam)
            for row in as_predictions([str(path) for path in batch], result, self.classes)
        ]

    def fused(
        self, batch_size: int, *, shares: Sequence[float] | None = None, lam: float = 0.0
    ) -> FusedClassifier:
        """Compiles a classifier of images in memory that takes one program a batch.

        Its choices depend on the batch: see `FusedClassifier` for what differs from `classify`.

        Args:
          batch_size: images of a batch.
          shares: of the resolutions in every batch, those of a `Point` of `calibration`, say; None
            of a batch of one image, which gets what it chooses, or of a single resolution.
          lam: lambda, see `choose`; of the same point.

        Raises:
          ConfigError: several hosts, or a batch that does not fit into the memory.
          ValueError: a batch, shares or a lambda that are not what they should be.
        """
        return fused_classifier(
            self._config,
            self._saved,
            self.image_size,
            batch_size=batch_size,
            shares=shares,
            lam=lam,
        )

    def _array_engine(self) -> ArrayClassifier:
        with self._compiling:
            if self._arrays is None:
                self._arrays = array_classifier(self._config, self._saved, self.image_size)
            return self._arrays

    def _file_engine(self) -> FileClassifier:
        with self._compiling:
            if self._files is None:
                self._files = file_classifier(self._config, self._saved, self.view)
            return self._files
