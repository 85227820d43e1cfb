"""State dicts of PyTorch: what the restricted reader reads, and what it refuses."""

import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drnet_jax.pretrained.torch_file import TorchFileError, read_state_dict

ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "half": np.array([[1.5, 2.5]], np.float16),
}
KINDS = {"float32": "FloatStorage", "int64": "LongStorage", "float16": "HalfStorage"}


class Named:
    """Pickles as the name of something in a module that is not there."""

    def __init__(self, module: str, name: str) -> None:
        self.__module__, self.__qualname__, self.__name__ = module, name, name


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


@pytest.fixture(autouse=True)
def torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that hold the names which PyTorch's pickles have, for the writer."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def rebuild(*_: Any) -> None:
        raise AssertionError("the reader called what the file names")

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild
    for name in KINDS.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def dumped(content: Any) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def tensors(offset: int = 0) -> OrderedDict[str, Tensor]:
    numbered = enumerate(ARRAYS.items())
    return OrderedDict((name, Tensor(array, str(i), offset)) for i, (name, array) in numbered)


def write_zip(path: Path, content: Any) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumped(content))
        for key, array in enumerate(ARRAYS.values()):
            archive.writestr(f"archive/data/{key}", array.tobytes())


def write_legacy(path: Path, content: Any) -> None:
    keys = [str(key) for key in range(len(ARRAYS))]
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, content, keys]
    storages = [struct.pack("<q", a.size) + a.tobytes() for a in ARRAYS.values()]
    path.write_bytes(b"".join([*map(dumped, head), *storages]))


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_state_dict(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    write(path, tensors())
    found = read_state_dict(path)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


class Evil:
    def __reduce__(self) -> Any:
        return eval, ("open('evil', 'w')",)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_file_that_calls_anything_is_refused(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("weights.pth"), OrderedDict(tensors(), evil=Evil()))
    with pytest.raises(TorchFileError, match="names __builtin__.eval, which no state dict needs"):
        read_state_dict(Path("weights.pth"))
    assert not Path("evil").exists()


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    write_legacy(path, tensors(offset=1))
    with pytest.raises(TorchFileError, match="reaches beyond its storage"):
        read_state_dict(path)
    write_legacy(path, tensors())
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:200], whole[:-8], b"no pickle at all"):
        path.write_bytes(content)
        with pytest.raises(TorchFileError):
            read_state_dict(path)
    write_zip(path, OrderedDict(tensors(), epoch=3))
    with pytest.raises(TorchFileError, match="epoch is no tensor"):
        read_state_dict(path)
