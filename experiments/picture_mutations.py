"""Small random pictures of ten formats, and what can have happened to such a file."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from experiments.byte_mutations import BYTE_MUTATIONS, Rng, bit_flips, extreme_field

# By Pillow's names, with how their files are called. Those that data sets consist of come up twice
# as often as the others; icons are no pictures for the program, which has to refuse them.
COMMON = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
RARE = {"TIFF": ".tif", "AVIF": ".avif", "PPM": ".ppm", "JPEG2000": ".jp2", "ICO": ".png"}
SUFFIXES = COMMON | RARE
REFUSED = ("ICO",)
_SIDES = (8, 200)
# Left, top, step to the right and step down of each pass.
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
# Into some formats Pillow writes EXIF only where it is sound.
_SOUND_EXIF = ("AVIF", "TIFF")
_WITH_EXIF = ("JPEG", "PNG", "WEBP", *_SOUND_EXIF)
_EXIF_START = b"Exif\0\0"


@dataclass(frozen=True)
class MutatedPicture:
    """A file that may be damaged.

    Attributes:
      form: its format, by Pillow's name.
      mutation: what happened to it.
      name: of the file; the suffix may be that of another format.
      content: its bytes.
    """

    form: str
    mutation: str
    name: str
    content: bytes


def make(seed: int, index: int) -> MutatedPicture:
    """Picture number `index` of a seed, always the same with the same version of Pillow."""
    rng = np.random.default_rng((seed, index))
    form = str(rng.choice([*COMMON, *COMMON, *RARE]))
    mutation = str(rng.choice(list(MUTATIONS)))
    content = MUTATIONS[mutation](rng, encode(rng, form), form)
    suffix = SUFFIXES[form]
    if mutation == "wrong extension":
        suffix = str(rng.choice([other for other in SUFFIXES.values() if other != suffix]))
    return MutatedPicture(form, mutation, f"{index:05d}{suffix}", content)


def describe(seed: int, index: int) -> tuple[str, str]:
    """Format and mutation of that picture."""
    picture = make(seed, index)
    return picture.form, picture.mutation


def encode(rng: Rng, form: str, exif: bytes = b"") -> bytes:
    """A random picture of 8 to 200 px in a random variant of a format."""
    variants = _VARIANTS[form]
    mode, options = variants[rng.integers(len(variants))]
    pictures = [_picture(rng, mode)]
    if options.get("save_all"):
        pictures += [_picture(rng, mode).resize(pictures[0].size) for _ in range(2)]
        options = options | {"append_images": pictures[1:], "duration": 40}
    if exif and form in _WITH_EXIF:
        options = options | {"exif": exif}
    if options.get("interlaced"):
        return _interlaced(np.asarray(pictures[0]))
    buffer = io.BytesIO()
    pictures[0].save(buffer, form, **options)
    return buffer.getvalue()


_VARIANTS: dict[str, list[tuple[str, dict[str, object]]]] = {
    "JPEG": [
        ("RGB", {"quality": 85}),
        ("RGB", {"quality": 60, "progressive": True}),
        ("RGB", {"quality": 90, "subsampling": 0, "restart_marker_blocks": 4}),
        ("L", {"quality": 80}),
        ("CMYK", {"quality": 80}),
    ],
    "PNG": [
        *((mode, {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
        ("P", {"transparency": bytes(range(256))}),
        ("RGB", {"interlaced": True}),
    ],
    "WEBP": [
        ("RGB", {"quality": 70}),
        ("RGBA", {"quality": 70}),
        ("RGB", {"lossless": True}),
        ("RGBA", {"lossless": True, "exact": True}),
        ("RGB", {"save_all": True}),
    ],
    "GIF": [
        ("P", {}),
        ("L", {}),
        ("P", {"save_all": True}),
        ("P", {"transparency": 0, "save_all": True, "disposal": 2}),
    ],
    "BMP": [(mode, {}) for mode in ("RGB", "L", "P", "1", "RGBA")],
    "TIFF": [
        ("RGB", {"compression": "raw"}),
        ("RGB", {"compression": "tiff_lzw"}),
        ("RGB", {"compression": "tiff_adobe_deflate"}),
        ("RGB", {"compression": "packbits"}),
        ("RGB", {"compression": "jpeg"}),
        ("I;16", {}),
        ("CMYK", {}),
        ("1", {"compression": "group4"}),
    ],
    "AVIF": [("RGB", {"max_threads": 1, "speed": 9}), ("RGBA", {"max_threads": 1, "speed": 9})],
    "PPM": [("RGB", {}), ("L", {}), ("1", {}), ("I;16", {})],
    "JPEG2000": [("RGB", {}), ("L", {}), ("RGBA", {"irreversible": True})],
    "ICO": [("RGBA", {"sizes": [(8, 8)]}), ("RGB", {"bitmap_format": "bmp", "sizes": [(8, 8)]})],
}


def _picture(rng: Rng, mode: str) -> Image.Image:
    """Coarse noise enlarged, a rectangle on it, and some fine noise."""
    low, high = np.log(_SIDES)
    width, height = (int(side) for side in np.exp(rng.uniform(low, high, size=2)))
    coarse = Image.fromarray(rng.integers(256, size=(4, 4, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC), int)
    left, top = rng.integers(width), rng.integers(height)
    pixels[top : top + height // 2, left : left + width // 2] = rng.integers(256, size=3)
    pixels += rng.integers(-6, 7, size=pixels.shape)
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257)
    if mode in ("RGBA", "LA"):
        alpha = Image.fromarray(rng.integers(256, size=(height, width), dtype=np.uint8))
        picture.putalpha(alpha)
    return picture if picture.mode == mode else picture.convert(mode)


def _interlaced(pixels: np.ndarray) -> bytes:
    """`[h, w, 3]` as a PNG in Adam7's seven passes, which Pillow reads and does not write."""
    height, width = pixels.shape[:2]
    lines = b""
    for left, top, right, down in _ADAM7:
        for line in pixels[top::down, left::right]:
            # Without a filter; a pass without pixels has no lines.
            lines += b"\0" + line.tobytes() if len(line) else b""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    chunks = (_chunk(name, data) for name, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    """Of a PNG, with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _extreme_field(rng: Rng, content: bytes, form: str) -> bytes:
    return _mended(extreme_field(rng, content), rng)


def _absurd_size(rng: Rng, content: bytes, form: str) -> bytes:
    """Another width and height than the pixels that follow, where the format has them."""
    sides = (0, 1, 3, 9_000, 13_000, 16_383, 40_000, 65_500, 0x7FFFFFFF)
    width, height = (int(side) for side in rng.choice(sides, size=2))
    place = _dimensions(content, form)
    if place is None:
        return _extreme_field(rng, content, form)
    at, layout = place
    limit = (1 << 8 * struct.calcsize(layout) // 2) - 1
    # A JPEG has the height first.
    fields = (height, width) if form == "JPEG" else (width, height)
    packed = struct.pack(layout, *(min(side, limit) for side in fields))
    return _mended(content[:at] + packed + content[at + len(packed) :], rng, always=True)


def _dimensions(content: bytes, form: str) -> tuple[int, str] | None:
    """Where width and height are, and how they are packed."""
    if form == "JPEG":
        starts = [content.find(b"\xff" + bytes([marker])) for marker in (0xC0, 0xC2)]
        return max(starts) + 5, ">HH"
    if form == "WEBP":
        return (26, "<HH") if content[12:16] == b"VP8 " else None
    return {"PNG": (16, ">II"), "GIF": (6, "<HH"), "BMP": (18, "<ii")}.get(form)


def _mended(content: bytes, rng: Rng, *, always: bool = False) -> bytes:
    """A PNG's header with its checksum: it is read on."""
    if content[:4] != b"\x89PNG" or not (always or rng.random() < 0.5):
        return content
    return content[:29] + struct.pack(">I", zlib.crc32(content[12:29])) + content[33:]


def _thin(rng: Rng, content: bytes, form: str) -> bytes:
    """Whole, and one pixel wide or high."""
    length = int(rng.integers(1, 3000))
    picture = Image.fromarray(rng.integers(256, size=(1, length, 3), dtype=np.uint8))
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    buffer = io.BytesIO()
    form = form if form in COMMON else "PNG"
    picture.save(buffer, form)
    return buffer.getvalue()


def _concatenated(rng: Rng, content: bytes, form: str) -> bytes:
    other = encode(rng, str(rng.choice(list(COMMON))))
    return content + other if rng.random() < 0.7 else content[: len(content) // 2] + other


def _orientation(rng: Rng, content: bytes, form: str) -> bytes:
    """One of those that there are, or another number where Pillow writes it."""
    others = () if form in _SOUND_EXIF else (0, 9, 65535)
    return encode(rng, form, _exif(int(rng.choice([*range(1, 9), *others]))))


def _exif_damage(rng: Rng, content: bytes, form: str) -> bytes:
    exif = bytearray(_exif(int(rng.integers(1, 9))))
    if form in _SOUND_EXIF:
        return bit_flips(rng, encode(rng, form, bytes(exif)))
    for _ in range(rng.integers(1, 6)):
        exif[rng.integers(len(_EXIF_START), len(exif))] = rng.integers(256)
    return encode(rng, form, bytes(exif[: rng.integers(len(_EXIF_START), len(exif) + 1)]))


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "maker"
    exif[ExifTags.Base.XResolution] = 72.0
    return exif.tobytes()


def _text(rng: Rng, content: bytes, form: str) -> bytes:
    texts = (b"<html><body>404 not found</body></html>\n", b"\0" * 500, content[:12], b"\xff\xd8")
    return bytes(rng.choice(np.array(texts, object)))


def _of_bytes(name: str) -> Callable[[Rng, bytes, str], bytes]:
    return lambda rng, content, form: BYTE_MUTATIONS[name](rng, content)


# Their order is that of the pictures of a seed.
MUTATIONS: dict[str, Callable[[Rng, bytes, str], bytes]] = {
    **{name: _of_bytes(name) for name in BYTE_MUTATIONS if name not in ("extreme field", "empty")},
    "extreme field": _extreme_field,
    "absurd size": _absurd_size,
    "one pixel wide": _thin,
    "wrong extension": _of_bytes("none"),
    "concatenated": _concatenated,
    "orientation": _orientation,
    "EXIF damage": _exif_damage,
    "no picture": _text,
    "empty": _of_bytes("empty"),
}
