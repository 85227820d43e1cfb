"""What a program gets from the package: its names, the README's snippet, and an installed copy."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any

import jax
import numpy as np
import pytest

import drnet_jax
from drnet_jax.budgets import calibration, calibration_file
from drnet_jax.budgets.solve import calibration_path
from drnet_jax.checkpoints.model_key import model_key
from drnet_jax.data.preprocess import normalise
from drnet_jax.models.macs import model_cost
from drnet_jax.runtime.environment import VERSION
from tests.random_model import write_run
from tests.small_run import small_config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "drnet_jax"
CLASSES = tuple(f"digit {digit}" for digit in range(10))
# The demo's images are 64 px.
FIELDS = {"model.resolutions": (64, 32)}


def python(code: str, folder: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs code in an empty directory, with the package from `path`."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(path), "XLA_FLAGS": ""},
    )


def test_public_names() -> None:
    """The list, the lazy table and what type checkers see are the same."""
    names = set(drnet_jax.__all__)
    assert names == set(drnet_jax._MODULES) == set(dir(drnet_jax))
    (typed,) = (
        node
        for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
        if isinstance(node, ast.If)
    )
    imports = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name for node in imports for alias in node.names} == names
    for node in imports:
        for alias in node.names:
            where = import_module(str(node.module))
            assert getattr(drnet_jax, alias.name) is getattr(where, alias.name)
    assert not hasattr(drnet_jax, "load_runs")


def test_importing_and_reading_flags_is_quick(tmp_path: Path) -> None:
    code = (
        "import sys, drnet_jax, drnet_jax.cli\n"
        "drnet_jax.ConfigError, drnet_jax.default_config(), drnet_jax.load_config('paper')\n"
        "heavy = {'jax', 'flax', 'grain', 'orbax', 'matplotlib', 'PIL', 'sklearn'}\n"
        "print(heavy & set(sys.modules))"
    )
    assert python(code, tmp_path).stdout == "set()\n"


def snippet() -> str:
    """The README's first block of Python."""
    match = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert match is not None, "README.md has no block of Python"
    return match[1]


def test_the_snippet_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are those of the dense model at the resolution of the largest score, less the cost."""
    assert len(snippet().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    write_run(small_config(**FIELDS), Path("runs/digits_on_photos"), CLASSES)
    run = drnet_jax.load_run("runs/digits_on_photos")
    cost = model_cost(run.model)
    gmacs = np.array(cost.classifier_gmacs)
    rng = np.random.default_rng(0)
    # Right at the smaller resolution only: the most accurate choice is the cheapest.
    known = calibration.calibrate(
        rng.normal(0, 1, (200, 2)),
        np.tile([False, True], (200, 1)),
        np.zeros(200, bool),
        gmacs,
        cost.predictor_gmacs,
        model_key(small_config(**FIELDS), run),
    )
    calibration_file.save(known, calibration_path(run))

    names: dict[str, Any] = {}
    exec(compile(snippet(), "README.md", "exec"), names)

    images, result, cheaper = names["images"], names["result"], names["cheaper"]
    pixels = normalise(images, (0.5,) * 3, (0.25,) * 3)
    output: Any = jax.jit(run.model.apply)(run.variables, pixels)
    scores, branches = np.asarray(output.scores), np.asarray(output.branch_logits)
    rows = np.arange(len(images))
    for found, lam in ((result, 0.0), (cheaper, names["lam"])):
        choice = (scores - lam * gmacs).argmax(1)
        np.testing.assert_array_equal(found.resolutions, np.array([64, 32])[choice])
        np.testing.assert_array_equal(found.labels, branches[rows, choice].argmax(1))
        np.testing.assert_allclose(found.logits, branches[rows, choice], rtol=1e-3, atol=1e-3)
        cost = model_cost(run.model)
        np.testing.assert_array_equal(
            found.macs, cost.predictor + np.array(cost.classifier)[choice]
        )
    assert names["lam"] > 0 and cheaper.macs.sum() < result.macs.sum()


def test_an_installed_copy_finds_its_configs(tmp_path: Path) -> None:
    """As a wheel lays it out: `configs/` inside of the package."""
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    shutil.copytree(PACKAGE, installed / "drnet_jax", ignore=lambda *_: ["__pycache__"])
    shutil.copytree(ROOT / "configs", installed / "drnet_jax" / "configs")
    code = (
        "from drnet_jax.config_files import call_file, find_config, load_config\n"
        "print(load_config('configs/resnet_in100_5res.py').model.resolutions[1])\n"
        "for sweep in ('tiny', 'demo'):\n"
        "    found = call_file(find_config(f'configs/sweeps/{sweep}.py'), 'get_sweep')\n"
        "    print(find_config(found.config))"
    )
    done = python(code, empty, installed)
    configs = installed / "drnet_jax" / "configs"
    assert done.stdout.split() == [
        "192",
        str(configs / "tiny.py"),
        str(configs / "digits_on_photos.py"),
    ]


def test_every_file_of_the_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = [
        f"{name.replace('.', '/')}/{pattern}"
        for name, found in settings["package-data"].items()
        for pattern in found
    ]
    for path in PACKAGE.rglob("*"):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py":
            assert (path.parent / "__init__.py").exists(), f"{name} is in no package"
        else:
            installed = any(PurePath(name).match(pattern) for pattern in patterns)
            assert installed, f"{name} is not installed"


def test_the_version() -> None:
    """What a folder says that it was written by, also where nothing is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def test_every_folder_of_configs_is_installed() -> None:
    """`setup.py` names them one by one."""
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.py")}
    tree = ast.parse((ROOT / "setup.py").read_text())
    (mapping,) = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    assert ast.literal_eval(mapping) == {
        ".".join(("drnet_jax", *folder.parts)): folder.as_posix() for folder in folders
    }
