"""Decoding and cropping against Pillow."""

import contextlib
import gc
import io
import pickle
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from drnet_jax.data import decode
from drnet_jax.data.decode import Box, CorruptImageError, centre_crop_box, random_crop_box

PHOTO = Image.fromarray(load_sample_image("china.jpg"))
EXTENSIONS = Image.registered_extensions()


def encode(picture: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def decode_crop(encoded: bytes, box: Box, size: int) -> np.ndarray:
    return decode.decode_crop(encoded, lambda width, height: box, size)


def pillow(encoded: bytes, box: Box, size: int) -> np.ndarray:
    """The reference: whole decoding, antialiased bilinear resize of the box."""
    picture = Image.open(io.BytesIO(encoded)).convert("RGB")
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=corners))


def difference(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left.astype(float) - right.astype(float)).mean())


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("box", [Box(101, 53, 90, 80), Box(33, 21, 200, 180)])
def test_crops_are_pillows(form: str, box: Box) -> None:
    """Enlarged, or smaller by less than two, where nothing is decoded at a reduced scale."""
    encoded = encode(PHOTO, form, quality=90)
    crop = decode_crop(encoded, box, 112)
    assert crop.shape == (112, 112, 3) and crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, pillow(encoded, box, 112))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("box", "size"),
    [
        # Factors of 2 to 4 (a JPEG is decoded at half size), and more.
        (Box(34, 22, 300, 260), 112),
        (Box(16, 8, 600, 400), 64),
        (Box(0, 0, 640, 427), 32),
        # Much wider than high.
        (Box(3, 31, 630, 100), 48),
    ],
)
def test_reduced_crops_are_close_to_pillows(form: str, box: Box, size: int) -> None:
    encoded = encode(PHOTO, form, quality=90)
    crop = decode_crop(encoded, box, size)
    assert crop.shape == (size, size, 3)
    assert difference(crop, pillow(encoded, box, size)) < 2.5


def test_a_jpeg_is_decoded_no_smaller_than_the_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    """By 8, 4 or 2, and never so that the crop has fewer pixels than the output."""
    decoded = []
    resize = Image.Image.resize

    def record(picture: Image.Image, *args: Any, **options: Any) -> Image.Image:
        decoded.append(picture.size)
        return resize(picture, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", record)
    encoded = encode(Image.new("RGB", (803, 641)))
    for side, size in ((640, 80), (640, 81), (600, 150), (300, 150), (299, 150), (100, 150)):
        decode_crop(encoded, Box(1, 1, side, side), size)
    assert decoded == [(101, 81), (201, 161), (201, 161), (402, 321), (803, 641), (803, 641)]


def test_a_small_crop_is_antialiased() -> None:
    """A fine checkerboard becomes an even grey; without a filter black and white would stay."""
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    encoded = encode(Image.fromarray(board), "PNG")
    crop = decode_crop(encoded, Box(0, 0, 256, 256), 96)
    assert np.abs(crop.astype(float) - 127.5).max() < 30


@pytest.mark.parametrize("box", [Box(3, 1, 131, 97), Box(5, 7, 300, 64), Box(0, 0, 499, 500)])
def test_a_flat_colour_stays(box: Box) -> None:
    flat = encode(Image.new("RGB", (500, 501), (10, 128, 250)), "PNG")
    crop = decode_crop(flat, box, 48)
    np.testing.assert_array_equal(crop, np.broadcast_to((10, 128, 250), (48, 48, 3)))


def test_grey_transparent_and_cmyk_pictures_are_rgb() -> None:
    box = Box(10, 20, 300, 280)
    grey = decode_crop(encode(PHOTO.convert("L")), box, 160)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    transparent = PHOTO.convert("RGBA")
    transparent.putalpha(100)
    want = pillow(encode(PHOTO, "PNG"), box, 160)
    np.testing.assert_array_equal(decode_crop(encode(transparent, "PNG"), box, 160), want)
    cmyk = encode(PHOTO.convert("CMYK"), quality=95)
    np.testing.assert_array_equal(decode_crop(cmyk, box, 160), pillow(cmyk, box, 160))
    assert difference(decode_crop(cmyk, box, 160), want) < 3
    palette = PHOTO.convert("P")
    want = pillow(encode(palette.convert("RGB"), "PNG"), box, 160)
    np.testing.assert_array_equal(decode_crop(encode(palette, "PNG"), box, 160), want)


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_says_nothing() -> None:
    """And each of its colours stays, whatever transparency it has."""
    palette, box = PHOTO.convert("P"), Box(10, 20, 300, 280)
    plain = decode_crop(encode(palette, "PNG"), box, 160)
    transparent = encode(palette, "PNG", transparency=bytes(256))
    assert b"tRNS" in transparent
    np.testing.assert_array_equal(decode_crop(transparent, box, 160), plain)


def test_grey_of_16_bits() -> None:
    """Its upper 8 bits, which Pillow's own conversion clips."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    crop = decode_crop(encode(Image.fromarray(values), "PNG"), Box(0, 0, 256, 256), 256)
    np.testing.assert_array_equal(crop, np.repeat((values >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    """The picture is seen as a viewer shows it; Pillow's exif_transpose is the reference."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(PHOTO, exif=exif.tobytes(), quality=95)
    sizes = []
    decode.decode_crop(encoded, lambda *size: sizes.append(size) or Box(0, 0, 9, 9), 8)
    assert sizes == [(640, 427) if orientation < 5 else (427, 640)]
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    box = Box(40, 80, 200, 220)
    want = pillow(encode(upright, "PNG"), box, 112)
    got = decode_crop(encoded, box, 112)
    # Resizing rounds between the two directions, whose order turns too.
    assert np.abs(got.astype(int) - want).max() <= 1
    # A ramp shows where a crop of a picture decoded at 1/8 lies, whose sides are no multiples of 8.
    ramp = np.indices((397, 501)).transpose(1, 2, 0) // 2
    picture = Image.fromarray(np.pad(ramp, ((0, 0), (0, 0), (0, 1))).astype(np.uint8))
    encoded = encode(picture, exif=exif.tobytes(), quality=98, subsampling=0)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    box = Box(56, 90, 300, 290)
    want = pillow(encode(upright, "PNG"), box, 32)
    assert difference(decode_crop(encoded, box, 32), want) < 0.5


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0no header", b"Exif\0\0II*", b"Exif\0\0MM"], ids=str)
def test_a_picture_with_damaged_exif_is_whole(form: str, exif: bytes) -> None:
    box = Box(10, 20, 300, 280)
    damaged = encode(PHOTO, form, exif=exif)
    assert exif[6:] in damaged
    np.testing.assert_array_equal(
        decode_crop(damaged, box, 160), decode_crop(encode(PHOTO, form), box, 160)
    )


def test_damaged_exif_and_large_pictures_say_nothing() -> None:
    """In a folder of them Pillow's warnings would be as many lines on the terminal."""
    exif = Image.Exif()
    exif[0x010F] = "maker" * 9
    cut = encode(PHOTO, exif=exif.tobytes()[:40])
    large = encode(Image.new("1", (10_000, 9_000)), "PNG")
    code = """
import sys, pickle
from drnet_jax.data.eval_view import EvalView
for encoded in pickle.load(sys.stdin.buffer):
    EvalView(8, 1.0).decode(encoded)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps([cut, large]), capture_output=True
    )
    assert process.returncode == 0 and process.stderr == b""


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.98])
def test_a_cut_off_picture_is_corrupt(form: str, kept: float) -> None:
    encoded = encode(PHOTO, form)
    cut = encoded[: int(kept * len(encoded))]
    for size in (64, 400):
        with pytest.raises(CorruptImageError):
            decode_crop(cut, Box(0, 0, 640, 427), size)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_is_corrupt(progressive: bool) -> None:
    encoded = encode(PHOTO, progressive=progressive)
    for missing in (2, 100, len(encoded) // 2):
        with pytest.raises(CorruptImageError, match="truncated"):
            decode_crop(encoded[:-missing], Box(0, 0, 640, 427), 64)


def test_an_orientation_in_xmp() -> None:
    """It counts as one in EXIF does."""
    picture = PHOTO.crop((0, 0, 400, 60))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    exif = Image.Exif()
    exif[0x010F] = "maker"
    turned = encode(picture, "WEBP", lossless=True, xmp=xmp, exif=exif.tobytes())
    assert Image.open(io.BytesIO(turned)).getexif()[0x0112] == 6

    def centre(width: int, height: int) -> Box:
        return centre_crop_box(width, height, 1.0)

    got = decode.decode_crop(turned, centre, 48)
    plain = encode(picture.transpose(Image.Transpose.ROTATE_270), "WEBP", lossless=True)
    assert np.abs(got.astype(int) - decode.decode_crop(plain, centre, 48)).max() <= 1


# Pillow warns of some of the damage.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG", "TIFF", "AVIF", "JPEG2000"])
def test_damaged_headers_are_corrupt_or_harmless(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = bytearray(encode(PHOTO.crop((0, 0, 120, 80)), form, exif=exif.tobytes()))
    rng = np.random.default_rng(0)
    corrupt = 0
    for _ in range(300):
        damaged = encoded.copy()
        damaged[rng.integers(len(encoded[:400]))] = rng.integers(256)
        try:
            image = decode.decode_crop(
                bytes(damaged), lambda width, height: centre_crop_box(width, height, 1.0), 32
            )
            assert image.shape == (32, 32, 3)
        except CorruptImageError:
            corrupt += 1
    assert corrupt > 0


def test_what_follows_a_picture_does_not_matter() -> None:
    """A phone's film clip, say, in which the markers occur by chance; and a thumbnail before it."""
    thumbnail = encode(PHOTO.resize((40, 30)))
    plain = encode(PHOTO)
    segment = b"\xff\xed" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    inside = plain[:2] + segment + plain[2:]
    box = Box(0, 0, 640, 427)
    want = decode_crop(plain, box, 64)
    for tail in (b"\xff\xda" * 5, b"\x00" * 1000, b"\xff\xda \xff\xd9 \xff\xda"):
        np.testing.assert_array_equal(decode_crop(plain + tail, box, 64), want)
    np.testing.assert_array_equal(decode_crop(inside, box, 64), want)
    with pytest.raises(CorruptImageError, match="truncated"):
        decode_crop(inside[:-100], box, 64)


def test_other_bytes_are_corrupt() -> None:
    # Encapsulated PostScript would start a program.
    postscript = encode(PHOTO.resize((20, 20)), "EPS")
    for garbage in (b"", b"no picture", encode(PHOTO)[300:], postscript):
        with pytest.raises(CorruptImageError, match="no picture of a known format"):
            decode_crop(garbage, Box(0, 0, 9, 9), 64)


@pytest.mark.parametrize(
    ("problem", "expected", "words"),
    [
        # A damaged header asks for any amount.
        (MemoryError(), CorruptImageError, "too little memory"),
        (ZeroDivisionError(), CorruptImageError, "^ZeroDivisionError$"),
        (OSError("broken data stream"), CorruptImageError, "^broken data stream$"),
        (RuntimeError("Failed to decode frame 0"), CorruptImageError, "^Failed to decode frame 0$"),
        (SyntaxError("broken PNG file"), CorruptImageError, "^broken PNG file$"),
        (OverflowError(), CorruptImageError, "^OverflowError$"),
        # The user's, not the picture's.
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_whatever_a_decoder_raises_is_a_corrupt_picture(
    monkeypatch: pytest.MonkeyPatch,
    problem: BaseException,
    expected: type[BaseException],
    words: str,
) -> None:
    """With a reason."""

    def resize(*_: Any, **__: Any) -> Image.Image:
        raise problem

    monkeypatch.setattr(Image.Image, "resize", resize)
    with pytest.raises(expected, match=words):
        decode_crop(encode(PHOTO), Box(0, 0, 9, 9), 8)


def test_a_corrupt_picture_is_freed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some ask for hundreds of megabytes, and garbage is collected by the number of objects."""
    pictures = []

    def resize(picture: Image.Image, *_: Any, **__: Any) -> Image.Image:
        pictures.append(weakref.ref(picture))
        raise OSError("broken data stream")

    monkeypatch.setattr(Image.Image, "resize", resize)
    gc.disable()
    try:
        with contextlib.suppress(CorruptImageError):
            decode_crop(encode(PHOTO), Box(0, 0, 9, 9), 8)
        assert pictures[0]() is None
    finally:
        gc.enable()


def test_decompression_bombs_are_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 640 * 427 // 3)
    with pytest.raises(CorruptImageError, match="decompression bomb"):
        decode_crop(encode(PHOTO), Box(0, 0, 9, 9), 8)


def test_threads_decode_what_one_does() -> None:
    rng = np.random.default_rng(0)
    boxes = [random_crop_box(rng, 640, 427, (0.1, 1.0)) for _ in range(24)]
    forms = [encode(PHOTO), encode(PHOTO, "PNG"), encode(PHOTO, "WEBP")]

    def crop(index: int) -> np.ndarray:
        return decode_crop(forms[index % 3], boxes[index], 96)

    with ThreadPoolExecutor(8) as threads:
        for index, found in enumerate(threads.map(crop, range(len(boxes)))):
            np.testing.assert_array_equal(found, crop(index))


def test_random_crop_boxes() -> None:
    """Inside the picture, areas even over the scale, logarithms of aspect ratios even."""
    rng = np.random.default_rng(0)
    boxes = [random_crop_box(rng, 500, 400, (0.1, 0.4)) for _ in range(4000)]
    assert all(b.left >= 0 and b.left + b.width <= 500 for b in boxes)
    assert all(b.top >= 0 and b.top + b.height <= 400 for b in boxes)
    areas = np.array([b.width * b.height / (500 * 400) for b in boxes])
    ratios = np.log([b.width / b.height for b in boxes])
    assert areas.min() == pytest.approx(0.1, abs=0.005)
    assert areas.max() == pytest.approx(0.4, abs=0.005)
    assert areas.mean() == pytest.approx(0.25, abs=0.005)
    assert ratios.mean() == pytest.approx(0, abs=0.01)
    assert ratios.std() == pytest.approx(2 * np.log(4 / 3) / np.sqrt(12), abs=0.01)
    lefts = np.array([b.left / (500 - b.width) for b in boxes])
    assert lefts.mean() == pytest.approx(0.5, abs=0.02)


def test_random_crop_of_a_long_picture_falls_back_to_the_centre() -> None:
    box = random_crop_box(np.random.default_rng(0), 1000, 100, (1.0, 1.0))
    assert box == Box((1000 - 133) // 2, 0, 133, 100)


def test_centre_crop_is_scaling_the_shorter_side_to_256_and_cropping_224() -> None:
    box = centre_crop_box(500, 375, 224 / 256)
    assert box == Box(86, 23, 328, 328)
    encoded = encode(PHOTO.resize((500, 375)), "PNG")
    scaled = Image.open(io.BytesIO(encoded)).resize((341, 256), Image.Resampling.BILINEAR)
    want = np.asarray(scaled.crop((58, 16, 58 + 224, 16 + 224)))
    assert difference(decode_crop(encoded, box, 224), want) < 8
