"""Every shipped config builds; bad fields give one clear error."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from drnet_jax.config import ConfigError, alpha_target, changed_fields, default_config, flatten
from drnet_jax.config_checks import check_config
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import DataError
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import model_cost

ROOT = Path(__file__).parents[1]
# Others build on these.
BASES = ("paper", "mobilenet_paper")
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in BASES)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_builds(name: str) -> None:
    """The model traces, its target, if any, is reachable, and the header names its own command."""
    module = importlib.import_module(f"configs.{name}")
    assert f"python main.py --config=configs/{name}.py" in module.__doc__
    config = module.get_config()
    check_config(config, 1)
    model = create_model(config, config.data.num_classes or 10)
    size = config.model.resolutions[0]
    image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    expected = {f"batch_stats_{r}" for r in config.model.resolutions} | {"params", "batch_stats"}
    assert set(variables) == expected
    target = alpha_target(config, model_cost(model).classifier_gmacs)
    assert target is None or target > 0


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
        ("joint.accumulate", 8, "less than model.min_samples=16"),
        ("data.crop_scale", (0.5, 0.1), "smaller first"),
        ("data.test_fraction", 0.95, "leave some for training"),
        ("joint.tau_min", 0.0, "joint.tau_min=0.0 must be above zero"),
        ("model.statistics", "some", "'all', 'routed'"),
        ("stages", ("joint", "pretrain"), "stages"),
        ("joint.init_from", "elsewhere", "replaces stage 1"),
    ],
)
def test_bad_fields(field: str, value: object, words: str) -> None:
    config = default_config()
    config.eval.batch_size = 240
    config.model.min_samples = 16
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ConfigError, match=words):
        check_config(config, 4)


def test_resolution_below_the_stride() -> None:
    config = default_config()
    config.model.resolutions = (64, 8)
    with pytest.raises(ConfigError, match="8 px is below the network's stride of 16 px"):
        create_model(config, 10)


def test_alpha_outside_the_range() -> None:
    config = default_config()
    config.joint.alpha_fraction = 0.2
    with pytest.raises(ConfigError, match=r"outside \[1, 4\]"):
        alpha_target(config, (4.0, 2.0, 1.0))


def test_only_fields_that_change_the_run_count() -> None:
    old, new = default_config(), default_config()
    new.log.every_steps, new.eval.batch_size, new.joint.eta = 7, 10, 0.4
    assert changed_fields(flatten(old), flatten(new)) == ["joint.eta: 0.3 -> 0.4"]


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
