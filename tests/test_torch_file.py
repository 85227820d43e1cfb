"""State dicts of PyTorch: what the restricted reader reads, and what it refuses."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.pretrained.torch_file import TorchFileError, read_state_dict
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
    with pytest.raises(TorchFileError, match="names __builtin__.eval, which no state dict needs"):
        read_state_dict(Path("weights.pth"))
    assert not Path("evil").exists()


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    write_legacy(path, tensors(offset=1), ARRAYS)
    with pytest.raises(TorchFileError, match="reaches beyond its storage"):
        read_state_dict(path)
    write_legacy(path, tensors(), ARRAYS)
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:200], whole[:-8], b"no pickle at all"):
        path.write_bytes(content)
        with pytest.raises(TorchFileError):
            read_state_dict(path)
    write_zip(path, OrderedDict(tensors(), epoch=3), ARRAYS)
    with pytest.raises(TorchFileError, match="epoch is no tensor"):
        read_state_dict(path)


def test_a_tensor_cannot_be_larger_than_its_storage(tmp_path: Path) -> None:
    """Else a few bytes would claim all of the memory."""
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (10**12,), (0,))
    path, content = tmp_path / "weights.pth", OrderedDict(tensors(), huge=Tensor(huge, "0"))
    write_zip(path, content, ARRAYS)
    with pytest.raises(TorchFileError, match="more numbers than its storage"):
        read_state_dict(path)
