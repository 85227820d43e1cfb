"""Arrays from a file of `torch.save`, without PyTorch and without running what the file says.

A pickle may name any function to call. This reader knows the few that a state dict needs, and
refuses a file that names another.
"""

import io
import math
import mmap
import pickle
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

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
_REMEDY = "save the state dict alone, torch.save(model.state_dict(), path)"
Storage = tuple[str, str, int]


class _Tensor(NamedTuple):
    """A tensor of the pickle: its storage is read later."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, storage: np.ndarray) -> np.ndarray:
        """The tensor's own part of its storage, which it shares.

        Raises:
          WeightsError: it reaches beyond the storage.
        """
        reach = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        empty = 0 in self.shape
        if self.offset < 0 or min(self.strides, default=0) < 0:
            raise WeightsError("a tensor has a negative offset or stride")
        if min(self.shape, default=0) < 0:
            raise WeightsError("a tensor has a negative side")
        # A stride of zero repeats what is there, as often as the file likes.
        if math.prod(self.shape) > len(storage):
            raise WeightsError("a tensor has more numbers than its storage")
        if not empty and self.offset + reach >= len(storage):
            raise WeightsError("a tensor reaches beyond its storage")
        steps = tuple(step * storage.itemsize for step in self.strides)
        view = storage[self.offset :] if not empty else np.empty(self.shape, storage.dtype)
        return np.lib.stride_tricks.as_strided(view, self.shape, steps)


# Python's own, because the one in C makes room for as many objects as a file claims to number: 64
# GB for a few bytes.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The few that a state dict needs.

        Of our own, functions that are made here: a pickle can set attributes of what it is given,
        and those of a class would outlast the file.
        """
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(
                storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides))
            )
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and name in _DTYPES:
            return name
        raise WeightsError(f"it names {module}.{name}, which no state dict needs: {_REMEDY}")

    def persistent_load(self, pid: Any) -> Storage:
        """A storage by type and key."""
        kind, storage_type, key, _, count, *_ = pid
        if kind != "storage" or storage_type not in _DTYPES:
            raise WeightsError(f"it has a {kind!r} of type {storage_type!r}")
        return storage_type, str(key), int(count)


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict by name, which cannot be written to.

    Args:
      path: of a file that `torch.save(model.state_dict(), path)` wrote, in the format of PyTorch
        1.6 or the one before.

    Raises:
      WeightsError: it is none, or names anything that a state dict does not need.
      Exception: of any kind, it is damaged.
    """
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            return _read_zip(file)
        file.seek(0)
        return _read_legacy(file)


def _read_zip(file: IO[bytes]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        pickled = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
        if pickled is None:
            raise WeightsError("the archive has no data.pkl")
        folder = pickled.removesuffix("data.pkl")
        # A few bytes can unpack to all of the memory.
        packed = [
            entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED
        ]
        if packed:
            raise WeightsError(f"it is compressed, which torch.save never does: {_REMEDY}")
        # The whole of it: only then is its checksum looked at.
        tensors = _tensors(_Unpickler(io.BytesIO(archive.read(pickled))).load())

        # Once, however many tensors share it.
        @cache
        def storage(kind: str, key: str) -> np.ndarray:
            """`[n]`, all elements of one storage."""
            return np.frombuffer(archive.read(f"{folder}data/{key}"), _DTYPES[kind])

        return {
            name: tensor.array(storage(*tensor.storage[:2])) for name, tensor in tensors.items()
        }


def _read_legacy(file: IO[bytes]) -> dict[str, np.ndarray]:
    # Asked for more than is left, it claims no memory for that.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _read_pickles(content)


def _read_pickles(file: Any) -> dict[str, np.ndarray]:
    """Magic number, version, system, tensors and keys, each pickled, then the storages."""
    if _Unpickler(file).load() != _MAGIC:
        raise WeightsError(f"it is a pickle, but not of torch.save: {_REMEDY}")
    for _ in ("version", "system"):
        _Unpickler(file).load()
    tensors = _tensors(_Unpickler(file).load())
    keys = _Unpickler(file).load()
    kinds = {tensor.storage[1]: _DTYPES[tensor.storage[0]] for tensor in tensors.values()}
    storages = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        kind = np.dtype(kinds[key])
        storages[key] = np.frombuffer(file.read(count * kind.itemsize), kind)
    return {name: tensor.array(storages[tensor.storage[1]]) for name, tensor in tensors.items()}


def _tensors(found: Any) -> dict[str, _Tensor]:
    """What was unpickled, if it is a state dict.

    Raises:
      WeightsError: it is none.
    """
    if not isinstance(found, dict):
        raise WeightsError(f"it holds no state dict but a {type(found).__name__}: {_REMEDY}")
    for name, tensor in found.items():
        if not isinstance(name, str):
            raise WeightsError(f"it has {name!r} for a name: {_REMEDY}")
        if not isinstance(tensor, _Tensor):
            raise WeightsError(f"{name} is no tensor: {_REMEDY}")
    return found
