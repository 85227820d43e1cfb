"""Benchmarks and experiments start: they are run by hand, and rarely."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from drnet_jax.config import ConfigError
from experiments.override_draws import reading
from experiments.override_trials import configuration

ROOT = Path(__file__).parents[1]
# Runs in an environment with PyTorch.
ELSEWHERE = "torch_times.py"
CODE = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    module = import_module(name)
    sys.argv = [name, "--help"]
    try:
        module.main()
        raise AssertionError(f"{name} takes --help for something else")
    except SystemExit as stopped:
        assert stopped.code == 0, name
"""


def test_scripts_import_and_know_their_arguments() -> None:
    files = [f for d in ("benchmarks", "experiments") for f in sorted((ROOT / d).glob("*.py"))]
    scripts = [f for f in files if '__name__ == "__main__"' in f.read_text()]
    names = [f"{f.parent.name}.{f.stem}" for f in scripts if f.name != ELSEWHERE]
    assert len(names) > 10
    done = subprocess.run(
        [sys.executable, "-c", CODE, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage:") == len(names)


def test_random_overrides_are_judged() -> None:
    """What the experiment takes for accepted, and what a text may mean."""
    with pytest.raises(ConfigError, match="seed='x' must be an integer"):
        configuration(["--config.seed=x"])
    config = configuration(["--config.model.resolution_aware=no", "--config.seed", "5"])
    assert config.seed == 5 and not config.model.resolution_aware
    assert reading("model.resolution_aware", "no") == [False]
    assert reading("model.resolutions", "32, 16") == [[32, 16]]
    assert reading("report.runs", "5") == [["5"]]
