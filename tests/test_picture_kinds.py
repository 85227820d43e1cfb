"""Every kind of picture, alike in training, evaluation and prediction: its pixels, or a reason."""

import io
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drnet_jax.data.crops import problem
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.eval_view import EvalView
from drnet_jax.data.files import list_pictures
from drnet_jax.data.pipeline import eval_host_batches, train_batches
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import EncodedSource
from drnet_jax.inference.encoded import decode_into
from drnet_jax.runtime.sharding import batch_sharding, create_mesh

SIDE, BATCH = 16, 4
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
OTHER = 255 - RGB
GREY16 = RNG.integers(0, 65536, (SIDE, SIDE), np.uint16)
RGB16 = RNG.integers(0, 65536, (SIDE, SIDE, 3), np.uint16)
COLOURS = RNG.integers(0, 256, (7, 3), np.uint8)
PLACES = RNG.integers(0, 7, (SIDE, SIDE), np.uint8)
# Whatever the crop, its pixels are these.
FLAT = np.broadcast_to(np.array([10, 128, 250], np.uint8), (SIDE, SIDE, 3))


@dataclass(frozen=True)
class Kind:
    """A picture file.

    Attributes:
      name: of the file.
      content: of the file.
      pixels: `[16, 16, 3]` that the program has to see; None: it is corrupt.
      reason: of a corrupt one, a pattern.
    """

    name: str
    content: bytes
    pixels: np.ndarray | None = None
    reason: str = ""


def encode(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def rgb(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels)


def frames() -> dict[str, Any]:
    """To write a second picture, another one, behind the first."""
    return {"save_all": True, "append_images": [rgb(OTHER)]}


def palette() -> Image.Image:
    """Of seven colours, in random places."""
    picture = Image.fromarray(PLACES, "L").copy()
    picture.putpalette(COLOURS.tobytes())
    return picture


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def png(width: int, height: int, colour: int, depth: int, rows: bytes) -> bytes:
    """A PNG by its specification: Pillow writes none of three times 16 bits, or of other sizes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_of_16_bits() -> bytes:
    rows = [b"\0" + row.astype(">u2").tobytes() for row in RGB16]
    return png(SIDE, SIDE, 2, 16, b"".join(rows))


def tiff_of_16_bits() -> bytes:
    """A TIFF by its specification, in one strip: Pillow writes none of three times 16 bits."""
    pixels = RGB16.astype("<u2").tobytes()
    depths = struct.pack("<HHH", 16, 16, 16)
    after = 8 + len(pixels) + len(depths)
    # Width, height, depths, uncompressed, RGB, place, samples, rows, bytes; in 16 (3) or 32 bits.
    fields = [(256, 3, 1, SIDE), (257, 3, 1, SIDE), (258, 3, 3, 8 + len(pixels)), (259, 3, 1, 1)]
    fields += [(262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, SIDE)]
    fields += [(279, 4, 1, len(pixels))]
    table = b"".join(struct.pack("<HHII", *field) for field in fields)
    start = b"II*\0" + struct.pack("<I", after)
    return start + pixels + depths + struct.pack("<H", len(fields)) + table + bytes(4)


def turned() -> bytes:
    """Stored on its side, with an orientation that says so: to be turned clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = rgb(RGB).transpose(Image.Transpose.ROTATE_90)
    return encode(stored, "PNG", exif=exif.tobytes())


def decoded(content: bytes) -> np.ndarray:
    """What libjpeg gives of a lossy picture, as RGB."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def decoded_flat() -> np.ndarray:
    """As JPEG has it, which is off by one."""
    small = decoded(encode(Image.new("RGB", (SIDE, SIDE), (10, 128, 250)), "JPEG", subsampling=0))
    assert np.abs(small.astype(int) - FLAT).max() <= 1
    return small


def naive_rgb(cmyk: np.ndarray) -> np.ndarray:
    """Without colour management: each ink takes its part of the light, and black of the rest."""
    inks = cmyk.astype(np.float64) / 255
    return 255 * (1 - inks[..., :3]) * (1 - inks[..., 3:])


JPEG = encode(rgb(RGB), "JPEG", quality=95)
CMYK = RNG.integers(0, 256, (SIDE, SIDE, 4), np.uint8)
MPO = encode(rgb(RGB), "MPO", **frames(), quality=95)
GIF = encode(palette(), "GIF", save_all=True, append_images=[palette().rotate(90)])
WIDE = Image.new("RGB", (30_000, 40), (10, 128, 250))
LA = RNG.integers(0, 256, (SIDE, SIDE, 2), np.uint8)
TRANSPARENT = np.concatenate([RGB, RNG.integers(0, 256, (SIDE, SIDE, 1), np.uint8)], axis=2)
CMYK_JPEG = encode(Image.fromarray(CMYK, "CMYK"), "JPEG", quality=95)
KINDS = (
    Kind("cmyk.jpg", CMYK_JPEG, decoded(CMYK_JPEG)),
    Kind("cmyk.tif", encode(Image.fromarray(CMYK, "CMYK"), "TIFF"), naive_rgb(CMYK)),
    Kind("grey_of_16_bits.png", encode(Image.fromarray(GREY16), "PNG"), grey(GREY16 >> 8)),
    Kind("grey_of_16_bits.tif", encode(Image.fromarray(GREY16), "TIFF"), grey(GREY16 >> 8)),
    Kind("colours_of_16_bits.png", png_of_16_bits(), RGB16 >> 8),
    Kind("colours_of_16_bits.tif", tiff_of_16_bits(), RGB16 >> 8),
    Kind(
        "grey_of_32_bits.tif",
        encode(Image.fromarray(GREY16.astype(np.float32)), "TIFF"),
        reason="its pixels are of 32 bits, which have no fixed black and white",
    ),
    Kind("palette.png", encode(palette(), "PNG"), COLOURS[PLACES]),
    Kind("palette.gif", encode(palette(), "GIF"), COLOURS[PLACES]),
    Kind(
        "palette_with_transparency.png",
        encode(palette(), "PNG", transparency=bytes([0, 40, 80, 120, 160, 200, 255])),
        COLOURS[PLACES],
    ),
    Kind(
        "palette_with_transparency.gif", encode(palette(), "GIF", transparency=2), COLOURS[PLACES]
    ),
    Kind("transparency.png", encode(Image.fromarray(TRANSPARENT), "PNG"), RGB),
    Kind(
        "transparency.webp",
        encode(Image.fromarray(TRANSPARENT), "WEBP", lossless=True, exact=True),
        RGB,
    ),
    Kind("grey_with_transparency.png", encode(Image.fromarray(LA, "LA"), "PNG"), grey(LA[..., 0])),
    Kind("animated.gif", GIF, COLOURS[PLACES]),
    Kind("animated.png", encode(rgb(RGB), "PNG", **frames()), RGB),
    Kind("animated.webp", encode(rgb(RGB), "WEBP", **frames(), lossless=True), RGB),
    Kind("turned.png", turned(), RGB),
    Kind("two_pictures_of_a_camera.jpg", MPO, decoded(MPO)),
    Kind("several_pages.tif", encode(rgb(RGB), "TIFF", **frames()), RGB),
    Kind("truncated.jpg", JPEG[:-40], reason="truncated"),
    Kind("truncated.png", encode(rgb(RGB), "PNG")[:-60], reason="truncated"),
    Kind("zero_bytes.jpg", b"", reason="it is no picture of a known format"),
    Kind("png_by_content.jpg", encode(rgb(RGB), "PNG"), RGB),
    Kind("jpeg_by_content.png", JPEG, decoded(JPEG)),
    Kind("one_pixel.png", encode(Image.new("RGB", (1, 1), (10, 128, 250)), "PNG"), FLAT),
    Kind("30000_pixels_wide.png", encode(WIDE, "PNG"), FLAT),
    Kind("30000_pixels_wide.jpg", encode(WIDE, "JPEG", subsampling=0), decoded_flat()),
    # 400 megapixels of one bit, in 50 kB; and a header that promises ten gigapixels.
    Kind("bomb.png", png(20_000, 20_000, 0, 1, bytes(20_000 * 2501)), reason="decompression bomb"),
    Kind("promised_bomb.png", png(100_000, 100_000, 2, 8, b""), reason="decompression bomb"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, as training and test pictures of two classes, and a whole one in each."""
    root = tmp_path_factory.mktemp("kinds")
    for split in ("train", "valid", "test"):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            (root / split / label / "plain.png").write_bytes(encode(rgb(RGB), "PNG"))
        for number, kind in enumerate(KINDS if split != "valid" else ()):
            (root / split / "ab"[number % 2] / kind.name).write_bytes(kind.content)
    return root


def load(root: Path, split: str) -> EncodedSource:
    """Whole squares: every crop of a picture of 16 x 16 is the picture."""
    settings = DataSettings("folder", dir=str(root), size=SIDE, crop_scale=(1, 1), eval_crop=1.0)
    source = DataSplits(settings).load(split)
    assert isinstance(source, EncodedSource) and len(source) == len(KINDS) + 2
    return source


Seen = dict[str, np.ndarray | None]


def trained(root: Path) -> Seen:
    """What an epoch of training sees of each file; None of a corrupt one."""
    source = load(root, "train")
    # Labels say which picture it is.
    numbered = replace(source, labels=np.arange(len(source), dtype=np.int32))
    batches = train_batches(
        numbered,
        batch_size=BATCH,
        seed=0,
        start_step=0,
        sharding=batch_sharding(create_mesh()),
        num_workers=0,
    )
    seen: Seen = {}
    for _ in range(-(-len(source) // BATCH)):
        batch = next(batches)
        arrays = {name: np.asarray(array) for name, array in batch.arrays.items()}
        for image, index, good in zip(*map(arrays.get, ("image", "label", "mask")), strict=True):
            assert good == (index not in batch.corrupt)
            seen[Path(source.name(int(index))).name] = image if good else None
    batches.close()
    return seen


def evaluated(root: Path) -> Seen:
    source = load(root, "test")
    seen: Seen = {}
    for batch in eval_host_batches(source, batch_size=BATCH):
        for row in np.flatnonzero(batch["mask"] | batch["corrupt"]):
            name = Path(source.name(int(batch["index"][row]))).name
            seen[name] = None if batch["corrupt"][row] else batch["image"][row]
    return seen


def predicted(root: Path) -> Seen:
    pictures = list_pictures(root / "test").pictures
    paths = [root / "test" / picture.name for picture in pictures]
    squares = np.empty((len(paths), SIDE, SIDE, 3), np.uint8)
    with ThreadPoolExecutor() as pool:
        problems = decode_into(squares, paths, EvalView(SIDE, 1.0), pool)
    reasons = {kind.name: kind.reason for kind in KINDS}
    for row, words in problems.items():
        assert reasons[paths[row].name] in words
    return {p.name: None if row in problems else squares[row] for row, p in enumerate(paths)}


@pytest.mark.parametrize("see", [trained, evaluated, predicted])
def test_every_kind_of_picture(see: Callable[[Path], Seen], root: Path) -> None:
    """The pixels that it has, or it is left out as corrupt."""
    seen = see(root)
    assert seen.keys() == {"plain.png", *(kind.name for kind in KINDS)}
    for kind in KINDS:
        pixels = seen[kind.name]
        assert (pixels is None) == (kind.pixels is None), kind.name
        if pixels is not None:
            # By half a unit: Pillow rounds what inks leave.
            assert np.abs(pixels.astype(float) - kind.pixels).max() < 0.5, kind.name


def test_every_reason_is_one_line(root: Path) -> None:
    source = load(root, "test")
    kinds = {kind.name: kind for kind in KINDS}
    for index in range(len(source)):
        kind = kinds.get(Path(source.name(index)).name)
        said = problem(source, index)
        assert (kind.reason if kind else "") in said and bool(said) == bool(kind and kind.reason)
        assert len(said.splitlines()) <= 1
