"""Command lines: what they set, and that bad ones end with one clear line before any work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = Path(__file__).parents[1] / "main.py"


@pytest.mark.parametrize(
    ("flag", "words"),
    [
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


def test_help_lists_the_flags(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "drnet_jax", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(MAIN.parent)},
    )
    assert result.returncode == 0
    for words in (
        "--config",
        "--workdir",
        "--mode",
        "train,convert,eval,calibrate",
        "-m drnet_jax",
    ):
        assert words in result.stdout


@pytest.mark.parametrize("platform", ["bad", "cuda"])
def test_a_platform_that_is_not_there(platform: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(MAIN), "--mode=eval", f"--workdir={tmp_path / 'none'}"],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": platform},
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert (
        line.startswith("error: JAX does not start with ") and f"JAX_PLATFORMS={platform}" in line
    )


def test_the_command_is_recorded_as_it_was_typed(tmp_path: Path) -> None:
    code = "from drnet_jax.runtime.environment import command_line\nprint(command_line())\n"
    (tmp_path / "probe.py").write_text(code)
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "probe-it"
    script.write_text(f"#!{sys.executable}\n{code}")
    script.chmod(0o755)
    python = [sys.executable, "-u"]
    for command, recorded in (
        ([*python, "probe.py", "--x=a b"], "python -u probe.py '--x=a b'"),
        ([*python, "-m", "probe", "--x"], "python -u -m probe --x"),
        ([str(script), "--x"], "probe-it --x"),
    ):
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(MAIN.parent), "XLA_FLAGS": ""},
        )
        assert result.stdout == recorded + "\n"
