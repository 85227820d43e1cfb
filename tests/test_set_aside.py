"""Damaged latest checkpoints: the one before is used, and that is said; nothing is removed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from drnet_jax.checkpoints.checkpoint import CheckpointError, StageCheckpoints, steps
from drnet_jax.checkpoints.checksums import find_damage
from drnet_jax.checkpoints.restore import restore_model
from drnet_jax.checkpoints.runs import is_finished
from drnet_jax.checkpoints.set_aside import set_damaged_aside
from drnet_jax.config import ConfigError
from drnet_jax.train import train_and_evaluate, train_stages
from tests.damage import flip, halve
from tests.small_run import small_config

NUMBERS = np.arange(3000, dtype=np.float32)
# The first one is the best.
OBJECTIVES = {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}


def state(step: int) -> Any:
    return {"params": jax.numpy.asarray(NUMBERS * step)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "joint"
    with StageCheckpoints(directory, keep_latest=3) as checkpoints:
        for step, objective in OBJECTIVES.items():
            checkpoints.save(step, state(step), objective=objective)
    return directory


@pytest.fixture
def stage(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "joint")


def covered(checkpoint: Path) -> list[str]:
    """The files that damage is found in."""
    content = json.loads((checkpoint / "checksums.json").read_text())
    return [*content["files"], "checksums.json"]


def everything(directory: Path) -> dict[str, bytes]:
    return {
        f"{p.relative_to(directory)}": p.read_bytes() for p in directory.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("damage", [flip, halve, Path.unlink])
def test_every_file_of_the_latest(
    damage: Callable[[Path], None], saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(covered(saved / "4")):
        if damage is Path.unlink and name == "checksums.json":
            # As of an earlier version.
            continue
        stage = shutil.copytree(saved, tmp_path / f"{number}" / "joint")
        damage(stage / "4" / name)
        before = everything(stage / "4")
        set_damaged_aside(stage)
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{stage / '4' / name} is damaged")
        assert f"set aside as {stage / '4.damaged'}" in line and "step 3, and computes" in line
        assert steps(stage) == [1, 2, 3] and everything(stage / "4.damaged") == before
        with StageCheckpoints(stage, keep_latest=3) as checkpoints:
            assert (checkpoints.latest_step, checkpoints.best_step) == (3, 1)
            np.testing.assert_array_equal(checkpoints.load(3, state(3))["params"], NUMBERS * 3)
            checkpoints.save(4, state(4), objective=1.0)
        assert not find_damage(stage / "4") and everything(stage / "4.damaged") == before


def test_several_and_again(stage: Path) -> None:
    """Down to the newest intact one; what was set aside before stays."""
    for step in (4, 3):
        flip(stage / f"{step}" / "metrics" / "metrics")
    set_damaged_aside(stage)
    assert steps(stage) == [1, 2]
    shutil.copytree(stage / "4.damaged", stage / "4")
    before = everything(stage / "4.damaged")
    set_damaged_aside(stage)
    assert steps(stage) == [1, 2] and everything(stage / "4.damaged-2") == before


@pytest.mark.parametrize("damaged", [(), (1,), (1, 2, 3, 4)])
def test_what_stays_where_it_is(
    damaged: tuple[int, ...], stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Intact ones; the best, which nothing computes anew; all, where none is left to go on from."""
    for step in damaged:
        flip(stage / f"{step}" / "state" / "manifest.ocdbt")
    set_damaged_aside(stage)
    assert steps(stage) == [1, 2, 3, 4] and capsys.readouterr().out == ""
    with StageCheckpoints(stage, read_only=True) as checkpoints:
        for step in damaged:
            with pytest.raises(CheckpointError, match=f"joint/{step}/.* is damaged"):
                checkpoints.load(step, state(step))


def test_none_is_known_to_be_intact_without_checksums(stage: Path) -> None:
    flip(stage / "4" / "state" / "manifest.ocdbt")
    (stage / "3" / "checksums.json").unlink()
    set_damaged_aside(stage)
    assert steps(stage) == [1, 2, 3, 4]


def test_an_empty_place(tmp_path: Path) -> None:
    set_damaged_aside(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_training_ends_as_if_nothing_had_been_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last checkpoint was also its best one. Before, whatever only reads stops.

    Of another checkpoint an evaluation would be another model's; another training moves nothing.
    """
    fields = {"stages": ("pretrain",), "pretrain.num_epochs": 1, "model.resolutions": (16,)}
    config = small_config(**fields)
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    train_stages(config, whole)
    assert steps(whole / "pretrain") == [6, 8]
    shutil.copytree(whole, damaged)
    flip(damaged / "pretrain" / "8" / "metrics" / "metrics")
    words = "8/metrics/metrics is damaged.*; run the training again, .* from step 6; or restore it"
    with pytest.raises(CheckpointError, match=words):
        restore_model(config, damaged)
    other = small_config(**fields, **{"pretrain.base_learning_rate": 1e-3})
    with pytest.raises(ConfigError, match="another configuration"):
        train_stages(other, damaged)
    assert steps(damaged / "pretrain") == [6, 8]
    capsys.readouterr()
    summary = train_and_evaluate(config, damaged)
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "set aside as" in x]
    assert f"{damaged / 'pretrain' / '8.damaged'}: the training goes on from the one" in line
    assert summary["checkpoint_step"] == 8 and is_finished(damaged, "pretrain")
    found, wanted = (ocp.load((run / "pretrain" / "8").resolve()) for run in (damaged, whole))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert (damaged / "pretrain" / "8.damaged").is_dir()
