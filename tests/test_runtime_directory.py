"""drnet_runtime refuses a directory that is no whole, usable export, and says what is wrong."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drnet_runtime import AdaptiveModel, ExportDirectoryError
from tests.small_export import write_export
from tests.small_run import GLANCE

Damage = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    write_export(place, calibrated=True, **GLANCE)
    return place / "export"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "export"))


def refused(directory: Path, message: str, **options: Any) -> None:
    with pytest.raises(ExportDirectoryError, match=re.escape(message)) as caught:
        AdaptiveModel.load(directory, **options)
    # One line, with a remedy.
    assert "\n" not in str(caught.value)
    assert re.search("export|install|copy|give", str(caught.value).rsplit(":", 1)[-1])


def change(directory: Path, damage: Damage) -> None:
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))


def test_the_whole_one_is_taken(copy: Path) -> None:
    assert len(AdaptiveModel.load(str(copy)).points) > 1
    # A manifest of a later program may say more.
    change(copy, lambda content: content.update(further=1))
    assert AdaptiveModel.load(copy).image_size == 64


def test_no_files_in_int8(copy: Path) -> None:
    message = "has no files in int8: export it anew (drnet_jax: --mode=export --config.export.int8"
    refused(copy, message, int8=True)


def test_no_directory(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "missing is no directory: give one that drnet_jax exported")
    refused(tmp_path, "manifest.json is missing: give a directory that drnet_jax exported")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "file is no directory")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_damaged_manifest(copy: Path, content: bytes) -> None:
    (copy / "manifest.json").write_bytes(content)
    refused(copy, "manifest.json cannot be read")


@pytest.mark.parametrize("file", ["first_look_16.onnx", "classifier_32.onnx"])
def test_a_damaged_file(copy: Path, file: str) -> None:
    content = (copy / file).read_bytes()
    for place in (0, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (copy / file).write_bytes(damaged)
        refused(copy, f"{copy / file} is not the file that was exported (its SHA-256 is another")
    (copy / file).write_bytes(content[:-1])
    refused(copy, f"{copy / file} is not the file that was exported")
    (copy / file).unlink()
    refused(copy, f"{copy / file} is missing")
    refused(copy, f"{copy / file} is missing", verify=False)
    (copy / file).mkdir()
    refused(copy, f"{copy / file} cannot be read")


def replace_classifier(directory: Path, content: bytes) -> None:
    """With its hash in the manifest."""
    (directory / "classifier_32.onnx").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    change(directory, lambda manifest: manifest["networks"][1].update(sha256=digest))


def test_what_onnx_runtime_cannot_use(copy: Path) -> None:
    replace_classifier(copy, b"no network")
    refused(copy, "cannot load classifier_32.onnx")
    # Another network: what it gives is not what the manifest says.
    replace_classifier(copy, (copy / "first_look_16.onnx").read_bytes())
    refused(copy, "classifier_32.onnx takes [('images', [64, 64, 3])] and gives ['logits', 'scores")


def test_hashes_may_be_passed_over(copy: Path) -> None:
    change(copy, lambda content: content["networks"][0].update(sha256="0" * 64))
    refused(copy, "first_look_16.onnx is not the file that was exported")
    assert AdaptiveModel.load(copy, verify=False).has_first_look


@pytest.mark.parametrize(
    "file", ["../classifier_32.onnx", "/etc/passwd", "a/b.onnx", "..", "", "a\\b.onnx", "C:a.onnx"]
)
def test_a_name_that_leads_elsewhere(copy: Path, file: str) -> None:
    shutil.copy(copy / "classifier_32.onnx", copy.parent)
    change(copy, lambda content: content["networks"][1].update(file=file))
    refused(copy, f"the file {file!r} would not lie in the directory")


def unusable(content: dict[str, Any]) -> None:
    content["usable"] = False
    content["parity"]["problems"] = ["scores differ by 0.2, more than 0.0001"]


def first_of(table: str, **values: Any) -> Damage:
    """Changes the first entry of a table."""
    tables: dict[str, Callable[[dict[str, Any]], Any]] = {
        "networks": lambda content: content["networks"],
        "points": lambda content: content["calibration"]["points"],
    }
    return lambda content: tables[table](content)[0].update(values)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unusable, "does not agree with the model (scores differ by 0.2, more than 0.0001)"),
        (lambda c: c.pop("usable"), "says that the export is unusable"),
        (lambda c: c.update(usable="true"), "says that the export is unusable"),
        (lambda c: c.update(format="another"), "is no manifest of an export"),
        (lambda c: c.update(format_version=2), "has format 2, and this drnet_runtime reads up to"),
        (lambda c: c.update(format_version="1"), "is damaged (format_version '1')"),
        (lambda c: c.pop("classes"), "is damaged ('classes' is missing)"),
        (lambda c: c.update(classes=[]), "its classes are no names"),
        (lambda c: c.update(classes=[1, 2]), "its classes are no names"),
        (lambda c: c.update(resolutions=[16, 32]), "its resolutions are [16, 32]"),
        (lambda c: c.update(resolutions=[32, 24, 16]), "do not go with the resolutions"),
        (lambda c: c["networks"].pop(), "do not go with the resolutions [32, 16]"),
        (lambda c: c["networks"].pop(0), "do not go with the resolutions [32, 16]"),
        (first_of("networks", role="other"), "a network 'other' with the outputs"),
        (first_of("networks", outputs=["scores"]), "a network 'first_look' with the outputs"),
        (first_of("networks", resolution=32), "do not go with the resolutions"),
        (lambda c: c["choice"].update(first_look_weight=None), "first_look_weight does not go"),
        (lambda c: c["choice"].update(first_look_weight=[0.0]), "first_look_weight has not 2"),
        (lambda c: c["cost"].update(each=[1.0]), "cost.each has not 2 values"),
        (lambda c: c["cost"].update(each=[1.0, "2"]), "'2' is no finite number"),
        (lambda c: c["cost"].update(macs=[1.5, 1]), "a cost in macs is 1.5"),
        (lambda c: c["input"].update(dtype="float32"), "this runtime does not know"),
        (lambda c: c["input"].update(shape=["batch", 64, 32, 3]), "this runtime does not know"),
        (
            lambda c: c["preprocessing"]["outside"].update(filter="Pillow BICUBIC"),
            "which this runtime does not know",
        ),
        (lambda c: c["preprocessing"]["outside"].update(size=32), "32 px do not fit into inputs"),
        (first_of("points", **{"lambda": float("nan")}), "nan is no finite number"),
        (first_of("points", **{"lambda": 1e9}), "its points do not rise in lambda"),
        (first_of("points", shares=[1.0]), "shares has not 2 values"),
        (first_of("points", lost=-1), "lost is -1"),
        (lambda c: c["calibration"].update(points=[]), "its points do not rise in lambda"),
        (lambda c: c["calibration"].update(num_images=0), "num_images is 0"),
    ],
)
def test_a_manifest_that_says_something_else(copy: Path, damage: Damage, message: str) -> None:
    change(copy, damage)
    refused(copy, message)
