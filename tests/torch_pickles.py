"""Files of `torch.save`, written without PyTorch."""

import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

KINDS = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}


class Tensor:
    """Pickles as PyTorch's tensors do."""

    def __init__(self, array: np.ndarray, key: str, offset: int = 0) -> None:
        self.array, self.key, self.offset = array, key, offset

    def __reduce__(self) -> Any:
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        strides = tuple(step // self.array.itemsize for step in self.array.strides)
        storage = ("storage", KINDS[str(self.array.dtype)], self.key, self.array.size)
        return rebuild, (storage, self.offset, self.array.shape, strides, False, OrderedDict())


class Pickler(pickle._Pickler):
    """Writes a storage as a persistent id, whose type is a global of `torch`."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, tuple) and obj[:1] == ("storage",) and len(obj) == 4:
            kind = getattr(sys.modules["torch"], obj[1])
            return ("storage", kind, obj[2], "cpu", obj[3], None)
        return None


def torch_modules() -> dict[str, types.ModuleType]:
    """Modules that hold the names which PyTorch's pickles have."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def rebuild(*_: Any) -> None:
        raise AssertionError("the reader called what the file names")

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild
    for name in KINDS.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    return {"torch": torch, "torch._utils": utils}


def dumped(content: Any) -> bytes:
    buffer = io.BytesIO()
    with mock.patch.dict(sys.modules, torch_modules()):
        Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def tensors(arrays: Mapping[str, np.ndarray], offset: int = 0) -> OrderedDict[str, Any]:
    """The state dict, which may be written with more in it."""
    numbered = enumerate(arrays.items())
    return OrderedDict((name, Tensor(array, str(i), offset)) for i, (name, array) in numbered)


def write_zip(path: Path, content: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """The format since PyTorch 1.6, `content` being `tensors(arrays)`, or that and more."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumped(content))
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{key}", array.tobytes())


def write_legacy(path: Path, content: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """The format before."""
    keys = [str(key) for key in range(len(arrays))]
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, content, keys]
    storages = [struct.pack("<q", a.size) + a.tobytes() for a in arrays.values()]
    path.write_bytes(b"".join([*map(dumped, head), *storages]))
