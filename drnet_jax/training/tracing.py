"""Stages traced before the first one starts: what cannot be computed shows before hours of work."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax

from drnet_jax.config import ConfigError, section_name
from drnet_jax.data.pipeline import abstract_eval_batch, abstract_train_batch
from drnet_jax.evaluation.outputs import make_eval_step
from drnet_jax.inference.batches import check_batches
from drnet_jax.models.variables import abstract_variables, merge_variables, split_classifier
from drnet_jax.runtime.memory import (
    BYTES_A_PIXEL,
    GIB,
    device_memory,
    size_of,
)
from drnet_jax.runtime.sharding import batch_sharding, replicated_sharding
from drnet_jax.training.create import noise_key
from drnet_jax.training.stage import Run
from drnet_jax.training.train_state import create_train_state


def trace_stages(run: Run, names: Iterable[str]) -> None:
    """Traces the training step and the validation of stages; nothing is computed or compiled.

    JAX keeps what it traced: the first step and the first validation find it.

    Raises:
      ConfigError: what a stage needs at least does not fit into the memory.
    """
    check_batches(run.config, "eval.batch_size", run.calibration.image_size, run.mesh.size)
    images = batch_sharding(run.mesh)
    variables = abstract_variables(run.model)
    data = run.config.data
    eval_step = make_eval_step(run.model, tuple(data.mean), tuple(data.std))
    for name in names:
        section = run.config[section_name(name)]
        trained, untrained = variables, dict[str, Any]()
        if name == "pretrain":
            trained, untrained = split_classifier(variables)
        create = partial(create_train_state, tx=run.stage_steps[name].tx, ema=section.ema_decay > 0)
        state = _placed(run, jax.eval_shape(create, trained))
        key = _placed(run, jax.eval_shape(partial(noise_key, run.config.seed, name)))
        batch = abstract_train_batch(run.train, section.batch_size, images)
        _check_memory(run, name, state, batch)
        jax.eval_shape(run.stage_steps[name].train_step, state, batch, key)
        batch = abstract_eval_batch(run.calibration, run.config.eval.batch_size, images)
        merged = merge_variables(_placed(run, untrained), state.eval_variables)
        jax.eval_shape(eval_step, merged, batch)


def _check_memory(run: Run, stage: str, state: Any, batch: Any) -> None:
    """Without what lies between the layers: more is needed in any case."""
    image = batch["image"]
    images = math.prod(image.shape[:3]) * BYTES_A_PIXEL // run.mesh.size
    needed, memory = size_of(state) + images, device_memory()
    if needed > memory:
        raise ConfigError(
            f"{section_name(stage)}.batch_size={image.shape[0]} with the network of model.args "
            f"takes more than {needed / GIB:.1f} GiB on a device of {memory / GIB:.1f} GiB "
            f"({images / GIB:.1f} for the images): lower the batch size, model.resolutions or the "
            "width of the network"
        )


def _placed(run: Run, tree: Any) -> Any:
    """Abstract values on every device: JAX finds a trace by the placement too."""
    replicated = replicated_sharding(run.mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), tree
    )
