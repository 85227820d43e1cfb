"""Weight files: what is read of every kind, and one clear error for each that is broken."""

import io
import json
import os
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import flax
import h5py
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.models.backbone import backbones
from drnet_jax.pretrained.arrays import read_arrays
from drnet_jax.pretrained.weights import WeightsError, load_weights
from tests.networks import shapes
from tests.torch_pickles import tensors, write_legacy, write_zip
from tests.weight_files import (
    WRITERS,
    safetensors_bytes,
    write_keras,
    write_npz,
    write_safetensors,
    write_torch,
)

SIZES = (64, 32)
Arrays = dict[str, np.ndarray]


def network(num_classes: int = 10, **options: Any) -> Any:
    return backbones()["resnet10"](num_classes, **({"width": 4} | options))


def state_of(width: int = 4, num_classes: int = 10, blocks: int = 1) -> Arrays:
    """Of a ResNet of basic blocks in torchvision's names, written out."""
    rng, arrays = np.random.default_rng(0), {}

    def add(name: str, *shape: int) -> None:
        arrays[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)

    def norm(name: str, n: int) -> None:
        for array in ("weight", "bias", "running_mean", "running_var"):
            add(f"{name}.{array}", n)
        arrays[f"{name}.num_batches_tracked"] = np.array(7)

    add("conv1.weight", width, 3, 7, 7)
    norm("bn1", width)
    for stage in range(4):
        out = width * 2**stage
        for index in range(blocks):
            block = f"layer{stage + 1}.{index}"
            before = out // 2 if stage and index == 0 else out
            add(f"{block}.conv1.weight", out, before, 3, 3)
            norm(f"{block}.bn1", out)
            add(f"{block}.conv2.weight", out, out, 3, 3)
            norm(f"{block}.bn2", out)
            if before != out:
                add(f"{block}.downsample.0.weight", out, before, 1, 1)
                norm(f"{block}.downsample.1", out)
    add("fc.weight", num_classes, 8 * width)
    add("fc.bias", num_classes)
    return arrays


@cache
def state() -> Arrays:
    return state_of()


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    """What the name ends with counts for nothing."""
    path = tmp_path / "weights.bin"
    WRITERS[kind](path, state())
    arrays = read_arrays(str(path))
    assert set(arrays) == set(state())
    for name, array in state().items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)
    found = load_weights(path, network(), SIZES)
    kernel = found["params"]["layer2_0"]["shortcut_conv"]["kernel"]
    wanted = state()["layer2.0.downsample.0.weight"]
    np.testing.assert_array_equal(kernel[0, 0].T, wanted[..., 0, 0])
    np.testing.assert_array_equal(found["params"]["fc"]["kernel"].T, state()["fc.weight"])
    variance = found["batch_stats_32"]["layer4_0"]["bn2"]["var"]
    np.testing.assert_array_equal(variance, state()["layer4.0.bn2.running_var"])


@pytest.mark.parametrize(
    ("root", "end"),
    [("", ""), ("model_weights/", ""), ("model_weights/mobilenetv2_1.00_160/", ":0")],
)
def test_a_file_of_keras(root: str, end: str, tmp_path: Path) -> None:
    """Of weights, of a whole model with its optimiser, of a model within a model by Keras 2."""
    arrays = {"Conv1/kernel": np.ones((3, 3, 3, 2), np.float32), "Conv1_bn/beta": np.zeros(2)}
    path = tmp_path / "weights.h5"
    depthwise = "depthwise_kernel" if end else "kernel"
    write_keras(path, arrays | {f"block/{depthwise}": np.full((3, 3, 2, 1), 3.0)}, root, end)
    if root:
        with h5py.File(path, "a") as file:
            file["optimizer_weights/adam/momentum"] = np.ones(3)
    found = read_arrays(path)
    assert set(found) == {"Conv1/kernel", "Conv1_bn/beta", "block/kernel"}
    np.testing.assert_array_equal(found["Conv1/kernel"], arrays["Conv1/kernel"])
    np.testing.assert_array_equal(found["block/kernel"], np.full((3, 3, 2, 1), 3.0))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floating_point_types(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    wanted = jnp.dtype(dtype)
    write_safetensors(
        path, {n: a if a.dtype == np.int64 else a.astype(wanted) for n, a in state().items()}
    )
    kernel = load_weights(path, network(), SIZES)["params"]["fc"]["kernel"]
    assert kernel.dtype == np.float32
    rounded = state()["fc.weight"].astype(wanted).astype(np.float32)
    np.testing.assert_array_equal(kernel.T, rounded)


@pytest.mark.parametrize("left_out", [(), ("fc.weight", "fc.bias")])
def test_without_the_head(left_out: tuple[str, ...], tmp_path: Path) -> None:
    """Whether the file has one, of another number of classes, or none."""
    path = tmp_path / "weights.npz"
    write_npz(path, {n: a for n, a in state().items() if n not in left_out})
    found = load_weights(path, network(3), SIZES, head=False)
    assert found["params"]["fc"]["kernel"].shape == (32, 3)
    assert not np.any(found["params"]["fc"]["kernel"]) and not np.any(found["params"]["fc"]["bias"])
    np.testing.assert_array_equal(found["params"]["bn1"]["bias_64"], state()["bn1.bias"])


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil",)


def without(*ends: str) -> Arrays:
    return {name: array for name, array in state().items() if not name.endswith(ends)}


def safetensors(arrays: Arrays) -> Callable[[Path], None]:
    return lambda path: write_safetensors(path, arrays)


def content(text: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(text)


def cut(write: Callable[[Path, Any], None], kept: float) -> Callable[[Path], None]:
    def written(path: Path) -> None:
        write(path, state())
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * kept)])

    return written


def flipped_npz(path: Path) -> None:
    write_npz(path, state())
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.infolist()[0].header_offset
    whole[place + 300] ^= 1
    path.write_bytes(whole)


def npz_without_a_header(path: Path) -> None:
    """What Python's tokenizer, which NumPy reads it with, has no `ValueError` for."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fc.bias.npy", b"\x93NUMPY\x01\x00\x04\x00{((\n")


def npz_of_bytes(path: Path) -> None:
    """A member that does not begin like an array, with a checksum that is right."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fc.bias.npy", b"text")


def npz_of_zeros(path: Path) -> None:
    np.savez_compressed(path.with_suffix(".npz"), zeros=np.zeros(10**6))
    path.with_suffix(".npz").rename(path)


def misplaced_npz(path: Path) -> None:
    """Its directory is said to be 1,000 bytes further on, and so its members begin before it."""
    write_npz(path, state())
    whole = path.read_bytes()
    place = int.from_bytes(whole[-6:-2], "little") + 1000
    path.write_bytes(whole[:-6] + place.to_bytes(4, "little") + whole[-2:])


def npz_with_half_a_directory(path: Path) -> None:
    """`zipfile` reads as much of the directory as the end of the archive says, and no more."""
    write_npz(path, {"a": np.zeros(3), "b": np.zeros(3)})
    whole = path.read_bytes()
    size = int.from_bytes(whole[-10:-6], "little") // 2
    path.write_bytes(whole[:-10] + size.to_bytes(4, "little") + whole[-6:])


def empty_archive(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


def npz_of_terabytes(path: Path) -> None:
    header = io.BytesIO()
    claim = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fc.bias.npy", header.getvalue())


def long_reason(path: Path) -> None:
    """The name in a member's header, which errors repeat, reaches far into the file."""
    write_npz(path, state())
    whole = bytearray(path.read_bytes())
    whole[26:28] = (5000).to_bytes(2, "little")
    path.write_bytes(whole)


def packed_torch(path: Path) -> None:
    write_torch(path, state())
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)


def twice_in_npz(path: Path) -> None:
    write_npz(path, state())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("fc.bias.npy", archive.read("fc.bias.npy"))


def another_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "")


def keras_without_names(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros(3)


def keras_twice(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["first/Conv1/kernel"] = file["second/Conv1/kernel"] = np.zeros(3)


def large_keras(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("Conv1/kernel", (10**6, 10**6), "f4", chunks=(10, 10))


def cut_keras(path: Path) -> None:
    write_keras(path, {"Conv1/kernel": np.zeros((30, 30))})
    path.write_bytes(path.read_bytes()[:1000])


def entry(name: str, kind: str, start: int, end: int) -> str:
    fields = {"dtype": kind, "shape": [1], "data_offsets": [start, end]}
    return f'"{name}": {json.dumps(fields)}'


TWO_ALIKE = f"{{{entry('a', 'F32', 0, 4)}, {entry('a', 'F32', 4, 8)}}}".encode()
FLOAT8 = f"{{{entry('a', 'F8_E4M3', 0, 1)}}}".encode()
EVIL = OrderedDict(tensors(state()), evil=Evil())
CHECKPOINT = {"state_dict": tensors(state()), "epoch": 3}
MEAN, FC = "layer1.0.bn1.running_mean", "fc.bias"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    # Not read.
    "no file": (lambda path: None, "No such file or directory"),
    "a folder": (lambda path: path.mkdir(), "is a folder: give the file in it"),
    "nothing in it": (content(b""), "is empty: get the file anew"),
    "a page of the web": (content(b"<!DOCTYPE html><html>"), "no known format, it begins with"),
    "a pointer of Git LFS": (content(b"version https://git-lfs"), "no known format"),
    "h5 that is none": (content(b"HDF5 it is not at all"), "no known format"),
    "safetensors, cut": (cut(write_safetensors, 0.9), "is damaged: get it anew"),
    "safetensors, header cut": (cut(write_safetensors, 0.001), "is damaged: get it anew"),
    "safetensors, header too long": (
        content((10**12).to_bytes(8, "little") + b"{}" * 9),
        "is damaged: get it anew .*header too large",
    ),
    "safetensors, no JSON": (content(safetensors_bytes(b"{no JSON")), "is damaged: get it anew"),
    "safetensors, a name twice": (
        content(safetensors_bytes(TWO_ALIKE, bytes(8))),
        "is damaged: get it anew",
    ),
    "safetensors of float8": (content(safetensors_bytes(FLOAT8, b"0")), "of type F8_E4M3: store"),
    "npz, cut": (cut(write_npz, 0.9), "is damaged: get it anew"),
    "npz, a bit flipped": (flipped_npz, "is damaged: get it anew .*conv1.weight"),
    "npz of objects": (
        lambda path: write_npz(path, {"fc.bias": np.array([{}], object)}),
        "fc.bias is no array of numbers",
    ),
    "npz, no header": (npz_without_a_header, "is damaged: get it anew .*multi-line"),
    "npz of bytes": (npz_of_bytes, "fc.bias is no array of numbers .*write the file anew"),
    "npz that unpacks to much": (npz_of_zeros, "would unpack to 8000[0-9]+ bytes"),
    "torch, compressed": (packed_torch, "compressed, which torch.save never does"),
    "npz, a place before its start": (misplaced_npz, "is damaged: get it anew .*Invalid argument"),
    "npz, half a directory": (npz_with_half_a_directory, "directory has 1 of 2 files: get it anew"),
    "npz without files": (empty_archive, "directory has 0 of 0 files: get it anew"),
    "npz that claims terabytes": (npz_of_terabytes, "fc.bias is no array of numbers"),
    "npz, a long name": (long_reason, "is damaged: get it anew .{200,250}$"),
    "npz, a name twice": (twice_in_npz, "1 names twice, fc.bias.npy first"),
    "an archive of a document": (another_archive, "something else, word/document.xml first"),
    "torch, cut": (cut(write_torch, 0.9), "is damaged: get it anew"),
    "torch, names os.system": (
        lambda p: write_zip(p, EVIL, state()),
        "names (posix|nt).system, .*save the state dict alone",
    ),
    "old torch, names os.system": (
        lambda path: write_legacy(path, EVIL, state()),
        "names (posix|nt).system, which no state dict needs",
    ),
    "torch, a whole checkpoint": (
        lambda path: write_zip(path, CHECKPOINT, state()),
        "state_dict is no tensor: save the state dict alone",
    ),
    "h5, cut": (cut_keras, "is damaged: get it anew"),
    "h5 that claims terabytes": (large_keras, "Conv1/kernel is larger than the file"),
    "h5 without names": (keras_without_names, r"no names of layers.*model.save\('x.h5'\)"),
    "h5, a name twice": (keras_twice, "two arrays Conv1/kernel"),
    "names that are none": (
        lambda path: write_zip(path, {3: tensors(state())[FC]}, state()),
        "it has 3 for a name: save the state dict alone",
    ),
    # Of another network.
    "integers": (
        safetensors(state() | {"conv1.weight": np.ones((4, 3, 7, 7), np.int64)}),
        r"1 not of a floating-point type \(conv1.weight: int64\)",
    ),
    "NaN": (safetensors(state() | {FC: np.full(10, np.nan)}), r"1 not finite.*\(fc.bias\)"),
    "beyond float32": (safetensors(state() | {FC: np.full(10, 1e300)}), "1 not finite"),
    "a negative variance": (
        safetensors(state() | {"bn1.running_var": np.full(4, -1.0)}),
        r"negative variance \(bn1.running_var\)",
    ),
    "an array left out": (
        safetensors(without("layer1.0.conv1.weight")),
        r"1 missing \(layer1.0.conv1.weight\)",
    ),
    "arrays left over": (
        safetensors(state() | {f"aux.{i:02}": np.zeros(1) for i in range(15)}),
        r"15 left over \(aux.00, aux.01, .*, aux.09, and 5 more\)",
    ),
    "an array of another shape": (
        safetensors(state() | {MEAN: np.zeros(5)}),
        rf"1 of another shape \({MEAN} is \(5,\), not \(4,\)\)",
    ),
    "a deeper network": (safetensors(state_of(blocks=2)), "40 left over .*of another network"),
    "a wider network": (
        safetensors(state_of(width=8)),
        r"61 of another shape \(.*another network or width",
    ),
    "other names": (
        lambda path: write_npz(path, {"Conv1/kernel": np.zeros((3, 3))}),
        "62 missing .*1 left over.*of another network",
    ),
    "no statistics": (
        safetensors(without("running_mean", "running_var", "num_batches_tracked")),
        r"24 missing.*store BatchNorm's statistics too",
    ),
    "another number of classes": (
        safetensors(state_of(num_classes=1000)),
        r"fc.weight is \(1000, 32\), not \(10, 32\).*another number of classes.*head=False",
    ),
    "a classifier of other features": (
        safetensors(state() | {"fc.weight": np.zeros((10, 64))}),
        r"fc.weight is \(10, 64\), not \(10, 32\).*not one dense layer.*head=False",
    ),
    "a classifier without bias": (
        safetensors(without("fc.bias")),
        r"1 missing \(fc.bias\).*not one dense layer.*head=False",
    ),
    "a classifier of two layers": (
        safetensors(without("fc.weight", "fc.bias") | {"fc.0.weight": np.zeros((9, 32))}),
        r"2 missing \(fc.bias, fc.weight\); 1 left over \(fc.0.weight\).*not one dense layer",
    ),
    "no classifier": (
        safetensors(without("fc.weight", "fc.bias")),
        "2 missing.*no classifier: leave it out with head=False",
    ),
    "of DataParallel": (
        safetensors({f"module.{name}": array for name, array in state().items()}),
        "begins with 'module.': store the arrays without it",
    ),
    "several": (
        safetensors(without("fc.bias") | {"more": np.zeros(1), MEAN: np.zeros(5)}),
        r"1 missing \(fc.bias\); 1 left over \(more\); 1 of another shape",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One error, of one line, that names the file; nothing of it is run."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_weights"
    write, match = BROKEN[kind]
    write(path)
    with pytest.raises(WeightsError, match=match) as caught:
        load_weights(path, network(), SIZES)
    assert "my_weights" in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("evil").exists()


def test_h5py_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_keras(tmp_path / "weights.h5", {"Conv1/kernel": np.zeros(3)})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(WeightsError, match="need the package h5py: pip install h5py"):
        read_arrays(tmp_path / "weights.h5")


@pytest.mark.parametrize("kind", [*WRITERS, "keras"])
def test_damage_anywhere_is_a_clear_error(kind: str, tmp_path: Path) -> None:
    """Bytes changed or cut at random: it is read, or it is a `WeightsError`."""
    arrays = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "a/bias": np.ones(3)}
    path, rng, refused = tmp_path / "weights", np.random.default_rng(0), 0
    (WRITERS | {"keras": write_keras})[kind](path, arrays)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        kept = rng.integers(1, len(whole) + 1) if rng.random() < 0.3 else len(whole)
        path.write_bytes(damaged[:kept])
        try:
            read_arrays(path)
        except WeightsError:
            refused += 1
    assert refused > 30


def test_variables_are_whole(tmp_path: Path) -> None:
    """The network takes them as its own."""
    path = tmp_path / "weights.npz"
    write_npz(path, state())
    found = flax.traverse_util.flatten_dict(load_weights(path, network(), SIZES))
    for size in SIZES:
        own, _ = shapes(network(), size)
        for place, value in flax.traverse_util.flatten_dict(own).items():
            assert (found[place].shape, found[place].dtype) == (value.shape, value.dtype)
