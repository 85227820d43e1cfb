"""What a run is, and one of its stages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from drnet_jax.checkpoints.checkpoint import StageCheckpoints
from drnet_jax.config import section_name
from drnet_jax.data.sources import Source
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import ModelCost
from drnet_jax.training.create import StageStep


@dataclass(frozen=True)
class Run:
    """What all stages of a run share.

    Attributes:
      config: the whole configuration.
      workdir: of the run.
      model: the network.
      cost: of its networks.
      target: alpha in the unit of `cost`, or None without a target.
      mesh: the devices.
      train: the training images.
      calibration: the images that checkpoints are chosen by.
      stage_steps: how every stage is trained, by its name.
      start: variables of the classifier that stage 1 starts from; None: random ones.
    """

    config: ConfigDict
    workdir: Path
    model: DRNet
    cost: ModelCost
    target: float | None
    mesh: Mesh
    train: Source
    calibration: Source
    stage_steps: Mapping[str, StageStep]
    start: Any = None


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
      run: which.
      name: `'pretrain'`, `'joint'` or `'single'`.
      key: base key of the steps' noise, on every device of the run's mesh.
      untrained: variables that the stage does not train but evaluation visits.
      steps_per_epoch: steps in an epoch.
      num_steps: steps in the whole stage.
      start_step: steps that are done already.
      checkpoints: of the stage.
    """

    run: Run
    name: str
    key: jax.Array
    untrained: Any
    steps_per_epoch: int
    num_steps: int
    start_step: int
    checkpoints: StageCheckpoints

    @property
    def starts_imported(self) -> bool:
        """Whether its first step is from imported weights, or from another run's."""
        return self.name == "pretrain" and self.run.start is not None and not self.start_step

    @property
    def section(self) -> ConfigDict:
        """The part of the configuration that it is trained by."""
        return self.run.config[section_name(self.name)]
