"""From encoded pictures to square crops (OpenCV), on the CPU.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the crop stays at least as large as the
output; the factor below two that is left is a three-tap low-pass filter and a bilinear resize, so
that every crop is antialiased. The filter's variance is chosen so that filter and bilinear kernel
together have the variance of the triangle that Pillow's antialiased `BILINEAR` uses.
`benchmarks/input.py` measures speed and difference.
"""

import io
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

# Workers are processes or threads of ours; OpenCV's own threads would fight over the cores.
cv2.setNumThreads(1)
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_JPEG_SCAN = 0xDA
_EXIF_ORIENTATION = 0x0112
# OpenCV's reduced flags are a factor and a colour order; BGR, which it names, costs a conversion.
_REDUCED = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_COLOR_2 ^ cv2.IMREAD_COLOR_BGR | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_COLOR_4 ^ cv2.IMREAD_COLOR_BGR | cv2.IMREAD_COLOR_RGB,
    8: cv2.IMREAD_REDUCED_COLOR_8 ^ cv2.IMREAD_COLOR_BGR | cv2.IMREAD_COLOR_RGB,
}


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

    Grey pictures get three equal channels, transparency is dropped, the EXIF orientation applied.

    Args:
      encoded: a JPEG, PNG or WebP.
      choose_box: from the picture's width and height to the part.
      size: of the result.

    Raises:
      CorruptImageError: the bytes cannot be decoded, or end early.
    """
    width, height, orientation = _read_header(encoded)
    box = choose_box(width, height)
    factor = 1
    if encoded.startswith(_JPEG_START):
        # OpenCV fills what is missing with grey.
        if _ends_early(encoded):
            raise CorruptImageError("the JPEG ends early")
        # A turned picture may begin with a part of a reduced pixel: its grid is another.
        if orientation == 1:
            factor = _reduction(min(box.width, box.height), size)
    try:
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), _REDUCED[factor])
        if picture is None:
            raise CorruptImageError("it cannot be decoded")
        found = picture.shape[1], picture.shape[0]
        if factor == 1 and found != (width, height):
            # Pillow also reads orientations that OpenCV does not know of (XMP).
            box = choose_box(*found)
        across = _Span(box.left / factor, box.width / factor)
        down = _Span(box.top / factor, box.height / factor)
        return _resize(picture, across, down, size)
    except cv2.error as error:
        raise CorruptImageError(str(error)) from error


def resize_square(square: np.ndarray, size: int) -> np.ndarray:
    """A whole square `[s, s, 3]` uint8 as `[size, size, 3]`.

    By Pillow: its antialiased `BILINEAR` is the filter of the device's resize
    (`drnet_jax/models/layers.py`), up to rounding, which is what networks were trained on.
    """
    if len(square) == size:
        return square
    picture = Image.fromarray(square)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


def _ends_early(jpeg: bytes) -> bool:
    """Whether the data of the scan is not followed by the end marker; what comes later may be
    anything (a phone's film clip, say), and what comes before may hold a whole thumbnail."""
    position = 2
    while position + 4 <= len(jpeg) and jpeg[position + 1] != _JPEG_SCAN:
        if jpeg[position + 1] == 0xFF:
            # A fill byte.
            position += 1
            continue
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return jpeg.find(_JPEG_END, position) < 0


def _read_header(encoded: bytes) -> tuple[int, int, int]:
    """Width and height in pixels, the EXIF orientation applied, and that orientation (1 to 8)."""
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            width, height = picture.size
            exif = picture.getexif() if "exif" in picture.info else {}
    except UnidentifiedImageError as error:
        # Pillow's own message names an object in memory.
        raise CorruptImageError("it is no picture of a known format") from error
    except (
        *(OSError, SyntaxError, ValueError, struct.error),
        Image.DecompressionBombError,
    ) as error:
        raise CorruptImageError(str(error)) from error
    orientation = exif.get(_EXIF_ORIENTATION, 1)
    if orientation in range(5, 9):
        width, height = height, width
    return width, height, orientation


@dataclass(frozen=True)
class _Span:
    """Where a crop lies along one axis of a picture, in its pixels."""

    start: float
    length: float

    @property
    def is_whole(self) -> bool:
        """Whether it starts and ends between two pixels."""
        return float(self.start).is_integer() and float(self.length).is_integer()

    @property
    def pixels(self) -> slice:
        """The pixels of a whole span."""
        return slice(int(self.start), int(self.start + self.length))

    def touched(self, limit: int) -> tuple[int, int]:
        """The whole pixels that the span and its neighbours touch, of `limit`."""
        first = max(math.floor(self.start) - 2, 0)
        return first, min(math.ceil(self.start + self.length) + 2, limit)


def _resize(picture: np.ndarray, across: _Span, down: _Span, size: int) -> np.ndarray:
    """Antialiased resize of a part of `[h, w, 3]` uint8 to `[size, size, 3]`."""
    first_x, last_x = across.touched(picture.shape[1])
    first_y, last_y = down.touched(picture.shape[0])
    crop = picture[first_y:last_y, first_x:last_x]
    across = _Span(across.start - first_x, across.length)
    down = _Span(down.start - first_y, down.length)
    while max(across.length, down.length) >= 2 * size:
        x = 2 if across.length >= 2 * size else 1
        y = 2 if down.length >= 2 * size else 1
        width, height = crop.shape[1] // x, crop.shape[0] // y
        whole = crop[: height * y, : width * x]
        crop = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
        across = _Span(across.start / x, across.length / x)
        down = _Span(down.start / y, down.length / y)
    x_scale, y_scale = across.length / size, down.length / size
    if max(x_scale, y_scale) > 1:
        border = cv2.BORDER_REPLICATE | cv2.BORDER_ISOLATED
        crop = cv2.sepFilter2D(crop, -1, _low_pass(x_scale), _low_pass(y_scale), borderType=border)
    if across.is_whole and down.is_whole:
        crop = crop[down.pixels, across.pixels]
        return cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
    # Centres of pixels lie at half numbers; OpenCV counts from the first centre.
    left, top = across.start + 0.5 * x_scale - 0.5, down.start + 0.5 * y_scale - 0.5
    back = np.array([[x_scale, 0, left], [0, y_scale, top]], np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(crop, back, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _low_pass(factor: float) -> np.ndarray:
    # A triangle of half-width f has variance f^2/6; bilinear interpolation already has 1/6.
    side = min(max(factor**2 - 1, 0) / 12, 1 / 3)
    return np.array([side, 1 - 2 * side, side], np.float32)


def _reduction(side: int, size: int) -> int:
    """The largest of 8, 4, 2, 1 that leaves at least `size` of `side` pixels."""
    return next((factor for factor in (8, 4, 2) if side // factor >= size), 1)
