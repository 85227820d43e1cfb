"""Picture files as images of a pass: decoded once, resized on the host for each network."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drnet_jax.data.decode import CorruptImageError, resize_square
from drnet_jax.data.eval_view import EvalView
from drnet_jax.data.files import read_picture
from drnet_jax.inference.images import Part, Problems, Rows


@dataclass(frozen=True)
class EncodedPart(Part):
    """A part of a batch, with the squares `[count, s, s, 3]` that its images were made from."""

    squares: np.ndarray


class EncodedImages:
    """Pictures, each read and decoded once, to the view's size.

    A reduced scale for the predictor, and decoding again for the chosen resolution, costs about as
    much, as most of a JPEG's time goes before its scale matters, and its pixels are more than 1 of
    255 off those that networks are trained on (`benchmarks/predict.py`). What is resized on the
    host is not resized on the device, and no more is uploaded than a network sees.

    Args:
      view: how pictures are decoded, as for evaluation.
      opened: side in pixels of what `open` gives.
      gathered: `[m]` sides in pixels of what `gather` gives, by choice.
      pool: threads that read, decode and resize, which Pillow lets run side by side.
    """

    def __init__(
        self, view: EvalView, opened: int, gathered: Sequence[int], pool: Executor
    ) -> None:
        self._view = view
        self._opened = opened
        self._gathered = gathered
        self._pool = pool

    def open(
        self, batch: Sequence[Path], buckets: Sequence[int]
    ) -> tuple[list[EncodedPart], Problems]:
        """Reads and decodes files; padding is black, and so is what cannot be read."""
        side = self._view.size
        squares = np.empty((len(batch), side, side, 3), np.uint8)
        problems = decode_into(squares, batch, self._view, self._pool)
        images = self._resized(list(squares), self._opened)
        parts = []
        done = 0
        for bucket in buckets:
            rows = slice(done, done + bucket)
            part = images[rows]
            parts.append(EncodedPart(_padded(part, bucket), len(part), squares[rows]))
            done += bucket
        return parts, problems

    def gather(self, choice: int, bucket: int, rows: Sequence[Rows[EncodedPart]]) -> np.ndarray:
        """Rows of any batches at the side of a choice; black after them."""
        wanted: list[np.ndarray] = []
        for parts, indices in rows:
            squares = [square for part in parts for square in part.squares]
            wanted += [squares[index] for index in indices]
        return _padded(self._resized(wanted, self._gathered[choice]), bucket)

    def _resized(self, squares: Sequence[np.ndarray], size: int) -> np.ndarray:
        """n squares `[s, s, 3]` as `[n, size, size, 3]`."""
        images = np.empty((len(squares), size, size, 3), np.uint8)

        def resize(row: int) -> None:
            """Fills one row."""
            images[row] = resize_square(squares[row], size)

        list(self._pool.map(resize, range(len(squares))))
        return images


def decode_into(
    out: np.ndarray, files: Sequence[Path], view: EvalView, pool: Executor
) -> dict[int, str]:
    """Reads and decodes files into the first rows of `[n or more, size, size, 3]` uint8.

    Args:
      out: to be written.
      files: n of them.
      view: how they are decoded.
      pool: threads that read and decode.

    Returns:
      By row why a file cannot be read; its row is black.
    """

    def decode(row: int) -> str | None:
        """Fills one row, or says why not."""
        try:
            out[row] = view.decode(read_picture(files[row]))
        except CorruptImageError as error:
            problem = str(error)
        except OSError as error:
            problem = error.strerror or str(error)
        else:
            return None
        out[row] = 0
        return problem

    found = enumerate(pool.map(decode, range(len(files))))
    return {row: problem for row, problem in found if problem is not None}


def _padded(images: np.ndarray, bucket: int) -> np.ndarray:
    missing = bucket - len(images)
    return np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else images
