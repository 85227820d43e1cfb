"""From a checkpoint to model variables, without optimiser state."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from drnet_jax.build import create_mesh, create_model, replicated_sharding
from drnet_jax.checkpoint import CheckpointError, StageCheckpoints
from drnet_jax.config import STAGES
from drnet_jax.data.sources import num_classes
from drnet_jax.models.drnet import DRNet
from drnet_jax.train_state import classifier_variables, init_variables, merge_variables


@dataclass(frozen=True)
class RestoredModel:
    """A trained model.

    Attributes:
      model: the network.
      variables: parameters and statistics, on every device of `mesh`.
      stage: the stage the checkpoint is of; after `'pretrain'` the predictor is untrained.
      step: the step of that stage.
      mesh: the devices.
    """

    model: DRNet
    variables: Any
    stage: str
    step: int
    mesh: Mesh


def restore_model(config: ConfigDict, origin: Path) -> RestoredModel:
    """Restores the best checkpoint of the last stage that has one, on any number of devices.

    Args:
      config: with the model the checkpoint was trained with.
      origin: the workdir of the run.

    Raises:
      CheckpointError: no checkpoint, or one of another model.
    """
    stage = find_stage(origin)
    mesh = create_mesh()
    model = create_model(config, num_classes(config.data.name))
    initial = jax.device_put(
        init_variables(model, jax.random.key(config.seed)), replicated_sharding(mesh)
    )
    with StageCheckpoints(origin / stage, read_only=True) as checkpoints:
        step = checkpoints.best_step
        assert step is not None
        variables = load_variables(
            checkpoints, step, initial, stage=stage, ema=config[stage].ema_decay > 0
        )
    return RestoredModel(model, variables, stage, step, mesh)


def find_stage(origin: Path) -> str:
    """The last stage of `origin` that has a checkpoint.

    Raises:
      CheckpointError: there is none.
    """
    for stage in reversed(STAGES):
        if (origin / stage).is_dir():
            with StageCheckpoints(origin / stage, read_only=True) as checkpoints:
                if checkpoints.latest_step is not None:
                    return stage
    looked = " and ".join(str(origin / stage) for stage in STAGES)
    raise CheckpointError(f"no checkpoint in {looked}; train first, or set --config.restore_from")


def load_variables(
    checkpoints: StageCheckpoints, step: int, initial: Any, *, stage: str, ema: bool
) -> Any:
    """The trained variables of a checkpoint over `initial` ones, without optimiser state.

    Args:
      checkpoints: of the stage.
      step: which.
      initial: freshly initialised variables of the same model, placed as wanted.
      stage: stage 1 has no predictor; it keeps the initial one.
      ema: take the moving averages.

    Raises:
      CheckpointError: the checkpoint is of another model.
    """
    wanted = initial if stage == "joint" else classifier_variables(initial)
    collections = {name: tree for name, tree in wanted.items() if name != "params"}
    like: Any = {"params": wanted["params"], "collections": collections}
    try:
        loaded = checkpoints.load_partial(step, {"ema": like} if ema else like)
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"the checkpoint {checkpoints.directory}/{step} is not of the configured model "
            f"(give the config it was trained with): {error}"
        ) from error
    loaded = loaded["ema"] if ema else loaded
    return merge_variables(initial, {"params": loaded["params"], **loaded["collections"]})
