"""From encoded pictures to the centred square that an export was trained on (Pillow).

The same bytes as drnet_jax's `data/decode.py` gives: a JPEG is decoded at 1/2, 1/4 or 1/8 of its
size where the square stays at least as large as the output, then resized by Pillow's antialiased
`BILINEAR`; of other formats, factors of 4 and more are first reduced by means of whole pixels.
"""

import io
import os
import stat
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from drnet_runtime.errors import PictureError

# The formats of pictures, by Pillow's names, and how their files are named. They are told apart by
# content. Not among them: what starts programs (EPS, WMF), films, what has no signature (TGA), and
# icons, which are several pictures.
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
# Pillow's own limit, beyond which it takes a picture for a decompression bomb.
MAX_PIXELS = 178_956_970
# More is no picture: it would fill the memory.
_MOST_BYTES = 2**30
# What Pillow warns of is seen in the result, or does not matter.
warnings.filterwarnings("ignore", module=r"PIL\.")
# EXIF orientations of pictures to mirror left to right, or top to bottom, after the transposition
# of those from `_TRANSPOSED` on.
_MIRRORED, _UPSIDE_DOWN, _TRANSPOSED = (2, 3, 6, 7), (3, 4, 7, 8), 5
# Of a resize: what its exact last step leaves to the means of whole pixels before it.
_REDUCING_GAP = 2.0


@dataclass(frozen=True)
class View:
    """What is seen of a picture.

    Attributes:
      size: side of the square in pixels, once resized.
      fraction: its side before, of the picture's shorter side.
    """

    size: int
    fraction: float

    def decode(self, encoded: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """The centred square of an encoded picture, `[size, size, 3]` uint8 RGB.

        Grey pictures get three equal channels, transparency is dropped, the EXIF orientation
        applied; of several pictures in one file the first counts.

        Args:
          encoded: a picture of a format whose files are named as in `SUFFIXES`.
          max_pixels: of the whole picture; one with more is not decoded. Pillow's own limit holds
            too.

        Raises:
          PictureError: it cannot be decoded, ends early or is too large, or there is too little
            memory.
        """
        try:
            return self._decode(encoded, max_pixels)
        except PictureError:
            raise
        except UnidentifiedImageError as error:
            # Pillow's own message names an object in memory.
            raise PictureError("it is no picture of a known format") from error
        except MemoryError as error:
            # Damaged headers ask for any amount.
            raise PictureError("there is too little memory to decode it") from error
        # Damaged files make decoders raise whatever happens to go wrong: OSError, struct.error,
        # RuntimeError, ...
        except Exception as error:
            raise PictureError(str(error) or type(error).__name__) from error

    def _decode(self, encoded: bytes, max_pixels: int) -> np.ndarray:
        picture = Image.open(io.BytesIO(encoded), formats=_FORMATS)
        width, height = picture.size
        if width * height > max_pixels:
            raise PictureError(
                f"it has {width} x {height} pixels, more than the {max_pixels} allowed: scale it "
                "down first"
            )
        # Pillow turns a TIFF as it loads it, and looks for the EXIF of a PNG behind the pixels too.
        if picture.format != "JPEG":
            picture.load()
        orientation = _orientation(picture)
        return _upright(self._resized(picture, orientation), orientation)

    def _resized(self, picture: Image.Image, orientation: int) -> np.ndarray:
        """The square of a picture that may not be decoded yet, as it is in the file."""
        width, height = picture.size
        side = max(1, round(self.fraction * min(width, height)))
        left, top = _corner(width, height, side, orientation)
        factor = max(1, side // self.size)
        # Only a JPEG gets smaller.
        drafted = picture.draft(None, (width // factor, height // factor))
        scale = 1.0 if drafted is None else drafted[1][2] / width
        box = (scale * left, scale * top, scale * (left + side), scale * (top + side))
        resized = _as_rgb(picture).resize(
            (self.size, self.size), Image.Resampling.BILINEAR, box, _REDUCING_GAP
        )
        return np.asarray(resized)


def _corner(width: int, height: int, side: int, orientation: int) -> tuple[int, int]:
    """Left and top of the centred square in a picture as it is in the file.

    It is centred in the upright one: where a pixel is left over, that is on its right or below it.
    """
    left, top = (width - side) // 2, (height - side) // 2
    if orientation >= _TRANSPOSED:
        left, top = top, left
        width, height = height, width
    if orientation in _MIRRORED:
        left = width - left - side
    if orientation in _UPSIDE_DOWN:
        top = height - top - side
    return (top, left) if orientation >= _TRANSPOSED else (left, top)


def _orientation(picture: Image.Image) -> int:
    """What EXIF or XMP state; 1, upright, where they state none of the 8, or cannot be read."""
    if picture.format == "TIFF":
        return 1
    try:
        found: int = picture.getexif().get(ExifTags.Base.Orientation, 1)
    # SyntaxError, struct.error, ...: the pixels may be whole.
    except Exception:
        return 1
    return found if found in range(1, 9) else 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns `[h, w, 3]` as EXIF says."""
    if orientation >= _TRANSPOSED:
        image = image.transpose(1, 0, 2)
    if orientation in _MIRRORED:
        image = image[:, ::-1]
    if orientation in _UPSIDE_DOWN:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":
        # Converting would copy it.
        return picture
    if picture.mode == "F" or (picture.mode == "I" and picture.format == "TIFF"):
        raise PictureError("its pixels are of 32 bits, which have no fixed black and white")
    if picture.mode.startswith("I"):
        # 16 bits of grey, which converting would clip.
        grey = picture.convert("I") if picture.mode not in ("I", "I;16") else picture
        picture = grey.point(lambda value: value * (1 / 256)).convert("L")
    picture.load()
    # Pillow warns where a palette has it.
    picture.info.pop("transparency", None)
    return picture.convert("RGB")


def read_picture(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file.

    Raises:
      PictureError: it cannot be read, is something else (a named pipe, say, which might never end),
        or is larger than any picture.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise PictureError("it is no regular file")
            if found.st_size > _MOST_BYTES:
                raise PictureError(f"it is larger than {_MOST_BYTES >> 30} GiB")
            return file.read()
    except MemoryError as error:
        raise PictureError("there is too little memory to read it") from error
    except OSError as error:
        raise PictureError(error.strerror or str(error)) from error


def _open_at_once(path: str, flags: int) -> int:
    """Opening a named pipe would wait for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
