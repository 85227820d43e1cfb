"""An exported model in use: each image is classified at its own resolution, and at no other."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np

from drnet_runtime.budgets import Point
from drnet_runtime.choice import checked_lambda, choose
from drnet_runtime.errors import BudgetError, PictureError
from drnet_runtime.manifest import CLASSIFIER, Manifest, read_manifest
from drnet_runtime.pictures import MAX_PIXELS, View, read_picture
from drnet_runtime.results import Answer, Result, as_answers
from drnet_runtime.sessions import NetworkSession, load_sessions, not_finite, usable_cores

FilePath = str | os.PathLike[str]


class AdaptiveModel:
    """What drnet_jax exported, in ONNX Runtime. Made by `load`.

    Nothing in it changes: any number of threads may share a model.

    Args:
      manifest: of the export.
      sessions: of its networks, in the manifest's order.

    Attributes:
      name: which model it is: another value for another one.
      classes: their names, in the order of the logits.
      resolutions: the candidate sides in pixels, largest first.
      image_size: side of the images that are classified.
      macs: multiply-adds of every choice, the predictor or first look included.
      largest_macs: multiply-adds of the largest resolution alone.
      has_first_look: the classifier at the smallest resolution is what chooses.
      points: what every calibrated lambda costs and gets right, the costliest first; () where
        nothing is calibrated.
    """

    def __init__(self, manifest: Manifest, sessions: Sequence[NetworkSession]) -> None:
        self.name = manifest.model
        self.classes = manifest.classes
        self.resolutions = manifest.resolutions
        self.image_size = manifest.image_size
        self.macs = manifest.macs
        self.has_first_look = manifest.first_look_weight is not None
        self.points: tuple[Point, ...] = ()
        if manifest.calibration is not None:
            self.points = manifest.calibration.points
        self._calibration = manifest.calibration
        self._view = View(manifest.image_size, manifest.crop_fraction)
        self._costs = np.array(manifest.costs)
        self._weight = manifest.first_look_weight
        self._chooser = None if len(manifest.resolutions) == 1 else sessions[0]
        self._classifiers = [s for s in sessions if s.network.role == CLASSIFIER]
        self.largest_macs = self._classifiers[0].network.macs

    @classmethod
    def load(
        cls, directory: FilePath, *, threads: int = 0, int8: bool = False, verify: bool = True
    ) -> Self:
        """The model that drnet_jax's `--mode=export` wrote.

        Args:
          directory: of the export.
          threads: of ONNX Runtime's operations; 0: one for every core that this process may use.
          int8: run the files in int8, which `--config.export.int8=True` adds: smaller and faster,
            with the accuracy that the manifest says.
          verify: compare every file with the hash in the manifest.

        Raises:
          ExportDirectoryError: there is no such directory; or a file is missing, damaged, of a
            newer format or another one than was exported; or the export is marked as unusable.
          ValueError: `threads` is no integer, or below zero.
        """
        if type(threads) is not int or threads < 0:
            raise ValueError(f"threads={threads!r} must be an integer >= 0")
        place = Path(directory)
        manifest = read_manifest(place, int8=int8)
        threads = threads or usable_cores()
        return cls(manifest, load_sessions(place, manifest, threads=threads, verify=verify))

    def lam_for(
        self,
        *,
        gmacs: float | None = None,
        fraction: float | None = None,
        drop: float | None = None,
        confidence: float = 0.0,
    ) -> float:
        """The lambda that keeps a budget, as measured on the calibration split.

        Args:
          gmacs: mean cost of an image: the most accurate choice within it.
          fraction: the same, as a fraction of the largest resolution's multiply-adds.
          drop: points of top-1 that may be lost to the largest resolution: the cheapest choice.
          confidence: with which `drop` is to hold on new images too, see `Calibration.for_drop`.

        Raises:
          BudgetError: it cannot be kept, or nothing is calibrated.
          TypeError: not one of `gmacs`, `fraction` and `drop` is given.
        """
        given = [budget for budget in (gmacs, fraction, drop) if budget is not None]
        if len(given) != 1 or (confidence and drop is None):
            raise TypeError("give one of gmacs, fraction and drop; confidence goes with drop")
        known = self._calibration
        if known is None:
            raise BudgetError(
                "nothing is calibrated: run drnet_jax's --mode=calibrate and --mode=export again"
            )
        if gmacs is not None:
            return known.for_gmacs(gmacs).lam
        if fraction is not None:
            return known.for_fraction(fraction).lam
        return known.for_drop(given[0], confidence).lam

    def decode(self, data: bytes | FilePath, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """A picture as the model sees it: the centred square, `[s, s, 3]` uint8, s `image_size`.

        Args:
          data: of any format that Pillow reads from photographs; or the path of a file.
          max_pixels: of the picture; one with more is refused before it is decoded.

        Raises:
          PictureError: it cannot be read, and why.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            data = read_picture(data)
        return self._view.decode(data, max_pixels)

    def classify(self, images: np.ndarray, lam: float | np.ndarray = 0.0) -> Result:
        """Classifies a batch of images.

        Args:
          images: `[n, s, s, 3]` uint8 RGB, s `image_size`, as `decode` gives them.
          lam: lambda, one for all images or `[n]`; `lam_for` gives it for a budget. 0: the scores
            alone decide.

        Raises:
          ValueError: images or lambdas that are not what they should be.
          FloatingPointError: outputs of the networks are not finite.
        """
        self._check(images)
        lambdas = checked_lambda(lam, len(images))
        n, k = len(images), len(self.classes)
        scores, first = self._choose_from(images)
        choices = np.zeros(n, np.int64)
        if scores is not None:
            choices = choose(scores, self._costs, lambdas)
        logits = np.zeros((n, k), np.float32)
        for choice, session in enumerate(self._classifiers):
            rows = np.flatnonzero(choices == choice)
            if not len(rows):
                continue
            # Where all images take it nothing has to be gathered.
            (found,) = session.run(images, None if len(rows) == n else rows)
            if first is not None and self._weight is not None:
                found = found + np.float32(self._weight[choice]) * first[rows]
            logits[rows] = found
        looks = np.ones(n, np.int64)
        if first is not None:
            last = choices == len(self.resolutions) - 1
            logits[last] = first[last]
            looks += ~last
        _check_finite(logits)
        return Result(
            logits=logits,
            choices=choices,
            resolutions=np.array(self.resolutions)[choices],
            looks=looks,
            macs=np.array(self.macs, np.int64)[choices],
            scores=scores,
            first_logits=first,
        )

    def _choose_from(self, images: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Scores `[n, m]` and the first look's logits `[n, k]`, as far as the model has them."""
        if self._chooser is None:
            return None, None
        if not len(images):
            empty = np.zeros((0, len(self.resolutions)), np.float32)
            logits = np.zeros((0, len(self.classes)), np.float32)
            return empty, logits if self.has_first_look else None
        outputs = self._chooser.run(images)
        _check_finite(*outputs)
        return outputs[-1], outputs[0] if self.has_first_look else None

    def _check(self, images: np.ndarray) -> None:
        shape = (self.image_size, self.image_size, 3)
        if not isinstance(images, np.ndarray):
            raise ValueError(f"images must be a NumPy array, got {type(images).__name__}")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise ValueError(
                f"images must be uint8 [n, {', '.join(map(str, shape))}], got {images.dtype} "
                f"{list(images.shape)}: decode() gives them of pictures"
            )

    def classify_files(
        self,
        files: Sequence[FilePath],
        lam: float | np.ndarray = 0.0,
        *,
        batch_size: int = 32,
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> list[Answer]:
        """Classifies picture files; while a batch is classified the next one is decoded.

        Args:
          files: their paths; of any format and size.
          lam: lambda, one for all files or one for each.
          batch_size: files that are classified at once.
          workers: threads that read and decode; default: one for every core.
          max_pixels: see `decode`.

        Returns:
          By file, in their order; of one that cannot be read, `reason` says why.

        Raises:
          ValueError: `files` is a single path, or a number is not what it should be.
          FloatingPointError: outputs of the networks are not finite.
        """
        batches = self.classify_batches(
            files, lam, batch_size=batch_size, workers=workers, max_pixels=max_pixels
        )
        return [answer for batch in batches for answer in batch]

    def classify_batches(
        self,
        files: Sequence[FilePath],
        lam: float | np.ndarray = 0.0,
        *,
        batch_size: int = 32,
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Iterator[list[Answer]]:
        """As `classify_files`, batch by batch: for any number of files."""
        if isinstance(files, (str, bytes, os.PathLike)):
            raise ValueError(f"files={files!r} must be a sequence of paths: put it in a list")
        for name, value in (("batch_size", batch_size), ("workers", workers)):
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name}={value!r} must be an integer >= 1")
        lambdas = checked_lambda(lam, len(files))
        return self._batches(files, lambdas, batch_size, workers or usable_cores(), max_pixels)

    def _batches(
        self,
        files: Sequence[FilePath],
        lambdas: np.ndarray,
        batch_size: int,
        workers: int,
        max_pixels: int,
    ) -> Iterator[list[Answer]]:
        def read(file: FilePath) -> np.ndarray | PictureError:
            try:
                return self.decode(os.fspath(file), max_pixels=max_pixels)
            except PictureError as error:
                return error

        with ThreadPoolExecutor(workers) as pool:
            reading: dict[int, list[Future[np.ndarray | PictureError]]] = {}
            starts = range(0, len(files), batch_size)
            for start in starts:
                # This batch and the next one.
                for begin in (start, start + batch_size):
                    if begin not in reading:
                        batch = files[begin : begin + batch_size]
                        reading[begin] = [pool.submit(read, file) for file in batch]
                pictures = [future.result() for future in reading.pop(start)]
                part = slice(start, start + batch_size)
                yield self._answers(files[part], pictures, lambdas[part])

    def _answers(
        self,
        files: Sequence[FilePath],
        pictures: Sequence[np.ndarray | PictureError],
        lambdas: np.ndarray,
    ) -> list[Answer]:
        """The answers of a batch, in its order."""
        names = [os.fsdecode(file) for file in files]
        answers = [Answer(name, reason=str(pictures[row])) for row, name in enumerate(names)]
        images = {row: found for row, found in enumerate(pictures) if isinstance(found, np.ndarray)}
        if rows := list(images):
            result = self.classify(np.stack(list(images.values())), lambdas[rows])
            found = as_answers([names[row] for row in rows], result, self.classes)
            for row, answer in zip(rows, found, strict=True):
                answers[row] = answer
        return answers


def _check_finite(*outputs: np.ndarray) -> None:
    rows = not_finite(outputs)
    if len(rows):
        raise FloatingPointError(
            f"outputs of image {rows[0]} of the batch are not finite: export the model anew, and "
            "look at its weights"
        )
