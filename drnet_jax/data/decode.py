"""From encoded pictures to square crops (Pillow), on the CPU.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the crop stays at least as large as the
output, then resized by Pillow's antialiased `BILINEAR`; of other formats, factors of 4 and more are
first reduced by means of whole pixels. `benchmarks/input.py` measures speed and difference.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

# The formats of pictures, by Pillow's names, and how their files are named. They are told apart by
# content, whatever a file is called. Not among them: what starts programs (EPS, WMF), films, what
# has no signature, so that any bytes may pass for it (TGA), and icons, which are several pictures.
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
# What Pillow may be built without.
_FEATURES = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
_FORMATS = tuple(
    name for name in _SUFFIXES if name not in _FEATURES or features.check(_FEATURES[name])
)
SUFFIXES = tuple(suffix for name in _FORMATS for suffix in _SUFFIXES[name])
# What Pillow warns of is seen in the result, or does not matter: damaged EXIF, which is left out; a
# size beyond half of its limit. A folder of such pictures would give as many lines.
warnings.filterwarnings("ignore", module=r"PIL\.")
# EXIF orientations of pictures to mirror left to right, or top to bottom, after the transposition
# of those from `_TRANSPOSED` on.
_MIRRORED, _UPSIDE_DOWN, _TRANSPOSED = (2, 3, 6, 7), (3, 4, 7, 8), 5
# Of a resize: what its exact last step leaves to the means of whole pixels before it.
_REDUCING_GAP = 2.0


class CorruptImageError(ValueError):
    """Bytes that are no whole picture."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the full picture."""

    left: int
    top: int
    width: int
    height: int


ChooseBox = Callable[[int, int], Box]
_P = ParamSpec("_P")
_T = TypeVar("_T")


def random_crop_box(
    rng: np.random.Generator, width: int, height: int, scale: tuple[float, float]
) -> Box:
    """A random resized crop: an area of `scale` of the picture, an aspect ratio of 3/4 to 4/3.

    Szegedy et al. 2015, with the fallback of torchvision's `RandomResizedCrop`: after ten misses
    the largest centred box of a permitted aspect ratio.
    """
    ratios = (3 / 4, 4 / 3)
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = np.exp(rng.uniform(*np.log(ratios)))
        w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return Box(int(left), int(top), w, h)
    w = min(width, round(height * ratios[1]))
    h = min(height, round(width / ratios[0]))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def centre_crop_box(width: int, height: int, fraction: float) -> Box:
    """The centred square of `fraction` of the shorter side.

    With fraction 224/256 what is left of scaling the shorter side to 256 and cropping 224.
    """
    side = max(1, round(fraction * min(width, height)))
    return Box((width - side) // 2, (height - side) // 2, side, side)


def decode_crop(encoded: bytes, choose_box: ChooseBox, size: int) -> np.ndarray:
    """A part of a picture, resized to `[size, size, 3]` uint8 RGB.

    Grey pictures get three equal channels, transparency is dropped, the EXIF orientation applied;
    EXIF that cannot be read states none.

    Args:
      encoded: a picture of a format whose files are named as in `SUFFIXES`; of several in one
        file the first.
      choose_box: from the picture's width and height to the part.
      size: of the result.

    Raises:
      CorruptImageError: the bytes cannot be decoded, or end early, or there is too little memory.
    """
    picture, orientation = _corrupt_where_it_fails(_open, encoded)
    width, height = picture.size
    if orientation >= _TRANSPOSED:
        width, height = height, width
    box = _as_stored(choose_box(width, height), orientation, width, height)
    return _upright(_corrupt_where_it_fails(_resize, picture, box, size), orientation)


def resize_square(square: np.ndarray, size: int) -> np.ndarray:
    """A whole square `[s, s, 3]` uint8 as `[size, size, 3]`.

    By Pillow: its antialiased `BILINEAR` is the filter of the device's resize
    (`drnet_jax/models/layers.py`), up to rounding, which is what networks were trained on.
    """
    if len(square) == size:
        return square
    picture = Image.fromarray(square)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


def _corrupt_where_it_fails(step: Callable[_P, _T], *args: _P.args, **options: _P.kwargs) -> _T:
    """What a step of Pillow's gives.

    (In a context manager made of a generator the error would hold itself from Python 3.12 on, and
    by its frames the pixels of a corrupt picture, until the garbage is collected.)
    """
    try:
        return step(*args, **options)
    except UnidentifiedImageError as error:
        # Pillow's own message names an object in memory.
        raise CorruptImageError("it is no picture of a known format") from error
    except MemoryError as error:
        # Damaged headers ask for any amount. (Where a whole picture is too large, it is named too.)
        raise CorruptImageError("there is too little memory to decode it") from error
    # Damaged files make decoders raise whatever happens to go wrong: OSError, struct.error,
    # RuntimeError, ...
    except Exception as error:
        raise CorruptImageError(str(error) or type(error).__name__) from error


def _open(encoded: bytes) -> tuple[Image.Image, int]:
    """A picture, decoded unless that may be done at a reduced scale later, and its orientation."""
    picture = Image.open(io.BytesIO(encoded), formats=_FORMATS)
    # Pillow turns a TIFF as it loads it, and looks for the EXIF of a PNG behind the pixels too.
    if picture.format != "JPEG":
        picture.load()
    return picture, _orientation(picture)


def _orientation(picture: Image.Image) -> int:
    """What EXIF or XMP state; 1, upright, where they state none of the 8, or cannot be read."""
    if picture.format == "TIFF":
        return 1
    try:
        found: int = picture.getexif().get(ExifTags.Base.Orientation, 1)
    # SyntaxError, struct.error, ...: the pixels may be whole. (Pillow leaves out a damaged field.)
    except Exception:
        return 1
    return found if found in range(1, 9) else 1


def _as_stored(box: Box, orientation: int, width: int, height: int) -> Box:
    """A box of the upright picture, `width` x `height`, in the picture as it is in the file."""
    left, top = box.left, box.top
    if orientation in _MIRRORED:
        left = width - box.left - box.width
    if orientation in _UPSIDE_DOWN:
        top = height - box.top - box.height
    if orientation >= _TRANSPOSED:
        return Box(top, left, box.height, box.width)
    return Box(left, top, box.width, box.height)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns `[h, w, 3]` as EXIF says."""
    if orientation >= _TRANSPOSED:
        image = image.transpose(1, 0, 2)
    if orientation in _MIRRORED:
        image = image[:, ::-1]
    if orientation in _UPSIDE_DOWN:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _resize(picture: Image.Image, box: Box, size: int) -> np.ndarray:
    """A part of a picture that may not be decoded yet, as `[size, size, 3]`."""
    width, height = picture.size
    factor = max(1, min(box.width, box.height) // size)
    # Only a JPEG gets smaller.
    drafted = picture.draft(None, (width // factor, height // factor))
    scale = 1.0 if drafted is None else drafted[1][2] / width
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    left, top, right, bottom = (scale * corner for corner in corners)
    resized = _as_rgb(picture).resize(
        (size, size),
        Image.Resampling.BILINEAR,
        box=(left, top, right, bottom),
        reducing_gap=_REDUCING_GAP,
    )
    return np.asarray(resized)


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":
        # Converting would copy it.
        return picture
    if picture.mode == "F" or (picture.mode == "I" and picture.format == "TIFF"):
        raise CorruptImageError("its pixels are of 32 bits, which have no fixed black and white")
    if picture.mode.startswith("I"):
        # 16 bits of grey, which converting would clip.
        grey = picture.convert("I") if picture.mode not in ("I", "I;16") else picture
        picture = grey.point(lambda value: value * (1 / 256)).convert("L")
    picture.load()
    # Pillow warns where a palette has it.
    picture.info.pop("transparency", None)
    return picture.convert("RGB")
