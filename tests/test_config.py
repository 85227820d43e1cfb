"""Fields of a configuration: bad ones give one clear error, and which of them count."""

import importlib
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from drnet_jax.cli import MODES
from drnet_jax.config import (
    TWO_STAGES,
    ConfigError,
    alpha_target,
    changed_fields,
    default_config,
    flatten,
    get_field,
    training_fields,
)
from drnet_jax.config_checks import check_config, check_training
from drnet_jax.config_fields import FIELDS
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import DataError
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import model_cost

ROOT = Path(__file__).parents[1]
# Others build on these.
BASES = ("paper", "mobilenet_paper")
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in BASES)


PATHS = (
    *("restore_from", "data.dir", "joint.init_from", "predict.input", "predict.output"),
    *("convert.weights", "convert.classes", "export.output", "pretrain.init_from"),
)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_header_of_a_config_names_its_command(name: str) -> None:
    """`tests/test_documented_commands.py` builds what the command trains."""
    module = importlib.import_module(f"configs.{name}")
    assert f"python main.py --config=configs/{name}.py" in module.__doc__


@pytest.mark.parametrize("name", ["imagenet100", "imagenet2012"])
def test_missing_data_says_what_is_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ILSVRC2012_img_train.tar"):
        DataSplits(DataSettings(name, dir=str(tmp_path))).load("train")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model.resolutions", (32, 48), "largest first"),
        ("pretrain.batch_size", 30, "pretrain.batch_size=30 is not divisible by the 4 devices"),
        ("joint.alpha", 0.01, "unset one"),
        ("joint.accumulate", 5, "devices times joint.accumulate=5"),
        ("seed", -1, "seed=-1 must be zero or more"),
        ("seed", 2**31, "seed=2147483648 must be at most 2147483647"),
        ("data.mean", (0.5, "x", 0.5), "data.mean=.* has the element 'x', which must be a number"),
        ("data.std", (0.5, 0.5), "data.std=.* must have 3 elements"),
        ("pretrain.warmup_epochs", float("inf"), "pretrain.warmup_epochs=inf must be finite"),
        ("joint.momentum", 1.0, r"joint.momentum=1.0 must lie in \[0, 1\)"),
        ("data.eval_crop", 0.0, r"data.eval_crop=0.0 must lie in \(0, 1\]"),
        ("model.resolutions", (32, 32), "none twice"),
        ("benchmark.repeats", 4, "benchmark.repeats=4 must be 5 or more"),
        ("data.crop_scale", (0.5, 0.1), "smaller fraction first"),
        ("data.test_fraction", 0.95, "leave some for training"),
        ("joint.tau_min", 0.0, "joint.tau_min=0.0 must be above zero"),
        ("model.statistics", "some", "'all', 'routed'"),
        ("stages", ("joint", "pretrain"), "stages"),
        ("stages", ("pretrain", "single"), r"must be .* or \('single',\)"),
        ("joint.init_from", "elsewhere", "replaces stage 1"),
        ("model.pruning_rates", (0.5, 1.0), r"1.0, which must lie in \[0, 1\)"),
        ("pretrain.pruning_criterion", "l1", "filters of another run are kept: set pretrain.init"),
        ("joint.eta", 1e39, "joint.eta=1e.39 must be zero, or between 1.18e-38 and 1.7e.38"),
        ("joint.weight_decay", 1e-45, "joint.weight_decay=1e-45 must be zero, or between"),
        ("data.std", (0.5, 1e-30, 0.5), r"1e-30, which must lie in \[0.00392157, 1\]"),
        ("data.std", (58.0, 57.0, 57.0), r"58.0, which must lie in \[0.00392157, 1\]"),
        ("data.mean", (123.0, 116.0, 104.0), r"123.0, which must lie in \[0, 1\]"),
        ("model.resolutions", (2**20, 64), r"1048576, which must lie in \(0, 16384\]"),
        ("data.num_workers", 10**6, r"data.num_workers=1000000 must lie in \[0, 1024\]"),
        ("data.dir", "a\nb", "data.dir='a.nb' must be text in one line"),
        ("data.dir", "a\0b", "must be text"),
        ("predict.input", "a\ud800", "must be text"),
        *((name, "a/" + "ü" * 128, f"{name}=.* 255 bytes") for name in PATHS),
        ("report.runs", ("x" * 256,), "report.runs=.* names of more than 255 bytes"),
    ],
)
def test_bad_fields(field: str, value: object, words: str) -> None:
    config = default_config()
    config.eval.batch_size = 240
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ConfigError, match=words):
        check_config(config, 4)


@pytest.mark.parametrize(
    ("field", "modes"),
    [
        # Who divides these batches among the devices, of which there are five.
        ("pretrain.batch_size", ["train", "convert"]),
        ("joint.batch_size", ["train", "convert"]),
        ("eval.batch_size", ["train", "convert", "eval", "calibrate", "benchmark"]),
    ],
)
def test_only_a_mode_that_uses_a_batch_minds_its_size(field: str, modes: list[str]) -> None:
    config = default_config()
    sizes = {"pretrain.batch_size": 40, "joint.batch_size": 40, "eval.batch_size": 40}
    config.update_from_flattened_dict(sizes | {field: 32, "convert.weights": "file"})
    for mode in MODES:
        if mode in modes:
            with pytest.raises(ConfigError, match=f"{field}=32 is not divisible by the 5 devices"):
                check_config(config, 5, mode)
        else:
            check_config(config, 5, mode)
    config.convert.weights = ""
    config.eval.dispatch = "bucketed"
    check_config(config, 5, "eval")
    config.stages = ("pretrain",) if field == "joint.batch_size" else ("joint",)
    if field != "eval.batch_size":
        check_config(config, 5)


@pytest.mark.parametrize(
    ("field", "value", "stage", "words"),
    [
        ("joint.accumulate", 8, "joint", "parts is less than .*=16.*lower joint.accumulate"),
        ("pretrain.batch_size", 8, "pretrain", "less than .*=16: .* raise pretrain.batch_size"),
    ],
)
def test_batches_too_small_for_statistics(field: str, value: int, stage: str, words: str) -> None:
    """Only a training of that stage takes any: a trained model is used as it is."""
    config = default_config()
    config.model.min_samples = 16
    config.update_from_flattened_dict({field: value})
    check_config(config, 1)
    check_training(config, [other for other in TWO_STAGES if other != stage])
    with pytest.raises(ConfigError, match=words):
        check_training(config, TWO_STAGES)


@pytest.mark.parametrize(
    ("fields", "stage", "words"),
    [
        ({"joint.warmup_epochs": 3.5}, "joint", "3.5 is longer than the stage's joint.num_epochs"),
        ({"joint.tau": 0.05}, "joint", "joint.tau=0.05 is below joint.tau_min=0.1"),
        ({"predictor.size": 65}, "", "predictor.size=65 is above .*64 px"),
    ],
)
def test_what_a_training_would_not_use(fields: dict[str, Any], stage: str, words: str) -> None:
    """A trained model is used as it is; with one resolution there is no predictor."""
    config = default_config()
    config.update_from_flattened_dict(fields)
    check_config(config, 1)
    if stage:
        check_training(config, [other for other in TWO_STAGES if other != stage])
    else:
        config.model.resolutions = (64,)
        check_training(config, TWO_STAGES)
        config.model.resolutions = (64, 48)
    with pytest.raises(ConfigError, match=words):
        check_training(config, TWO_STAGES)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"predictor.objective": "correctness"},
            "predictor.objective='correctness' needs a first look: --config.predictor.kind=glance",
        ),
        ({"model.reuse": "logits"}, "model.reuse='logits' needs a first look: .* 'none'"),
        *(
            (
                {
                    **{"predictor.kind": "glance", "predictor.objective": objective},
                    "predictor.inputs": ("pooled", "margin"),
                },
                r"predictor.inputs=\('pooled', 'margin'\): a threshold is of the first .* 'margin'",
            )
            for objective in ("threshold", "spend")
        ),
    ],
)
def test_what_only_a_first_look_has(fields: dict[str, Any], words: str) -> None:
    config = default_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=words):
        check_config(config, 1)
    glancing = {"predictor.kind": "glance", "predictor.inputs": ("margin", "pooled")}
    config.update_from_flattened_dict(glancing | {"predictor.size": 10**4})
    # Whose own size nothing reads.
    check_training(config, TWO_STAGES)
    check_config(config, 1)


DEFAULTS = flatten(default_config())
# Without other bounds than their type.
FREE_TEXTS = {
    *("restore_from", "model.args", "predictor.args", "data.dir"),
    *("joint.init_from", "predict.input", "predict.output"),
    *("convert.weights", "convert.classes", "export.output", "pretrain.init_from"),
}
NAMES = {"model.name", "predictor.name", "data.name"}
OPTIONAL = {
    *("joint.alpha", "joint.alpha_fraction"),
    *("budget.gmacs", "budget.ms", "budget.max_drop"),
}
MAY_BE_EMPTY = {
    *("benchmark.gmacs", "inference.buckets", "export.fixed_batches", "report.runs"),
    "model.pruning_rates",
}
NAN, INF = float("nan"), float("inf")
# Of no field.
NEVER = (b"x", object(), 1j, {1}, np.zeros(3), (None,), ((1,),), (1, True), (object(),))


def bad_values(name: str) -> list[Any]:
    """What a field must refuse, as its default and the sets above say."""
    default = get_field(default_config(), name)
    bad: list[Any] = [*NEVER] + ([] if name in OPTIONAL else [None])
    numbers = [NAN, INF, -INF, 10**400, -(10**400), 1e300, 1e-300, -1, -0.5]
    if isinstance(default, bool):
        return [*bad, *numbers, 0, 1, "True", "", ()]
    if isinstance(default, str):
        bad += [*numbers, 0, True, (), ("a",), "a\nb", "a\0", "\ud800"]
        if name in FREE_TEXTS:
            return bad
        return [*bad, ""] if name in NAMES else [*bad, "", "none of them"]
    if isinstance(default, tuple):
        bad += [*numbers, 3, True, "abc", "", (b"x",)]
        bad += [] if name in MAY_BE_EMPTY else [()]
        if default and isinstance(default[0], str):
            return [*bad, ("none of them",), (1,), (True,)]
        if name == "report.runs":
            return [*bad, ("",), (1,), (True,)]
        elements = [NAN, INF, -INF, 10**400, True, "x", "1", None]
        elements += [-1] if name in ("data.mean", "model.pruning_rates") else [-1, 0]
        elements += [0.5] if default and isinstance(default[0], int) else []
        length = len(default) or 1
        bad += [(*default[:-1], element) for element in elements]
        return bad + ([(0.5,) * (length + 1)] if name.startswith("data.") else [])
    bad += [True, "1", "x", "", (), (1,), NAN, INF, -INF, 10**400, -(10**400), -1, 1e39, 1e-39]
    return bad + [0.5, 1.0] if isinstance(default, int) else bad


def test_every_field_is_declared() -> None:
    assert set(DEFAULTS) == set(FIELDS)


@pytest.mark.parametrize("name", DEFAULTS)
def test_bad_values_of_every_field_are_one_clear_error(name: str) -> None:
    """However they came there: ConfigDict keeps the types of fields that are there already."""
    for value in bad_values(name):
        fields = default_config().to_dict()
        *sections, field = name.split(".")
        section = fields[sections[0]] if sections else fields
        section[field] = value
        config = ConfigDict(fields)
        with pytest.raises(ConfigError, match=rf"^{re.escape(name)}="):
            check_config(config, 1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stages": ("single",)}, r"stage 1 starts from, and stages=\('single',\) has none"),
        ({"stages": ("joint",)}, r"stage 1 starts from, and stages=\('joint',\) has none"),
        ({"convert.weights": "file"}, "both are what stage 1 starts from: leave out one"),
        ({"pretrain.pruning_criterion": "l1"}, ""),
        # What that run's stage 1 started from.
        ({"stages": ("joint",), "joint.init_from": "another"}, ""),
    ],
)
def test_a_stage_one_that_starts_from_another_run(fields: dict[str, Any], words: str) -> None:
    config = default_config()
    config.update_from_flattened_dict({"pretrain.init_from": "elsewhere"} | fields)
    if not words:
        check_config(config, 1)
        return
    with pytest.raises(ConfigError, match=words):
        check_config(config, 1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model.name": "resnet50"}, "a rate for each of the 4 stages of resnet50"),
        ({"model.name": "mobilenetv2"}, "a rate for each of the 7 stages of mobilenetv2"),
        (
            {"model.name": "mobilenetv2", "model.pruning_rates": (0.5,) * 7},
            "stage 1 of mobilenetv2 has no channels that can be pruned; its rate must be 0",
        ),
        ({"model.name": "mobilenetv2", "model.pruning_rates": (0, *(0.5,) * 6)}, ""),
    ],
)
def test_pruning_rates_are_those_of_the_stages(fields: dict[str, Any], words: str) -> None:
    config = default_config()
    fields = {"model.args": "", "model.pruning_rates": (0.5, 0.5)} | fields
    config.update_from_flattened_dict(fields)
    if not words:
        assert create_model(config, 10).classifier.pruning_rates == (0, *(0.5,) * 6)
        return
    with pytest.raises(ConfigError, match=words):
        create_model(config, 10)


def test_unknown_and_missing_fields() -> None:
    config = default_config()
    with pytest.raises(AttributeError):
        config.pretrain.nun_epochs = 3
    with config.unlocked():
        config.pretrain.nun_epochs = 3
    with pytest.raises(
        ConfigError, match="field 'pretrain.nun_epochs'; did you mean 'pretrain.num_epochs'"
    ):
        check_config(config, 1)
    config = default_config()
    with config.unlocked():
        del config.joint
    with pytest.raises(ConfigError, match=r"joint\.\w+ is missing"):
        check_config(config, 1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"joint.init_from": "elsewhere"}, "joint.init_from is of stage 2"),
        (
            {"predictor.kind": "glance", "predictor.objective": "correctness"},
            "predictor.objective='correctness' is fitted to a trained classifier",
        ),
        ({"predictor.kind": "glance", "model.reuse": "logits"}, "model.reuse='logits' is fitted"),
        ({"joint.batch_size": 90}, "joint.batch_size=90 is not divisible by the 4 devices"),
        ({"joint.warmup_epochs": 3.5}, "joint.warmup_epochs=3.5 is longer than"),
        # Stage 1 does not run.
        ({"pretrain.batch_size": 90, "pretrain.warmup_epochs": 99}, ""),
    ],
)
def test_a_single_stage_is_checked_by_the_fields_of_stage_two(
    fields: dict[str, Any], words: str
) -> None:
    config = default_config()
    config.stages = ("single",)
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=words) if words else nullcontext():
        check_config(config, 4)
        check_training(config, config.stages)


def test_resolution_below_the_stride() -> None:
    config = default_config()
    config.model.resolutions = (64, 8)
    with pytest.raises(ConfigError, match="8 px is below the network's stride of 16 px"):
        create_model(config, 10)


def test_alpha_outside_the_range() -> None:
    config = default_config()
    config.joint.alpha_fraction = 0.2
    with pytest.raises(ConfigError, match=r"outside \[1, 4\]"):
        alpha_target(config, (4.0, 2.0, 1.0), 4.0)


def test_resolutions_of_equal_cost_leave_nothing_to_regularise() -> None:
    """Of 63 px the stride of 2 makes as many positions as of 64."""
    config = default_config()
    config.model.resolutions = (64, 63)
    gmacs = model_cost(create_model(config, 10)).classifier_gmacs
    assert gmacs[0] == gmacs[1]
    with pytest.raises(ConfigError, match=r"^model.resolutions=\(64, 63\) all cost"):
        alpha_target(config, gmacs, gmacs[0])
    config.joint.alpha_fraction = None
    assert alpha_target(config, gmacs, gmacs[0]) is None


def test_only_fields_that_change_the_run_count() -> None:
    old, new = default_config(), default_config()
    new.log.every_steps, new.eval.batch_size, new.joint.eta = 7, 10, 0.4
    assert changed_fields(flatten(old), flatten(new)) == ["joint.eta: 0.3 -> 0.4"]


def test_which_fields_tell_trainings_apart() -> None:
    """All of the stages and of the predictor, and all of these but those named here."""
    sections = (
        "seed",
        "stages",
        "pretrain.",
        "joint.",
        "predictor.",
        "model.",
        "data.",
        "convert.",
    )
    others = {"model.remat", "model.stock_operations"}
    others |= {f"data.{name}" for name in ("dir", "num_workers", "max_corrupt", "skip_corrupt")}
    want = {name for name in DEFAULTS if name.startswith(sections)} - others
    assert set(training_fields(DEFAULTS)) == want


def test_fields_that_are_newer_than_a_run_were_at_their_default() -> None:
    new = flatten(default_config())
    old = {name: value for name, value in new.items() if name != "data.test_fraction"}
    assert changed_fields(old, new) == []
    assert changed_fields(old, new | {"data.test_fraction": 0.5}) == [
        "data.test_fraction: 0.2 -> 0.5"
    ]


def test_a_field_that_does_not_exist_cannot_be_set() -> None:
    """A configuration's file that still has a former field would else be trained without it."""
    with pytest.raises(AttributeError, match="width"):
        default_config().model.width = 64
