"""From pixels to encoded pictures (Pillow)."""

import io
from typing import Literal

import numpy as np
from PIL import Image

# Of a JPEG.
_QUALITY = 95


def encode(image: np.ndarray, form: Literal["JPEG", "PNG"]) -> bytes:
    """`[h, w, 3]` uint8 as a JPEG of high quality, or as a PNG, which keeps every bit."""
    encoded = io.BytesIO()
    options = {"quality": _QUALITY} if form == "JPEG" else {}
    Image.fromarray(image).save(encoded, form, **options)
    return encoded.getvalue()
