"""What the choices of a model take on the device at hand, measured before it is trained."""

from dataclasses import replace

import jax
import numpy as np
from ml_collections import ConfigDict

from drnet_jax.budgets.calibration import Times
from drnet_jax.budgets.solve import times_setting
from drnet_jax.config import ConfigError
from drnet_jax.inference.arrays import ArrayClassifier
from drnet_jax.inference.batches import check_buckets
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import MeasuredCost
from drnet_jax.models.variables import init_variables
from drnet_jax.runtime.progress import log


def measure_cost(config: ConfigDict, model: DRNet, image_size: tuple[int, int]) -> MeasuredCost:
    """Times the model's networks as dispatch runs them, with random weights: they do not matter.

    Args:
      config: with the buckets, and whether BatchNorm is folded.
      model: the network.
      image_size: height and width of the images that it is evaluated on.

    Raises:
      ConfigError: several hosts, or buckets that do not fit into the memory.
    """
    if jax.process_count() > 1:
        raise ConfigError("joint.cost='ms' is measured on one host: joint.cost='macs' on several")
    check_buckets(config)
    log("joint.cost='ms': compiling and timing every resolution and bucket ...")
    engine = ArrayClassifier(
        model,
        init_variables(model, jax.random.key(config.seed)),
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
        buckets=tuple(config.inference.buckets) or None,
        image_size=image_size,
        fold=config.inference.fold,
    )
    return choice_times(Times(times_setting(config, image_size), engine.measure()))


def choice_times(times: Times) -> MeasuredCost:
    """From seconds of the networks' buckets to ms of the choices, each at its best bucket.

    As with MACs: a first look counts, and what takes the same whatever is chosen does not: a
    predictor of its own, and the images' way to the device.
    """
    alone = replace(times, table=replace(times.table, predictor=None, glances=False))
    *larger, smallest = alone.milliseconds(np.eye(len(times.table.classifiers))).tolist()
    first = smallest if times.table.glances else 0.0
    choice = (*(first + each for each in larger), smallest)
    return MeasuredCost(choice, (*larger, smallest)[0], times.setting)
