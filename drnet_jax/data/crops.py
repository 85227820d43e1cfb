"""The transformations that workers apply to encoded samples (Grain)."""

from collections.abc import Callable
from dataclasses import dataclass

import grain
import numpy as np

from drnet_jax.data.decode import CorruptImageError, decode_crop, random_crop_box
from drnet_jax.data.eval_view import EvalView, eval_image
from drnet_jax.data.sources import Sample, Source


@dataclass(frozen=True)
class TrainCrop(grain.transforms.RandomMap):
    """A random resized crop of `scale` of the picture's area, to `size` px."""

    size: int
    scale: tuple[float, float]

    def random_map(self, element: Sample, rng: np.random.Generator) -> Sample:
        """The sample with `image` `[size, size, 3]` uint8 for `encoded`."""

        def decode(encoded: bytes) -> np.ndarray:
            """The crop."""
            return decode_crop(
                encoded, lambda w, h: random_crop_box(rng, w, h, self.scale), self.size
            )

        return _decoded(element, self.size, decode)


@dataclass(frozen=True)
class EvalCrop(grain.transforms.Map):
    """What evaluation sees of a picture."""

    view: EvalView

    def map(self, element: Sample) -> Sample:
        """The sample with `image` `[size, size, 3]` uint8 for `encoded`."""
        return _decoded(element, self.view.size, self.view.decode)


def problem(source: Source, index: int) -> str:
    """Why an image of a source cannot be read or decoded; empty if it can."""
    try:
        eval_image(source, index, source.image_size[0])
    except CorruptImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _decoded(sample: Sample, size: int, decode: Callable[[bytes], np.ndarray]) -> Sample:
    """The sample with `image` for `encoded`; a corrupt one is black, with `mask` False.

    So is one that could not be read, of which there are no bytes.
    """
    rest = {name: value for name, value in sample.items() if name != "encoded"}
    try:
        image = decode(sample["encoded"])
    except CorruptImageError:
        black = np.zeros((size, size, 3), np.uint8)
        return rest | {"image": black, "mask": np.bool_(False), "corrupt": np.bool_(True)}
    return rest | {"image": image}
