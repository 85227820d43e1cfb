"""drnet_runtime sees of every picture the very bytes that drnet_jax sees."""

import io
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from drnet_jax.data import decode
from drnet_jax.data.decode import CorruptImageError
from drnet_jax.data.eval_view import EvalView
from drnet_jax.data.files import read_picture as jax_read_picture
from drnet_runtime import pictures
from drnet_runtime.errors import PictureError
from drnet_runtime.pictures import View, read_picture

PHOTO = Image.fromarray(load_sample_image("china.jpg"))
# Side of the view, and fraction of the shorter side: smaller, about as large, and larger.
VIEWS = [(32, 1.0), (96, 0.875), (224, 224 / 256), (500, 1.0)]
FORMS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")


def encode(picture: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def kinds() -> Iterator[tuple[str, bytes]]:
    for form in FORMS:
        for width, height in ((301, 200), (40, 97), (1, 1), (640, 427)):
            yield f"{form} {width}x{height}", encode(PHOTO.resize((width, height)), form)
    for orientation in range(10):
        for form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
            exif = oriented(orientation)
            yield f"{form} turned {orientation}", encode(PHOTO.resize((332, 201)), form, exif=exif)
    yield "damaged EXIF", encode(PHOTO, exif=b"Exif\0\0II*")
    yield "progressive", encode(PHOTO, progressive=True)
    yield "CMYK", encode(PHOTO.convert("CMYK"))
    yield "CMYK TIFF", encode(PHOTO.convert("CMYK"), "TIFF")
    yield "grey", encode(PHOTO.convert("L"))
    yield "grey with alpha", encode(PHOTO.convert("LA"), "PNG")
    yield "two colours", encode(PHOTO.convert("1"), "PNG")
    palette = PHOTO.convert("P")
    yield "palette", encode(palette, "PNG")
    yield "palette, transparent", encode(palette, "PNG", transparency=bytes(256))
    transparent = PHOTO.convert("RGBA")
    transparent.putalpha(100)
    for form in ("PNG", "WEBP", "TIFF"):
        yield f"{form} transparent", encode(transparent, form)
    yield "YCbCr", encode(PHOTO.convert("YCbCr"), "TIFF")
    sixteen = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for form in ("PNG", "TIFF", "PPM"):
        yield f"{form} of 16 bits", encode(Image.fromarray(sixteen), form)
    yield "TIFF of 32 bits", encode(Image.fromarray(sixteen.astype(np.int32)), "TIFF")
    yield "TIFF of floats", encode(Image.fromarray(sixteen.astype(np.float32)), "TIFF")
    frames = [PHOTO.rotate(angle) for angle in (90, 180)]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        yield f"{form} animated", encode(PHOTO, form, save_all=True, append_images=frames)
    yield "an icon", encode(PHOTO.resize((32, 32)), "ICO")
    yield "PostScript", encode(PHOTO.resize((20, 20)), "EPS")
    yield "nothing", b""
    for form in FORMS:
        encoded = encode(PHOTO, form)
        for kept in (0.01, 0.6, 0.98):
            yield f"{form}, {kept} of it", encoded[: int(kept * len(encoded))]


KINDS = dict(kinds())


def outcome(view: View | EvalView, encoded: bytes) -> np.ndarray | str:
    try:
        return view.decode(encoded)
    except (PictureError, CorruptImageError) as error:
        return str(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes_or_the_same_words(kind: str) -> None:
    for size, fraction in VIEWS:
        found = outcome(View(size, fraction), KINDS[kind])
        expected = outcome(EvalView(size, fraction), KINDS[kind])
        assert type(found) is type(expected), (found, expected)
        if isinstance(found, str):
            assert found == expected
        else:
            assert found.shape == (size, size, 3) and found.flags.c_contiguous
            np.testing.assert_array_equal(found, expected)


def test_most_kinds_are_read() -> None:
    """The test above does not compare words alone."""
    read = [kind for kind in KINDS if isinstance(outcome(View(8, 1.0), KINDS[kind]), np.ndarray)]
    assert len(read) > 100
    assert {"CMYK", "PNG of 16 bits", "GIF animated", "palette, transparent"} <= set(read)
    assert not {"nothing", "an icon", "PostScript", "TIFF of floats"} & set(read)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG", "TIFF"])
def test_damaged_headers(form: str) -> None:
    encoded = bytearray(encode(PHOTO.crop((0, 0, 120, 80)), form, exif=oriented(6)))
    rng = np.random.default_rng(1)
    for _ in range(150):
        damaged = encoded.copy()
        damaged[rng.integers(len(encoded[:400]))] = rng.integers(256)
        found = outcome(View(32, 0.9), bytes(damaged))
        expected = outcome(EvalView(32, 0.9), bytes(damaged))
        assert np.array_equal(found, expected)


def test_names_of_pictures() -> None:
    assert pictures.SUFFIXES == decode.SUFFIXES


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_with_more_pixels_is_not_decoded(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = encode(PHOTO.resize((200, 101)), form)
    view = View(32, 1.0)
    view.decode(encoded, 200 * 101)
    monkeypatch.setattr(Image.Image, "resize", None)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(PictureError, match="^it has 200 x 101 pixels, more than the 20199 allowed"):
        view.decode(encoded, 200 * 101 - 1)


def test_a_bomb_is_refused_by_default() -> None:
    """By whichever limit: Pillow's own one is switched off by some programs."""
    bomb = encode(Image.new("1", (18_000, 10_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(PictureError, match="decompression bomb"):
        View(32, 1.0).decode(bomb)
    code = f"""
import sys, resource
sys.path.insert(0, {os.fspath(Path(pictures.__file__).parents[1])!r})
from PIL import Image
from drnet_runtime.pictures import View
Image.MAX_IMAGE_PIXELS = None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    View(32, 1.0).decode(sys.stdin.buffer.read())
except ValueError as error:
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(error, grown < 10_000)
"""
    done = subprocess.run([sys.executable, "-c", code], input=bomb, capture_output=True)
    assert done.stderr == b""
    assert done.stdout.startswith(b"it has 18000 x 10000 pixels, more than the 178956970 allowed")
    assert done.stdout.endswith(b"True\n")
    assert pictures.MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def resize(*_: object, **__: object) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", resize)
    with pytest.raises(PictureError, match="^there is too little memory to decode it$"):
        View(8, 1.0).decode(encode(PHOTO))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(PHOTO, "PNG"))
    assert read_picture(path) == read_picture(str(path)) == jax_read_picture(path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge.png").touch()
    os.truncate(tmp_path / "huge.png", 2**30 + 1)
    for name, words in (
        ("pipe", "it is no regular file"),
        ("huge.png", "it is larger than 1 GiB"),
        ("missing.png", "No such file or directory"),
        ("", "Is a directory"),
    ):
        with pytest.raises(PictureError, match=f"^{words}$"):
            read_picture(tmp_path / name)


def test_warnings_of_pillow_are_not_shown() -> None:
    """In a folder of pictures they would be as many lines."""
    large = encode(Image.new("1", (10_000, 9_000)), "PNG")
    code = f"""
import sys
sys.path.insert(0, {os.fspath(Path(pictures.__file__).parents[1])!r})
from drnet_runtime.pictures import View
View(8, 1.0).decode(sys.stdin.buffer.read())
"""
    done = subprocess.run([sys.executable, "-c", code], input=large, capture_output=True)
    assert done.returncode == 0 and done.stderr == b""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(large))
    assert caught
