"""Arrays from an `.npz` file of NumPy: numbers only, and no more of them than the file holds."""

import io
import math
import zipfile
from pathlib import Path

import numpy as np

from drnet_jax.pretrained.errors import WeightsError

# How many times larger than its archive the content may be: deflated zeros are a thousand times.
_PACKED = 100
_ENDING = ".npy"
_REMEDY = "write the file anew with numpy.savez"


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, which cannot be written to.

    Args:
      path: of a zip archive whose members are named `*.npy`.

    Raises:
      WeightsError: a member is no array of numbers, or the archive would unpack to far more than
        itself.
      Exception: of any kind, it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > _PACKED * path.stat().st_size:
            raise WeightsError(f"it would unpack to {size} bytes: {_REMEDY}")
        return {
            name.removesuffix(_ENDING): _array(name.removesuffix(_ENDING), archive.read(name))
            for name in archive.namelist()
        }


def _array(name: str, content: bytes) -> np.ndarray:
    """NumPy's own reader makes room for what a header claims, and has the bytes for an answer where
    there is no header.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        # Others are of types with names for their parts.
        if version == (1, 0):
            shape, columns, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, columns, dtype = np.lib.format.read_array_header_2_0(file)
        values = np.frombuffer(content, dtype, math.prod(shape), file.tell())
        return values.reshape(shape, order="F" if columns else "C")
    except ValueError as error:
        raise WeightsError(f"{name} is no array of numbers ({error}): {_REMEDY}") from error
