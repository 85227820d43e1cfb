"""Runs of former versions, whose networks were described by fields, are used as today's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from drnet_jax.checkpoints.checkpoint import CheckpointError, StageCheckpoints
from drnet_jax.checkpoints.config_history import comparable
from drnet_jax.checkpoints.model_key import model_key
from drnet_jax.checkpoints.restore import find_model, write_data
from drnet_jax.config import SPLITS, ConfigError, flatten
from drnet_jax.config_files import load_config
from drnet_jax.models.create import create_model
from drnet_jax.report import group
from drnet_jax.reports.evaluation_report import changed
from drnet_jax.runtime.checked_json import read_json
from drnet_jax.runtime.files import write_json
from drnet_jax.sweeps.plan import Sweep, check_directory, make_plan
from drnet_jax.train import prepare
from tests.small_run import small_config

# What a configuration of a former version said of the networks, with JSON's values.
DEFAULT = {
    "model.width": 16,
    "model.width_multiplier": 1.0,
    "model.stem": "small",
    "model.zero_init_residual": False,
    "predictor.stage_sizes": [1, 1, 1],
    "predictor.width": 8,
    "predictor.width_multiplier": 1.0,
    "predictor.stem": "small",
}
SMALL = DEFAULT | {"model.width": 4, "predictor.stage_sizes": [1], "predictor.width": 4}
PAPER = {
    "model.width": 64,
    "model.stem": "imagenet",
    "predictor.stage_sizes": [1, 1, 1, 1],
    "predictor.width": 64,
    "predictor.stem": "imagenet",
}
FORMER: dict[str, dict[str, Any]] = {
    "digits_on_photos": DEFAULT,
    "tiny": DEFAULT | {"model.width": 8, "predictor.width": 4},
    "imagenette_cpu": DEFAULT,
    "resnet_imagenette": DEFAULT
    | {"model.width": 64, "model.stem": "imagenet"}
    | {"predictor.width": 16, "predictor.stage_sizes": [1, 1, 1, 1]},
    "resnet_in1k": DEFAULT | PAPER,
    # Neither took the fields of ResNet that its base configuration had set.
    "mobilenetv2_in1k": DEFAULT | PAPER,
    "mobilenetv2_imagenette_cpu": DEFAULT
    | {"model.width_multiplier": 0.5, "predictor.width_multiplier": 0.25},
}


def resnet10(**further: Any) -> ConfigDict:
    """The small run with a network that former versions had by this name."""
    return small_config(
        **({"model.name": "resnet10", "model.args": "width=4, stem='small'"} | further)
    )


def former(config: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """A flattened configuration as it was written, with these fields instead of arguments."""
    kept = {n: v for n, v in config.items() if n not in ("model.args", "predictor.args")}
    return json.loads(json.dumps(kept | fields))


@pytest.mark.parametrize("name", list(FORMER))
def test_shipped_configurations_are_what_they_were(name: str) -> None:
    today = flatten(load_config(name))
    assert comparable(former(today, FORMER[name])) == comparable(today)
    assert comparable(comparable(today)) == comparable(today)
    other = FORMER[name] | {"model.width": 5, "model.width_multiplier": 0.3}
    assert comparable(former(today, other)) != comparable(today)


def test_fields_that_were_newer_than_a_run_were_at_their_default() -> None:
    today = flatten(resnet10())
    newer = ("model.width_multiplier", "predictor.width_multiplier", "predictor.stem")
    old = former(today, {n: v for n, v in SMALL.items() if n not in newer})
    del old["predictor.name"]
    found = comparable(old)
    assert found["predictor.args"] == comparable(today)["predictor.args"]
    assert comparable({"seed": 3}) == {"seed": 3}


def test_what_fits_no_network_is_left_as_it_is() -> None:
    for fields in ({"model.name": "gone"}, {"model.args": "widht=3"}):
        flat = flatten(resnet10(**fields))
        assert comparable(flat)["model.args"] == flat["model.args"]
    old = former(flatten(resnet10(**{"model.name": "gone"})), SMALL)
    assert "width=4" in comparable(old)["model.args"]


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """What a run of a former version leaves."""
    return write_run(tmp_path / "run", former(flatten(resnet10()), SMALL))


def write_run(run: Path, config: dict[str, Any]) -> Path:
    """What a run leaves beside its weights, and a checkpoint of others."""
    with StageCheckpoints(run / "joint") as checkpoints:
        checkpoints.save(1, {"params": np.zeros(1)})
    write_json(run / "config.json", config)
    write_data(run, tuple("0123456789"), {split: split for split in SPLITS})
    return run


def test_an_old_run_is_restored_and_another_network_refused(old_run: Path, tmp_path: Path) -> None:
    spelled = {"model.args": "stem=small,width=4,zero_init_residual=False"}
    found = find_model(resnet10(**spelled), old_run)
    assert found.model == create_model(resnet10(), 10)
    today = find_model(resnet10(), write_run(tmp_path / "today", flatten(resnet10())))
    # What is kept for it, calibration and outputs, stays its own.
    assert model_key(resnet10(), found) == model_key(resnet10(), today)
    with pytest.raises(CheckpointError, match="model.args: width=4, stem='small' -> width=5"):
        find_model(resnet10(**{"model.args": "width=5, stem=small"}), old_run)
    with pytest.raises(CheckpointError, match="predictor.args: stage_sizes=.* -> width=4"):
        find_model(resnet10(**{"predictor.args": "width=4, stem=small"}), old_run)
    with pytest.raises(ConfigError, match="does not fit resnet10: there is no widht"):
        find_model(resnet10(**{"model.args": "widht=4"}), old_run)


def test_an_old_run_can_be_resumed(old_run: Path) -> None:
    identities = prepare(resnet10(), old_run.parent / "fresh").workdir / "data.json"
    (old_run / "data.json").write_text(identities.read_text())
    with pytest.raises(
        ConfigError, match="another configuration .model.args: width=4, .* -> width=5"
    ):
        prepare(resnet10(**{"model.args": "width=5, stem=small"}), old_run)
    classifier: Any = prepare(resnet10(), old_run).model.classifier
    assert classifier.width == 4
    stored = json.loads((old_run / "config.json").read_text())
    assert stored["model.args"] == resnet10().model.args and "model.width" not in stored


def test_runs_of_both_kinds_are_one_setting() -> None:
    def summary(config: dict[str, Any], seed: int) -> dict[str, Any]:
        return {"config": config | {"seed": seed}, "split": "test", "num_images": 70}

    today = flatten(resnet10())
    wide = former(today, SMALL | {"model.width": 6})
    found = group(
        {
            Path("a"): summary(today, 0),
            Path("b"): summary(former(today, SMALL), 1),
            Path("c"): summary(wide, 0),
        }
    )
    assert [setting.seeds for setting in found] == [[0, 1], [0]]
    assert found[1].name == "model.args=width=6, stem='small'"


def test_an_old_sweep_goes_on(tmp_path: Path) -> None:
    variants = {"base": {}, "wide": {"model.args": "stem=small, width=6"}}
    plan = make_plan(Sweep("", {"q": variants}, seeds=(0,)), resnet10(), tmp_path)
    width = {"base": 4, "wide": 6}
    for name, jobs in plan.variants["q"].items():
        for job in (jobs[0], jobs[0].stage_one):
            assert job is not None
            job.workdir.mkdir(parents=True)
            fields = SMALL | {"model.width": width[name]}
            config = flatten(resnet10(stages=tuple(job.config.get("stages", ("pretrain",)))))
            stored = former(config, fields)
            (job.workdir / "config.json").write_text(json.dumps(stored))
    check_directory(plan)
    path = plan.stage_one[0].workdir / "config.json"
    path.write_text(json.dumps(read_json(path) | {"model.width": 3}))
    with pytest.raises(ConfigError, match="model.args: width=3"):
        check_directory(plan)


def test_arguments_of_another_network_are_not_dropped_as_unchanged() -> None:
    """Empty ones of either network are the same text, but the base's would not fit the other."""
    base = resnet10(**{"model.args": "width=64", "model.resolutions": (64, 32)})
    variant = {"model.name": "mobilenetv2", "model.args": ""}
    plan = make_plan(Sweep("", {"q": {"v": variant}}, seeds=(0,)), base, Path("/runs"))
    assert plan.stage_two[0].overrides == variant | {"seed": 0}
    with pytest.raises(ConfigError, match="does not fit mobilenetv2: there is no width"):
        make_plan(
            Sweep("", {"q": {"v": {"model.name": "mobilenetv2"}}}, seeds=(0,)),
            resnet10(**{"model.resolutions": (64, 32)}),
            Path("/runs"),
        )
    spelled = {f"{i}": {"model.args": text} for i, text in enumerate(("width=6", "width = 6,"))}
    assert len(make_plan(Sweep("", {"q": spelled}, (0,)), base, Path("/runs")).stage_two) == 1


def test_a_report_shows_what_differs_from_the_default() -> None:
    default = flatten(load_config("digits_on_photos"))
    assert changed(former(default, DEFAULT)) == []
    found = changed(former(default, DEFAULT | {"model.width": 32}))
    assert found == [("model.args", "width=32, stem='small'", "width=16, stem='small'")]
