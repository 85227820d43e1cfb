"""A run from its workdir alone: its configuration, its model, and what is refused."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from drnet_jax import train
from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.checkpoints.restore import restore_model
from drnet_jax.checkpoints.runs import finished_path, load_run, stored_config
from drnet_jax.config import flatten
from drnet_jax.reports.comparison import read_summary
from drnet_jax.runtime.checked_json import read_json
from drnet_jax.runtime.files import write_json
from drnet_jax.train import prepare
from tests.random_model import write_run
from tests.small_run import small_config

CLASSES = tuple("0123456789")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(small_config(**{"joint.alpha_fraction": None, "joint.alpha": 1e-4}), folder, CLASSES)
    return folder


def edit(workdir: Path, to: Path, **changes: object) -> Path:
    """The run's `config.json` in another folder; a field that is set to `...` is taken out."""
    fields = read_json(workdir / "config.json") | changes
    to.mkdir()
    kept = {name: value for name, value in fields.items() if value is not ...}
    (to / "config.json").write_text(json.dumps(kept))
    return to


def test_a_run_needs_no_config(workdir: Path) -> None:
    config = small_config(**{"joint.alpha_fraction": None, "joint.alpha": 1e-4})
    assert stored_config(workdir) == config
    run = load_run(workdir)
    assert run.model == restore_model(config, workdir).model and run.classes == CLASSES
    wanted = restore_model(config, workdir).variables
    jax.tree.map(np.testing.assert_array_equal, run.variables, wanted)


def test_fields_that_came_or_went(workdir: Path, tmp_path: Path) -> None:
    """Newer ones are at their default; without those that change nothing the run is the same."""
    older = edit(workdir, tmp_path / "older", **{"model.min_samples": ..., "log.colour": "red"})
    assert flatten(stored_config(older)) == flatten(stored_config(workdir))
    other = edit(workdir, tmp_path / "other", **{"model.depth": 7})
    with pytest.raises(CheckpointError, match=r"unknown here \(model.depth\)"):
        load_run(other)


def test_a_finished_run_keeps_its_config(workdir: Path, tmp_path: Path) -> None:
    """Training once more, logged otherwise, trains nothing: it stays what it was trained with."""
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    first = (copy / "config.json").read_text()
    config = stored_config(copy)
    config.log.every_steps = 50
    # Of stage 1 nothing is needed any more.
    write_json(finished_path(copy, "joint"), {"num_steps": 1})
    prepare(config, copy)
    assert (copy / "config.json").read_text() == first
    # Half a run goes on as it is told to.
    finished_path(copy, "joint").unlink()
    prepare(config, copy)
    assert json.loads((copy / "config.json").read_text())["log.every_steps"] == 50


def test_a_stage_that_is_trained_anew_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoints were removed, and the file that says so was not."""
    run = prepare(small_config(**{"model.resolutions": (16,)}), tmp_path)
    write_json(finished_path(tmp_path, "pretrain"), {"num_steps": 16})

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train_stage(run, "pretrain")
    assert not finished_path(tmp_path, "pretrain").exists()


def test_what_cannot_be_loaded(workdir: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json is missing"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_run(edit(workdir, tmp_path / "untrained"))
    with pytest.raises(
        CheckpointError, match=r"config.json is damaged \(joint.eta='much' must be a number\)"
    ):
        load_run(edit(workdir, tmp_path / "typed", **{"joint.eta": "much"}))
    (tmp_path / "cut").mkdir()
    for text in ('{"seed": 0', "[1, 2]"):
        (tmp_path / "cut" / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match="config.json is damaged"):
            load_run(tmp_path / "cut")


@pytest.mark.parametrize("text", ['{"classes": ["0"', "[1, 2]", "{}", '{"classes": ["0"]}'])
def test_damaged_data_is_one_clear_error(text: str, workdir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    (copy / "data.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"data.json is damaged \(.*\): restore it"):
        load_run(copy)


@pytest.mark.parametrize("text", ['{"seed": 0', "[1, 2]", "null"])
def test_damaged_files_beside_checkpoints(text: str, workdir: Path, tmp_path: Path) -> None:
    """Neither resuming nor a comparison goes on from them."""
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    (copy / "config.json").write_text(text)
    (copy / "eval.json").write_text(text)
    with pytest.raises(CheckpointError, match="config.json is damaged"):
        prepare(small_config(), copy)
    with pytest.raises(CheckpointError, match="eval.json is damaged"):
        read_summary(copy)
