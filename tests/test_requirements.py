"""The locked versions are those that the requirements allow, each with its hashes."""

import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FILES = ("requirements-cpu", "requirements")
PYTHONS = ("3.11", "3.12")


def environment(python: str) -> dict[str, Any]:
    """Linux on x86-64."""
    return {
        **{"python_version": python, "python_full_version": f"{python}.7", "os_name": "posix"},
        **{"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
        **{"platform_python_implementation": "CPython", "implementation_name": "cpython"},
    }


def required(path: Path) -> list[Requirement]:
    found = []
    for line in path.read_text().splitlines():
        if line.startswith("-r "):
            found += required(path.parent / line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            found.append(Requirement(line))
    return found


def locked(path: Path) -> list[tuple[Requirement, list[str]]]:
    """Every pin with its hashes."""
    entries = path.read_text().replace("\\\n", " ").splitlines()
    pins = [re.split(r"\s+--hash=", entry) for entry in entries if not entry.startswith("#")]
    return [(Requirement(pin), hashes) for pin, *hashes in pins]


def pins_of(path: Path, python: str) -> dict[str, str]:
    """Version by name, in one Python."""
    pins: dict[str, str] = {}
    for pin, _ in locked(path):
        if pin.marker is None or pin.marker.evaluate(environment(python)):
            assert pin.name not in pins, f"{pin.name} twice"
            (only,) = pin.specifier
            assert only.operator == "=="
            pins[pin.name] = only.version
    return pins


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", FILES)
def test_every_requirement_is_locked(name: str, python: str) -> None:
    pins = pins_of(ROOT / f"{name}.lock", python)
    for requirement in required(ROOT / f"{name}.txt"):
        version = pins[requirement.name.replace("_", "-").lower()]
        assert requirement.specifier.contains(version), f"{requirement}: {version} is locked"
    assert ("jax-cuda12-plugin" in pins) == (name == "requirements")


def test_the_same_versions_with_and_without_a_gpu() -> None:
    for python in PYTHONS:
        without, with_gpu = (pins_of(ROOT / f"{name}.lock", python) for name in FILES)
        assert without.items() <= with_gpu.items()


@pytest.mark.parametrize("name", FILES)
def test_hashes_and_nothing_of_the_machine(name: str) -> None:
    """That made the file: neither an address of packages nor a path."""
    path = ROOT / f"{name}.lock"
    for pin, hashes in locked(path):
        assert hashes and pin.url is None
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", found) for found in hashes)
    options = re.findall(r"(?m)(?<=\s)--?[a-z][\w-]*", path.read_text().partition("\n#    ")[2])
    assert set(options) == {
        *("--generate-hashes", "--universal", "--python-version", "--no-annotate"),
        *("--output-file", "--hash"),
    }
    assert not re.search(r"://|(?m:^-)|[ =](/|~)", path.read_text())
