"""A run from its workdir alone: its configuration, its model, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax import train
from drnet_jax.checkpoints.checkpoint import CheckpointError, StageCheckpoints
from drnet_jax.checkpoints.restore import restore_model
from drnet_jax.checkpoints.runs import finished_path, is_finished, load_run, stored_config
from drnet_jax.config import flatten
from drnet_jax.evaluate import restore_and_evaluate
from drnet_jax.evaluation.inputs import KeptOutputs
from drnet_jax.reports.summaries import read_summary
from drnet_jax.runtime.checked_json import read_json
from drnet_jax.runtime.files import write_json
from drnet_jax.train import prepare
from drnet_jax.training.start import check_stage_one
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


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"seed": "0"}),
        ("config.json", {"seed": None}),
        ("config.json", {"joint.ema_decay": float("nan")}),
        ("config.json", {"joint.ema_decay": "0.9"}),
        ("config.json", {"model.resolutions": [32, "x"]}),
        ("config.json", {"model.resolutions": 32}),
        ("config.json", {"model.name": 3}),
        ("data.json", {"classes": 3}),
        ("data.json", {"classes": []}),
        ("data.json", {"classes": [0, 1]}),
        ("data.json", {"identities": {"train": "a"}}),
        ("data.json", {"identities": {"train": 1, "calibration": 2, "test": 3}}),
    ],
    ids=str,
)
def test_values_that_cannot_be(
    file: str, changes: dict[str, Any], workdir: Path, tmp_path: Path
) -> None:
    """In valid JSON, without a checksum."""
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    (copy / file).write_text(json.dumps(read_json(copy / file) | changes))
    with pytest.raises(
        CheckpointError, match=rf"^{copy / file} is damaged \(.*\): restore it from"
    ):
        load_run(copy)


@pytest.mark.parametrize("file", ["config.json", "data.json", "joint_finished.json"])
def test_a_flipped_bit_is_noticed(file: str, workdir: Path, tmp_path: Path) -> None:
    """Each bit of some bytes: as good a name or number would be another one."""
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    write_json(finished_path(copy, "joint"), {"num_steps": 1})
    assert is_finished(copy, "joint")
    content = (copy / file).read_bytes()
    intact = read_json(copy / file)
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (copy / file).write_bytes(flipped)
        try:
            # White space is no content, and a checksum of another name is one field more.
            found = read_json(copy / file)
            assert found | intact == found
        except ValueError:
            with pytest.raises(CheckpointError, match=rf"^{copy / file} is damaged \("):
                is_finished(copy, "joint") if "finished" in file else load_run(copy)


def test_a_damaged_file_stops_an_evaluation_before_the_model_runs(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(KeptOutputs, "of")
    shutil.copytree(workdir, tmp_path / "copy")
    finished_path(tmp_path / "copy", "joint").write_text("{")
    with pytest.raises(CheckpointError, match="joint_finished.json is damaged .*: remove it, and"):
        restore_and_evaluate(stored_config(workdir), tmp_path / "copy")


@pytest.mark.parametrize(
    "removed",
    [
        ("pretrain",),
        ("pretrain/16",),
        ("pretrain/16", "pretrain/8"),
        ("pretrain_finished.json",),
        ("pretrain", "pretrain_finished.json"),
        ("config.json",),
        ("data.json",),
        ("pretrain", "config.json", "data.json"),
        ("pretrain/8",),
        ("joint",),
    ],
    ids=str,
)
def test_what_is_left_of_a_stage_one(
    removed: tuple[str, ...], workdir: Path, tmp_path: Path
) -> None:
    """Another run starts from its end, or says what is missing; never from half a stage 1."""
    origin = tmp_path / "origin"
    prepare(small_config(), origin)
    for step in (8, 16):
        checkpoint = origin / "pretrain" / str(step)
        shutil.copytree(workdir / "joint" / "1", checkpoint)
    shutil.copytree(workdir / "joint" / "1", origin / "joint" / "3")
    write_json(finished_path(origin, "pretrain"), {"num_steps": 16})
    for name in removed:
        path = origin / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    config = small_config(**{"stages": ("joint",), "joint.init_from": str(origin)})
    words = {
        ("config.json",): "config.json is missing, which says .*: restore it",
        ("data.json",): "data.json is missing, which says .*: restore it",
    }
    if removed in (("pretrain/8",), ("joint",)):
        assert check_stage_one(config, origin)[1] == 16
        assert prepare(config, tmp_path / "here").workdir == tmp_path / "here"
        return
    with pytest.raises(
        CheckpointError, match=words.get(removed, "no finished stage 1 in .*origin")
    ):
        prepare(config, tmp_path / "here")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    ("objectives", "weights", "step"),
    [
        ((0.9, 0.5, 0.7), "weights.pth", 8),
        ((0.5, 0.9, 0.7), "weights.pth", 0),
        ((0.7, 0.9, 0.5), "weights.pth", 8),
        ((0.5, 0.9, 0.7), "", 8),
    ],
)
def test_a_conversion_goes_on_from_the_end_unless_no_epoch_was_better_than_the_start(
    objectives: tuple[float, ...], weights: str, step: int, tmp_path: Path
) -> None:
    config = small_config(**{"convert.weights": weights})
    write_json(tmp_path / "config.json", flatten(config))
    write_json(finished_path(tmp_path, "pretrain"), {"num_steps": 8})
    with StageCheckpoints(tmp_path / "pretrain") as checkpoints:
        for index, objective in enumerate(objectives):
            checkpoints.save(4 * index, {"a": jnp.zeros(2)}, objective=objective)
    assert check_stage_one(config, tmp_path)[1] == step


@pytest.mark.parametrize("left", ["pretrain", "joint", "nothing"])
def test_each_order_of_removal(left: str, workdir: Path, tmp_path: Path) -> None:
    """What is loaded is the last stage that is left, finished or not."""
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    write_json(finished_path(copy, "joint"), {"num_steps": 1})
    write_json(finished_path(copy, "pretrain"), {"num_steps": 16})
    if left == "joint":
        assert load_run(copy).stage == "joint" and is_finished(copy, "joint")
        assert not is_finished(copy, "pretrain")
        return
    (copy / "joint").rename(copy / left)
    if left == "nothing":
        with pytest.raises(CheckpointError, match="no checkpoint in .*train first"):
            load_run(copy)
    else:
        (copy / left / "1").rename(copy / left / "8")
        assert load_run(copy).checkpoint == copy / "pretrain" / "8"
    assert not is_finished(copy, "joint") and not is_finished(copy, "pretrain")


def test_a_checkpoint_that_is_not_finite(workdir: Path, tmp_path: Path) -> None:
    """As earlier versions might save it: named, with the array, and the one before it is read."""
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    variables = dict(load_run(copy).variables)
    params = variables.pop("params")
    params["classifier"]["fc"]["bias"] = params["classifier"]["fc"]["bias"] * np.nan
    with StageCheckpoints(copy / "joint", keep_latest=2) as checkpoints:
        checkpoints.save(2, {"params": params, "collections": variables})
    words = (
        r"joint/2 holds values that are not finite \(1 arrays, .*bias.* first\).* step 1 is intact"
    )
    with pytest.raises(CheckpointError, match=words):
        load_run(copy)
    shutil.rmtree(copy / "joint" / "2")
    assert load_run(copy).step == 1


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
