"""Images as picture files."""

import io

import numpy as np
from PIL import Image


def png(image: np.ndarray) -> bytes:
    """The file of an image `[h, w, 3]` uint8."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
