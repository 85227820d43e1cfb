"""Bad command lines end with one clear line, before any work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = Path(__file__).parents[1] / "main.py"


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.joint.etaa=3", "unknown config field 'etaa'; did you mean 'eta'?"),
        ("--config.seed=one", "flag --config.seed=one: invalid literal for int()"),
        ("--config=none.py", "config file none.py does not exist"),
        (
            "--config.data.name=cifar",
            "data.name='cifar' is neither digits_on_photos, folder, imagenet100 nor a data set",
        ),
        ("--config.model.name=mobilenetv2", "does not fit mobilenetv2: there is no width and no"),
        ("--config.model.args=width=8, stem='s'", "stem='s' must be one of 'imagenet', 'small'"),
        ("--mode=eval", "no checkpoint in "),
    ],
)
def test_one_clear_line(flag: str, words: str, tmp_path: Path) -> None:
    workdir = tmp_path / "workdir"
    result = subprocess.run(
        [sys.executable, str(MAIN), flag, f"--workdir={workdir}"],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line]
    assert line.startswith("error: ") and words in line
    assert not workdir.exists()


def test_on_the_cpu_freed_memory_is_kept(tmp_path: Path) -> None:
    code = (
        "import runpy, drnet_jax.runtime.allocator\n"
        "drnet_jax.runtime.allocator.keep_freed_memory = lambda: print('kept')\n"
        f"runpy.run_path({str(MAIN)!r}, run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "--mode=eval", f"--workdir={tmp_path / 'none'}"],
        capture_output=True,
        text=True,
        cwd=MAIN.parent,
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
    )
    assert result.returncode == 2
    assert "kept" in result.stdout.splitlines()
