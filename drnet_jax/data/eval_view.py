"""Pictures as evaluation sees them: the centred square, at the size that networks start from."""

from dataclasses import dataclass

import numpy as np

from drnet_jax.data.decode import centre_crop_box, decode_crop, resize_square
from drnet_jax.data.sources import EncodedSource, Source


@dataclass(frozen=True)
class EvalView:
    """The centred square of a picture.

    Attributes:
      size: its side in pixels, once resized.
      fraction: its side before, of the picture's shorter side.
    """

    size: int
    fraction: float

    def decode(self, encoded: bytes) -> np.ndarray:
        """The square of an encoded picture, `[size, size, 3]` uint8.

        Raises:
          CorruptImageError: it cannot be decoded.
        """
        return decode_crop(encoded, lambda w, h: centre_crop_box(w, h, self.fraction), self.size)


def view_of(source: Source) -> EvalView:
    """How the images of a source are seen; square ones in memory, as they are."""
    if isinstance(source, EncodedSource):
        return EvalView(source.size, source.eval_crop)
    return EvalView(source.image_size[0], 1.0)


def eval_image(source: Source, index: int, side: int) -> np.ndarray:
    """An image of a source at a resolution, `[side, side, 3]` uint8, resized on the host.

    Raises:
      CorruptImageError: it cannot be decoded.
      OSError: it cannot be read.
    """
    if isinstance(source, EncodedSource):
        return resize_square(view_of(source).decode(source.read(index)), side)
    return resize_square(source.images[index], side)
