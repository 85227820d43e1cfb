"""The checks of a configuration that come before any work: of every field, and between fields."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from drnet_jax.config import (
    BUDGETS,
    LEAST_REPEATS,
    SPLITS,
    STAGES,
    ConfigError,
    default_config,
    flatten,
)

# Counts become indices and shapes in 32 bits. Of the seed twice as much and one more is a seed too
# (`training/train_loop.py`), and Grain's have 32 bits.
_MAX_INT = 2**31 - 1


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def complaint(self, value: Any) -> str:
        """What the value must be and is not; empty if it is."""
        return "" if isinstance(value, bool) else "must be True or False"


@dataclass(frozen=True)
class Text:
    """A string.

    Attributes:
      choices: the allowed ones; empty: any.
      empty: allow the empty string.
      path: of a file or a folder, with its `~` replaced (`config_paths.py`).
    """

    choices: tuple[str, ...] = ()
    empty: bool = True
    path: bool = False

    def complaint(self, value: Any) -> str:
        """See `Flag`."""
        if self.choices:
            known = isinstance(value, str) and value in self.choices
            return "" if known else f"must be one of {', '.join(map(repr, self.choices))}"
        if not isinstance(value, str):
            return "must be a string"
        if self.path and value.startswith("~"):
            return "must name the home directory in full"
        return "" if value or self.empty else "must not be empty"


@dataclass(frozen=True)
class Number:
    """A finite number, within bounds.

    Attributes:
      whole: an integer.
      above: exclusive lower bound.
      least: inclusive lower bound.
      below: exclusive upper bound.
      most: inclusive upper bound.
      optional: allow None.
    """

    whole: bool = False
    above: float = -math.inf
    least: float = -math.inf
    below: float = math.inf
    most: float = math.inf
    optional: bool = False

    def complaint(self, value: Any) -> str:
        """See `Flag`; a bool is no number."""
        if value is None and self.optional:
            return ""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return "must be an integer" if self.whole else "must be a number"
        # Python's integers have no end, its floats do.
        if isinstance(value, int) and abs(value) > _MAX_INT:
            return f"must be at most {_MAX_INT} in size"
        if not math.isfinite(value):
            return "must be finite"
        within = self.above < value < self.below and self.least <= value <= self.most
        return "" if within else f"must {self._bounds()}"

    def _bounds(self) -> str:
        low, high = max(self.above, self.least), min(self.below, self.most)
        if math.isinf(high):
            name = "zero" if low == 0 else f"{low:g}"
            return f"be above {name}" if low == self.above else f"be {name} or more"
        opening = "(" if low == self.above else "["
        closing = ")" if high == self.below else "]"
        return f"lie in {opening}{low:g}, {high:g}{closing}"


@dataclass(frozen=True)
class Items:
    """A tuple, or a list.

    Attributes:
      item: what each element is.
      length: how many there are; None: one or more.
      empty: allow none.
    """

    item: Text | Number
    length: int | None = None
    empty: bool = False

    def complaint(self, value: Any) -> str:
        """See `Flag`."""
        if not isinstance(value, (tuple, list)):
            return "must be a tuple"
        if self.length is not None and len(value) != self.length:
            return f"must have {self.length} elements"
        if not value and not self.empty:
            return "must have one element or more"
        for element in value:
            complaint = self.item.complaint(element)
            if complaint:
                return f"has the element {element!r}, which {complaint}"
        return ""


Field = Flag | Text | Number | Items

_POSITIVE = Number(above=0)
_POSITIVE_INT = Number(whole=True, above=0)
_COUNT = Number(whole=True, least=0)
_ZERO_OR_MORE = Number(least=0)
_BELOW_ONE = Number(least=0, below=1)
_SHARE = Number(above=0, below=1)
_FRACTION = Number(above=0, most=1)
_BUDGET = Number(least=0, optional=True)
_SIZES = Items(_POSITIVE_INT)
_NAME = Text(empty=False)
_PATH = Text(path=True)

_STAGE: dict[str, Field] = {
    "num_epochs": _POSITIVE_INT,
    "batch_size": _POSITIVE_INT,
    "accumulate": _POSITIVE_INT,
    "optimizer": Text(("sgd", "adamw", "rmsprop")),
    "base_learning_rate": _POSITIVE,
    "schedule": Text(("step", "cosine", "constant")),
    "warmup_epochs": _ZERO_OR_MORE,
    "decay_epochs": _POSITIVE_INT,
    "decay_rate": _POSITIVE,
    "momentum": _BELOW_ONE,
    "weight_decay": _ZERO_OR_MORE,
    "decay_all": Flag(),
    "clip_norm": _ZERO_OR_MORE,
    "label_smoothing": _BELOW_ONE,
    "ema_decay": _BELOW_ONE,
}
# What every field may be, by its dotted name; `drnet_jax/config.py` says what it means.
FIELDS: Mapping[str, Field] = {
    "seed": _COUNT,
    "stages": Items(Text(STAGES)),
    "restore_from": _PATH,
    "model.name": _NAME,
    "model.args": Text(),
    "model.resolutions": _SIZES,
    "model.resolution_aware": Flag(),
    "model.statistics": Text(("all", "routed")),
    "model.min_samples": _POSITIVE_INT,
    "model.dtype": Text(("float32", "bfloat16")),
    "model.remat": Flag(),
    "model.stock_operations": Flag(),
    "predictor.name": _NAME,
    "predictor.args": Text(),
    "predictor.size": _POSITIVE_INT,
    "data.name": _NAME,
    "data.dir": _PATH,
    "data.num_classes": _COUNT,
    "data.calibration_fraction": _SHARE,
    "data.test_fraction": _SHARE,
    "data.split_seed": _COUNT,
    "data.num_workers": _COUNT,
    "data.crop_scale": Items(_FRACTION, length=2),
    "data.eval_crop": _FRACTION,
    "data.max_corrupt": _COUNT,
    "data.skip_corrupt": Flag(),
    "data.flip": Flag(),
    "data.mean": Items(Number(), length=3),
    "data.std": Items(_POSITIVE, length=3),
    "data.images_per_class": _COUNT,
    "data.train_images": _COUNT,
    "data.eval_images": _COUNT,
    **{f"{stage}.{name}": field for stage in STAGES for name, field in _STAGE.items()},
    "joint.init_from": _PATH,
    "joint.predictor_lr_scale": _POSITIVE,
    "joint.eta": _ZERO_OR_MORE,
    "joint.alpha": Number(above=0, optional=True),
    "joint.alpha_fraction": Number(above=0, most=1, optional=True),
    "joint.tau": _POSITIVE,
    "joint.tau_decay": _POSITIVE,
    "joint.tau_min": _POSITIVE,
    "eval.batch_size": _POSITIVE_INT,
    "eval.split": Text(SPLITS),
    "eval.dispatch": Text(("dense", "bucketed")),
    "eval.controls": Flag(),
    "eval.keep_logits": Flag(),
    "eval.gallery": _COUNT,
    "inference.buckets": _SIZES,
    "inference.fold": Flag(),
    "inference.measure": Flag(),
    "budget.gmacs": _BUDGET,
    "budget.ms": _BUDGET,
    "budget.max_drop": _BUDGET,
    "budget.batch_size": _COUNT,
    "budget.confidence": _BELOW_ONE,
    "benchmark.batch_sizes": _SIZES,
    "benchmark.gmacs": Items(_POSITIVE, empty=True),
    # Fewer give no interval.
    "benchmark.repeats": Number(whole=True, least=LEAST_REPEATS),
    "benchmark.seconds": _ZERO_OR_MORE,
    "predict.input": _PATH,
    "predict.output": _PATH,
    "predict.format": Text(("csv", "jsonl")),
    "predict.gallery": _COUNT,
    "report.runs": Items(Text(empty=False, path=True), empty=True),
    "checkpoint.keep_latest": _POSITIVE_INT,
    "checkpoint.every_steps": _COUNT,
    "log.every_steps": _POSITIVE_INT,
    "log.tensorboard": Flag(),
}


def check_config(config: ConfigDict, num_devices: int, mode: str = "train") -> None:
    """Checks everything that can be checked without the model and the data.

    Args:
      config: the whole configuration.
      num_devices: that batches are divided among.
      mode: what is to be done; batches that it does not use may be of any size.

    Raises:
      ConfigError: naming the first bad field and the remedy.
    """
    _check_fields(config)
    _check_resolutions(config)
    _check_data(config.data)
    _check_budget(config.budget)
    _check_stages(config)
    if mode == "train":
        for stage in config.stages:
            _check_batch(config, stage, config[stage].accumulate, num_devices)
    # Dispatch and predictions run on one device.
    dense = mode == "eval" and config.eval.dispatch == "dense"
    if dense or mode in ("train", "calibrate", "benchmark"):
        _check_batch(config, "eval", 1, num_devices)


def check_training(config: ConfigDict, stages: Iterable[str]) -> None:
    """Checks what only matters to a training of these stages.

    Raises:
      ConfigError: naming the field and the remedy.
    """
    for stage in stages:
        _check_statistics(config, stage)


def _check_fields(config: ConfigDict) -> None:
    values = flatten(config)
    for name in flatten(default_config()):
        if name not in values:
            raise ConfigError(f"{name} is missing; start from drnet_jax.config.default_config()")
    for name, value in values.items():
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {close[0]}?" if close else "drnet_jax/config.py lists them all"
            raise ConfigError(f"there is no field {name}; {hint}")
        complaint = FIELDS[name].complaint(value)
        if complaint:
            shown = tuple(value) if isinstance(value, list) else value
            raise ConfigError(f"{name}={shown!r} {complaint}")


def _check_resolutions(config: ConfigDict) -> None:
    resolutions = tuple(config.model.resolutions)
    if list(resolutions) != sorted(set(resolutions), reverse=True):
        raise ConfigError(
            f"model.resolutions={resolutions} must name the sides largest first, none twice"
        )


def _check_data(data: ConfigDict) -> None:
    smallest, largest = data.crop_scale
    if smallest > largest:
        raise ConfigError(
            f"data.crop_scale={tuple(data.crop_scale)} must name the smaller fraction first"
        )
    if data.calibration_fraction + data.test_fraction >= 1:
        raise ConfigError(
            f"data.calibration_fraction={data.calibration_fraction} and "
            f"data.test_fraction={data.test_fraction} must leave some for training"
        )


def _check_budget(budget: ConfigDict) -> None:
    given = [name for name in BUDGETS if budget[name] is not None]
    if len(given) > 1:
        raise ConfigError(f"budget.{' and budget.'.join(given)} both set a budget: leave out one")
    if budget.batch_size and given not in ([], ["ms"]):
        raise ConfigError(
            "budget.batch_size goes with budget.ms: other budgets do not depend on it"
        )
    if budget.confidence and given != ["max_drop"]:
        raise ConfigError("budget.confidence needs budget.max_drop: a cost has no such bound here")


def _check_stages(config: ConfigDict) -> None:
    if list(config.stages) != [stage for stage in STAGES if stage in config.stages]:
        raise ConfigError(
            f"stages={tuple(config.stages)} must be ('pretrain', 'joint'), ('pretrain',) or "
            "('joint',)"
        )
    if config.joint.init_from and "pretrain" in config.stages:
        raise ConfigError(
            "joint.init_from replaces stage 1: add --config.stages=\"('joint',)\", or leave it out"
        )
    if config.joint.alpha is not None and config.joint.alpha_fraction is not None:
        raise ConfigError(
            "joint.alpha and joint.alpha_fraction both set a target: unset one, "
            "--config.joint.alpha_fraction=None, say"
        )


def _check_batch(config: ConfigDict, section: str, parts: int, num_devices: int) -> None:
    batch_size = config[section].batch_size
    if batch_size % (num_devices * parts):
        times = f" times {section}.accumulate={parts}" if parts > 1 else ""
        raise ConfigError(
            f"{section}.batch_size={batch_size} is not divisible by the {num_devices} "
            f"devices{times}"
        )


def _check_statistics(config: ConfigDict, stage: str) -> None:
    """Fewer samples than `model.min_samples` would never update BatchNorm's statistics."""
    section, least = config[stage], config.model.min_samples
    if section.batch_size // section.accumulate < least:
        parts = (
            f" in {stage}.accumulate={section.accumulate} parts" if section.accumulate > 1 else ""
        )
        lower = f"lower {stage}.accumulate or " if section.accumulate > 1 else "lower "
        raise ConfigError(
            f"{stage}.batch_size={section.batch_size}{parts} is less than "
            f"model.min_samples={least}: no statistics would be taken; raise {stage}.batch_size, "
            f"or {lower}model.min_samples"
        )
