"""State dicts of PyTorch: what the restricted reader reads, and what it refuses."""

import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.pretrained import torch_file
from drnet_jax.pretrained.arrays import read_arrays
from drnet_jax.pretrained.errors import WeightsError
from drnet_jax.pretrained.torch_file import read_state_dict
from tests import torch_pickles
from tests.torch_pickles import Tensor, write_legacy, write_zip

ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "half": np.array([[1.5, 2.5]], np.float16),
    "brain": np.array([1.5, -3.0], jnp.bfloat16),
}


def tensors(offset: int = 0) -> OrderedDict[str, Any]:
    return torch_pickles.tensors(ARRAYS, offset)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_state_dict(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    write(path, tensors(), ARRAYS)
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
    write(Path("weights.pth"), OrderedDict(tensors(), evil=Evil()), ARRAYS)
    with pytest.raises(WeightsError, match="names __builtin__.eval, which no state dict needs"):
        read_state_dict(Path("weights.pth"))
    assert not Path("evil").exists()


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    write_legacy(path, tensors(offset=1), ARRAYS)
    with pytest.raises(WeightsError, match="reaches beyond its storage"):
        read_state_dict(path)
    write_legacy(path, tensors(), ARRAYS)
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:200], whole[:-8], b"no pickle at all"):
        path.write_bytes(content)
        with pytest.raises(WeightsError):
            read_arrays(path)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (OrderedDict(tensors(), epoch=3), "epoch is no tensor: save the state dict alone"),
        (list(tensors().values()), "no state dict but a list: save the state dict alone"),
        ({3: tensors()["count"]}, "it has 3 for a name: save the state dict alone"),
    ],
)
def test_something_else(write: Any, content: Any, match: str, tmp_path: Path) -> None:
    write(tmp_path / "weights.pth", content, ARRAYS)
    with pytest.raises(WeightsError, match=match):
        read_state_dict(tmp_path / "weights.pth")


def pickled(path: Path, opcodes: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + opcodes + b".")
    return path


def test_a_pickle_cannot_change_the_reader(tmp_path: Path) -> None:
    """It may set attributes of whatever it is given (`BUILD`), of a class for good."""
    before = dict(vars(torch_file._Tensor))
    attribute = b"}X\x05\x00\x00\x00arrayccollections\nOrderedDict\ns"
    path = pickled(
        tmp_path / "evil", b"ctorch._utils\n_rebuild_tensor_v2\nN" + attribute + b"\x86b"
    )
    with pytest.raises(WeightsError, match="no state dict but a function"):
        read_state_dict(path)
    assert dict(vars(torch_file._Tensor)) == before


def test_a_number_of_objects_claims_no_memory(tmp_path: Path) -> None:
    """The unpickler in C makes room for as many as are numbered: here 1 GB, and seconds."""
    path = pickled(tmp_path / "evil", b"}r" + (2**26).to_bytes(4, "little"))
    tracemalloc.start()
    assert read_state_dict(path) == {}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize(
    "length", [b"X" + (2**32 - 1).to_bytes(4, "little"), b"\x8b" + b"\xff" * 3 + b"\x7f"]
)
def test_a_long_text_claims_no_memory(length: bytes, tmp_path: Path) -> None:
    """Nor does a storage: both are as long as what is left of the file, at most."""
    legacy = tmp_path / "legacy"
    write_legacy(legacy, tensors(), ARRAYS)
    whole = legacy.read_bytes()
    claims = whole[: whole.rindex(b".") + 1] + (2**31).to_bytes(8, "little") + bytes(8)
    legacy.write_bytes(b"\x80\x02" + length)
    zipped = pickled(tmp_path / "zipped", length)
    (tmp_path / "storage").write_bytes(claims)
    for path in (legacy, zipped, tmp_path / "storage"):
        tracemalloc.start()
        with pytest.raises(WeightsError):
            read_arrays(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**24


def test_a_pickle_that_ends_early_is_not_read(tmp_path: Path) -> None:
    """Its checksum tells: a file of no tensors would be another one, and without an error."""
    path = tmp_path / "weights.pth"
    many = {f"layer{number}": np.zeros(1, np.float32) for number in range(300)}
    write_zip(path, torch_pickles.tensors(many), many)
    whole = path.read_bytes()
    start = whole.index(b")R")
    path.write_bytes(whole[: start + 2] + b"." + whole[start + 3 :])
    with pytest.raises(WeightsError, match="Bad CRC-32 for file 'archive/data.pkl'"):
        read_arrays(path)


def test_tensors_share_their_storage(tmp_path: Path) -> None:
    """Else a file of many tensors and one storage claims many times its own size."""
    array = np.ones(10**6, np.float32)
    shared = OrderedDict((f"tensor{i}", Tensor(array, "0")) for i in range(100))
    write_zip(tmp_path / "weights.pth", shared, {"": array})
    tracemalloc.start()
    found = read_state_dict(tmp_path / "weights.pth")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 100 and found["tensor99"].sum() == 10**6
    assert peak < 5 * array.nbytes


def test_a_tensor_cannot_be_larger_than_its_storage(tmp_path: Path) -> None:
    """Else a few bytes would claim all of the memory."""
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (10**12,), (0,))
    path, content = tmp_path / "weights.pth", OrderedDict(tensors(), huge=Tensor(huge, "0"))
    write_zip(path, content, ARRAYS)
    with pytest.raises(WeightsError, match="more numbers than its storage"):
        read_state_dict(path)
