"""Arrays from a file of `torch.save`, without PyTorch and without running what the file says.

A pickle may name any function to call. This reader knows the few that a state dict needs, and
refuses a file that names another.
"""

import math
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np

from drnet_jax.pretrained.errors import WeightsError

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# What reading a damaged file raises.
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    ArithmeticError,
    MemoryError,
    RecursionError,
    RuntimeError,
)
Storage = tuple[str, str, int]


class TorchFileError(WeightsError):
    """The file is no state dict of PyTorch; the message says why."""


class _Tensor:
    """A tensor of the pickle: its storage is read later."""

    def __init__(self, storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> None:
        self.storage, self.offset = storage, int(offset)
        self.shape, self.strides = tuple(map(int, shape)), tuple(map(int, strides))

    def array(self, storage: np.ndarray) -> np.ndarray:
        """The tensor's own part of its storage, as an array of its own.

        Raises:
          TorchFileError: it reaches beyond the storage.
        """
        reach = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        empty = 0 in self.shape
        if self.offset < 0 or min(self.strides, default=0) < 0:
            raise TorchFileError("a tensor has a negative offset or stride")
        if min(self.shape, default=0) < 0:
            raise TorchFileError("a tensor has a negative side")
        # A stride of zero repeats what is there, as often as the file likes.
        if math.prod(self.shape) > len(storage):
            raise TorchFileError("a tensor has more numbers than its storage")
        if not empty and self.offset + reach >= len(storage):
            raise TorchFileError("a tensor reaches beyond its storage")
        steps = tuple(step * storage.itemsize for step in self.strides)
        view = storage[self.offset :] if not empty else np.empty(self.shape, storage.dtype)
        return np.array(np.lib.stride_tricks.as_strided(view, self.shape, steps))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The few that a state dict needs."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and name in _DTYPES:
            return name
        raise TorchFileError(f"the file names {module}.{name}, which no state dict needs")

    def persistent_load(self, pid: Any) -> Storage:
        """A storage by type and key."""
        kind, storage_type, key, _, count, *_ = pid
        if kind != "storage" or storage_type not in _DTYPES:
            raise TorchFileError(f"the file has a {kind!r} of type {storage_type!r}")
        return storage_type, str(key), int(count)


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict by name.

    Args:
      path: of a file that `torch.save(model.state_dict(), path)` wrote, in the format of PyTorch
        1.6 or the one before.

    Raises:
      TorchFileError: it is none, is damaged, or names anything that a state dict does not need.
    """
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                return _read_zip(file)
            file.seek(0)
            return _read_legacy(file)
    except TorchFileError:
        raise
    except _DAMAGE as error:
        raise TorchFileError(f"it is no whole state dict of PyTorch ({error!r})") from error


def _read_zip(file: IO[bytes]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        pickled = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
        if pickled is None:
            raise TorchFileError("the archive has no data.pkl")
        folder = pickled.removesuffix("data.pkl")
        with archive.open(pickled) as inner:
            tensors = _Unpickler(inner).load()
        return _arrays(
            tensors, lambda kind, key: np.frombuffer(archive.read(f"{folder}data/{key}"), kind)
        )


def _read_legacy(file: IO[bytes]) -> dict[str, np.ndarray]:
    """Magic number, version, system, tensors and keys, each pickled, then the storages."""
    if _Unpickler(file).load() != _MAGIC:
        raise TorchFileError("it is not a file of torch.save")
    for _ in ("version", "system"):
        _Unpickler(file).load()
    tensors = _Unpickler(file).load()
    keys = _Unpickler(file).load()
    kinds = {tensor.storage[1]: _DTYPES[tensor.storage[0]] for tensor in tensors.values()}
    storages = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        kind = np.dtype(kinds[key])
        storages[key] = np.frombuffer(file.read(count * kind.itemsize), kind)
    return _arrays(tensors, lambda _, key: storages[key])


def _arrays(tensors: Any, storage: Callable[[Any, str], np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, _Tensor):
            raise TorchFileError(f"{name} is no tensor: give the state dict alone")
        kind, key, _ = tensor.storage
        found[name] = tensor.array(storage(_DTYPES[kind], key))
    return found
