"""The page and what it is told: nothing from outside, and the calibrated points."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from tests.serving import (
    CLASSES,
    MACS,
    MACS_SECOND,
    POINTS,
    ROOT,
    Running,
    serving,
    write_hand_made,
)

STATIC = files("drnet_runtime.serve") / "static"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = write_hand_made(tmp_path_factory.mktemp("case") / "export")
    with serving(folder) as running:
        yield running


def test_everything_that_the_page_needs_is_served(server: Running) -> None:
    page = server.ask("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
    assert sorted(named) == ["icon.svg", "page.js", "style.css"]
    for name, kind in zip(sorted(named), ("image/svg", "text/javascript", "text/css"), strict=True):
        response = server.ask(f"/{name}")
        assert response.status == 200 and response.headers["content-type"].startswith(kind)
        assert response.body == (STATIC / name).read_bytes()


def test_the_page_is_installed() -> None:
    project = tomllib.loads((ROOT / "runtime" / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["drnet_runtime.serve"]
    assert patterns == ["static/*"]
    assert len(list(STATIC.iterdir())) == 4


def test_the_extra_has_what_is_imported_and_the_tests_use_the_same() -> None:
    project = tomllib.loads((ROOT / "runtime" / "pyproject.toml").read_text())["project"]
    extra = set(project["optional-dependencies"]["serve"])
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra <= set(ours["optional-dependencies"]["dev"])
    names = {re.split("[>=<]", package)[0].replace("-", "_") for package in extra}
    own = {"numpy", "drnet_runtime", *sys.stdlib_module_names}
    imported = set()
    for file in (ROOT / "runtime" / "drnet_runtime" / "serve").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    assert imported - own == names


def test_nothing_is_asked_elsewhere_nor_run_from_the_page(server: Running) -> None:
    for path in ("/", "/page.js", "/style.css", "/health", "/nowhere"):
        policy = server.ask(path).headers["content-security-policy"]
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == "'none'"
        for name in ("script-src", "style-src", "connect-src"):
            assert rules[name] == "'self'"
        assert rules["img-src"] == "'self' blob:"
    for file in STATIC.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//\w+\.\w", text), file.name
        assert "innerHTML" not in text
    html = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\bsrc=)", html)


def test_every_part_that_the_script_names_is_there() -> None:
    html, script = (STATIC / "index.html").read_text(), (STATIC / "page.js").read_text()
    named = set(re.findall(r'by\("([\w-]+)"\)', script)) | {"files", "camera"}
    assert named <= set(re.findall(r'id="([\w-]+)"', html))
    classes = set(re.findall(r'find\("\.([\w-]+)', script))
    assert classes <= {
        name for text in re.findall(r'class="([^"]+)"', html) for name in text.split()
    }


def test_the_model(server: Running) -> None:
    found = server.ask("/model").json
    assert found["classes"] == list(CLASSES) and found["resolutions"] == [16, 8]
    assert found["gmacs"] == [macs / 1e9 for macs in MACS]
    assert found["largest_gmacs"] == MACS_SECOND / 1e9
    assert found["first_look"] is True and found["default_lam"] == 0
    wanted = [
        {"lam": lam, "gmacs": gmacs, "cost": pytest.approx(gmacs * 1e9 / MACS_SECOND), "top1": top1}
        for lam, gmacs, top1, _, _ in reversed(POINTS)
    ]
    assert found["points"] == wanted


def test_points_that_cost_more_for_less_are_no_choice(tmp_path: Path) -> None:
    folder = write_hand_made(tmp_path / "export")
    manifest = folder / "manifest.json"
    # The middle point becomes the most accurate one.
    manifest.write_text(manifest.read_text().replace('"top1": 0.8', '"top1": 0.95'))
    with serving(folder) as server:
        assert [point["top1"] for point in server.ask("/model").json["points"]] == [0.5, 0.95]
