"""The embedded default data: real handwritten digits, drawn over real photographs.

Composed from what scikit-learn ships: its 1,797 digits (8x8 grey, UCI "Optical Recognition of
Handwritten Digits") and its two photographs, `china.jpg` (flickr.com/photos/danielbuechele) and
`flower.jpg` (flickr.com/photos/vultilion), both CC BY 2.0. A digit is drawn at a random apparent
size, place and colour. Reading a small one takes the full resolution, a large one is legible at
the smallest: exactly what a resolution predictor has to see.
"""

import numpy as np
from PIL import Image
from sklearn import datasets

from drnet_jax.data.sources import ArraySource

IMAGE_SIZE = 64
APPARENT_SIZES = (10, 56)
# Digits and images of each split; a digit belongs to one split only.
DIGITS = {"train": 1200, "calibration": 200, "test": 397}
IMAGES = {"train": 12_000, "calibration": 2_000, "test": 3_000}
SEEDS = {"train": 1, "calibration": 2, "test": 3}
_CONTRAST = 0.4
_MIN_DIFFERENCE = 70.0


class DigitsOnPhotos:
    """The embedded data as a `Dataset`: of fewer images than a split has, these are the first."""

    classes = tuple("0123456789")

    def count(self, split: str) -> int:
        """Images of a split."""
        return IMAGES[split]

    def identity(self, split: str) -> str:
        """The split's name: its images are always the same."""
        return split

    def sizes(self, split: str) -> np.ndarray:
        """None have a file."""
        return np.zeros(IMAGES[split], np.int64)

    def load(self, split: str, count: int) -> ArraySource:
        """The first images of a split, composed."""
        metadata = compose(split, count)
        images, labels = metadata.pop("image"), metadata.pop("label")
        return ArraySource(images, labels, self.identity(split), metadata)


def compose(split: str, num_images: int | None = None) -> dict[str, np.ndarray]:
    """Composes one split, always the same for the same arguments.

    Args:
      split: `'train'`, `'calibration'` or `'test'`.
      num_images: how many images, the first of the full split; default: all.

    Returns:
      `image` `[n, 64, 64, 3]` uint8, `label` `[n]` int32 (the digit), `apparent_size` `[n]` int32
      (side of the drawn digit, in pixels), and `origin` `[n]` int32 (number of the handwritten
      digit among scikit-learn's 1,797, which several images are drawn from).

    Raises:
      KeyError: an unknown split.
    """
    glyphs, labels, numbers = _digits(split)
    size = IMAGES[split] if num_images is None else num_images
    photos = [photo.astype(np.float32) for photo in datasets.load_sample_images().images]
    rng = np.random.default_rng(SEEDS[split])
    images = np.empty((size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    chosen = np.empty(size, np.int64)
    sides = np.empty(size, np.int32)
    for index in range(size):
        chosen[index] = rng.integers(len(glyphs))
        sides[index] = round(float(np.exp(rng.uniform(*np.log(APPARENT_SIZES)))))
        images[index] = _draw(glyphs[chosen[index]], sides[index], photos, rng)
    return {
        "image": images,
        "label": labels[chosen],
        "apparent_size": sides,
        "origin": numbers[chosen],
    }


def _digits(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The split's digits as `[n, 8, 8]` opacities in 0..255 (uint8), labels and numbers `[n]`."""
    digits = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    count = DIGITS[split]
    stop = np.cumsum(list(DIGITS.values()))[list(DIGITS).index(split)]
    mine = order[stop - count : stop]
    opacity = np.round(digits.images[mine] * (255 / 16)).astype(np.uint8)
    return opacity, digits.target[mine].astype(np.int32), mine.astype(np.int32)


def _draw(
    glyph: np.ndarray, side: int, photos: list[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    photo = photos[rng.integers(len(photos))]
    top, left = (rng.integers(length - IMAGE_SIZE + 1) for length in photo.shape[:2])
    image = photo[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
    image = image.mean() + _CONTRAST * (image - image.mean())

    top, left = rng.integers(IMAGE_SIZE - side + 1, size=2)
    window = (slice(top, top + side), slice(left, left + side))
    scaled = Image.fromarray(glyph).resize((side, side), Image.Resampling.BICUBIC)
    opacity = np.asarray(scaled, np.float32)[..., None] / 255
    color = _visible_color(image[window].mean(axis=(0, 1)), rng)
    image[window] += opacity * (color - image[window])
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _visible_color(background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A uniform RGB colour whose mean absolute difference to `background` is large enough."""
    while True:
        color = rng.uniform(0, 255, 3)
        if np.abs(color - background).mean() >= _MIN_DIFFERENCE:
            return color
