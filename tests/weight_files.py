"""Weight files of every kind, written by hand."""

import json
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from tests.torch_pickles import tensors, write_legacy, write_zip

_TYPES = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
Arrays = Mapping[str, np.ndarray]


def write_safetensors(path: Path, arrays: Arrays) -> None:
    header, data = {}, b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        kind = _TYPES[str(array.dtype)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    path.write_bytes(safetensors_bytes(json.dumps(header).encode(), data))


def safetensors_bytes(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def write_npz(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def write_torch(path: Path, arrays: Arrays) -> None:
    write_zip(path, tensors(arrays), arrays)


def write_old_torch(path: Path, arrays: Arrays) -> None:
    write_legacy(path, tensors(arrays), arrays)


def write_keras(path: Path, arrays: Arrays, root: str = "", end: str = "") -> None:
    """Keras repeats the name of a layer: `Conv1/Conv1/kernel`."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[f"{root}{name.split('/')[0]}/{name}{end}"] = array


WRITERS = {
    "safetensors": write_safetensors,
    "npz": write_npz,
    "torch": write_torch,
    "old torch": write_old_torch,
}
