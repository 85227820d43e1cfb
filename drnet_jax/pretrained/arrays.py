"""Arrays by name from a weight file: `.safetensors`, `.npz`, of `torch.save`, or Keras's `.h5`.

What a file is shows in its first bytes; its name counts for nothing. Nothing that a file says is
run.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import deserialize

from drnet_jax.pretrained.errors import WeightsError
from drnet_jax.pretrained.keras_file import read_keras_file
from drnet_jax.pretrained.npz_file import read_npz
from drnet_jax.pretrained.torch_file import read_state_dict

_SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_HDF5 = b"\x89HDF\r\n\x1a\n"
# The longest record at the end of an archive, and what it says of more members than it can count.
_ZIP_END, _ZIP_MANY = 22 + 65535, 65535
# Characters of an error that a parser raises, which may repeat the file.
_REASON = 200
_KNOWN = "weights are read from .safetensors, .npz, files of torch.save and Keras's .h5"


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a weight file by name, as they are stored.

    Names are those in the file; of Keras's, layer and array alone (`Conv1/kernel`), and the
    optimiser's are left out.

    Args:
      path: of a file.

    Raises:
      WeightsError: it is missing, a folder, damaged, of no known format, or has two arrays of one
        name or objects of Python. The message names the file.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise WeightsError(f"it is a folder: give the file in it ({_KNOWN})")
        return _reader(path)(path)
    except WeightsError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    # Parsers raise errors of all kinds on damaged bytes: NumPy even those of Python's tokenizer.
    except Exception as error:
        # Where the file is, not what is in it: it has no places before its start, say.
        if isinstance(error, OSError) and error.filename is not None:
            raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON]
        raise WeightsError(f"{path} is damaged: get it anew ({reason})") from error


def _reader(path: Path) -> Callable[[Path], dict[str, np.ndarray]]:
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise WeightsError("it is empty: get the file anew")
    if start.startswith(_HDF5):
        return read_keras_file
    if start.startswith(_ZIP):
        return _read_zip
    # Eight bytes of length, then a header in JSON.
    if start[8:9] == b"{":
        return _read_safetensors
    if start.startswith(b"\x80"):
        return read_state_dict
    raise WeightsError(f"it is of no known format, it begins with {start!r}: {_KNOWN}")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in deserialize(path.read_bytes()):
        if tensor["dtype"] not in _SAFETENSORS:
            raise WeightsError(f"{name} is of type {tensor['dtype']}: store it as F32")
        array = np.frombuffer(tensor["data"], _SAFETENSORS[tensor["dtype"]])
        arrays[name] = array.reshape(tensor["shape"])
    return arrays


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise WeightsError(f"it has {len(twice)} names twice, {twice[0]} first: write it anew")
    listed = _listed(path)
    if not names or listed not in (len(names), _ZIP_MANY):
        raise WeightsError(f"its directory has {len(names)} of {listed} files: get it anew")
    if any(name.endswith("/data.pkl") for name in names):
        return read_state_dict(path)
    other = [name for name in names if not name.endswith(".npy")]
    if other:
        raise WeightsError(f"it is an archive of something else, {other[0]} first: {_KNOWN}")
    return read_npz(path)


def _listed(path: Path) -> int:
    """How many members the end of a zip archive says that there are; `zipfile` does not look."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _ZIP_END))
        end = file.read()
    # The record at the end may have a comment behind it.
    place = end.rindex(_ZIP[1]) + 10
    return int.from_bytes(end[place : place + 2], "little")
