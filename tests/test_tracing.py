"""Stages are traced before the first one starts, with the values they are then given; no float64.

Nothing is compiled.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from drnet_jax.config import TWO_STAGES, ConfigError
from drnet_jax.data.pipeline import eval_batches, train_batches
from drnet_jax.evaluation.outputs import make_eval_step
from drnet_jax.inference.batches import check_batches
from drnet_jax.models.create import create_model
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import model_cost
from drnet_jax.models.variables import abstract_variables, merge_variables, split_classifier
from drnet_jax.runtime.sharding import batch_sharding, replicated_sharding
from drnet_jax.train import prepare
from drnet_jax.training.create import create_stage_step, noise_key
from drnet_jax.training.stage import Run
from drnet_jax.training.stage_losses import JointLoss, PretrainLoss
from drnet_jax.training.train_state import create_train_state
from tests.small_run import small_config

# Tracing takes as long as there are layers.
SHALLOW: dict[str, Any] = {
    "model.name": "resnet",
    "model.args": "stage_sizes=(1,), width=4, stem=small",
}


def first_step(run: Run, stage: str) -> None:
    """What the first step and the first validation trace, of arrays on the devices."""
    replicated, images = replicated_sharding(run.mesh), batch_sharding(run.mesh)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape), abstract_variables(run.model))
    variables = jax.tree.map(jnp.float32, variables)
    trained, untrained = variables, dict[str, Any]()
    if stage == "pretrain":
        trained, untrained = split_classifier(jax.device_put(variables, replicated))
    section, (tx, train_step) = run.config[stage], run.stage_steps[stage]
    state = create_train_state(trained, tx, ema=section.ema_decay > 0)
    state = jax.device_put(state, replicated)
    options: Any = {"seed": 0, "start_step": 0, "sharding": images, "num_workers": 0}
    batches = train_batches(run.train, batch_size=section.batch_size, **options)
    key = noise_key(run.config.seed, stage, replicated)
    jax.eval_shape(train_step, state, next(batches).arrays, key)
    batches.close()
    batch = next(eval_batches(run.calibration, batch_size=40, sharding=images))
    data = run.config.data
    eval_step = make_eval_step(run.model, tuple(data.mean), tuple(data.std))
    jax.eval_shape(eval_step, merge_variables(untrained, state.eval_variables), batch)


@pytest.mark.parametrize("encoded", [False, True])
def test_every_stage_is_traced_ahead_and_once(
    encoded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[str] = []
    for kind, name in ((PretrainLoss, "__call__"), (JointLoss, "__call__"), (DRNet, "__call__")):
        original = getattr(kind, name)

        def noting(self: Any, *args: Any, original: Any = original, **further: Any) -> Any:
            # `DRNet.init` is no validation.
            if not isinstance(self, DRNet) or not self.is_initializing():
                traced.append(type(self).__name__)
            return original(self, *args, **further)

        monkeypatch.setattr(kind, name, noting)
    fields: dict[str, Any] = SHALLOW | {
        "joint.accumulate": 2,
        "joint.ema_decay": 0.9,
        "data.flip": True,
    }
    if encoded:
        for name in ("ant", "bee"):
            (tmp_path / "data" / name).mkdir(parents=True)
            for number in range(40):
                Image.new("RGB", (9, 9)).save(tmp_path / "data" / name / f"{number}.png")
        fields |= {"data.name": "folder", "data.dir": str(tmp_path / "data")}
        fields |= {"data.train_images": 0, "data.eval_images": 0}
    make_eval_step.cache_clear()
    run = prepare(small_config(**fields), tmp_path / "run")
    assert traced == ["PretrainLoss", "DRNet", "JointLoss"]
    for stage in TWO_STAGES:
        first_step(run, stage)
    assert len(traced) == 3


def test_what_a_later_stage_cannot_compute_stops_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("in stage 2")

    monkeypatch.setattr(JointLoss, "__call__", broken)
    with pytest.raises(ZeroDivisionError, match="in stage 2"):
        prepare(small_config(**SHALLOW), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model.args": "stage_sizes=(1,), width=300000"}, "pretrain.batch_size=40 with the"),
        ({"eval.batch_size": 4 * 10**8}, r"eval.batch_size=400000000: 4\d+ images of 64x64 px"),
        ({"joint.num_epochs": 2**31 - 1}, "joint.num_epochs=2147483647 of 8 steps each"),
    ],
)
def test_what_no_machine_can_do(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        prepare(small_config(**SHALLOW | fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batches_are_checked_by_field_and_by_device(tmp_path: Path) -> None:
    """A training is not refused for batches that it never uses."""
    most = 2**31 - 1
    fields = {"inference.buckets": (1, most), "benchmark.batch_sizes": (most,)}
    config = small_config(**SHALLOW | fields)
    prepare(config, tmp_path / "run")
    for name, value in fields.items():
        with pytest.raises(ConfigError, match=re.escape(f"{name}={value}: {most} images")):
            check_batches(config, name, (64, 64))
        check_batches(config, name, (64, 64), num_devices=2**20)


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("pretrain", {"pretrain.accumulate": 2, "pretrain.ema_decay": 0.9}),
    ("joint", {"joint.accumulate": 2, "joint.ema_decay": 0.9, "model.statistics": "routed"}),
    ("joint", {"joint.optimizer": "sgd", "joint.schedule": "step", "data.flip": True}),
    ("joint", {"joint.optimizer": "rmsprop", "joint.clip_norm": 1.0, "joint.tau_decay": 0.9}),
    ("joint", {"model.dtype": "bfloat16", "model.remat": True, "joint.schedule": "constant"}),
    ("joint", {"model.stock_operations": True, "joint.label_smoothing": 0.1}),
]


@pytest.mark.parametrize(("stage", "options"), OPTIONS)
def test_no_float64_with_x64(stage: str, options: dict[str, Any]) -> None:
    """A state of other dtypes would be compiled anew at the second step, and saved as it is."""
    config = small_config(**SHALLOW | options)
    with jax.enable_x64(True):
        model = create_model(config, 10)
        tx, train_step = create_stage_step(config, stage, model, model_cost(model), 1e-5, 8)
        variables = abstract_variables(model)
        if stage == "pretrain":
            variables, _ = split_classifier(variables)
        ema = config[stage].ema_decay > 0
        state = jax.eval_shape(partial(create_train_state, tx=tx, ema=ema), variables)
        batch = {
            "image": jax.ShapeDtypeStruct((40, 32, 32, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((40,), jnp.int32),
        }
        for masked in ({}, {"mask": jax.ShapeDtypeStruct((40,), bool)}):
            key = jax.eval_shape(partial(noise_key, 0, stage))
            after, metrics = jax.eval_shape(train_step, state, batch | masked, key)
            assert jax.tree.map(dtype, after) == jax.tree.map(dtype, state)
            assert {dtype(metric) for metric in metrics.values()} == {"float32"}


def dtype(leaf: Any) -> str:
    return str(leaf.dtype)
