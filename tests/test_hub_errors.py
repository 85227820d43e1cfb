"""Folders that are no model: one error that names the file, and what is wrong with it."""

import json
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from drnet_jax import AdaptiveClassifier, load_run, save_pretrained
from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.hub.folder import read_folder
from drnet_jax.runtime.checked_json import read_json
from tests.random_model import write_run
from tests.small_run import GLANCE, small_config

CLASSES = tuple("0123456789")
BIAS = "params/classifier/fc/bias"
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("original")
    write_run(small_config(**GLANCE), place / "run", CLASSES)
    save_pretrained(load_run(place / "run"), place / "folder")
    return place / "folder"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "folder"))


def edit(folder: Path, **changes: Any) -> None:
    """Another `config.json`, without checksums; what is set to `...` is taken out."""
    content = read_json(folder / "config.json") | changes
    content.pop("weights", None)
    kept = {name: value for name, value in content.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def fields(folder: Path, **changes: Any) -> None:
    edit(folder, fields=read_json(folder / "config.json")["fields"] | changes)


def read_arrays(folder: Path) -> Arrays:
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    values = data[8 + length :]
    return {
        name: np.frombuffer(values[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
    }


def write_arrays(folder: Path, arrays: Arrays, **types: str) -> None:
    """By hand; a type of safetensors for what NumPy cannot say."""
    header, values = {}, b""
    for name, array in arrays.items():
        start = len(values)
        values += array.tobytes()
        header[name] = {
            "dtype": types.get(name.rsplit("/")[-1], {2: "F16", 4: "F32"}[array.itemsize]),
            "shape": list(array.shape),
            "data_offsets": [start, len(values)],
        }
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + values
    (folder / "model.safetensors").write_bytes(data)
    edit(folder)


def test_the_original_is_read(folder: Path) -> None:
    """And one whose files were written by hand, without checksums."""
    expected = read_folder(folder)
    write_arrays(folder, read_arrays(folder))
    found = read_folder(folder)
    for name in ("params", "batch_stats_32", "batch_stats_16", "fitted"):
        jax.tree.map(np.testing.assert_array_equal, found.variables[name], expected.variables[name])
    assert found.variables.keys() == expected.variables.keys()
    fields(folder)
    assert read_folder(folder).config == expected.config


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"^{folder / name} is missing: "):
        AdaptiveClassifier.from_pretrained(folder)


def test_no_folder(folder: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "none", folder / "config.json", tmp_path / "a" / "b" / "c"):
        with pytest.raises(CheckpointError, match=f"^{place} is no folder: name one that save_"):
            AdaptiveClassifier.from_pretrained(place)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_files(name: str, folder: Path) -> None:
    """Cut off anywhere, or with any bit flipped: named, or what is read is the same."""
    expected = read_folder(folder)
    content = (folder / name).read_bytes()
    step = len(content) // 25
    variants = [content[:length] for length in range(0, len(content), step)]
    for place in range(0, len(content), step):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        variants.append(bytes(flipped))
    refused = 0
    for variant in variants:
        (folder / name).write_bytes(variant)
        try:
            found = read_folder(folder)
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(f"{folder / name} is damaged")
            assert "restore it from a copy" in str(error)
        else:
            # White space is no content, and a checksum of another name is one entry more.
            assert (found.config, found.classes) == (expected.config, expected.classes)
            assert (found.key, found.view) == (expected.key, expected.view)
    assert refused >= (len(variants) if name == "model.safetensors" else 0.6 * len(variants))


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_weights_without_a_checksum(size: int, folder: Path) -> None:
    edit(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=rf"^{path} is damaged \("):
        read_folder(folder)


class Opens:
    """Its pickle writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_pickle_is_read(folder: Path, tmp_path: Path) -> None:
    payload = pickle.dumps(Opens(tmp_path / "opened"))
    pickle.loads(payload)
    (tmp_path / "opened").unlink()
    edit(folder)
    for name in ("model.safetensors", "config.json"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(payload)
        with pytest.raises(CheckpointError, match=f"^{folder / name} is damaged"):
            read_folder(folder)
        (folder / name).write_bytes(before)
    assert not (tmp_path / "opened").exists()


FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "another program": ({"format": ...}, "is none of save_pretrained: its format is None, not"),
    "another format": ({"format": "x"}, "its format is 'x', not 'drnet_jax adaptive classifier'"),
    "newer": (
        {"format_version": 3, "drnet_jax": "3.1"},
        "is of format 3, and this version of drnet_jax reads up to 2: use '3.1' or later",
    ),
    "no version": ({"format_version": "1"}, r"is damaged \(format_version='1'\)"),
    "no view": ({"view": ...}, r"is damaged \(it has no 'view'\)"),
    "a view": ({"view": {"size": 0, "fraction": 1.0}}, r"view.size=0 must lie in \(0, 16384\]"),
    "half a view": ({"view": {"size": 8}}, "it has no 'fraction'"),
    "a fraction": ({"view": {"size": 8, "fraction": 2}}, r"view.fraction=2 must lie in \(0, 1\]"),
    "no classes": ({"classes": []}, "it names no classes"),
    "a class": ({"classes": ["a", 1]}, "classes has 1, which is no text"),
    "classes": ({"classes": "ab"}, "it names no classes"),
    "times": ({"choice_ms": {"choice": [1.0]}}, "it has no 'largest'"),
    "few times": (
        {"choice_ms": {"choice": [1.0], "largest": 1.0, "setting": ""}},
        "it has no times of 2 choices",
    ),
    "a key": ({"model": 5}, "model has 5, which is no text"),
    "no fields": ({"fields": ...}, "it has no 'fields'"),
    "fields": ({"fields": [1]}, "fields is no object"),
    "a list": ({"view": [8, 1.0]}, "view is no object"),
    "a number": ({"choice_ms": 1.0}, "choice_ms is no object"),
}


@pytest.mark.parametrize(("version", "buckets"), [(1, [1, 8]), (2, [1, 8]), (2, [])])
def test_earlier_formats_are_read(version: int, buckets: list[int], folder: Path) -> None:
    """A reader of format 1 refuses a folder without buckets, so what is written is of 2."""
    assert read_json(folder / "config.json")["format_version"] == 2
    edit(folder, format_version=version)
    fields(folder, **{"inference.buckets": buckets})
    assert read_folder(folder).config.inference.buckets == tuple(buckets)


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_config(kind: str, folder: Path) -> None:
    changes, words = FOREIGN[kind]
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=f"^{folder / 'config.json'} .*{words}"):
        read_folder(folder)


@pytest.mark.parametrize(
    "text", ["[1]", "null", "[" * 100_000, '{"a":' * 100_000, f'{{"a": 1{"0" * 400}}}']
)
def test_no_object(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"^{folder / 'config.json'} is damaged"):
        read_folder(folder)


def test_a_run_is_no_folder(folder: Path, tmp_path: Path) -> None:
    write_run(small_config(), tmp_path / "run", CLASSES)
    with pytest.raises(CheckpointError, match=r"\(it is of a run: load_run opens that\)"):
        read_folder(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        # No path is followed, nor is one kept.
        ("data.dir", "/etc", r"fields that are unknown here \(data.dir\): use the version"),
        ("joint.init_from", "/etc", r"unknown here \(joint.init_from\)"),
        ("model.depth", 7, r"unknown here \(model.depth\)"),
        ("model.name", "/etc/passwd", "describes no model .*model.name='/etc/passwd' must be one"),
        ("model.args", "depth=3", "describes no model .*does not fit resnet"),
        ("model.args", "width=open('x')", "describes no model .*neither a literal nor a word"),
        ("model.resolutions", [16, 32], "describes no model .*largest first"),
        ("model.resolutions", [32, "x"], r"is damaged \(model.resolutions=.*must be an integer"),
        ("model.reuse", "all", r"is damaged \(model.reuse='all' must be one of"),
        ("predictor.kind", "pixels", "describes no model .*needs a first look"),
        ("data.std", [0, 1, 1], r"is damaged \(data.std="),
        ("inference.buckets", [0], r"is damaged \(inference.buckets="),
    ],
)
def test_fields(name: str, value: Any, words: str, folder: Path) -> None:
    fields(folder, **{name: value})
    with pytest.raises(CheckpointError, match=f"^{folder / 'config.json'} .*{words}"):
        read_folder(folder)


def without(*names: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {n: a for n, a in arrays.items() if not n.startswith(names)}


def with_nan(arrays: Arrays) -> Arrays:
    return arrays | {BIAS: np.full(10, np.nan, np.float32)}


ARRAYS: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "missing": (
        without("fitted/"),
        r"2 arrays are missing \(fitted/predictor/offset, fitted/predictor/weight\)$",
    ),
    "many": (
        without("params/"),
        r"\d+ arrays are missing \(params/[^ ]+, (params/[^ ]+, ){4}\.\.\.\)$",
    ),
    "left over": (
        lambda arrays: arrays | {"params/extra/kernel": np.zeros(2, np.float32)},
        r"1 arrays are left over \(params/extra/kernel\)$",
    ),
    "below another": (
        lambda arrays: arrays | {f"{BIAS}/x": np.zeros(2, np.float32)},
        rf"1 arrays are left over \({BIAS}/x\)$",
    ),
    "another shape": (
        lambda arrays: arrays | {BIAS: np.zeros((10, 1), np.float32)},
        rf"1 arrays are of another shape or type \({BIAS} float32\[10, 1\] in the place of "
        r"float32\[10\]\)$",
    ),
    "another type": (
        lambda arrays: arrays | {BIAS: np.zeros(10, np.float16)},
        rf"\({BIAS} float16\[10\] in the place of float32\[10\]\)$",
    ),
    "all": (
        lambda arrays: (
            without("fitted/")(arrays)
            | {"x": np.zeros(1, np.float32), BIAS: np.zeros(1, np.float32)}
        ),
        "2 arrays are missing .*; 1 arrays are left over .*; 1 arrays are of another shape",
    ),
    "not finite": (
        with_nan,
        r"holds values that are not finite \(1 arrays, .*'bias'\].* first\): its training",
    ),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_other_arrays(kind: str, folder: Path) -> None:
    change, words = ARRAYS[kind]
    write_arrays(folder, change(read_arrays(folder)))
    with pytest.raises(CheckpointError, match=words) as error:
        read_folder(folder)
    assert str(error.value).startswith(f"{folder / 'model.safetensors'} ")


@pytest.mark.parametrize("kind", ["F8_E4M3", "BF16", "Q7"])
def test_types_that_numpy_has_not(kind: str, folder: Path) -> None:
    size = 1 if kind == "F8_E4M3" else 2
    arrays = read_arrays(folder) | {BIAS: np.zeros(10 * size // 2, np.float16)}
    write_arrays(folder, arrays, bias=kind)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(folder))}/model.safetensors is"):
        read_folder(folder)


def test_another_number_of_classes(folder: Path) -> None:
    edit(folder, classes=list(CLASSES[:7]))
    words = (
        r"2 arrays are of another shape or type \(params/classifier/fc/bias float32\[10\] in the"
    )
    with pytest.raises(CheckpointError, match=words):
        read_folder(folder)


def test_a_model_that_is_not_finite_is_not_saved(original: Path, tmp_path: Path) -> None:
    classifier = AdaptiveClassifier.from_pretrained(original)
    weight = classifier._saved.variables["fitted"]["predictor"]
    weight["offset"] = weight["offset"] * np.nan
    with pytest.raises(CheckpointError, match="holds values that are not finite .*offset"):
        classifier.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "config.json").exists()
    assert not list(tmp_path.glob(".*"))
