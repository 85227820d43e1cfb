"""drnet_runtime stands alone, starts soon, and its command line says what it did."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from drnet_jax.data.digits_on_photos import compose
from drnet_runtime import AdaptiveModel
from drnet_runtime.__main__ import main
from tests.pictures import png
from tests.small_export import write_export
from tests.small_run import GLANCE

ROOT = Path(__file__).parents[1] / "runtime"
PACKAGE = ROOT / "drnet_runtime"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("case")
    write_export(place, calibrated=True, **GLANCE)
    return place / "export"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures, one of them corrupt; and what is none, is hidden, or has an odd name."""
    folder = tmp_path_factory.mktemp("pictures")
    images = compose("test", 4)["image"]
    for image, name in zip(images, ("b.png", "a/z.PNG", "a/tab\t.png", "c.png"), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(png(image))
    (folder / "d.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").touch()
    (folder / ".hidden.png").touch()
    (folder / ".git").mkdir()
    (folder / ".git" / "e.png").touch()
    return folder


def run(*arguments: object, **options: str) -> subprocess.CompletedProcess[str]:
    """The command line, in a process that sees this package alone of the repository.

    Args:
      options: of its environment.
    """
    return subprocess.run(
        [sys.executable, "-m", "drnet_runtime", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | options,
    )


def test_neither_jax_nor_drnet_jax_is_imported(export: Path) -> None:
    """In a new process, which is also soon done with the first image."""
    code = f"""
import sys
from drnet_runtime import AdaptiveModel
import numpy as np
model = AdaptiveModel.load({str(export)!r})
print(model.classify(np.zeros((1, 64, 64, 3), np.uint8)).labels.shape)
print({{"jax", "flax", "scipy", "drnet_jax", "onnx"}} & {{n.split(".")[0] for n in sys.modules}})
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT
        )
        times.append(time.perf_counter() - start)
        assert (done.stdout, done.stderr) == ("(1,)\nset()\n", "")
    # Other programs of this machine only add time.
    assert min(times) < 3, times


def test_only_what_the_package_requires_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split("[>=<]", package)[0] for package in project["dependencies"]}
    assert names == {"numpy", "onnxruntime", "pillow"}
    allowed = {"numpy", "onnxruntime", "PIL", "drnet_runtime", *sys.stdlib_module_names}
    files = sorted(PACKAGE.glob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                modules = [str(node.module)]
            for module in modules:
                assert module.split(".")[0] in allowed, f"{file.name} imports {module}"


def test_every_file_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["packages"]["find"]["include"] == ["drnet_runtime*"]
    for path in PACKAGE.rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), f"{path} is in no package"
    assert (PACKAGE / "py.typed").exists()


def test_rows_and_saving(export: Path, pictures: Path) -> None:
    done = run(export, pictures / "c.png", pictures, "--batch-size=2")
    assert (done.returncode, done.stderr) == (0, "")
    *rows, last = done.stdout.splitlines()
    # The file that is named first, then the folder's.
    order = ["c.png", "b.png", "c.png", "d.jpg", "a/tab\\t.png", "a/z.PNG"]
    assert [row.split("\t")[0] for row in rows] == [f"{pictures}/{name}" for name in order]
    assert rows[3].split("\t")[1] == "unreadable: it is no picture of a known format"
    model = AdaptiveModel.load(export)
    files = [pictures / name.replace("\\t", "\t") for name in order]
    spent = []
    for row, answer in zip(rows, model.classify_files(files), strict=True):
        if answer.reason is not None:
            continue
        _, label, confidence, resolution, looks, gmacs = row.split("\t")
        assert label == answer.label and resolution == f"{answer.resolution} px"
        assert float(confidence) == pytest.approx(answer.confidence, abs=1e-3)
        assert looks.split()[0] == str(answer.looks)
        assert float(gmacs.split()[0]) == pytest.approx(answer.gmacs, rel=1e-3)
        spent.append(answer.gmacs)
    saving = 100 * (1 - sum(spent) / 5 / (model.largest_macs / 1e9))
    found = re.fullmatch(
        r"5 pictures, (\S+) GMACs each, 32 px alone (\S+): (\S+) % saved \(lambda 0\); "
        r"1 more cannot be read",
        last,
    )
    assert found is not None
    assert float(found[1]) == pytest.approx(sum(spent) / 5, rel=1e-3)
    assert float(found[3]) == pytest.approx(saving, abs=0.06)


def test_json_at_a_budget(export: Path, pictures: Path) -> None:
    model = AdaptiveModel.load(export)
    cheapest = model.points[-1].gmacs
    done = run(export, pictures / "b.png", pictures / "d.jpg", f"--gmacs={cheapest}", "--json")
    first, corrupt, last = map(json.loads, done.stdout.splitlines())
    lam = model.lam_for(gmacs=cheapest)
    (answer,) = model.classify_files([pictures / "b.png"], lam)
    assert first["label"] == answer.label and first["resolution"] == 16
    assert first["confidence"] == pytest.approx(answer.confidence)
    assert corrupt["label"] is None and corrupt["reason"]
    assert last["lambda"] == lam and last["num_images"] == last["num_unreadable"] == 1
    assert last["saving"] == pytest.approx(1 - answer.gmacs / (model.largest_macs / 1e9))


def test_what_is_wrong_is_one_line(export: Path, pictures: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([tmp_path, pictures], "manifest.json is missing"),
        ([export, tmp_path / "nothing"], "nothing is not there: give files, or folders"),
        ([export, tmp_path], "has no picture (.jpg"),
        ([export, pictures, "--gmacs=1e-9"], "a budget of 1e-09 GMACs cannot be kept"),
        ([export, pictures, "--gmacs=1", "--drop=1"], "not allowed with"),
        ([export, pictures, "--lam=nan"], "lam must be finite"),
        ([export, pictures, "--batch-size=0"], "batch_size=0 must be an integer >= 1"),
        ([export, pictures, "--threads=-1"], "threads=-1 must be an integer >= 0"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert re.fullmatch(f"error: .*{re.escape(message)}.*\n", done.stderr), done.stderr
    done = run(export, pictures / "d.jpg")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "none of 1 pictures can be read"


def test_names_that_the_terminal_cannot_print(export: Path, pictures: Path, tmp_path: Path) -> None:
    """Of files and of classes: letters that ASCII lacks, a tab, a byte that is no UTF-8."""
    copy = Path(shutil.copytree(export, tmp_path / "export"))
    manifest = json.loads((copy / "manifest.json").read_text())
    names = [f"caf\xe9\t\udcff{place}" for place in range(len(manifest["classes"]))]
    (copy / "manifest.json").write_text(json.dumps(manifest | {"classes": names}))
    file = tmp_path / "\u732b.png"
    file.write_bytes((pictures / "b.png").read_bytes())
    (answer,) = AdaptiveModel.load(copy).classify_files([file])
    done = run(copy, file, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    found, label, *_, gmacs = done.stdout.splitlines()[0].split("\t")
    assert found == f"{tmp_path}/\\u732b.png" and gmacs.endswith(" GMACs")
    assert label == rf"caf\xe9\t\udcff{answer.class_index}"


def test_a_folder_that_cannot_be_read_is_not_passed_over(
    export: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """(Root may read all of them.)"""
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(sys, "argv", ["drnet_runtime", str(export), str(pictures)])
    assert main() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch("error: .*Permission denied.*/a'\n", said.err)


def test_an_interruption_is_one_line(export: Path, pictures: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "drnet_runtime", str(export), "--batch-size=1"]
        + [str(pictures / "b.png")] * 5000,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rows, said = process.communicate(timeout=20)
    assert process.returncode == 2 and len(rows.splitlines()) < 4999
    assert re.fullmatch("error: interrupted; .*\n", said)


def test_a_reader_that_stops_early(export: Path, pictures: Path) -> None:
    """`| head` is no error."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "drnet_runtime", str(export), str(pictures)],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )
    os.close(writing)
    assert done.stderr == b""


@pytest.mark.parametrize("module", ["drnet_runtime", "drnet_runtime.serve"])
def test_an_error_is_one_line_without_control_characters(module: str, tmp_path: Path) -> None:
    """A terminal would obey what a manifest says."""
    content = {"format": "drnet_jax export", "format_version": 1, "usable": False}
    content["parity"] = {"problems": ["\x1b[2J\n\x07"]}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    (tmp_path / "x.png").touch()
    pictures = [str(tmp_path / "x.png")] if module == "drnet_runtime" else []
    result = subprocess.run(
        [sys.executable, "-m", module, str(tmp_path), *pictures],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and "(\\x1b[2J\\n\\x07)" in result.stderr
    assert result.stderr.count("\n") == 1
