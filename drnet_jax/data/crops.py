"""The transformations that workers apply to encoded samples (Grain)."""

from dataclasses import dataclass

import grain
import numpy as np

from drnet_jax.data.decode import (
    ChooseBox,
    CorruptImageError,
    centre_crop_box,
    decode_crop,
    random_crop_box,
)
from drnet_jax.data.sources import EncodedSource, Sample, Source


@dataclass(frozen=True)
class TrainCrop(grain.transforms.RandomMap):
    """A random resized crop of `scale` of the picture's area, to `size` px."""

    size: int
    scale: tuple[float, float]

    def random_map(self, element: Sample, rng: np.random.Generator) -> Sample:
        """The sample with `image` `[size, size, 3]` uint8 for `encoded`."""
        return _decoded(element, self.size, lambda w, h: random_crop_box(rng, w, h, self.scale))


@dataclass(frozen=True)
class EvalCrop(grain.transforms.Map):
    """The centred square of `fraction` of the picture's shorter side, to `size` px."""

    size: int
    fraction: float

    def map(self, element: Sample) -> Sample:
        """The sample with `image` `[size, size, 3]` uint8 for `encoded`."""
        return _decoded(element, self.size, lambda w, h: centre_crop_box(w, h, self.fraction))


def is_corrupt(source: Source, index: int) -> bool:
    """Whether an image of a source cannot be decoded."""
    if not isinstance(source, EncodedSource):
        return False
    return bool(EvalCrop(source.size, source.eval_crop).map(source[index])["corrupt"])


def _decoded(sample: Sample, size: int, choose_box: ChooseBox) -> Sample:
    """The sample with `image` for `encoded`; a corrupt one is black, with `mask` False."""
    rest = {name: value for name, value in sample.items() if name != "encoded"}
    try:
        image = decode_crop(sample["encoded"], choose_box, size)
    except CorruptImageError:
        black = np.zeros((size, size, 3), np.uint8)
        return rest | {"image": black, "mask": np.bool_(False), "corrupt": np.bool_(True)}
    return rest | {"image": image}
