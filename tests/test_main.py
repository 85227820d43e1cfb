"""Command lines: what they set, and that bad ones end with one clear line before any work."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from drnet_jax.config import ConfigError, default_config
from drnet_jax.config_files import call_file, load_config
from drnet_jax.config_overrides import override

MAIN = Path(__file__).parents[1] / "main.py"


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.joint.etaa=3", "unknown config field 'joint.etaa'; did you mean 'joint.eta'?"),
        ("--config=none.py", "config file none.py does not exist"),
        (
            "--config.data.name=cifar",
            "data.name='cifar' is neither digits_on_photos, folder, imagenet100 nor a data set",
        ),
        ("--config.model.name=mobilenetv2", "does not fit mobilenetv2: there is no width and no"),
        ("--config.model.args=width=8, stem='s'", "stem='s' must be one of 'imagenet', 'small'"),
        ("--mode=eval", "no checkpoint in "),
        ("configs/tiny.py", "'configs/tiny.py' belongs to no flag: --config=configs/tiny.py"),
        ("eval", "'eval' belongs to no flag: --mode=eval"),
        ("runs/a", "--workdir=<folder>"),
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
    for words in ("--config", "--workdir", "--mode", "train|eval|calibrate"):
        assert words in result.stdout


def test_overrides_are_set_by_their_types() -> None:
    config = default_config()
    arguments = ["--mode=eval", "--config.joint.eta", "2", "--config.data.flip", "--config.seed=3"]
    arguments += ["--config.model.resolutions=(32, 16)", "--config.seed=4", "left over"]
    assert override(config, arguments) == ["--mode=eval", "left over"]
    assert config.joint.eta == 2.0 and config.data.flip is True and config.seed == 4
    assert config.model.resolutions == (32, 16)
    override(config, ["--noconfig.data.flip", "--config.log.tensorboard=false"])
    assert config.data.flip is False and config.log.tensorboard is False


def test_what_may_be_unset_takes_none() -> None:
    """The last value counts, None too."""
    config = default_config()
    override(config, ["--config.joint.alpha_fraction=None", "--config.joint.alpha=0.01"])
    assert config.joint.alpha_fraction is None and config.joint.alpha == 0.01
    override(config, ["--config.joint.alpha=0.02", "--config.joint.alpha=None"])
    assert config.joint.alpha is None
    with pytest.raises(ConfigError, match="flag --config.seed=None: invalid literal for int"):
        override(config, ["--config.seed=None"])


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.seed=one", "flag --config.seed=one: invalid literal for int()"),
        ("--config.eta=3", "unknown config field 'eta'; did you mean 'joint.eta'?"),
        ("--config.nothing.like.it=3", "drnet_jax/config.py lists them all"),
        ("--config.joint={'eta': 3.0}", "config field 'joint' is a section"),
        ("--config.joint.eta", "--config.joint.eta has no value"),
    ],
)
def test_bad_overrides(argument: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        override(default_config(), [argument])


def test_what_follows_a_colon_is_given_to_the_config(tmp_path: Path) -> None:
    """As ml_collections has it; on the command line too, and as the next argument."""
    file = tmp_path / "sized.py"
    file.write_text(
        "from drnet_jax.config import default_config\n"
        "def get_config(name='small'):\n"
        "    config = default_config()\n"
        "    config.seed = {'small': 4, 'large': 32}[name]\n"
        "    return config\n"
    )
    assert load_config(file).seed == 4
    assert load_config(f"{file}:large").seed == 32
    for arguments in ([f"--config={file}:none"], ["--config", f"{file}:none"]):
        result = subprocess.run(
            [sys.executable, str(MAIN), *arguments], capture_output=True, text=True
        )
        assert result.returncode == 2
        assert result.stderr == f"error: {file}, line 4: KeyError: 'none'\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(:", "line 1: SyntaxError"),
        ("import nothing_like_it", "line 1: ModuleNotFoundError: No module named"),
        ("get_it = 3", "has no function get_config()"),
        ("def get_config():\n    return 3", "gives int, no ConfigDict"),
    ],
)
def test_bad_config_files(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_config(file)
    with pytest.raises(ConfigError, match="is not a Python file"):
        call_file(tmp_path / "none.py", "get_config")


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
