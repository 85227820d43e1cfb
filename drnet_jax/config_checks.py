"""The checks of a configuration that come before any work: of every field, and between fields."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from drnet_jax.config import (
    BUDGETS,
    FITTED_OBJECTIVES,
    GLANCE_SCORES,
    SMALLER_NORMS,
    STAGES,
    TWO_STAGES,
    ConfigError,
    budget_name,
    default_config,
    flatten,
    is_fitted,
    section_name,
    what_is_trained,
)
from drnet_jax.config_fields import FIELDS, unknown_field

# Modes that several processes can do together.
_SEVERAL = ("train", "eval", "calibrate")


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
    _check_kind(config)
    _check_import(config, mode)
    _check_export(config, mode)
    _check_pruning(config)
    if mode in ("train", "convert"):
        for section in _sections(config, config.stages):
            _check_batch(config, section, config[section].accumulate, num_devices)
    # Dispatch and predictions run on one device.
    dense = mode == "eval" and config.eval.dispatch == "dense"
    if dense or mode in ("train", "convert", "calibrate", "benchmark"):
        _check_batch(config, "eval", 1, num_devices)


def check_several_processes(config: ConfigDict, mode: str) -> None:
    """Checks that what is to be done can be done by several processes together.

    Raises:
      ConfigError: it is for one, naming the mode or the field.
    """
    alone = ""
    if mode not in _SEVERAL:
        alone = f"--mode={mode}"
    elif mode == "eval" and config.eval.dispatch == "bucketed":
        alone = "eval.dispatch='bucketed'"
    elif mode == "calibrate" and config.budget.ms is not None:
        alone = "budget.ms"
    elif mode == "train" and config.convert.weights:
        alone = "convert.weights"
    if alone:
        raise ConfigError(
            f"{alone} is for one process: start one, without --coordinator, --num_processes and "
            "--process_id (in a job of several tasks with --num_processes=1)"
        )


def check_training(config: ConfigDict, stages: Iterable[str]) -> None:
    """Checks what only matters to a training of these stages.

    Raises:
      ConfigError: naming the field and the remedy.
    """
    for section in _sections(config, stages):
        _check_statistics(config, section)
        _check_schedule(config, section)
    _check_start(config)
    _check_predictor(config)


def _sections(config: ConfigDict, stages: Iterable[str]) -> list[str]:
    """Of the stages that take steps."""
    return [section_name(stage) for stage in stages if not is_fitted(config, stage)]


def _check_fields(config: ConfigDict) -> None:
    values = flatten(config)
    for name in flatten(default_config()):
        if name not in values:
            raise ConfigError(f"{name} is missing; start from drnet_jax.config.default_config()")
    for name, value in values.items():
        if name not in FIELDS:
            raise ConfigError(unknown_field(name, FIELDS))
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


def _check_export(config: ConfigDict, mode: str) -> None:
    sizes, name = tuple(config.export.fixed_batches), budget_name(config)
    if len(set(sizes)) < len(sizes):
        raise ConfigError(f"export.fixed_batches={sizes} must name no size twice")
    if mode != "export" or name is None:
        return
    if not sizes:
        raise ConfigError(
            f"budget.{name} is of programs with fixed places, and no other exported file depends "
            'on it: name their batches, --config.export.fixed_batches="(1, 32)", or leave it out'
        )
    if name == "ms":
        raise ConfigError(
            "budget.ms is the time of JAX's programs, and exported ones are run otherwise: use "
            "budget.gmacs or budget.max_drop"
        )


def _check_stages(config: ConfigDict) -> None:
    if tuple(config.stages) not in (TWO_STAGES, *((stage,) for stage in STAGES)):
        raise ConfigError(
            f"stages={tuple(config.stages)} must be ('pretrain', 'joint'), ('pretrain',), "
            "('joint',) or ('single',)"
        )
    if "single" in config.stages:
        _check_single(config)
    if config.joint.init_from and "pretrain" in config.stages:
        raise ConfigError(
            "joint.init_from replaces stage 1: add --config.stages=\"('joint',)\", or leave it out"
        )
    if config.joint.alpha is not None and config.joint.alpha_fraction is not None:
        raise ConfigError(
            "joint.alpha and joint.alpha_fraction both set a target: unset one, "
            "--config.joint.alpha_fraction=None, say"
        )


def _check_single(config: ConfigDict) -> None:
    if config.joint.init_from:
        raise ConfigError("joint.init_from is of stage 2: stages=('single',) starts from nothing")


def _check_start(config: ConfigDict) -> None:
    """What is fitted needs a classifier that is trained before."""
    if "pretrain" in config.stages or config.joint.init_from:
        return
    for name, value, only in (
        ("predictor.objective", config.predictor.objective, "gumbel"),
        ("model.reuse", config.model.reuse, "none"),
    ):
        if value != only:
            raise ConfigError(
                f"{name}={value!r} is fitted to a trained classifier, and "
                f"stages={tuple(config.stages)} begins with random weights: add 'pretrain' to "
                f"stages, set joint.init_from, or set it to {only!r}"
            )


def _check_import(config: ConfigDict, mode: str) -> None:
    """What only imported weights have, and what a conversion of them needs."""
    convert = config.convert
    if not convert.weights:
        if config.restore_from and mode not in ("train", "convert"):
            # A saved model no longer needs the weights that it was made of.
            return
        of_stage_1 = (
            ("pretrain.train", config.pretrain.train, "all"),
            ("pretrain.batch_statistics", config.pretrain.batch_statistics, True),
        )
        for name, value, only in (
            ("convert.classes", convert.classes, ""),
            ("convert.head", convert.head, "auto"),
            ("convert.labels", convert.labels, True),
            *(of_stage_1 if "pretrain" in config.stages else ()),
        ):
            if value != only:
                raise ConfigError(
                    f"{name}={value!r} is of imported weights: add --config.convert.weights=FILE, "
                    f"or leave it at {only!r}"
                )
        if mode == "convert":
            raise ConfigError("--mode=convert needs weights: add --config.convert.weights=FILE")
        return
    if "pretrain" not in config.stages:
        raise ConfigError(
            f"convert.weights are what stage 1 starts from, and stages={tuple(config.stages)} has "
            "none: add 'pretrain' to stages, or leave them out"
        )
    what = what_is_trained(config.pretrain.train, convert.labels)
    if what == SMALLER_NORMS and (
        len(config.model.resolutions) == 1 or not config.model.resolution_aware
    ):
        raise ConfigError(
            f"pretrain.train={config.pretrain.train!r} trains BatchNorms of the smaller "
            "resolutions: it needs two or more of model.resolutions, and "
            "model.resolution_aware=True; else name another"
        )
    if mode == "convert" and (len(config.stages) == 1 or len(config.model.resolutions) == 1):
        raise ConfigError(
            "--mode=convert makes a classifier that chooses: give it stages=('pretrain', 'joint') "
            "and two or more of model.resolutions"
        )
    if not convert.labels and config.data.name != "folder":
        raise ConfigError("convert.labels=False needs a folder of pictures: data.name='folder'")
    if not convert.labels and convert.head == "new":
        raise ConfigError(
            "convert.head='new' is fitted to labels, and convert.labels=False has none: keep the "
            "weights' own head"
        )


def _check_pruning(config: ConfigDict) -> None:
    """Stage 1 that starts from another run, whose filters may be pruned."""
    pretrain = config.pretrain
    if not pretrain.init_from:
        if pretrain.pruning_criterion != "fpgm":
            raise ConfigError(
                f"pretrain.pruning_criterion={pretrain.pruning_criterion!r} says which filters of "
                "another run are kept: set pretrain.init_from, or leave it at 'fpgm'"
            )
    elif config.convert.weights:
        raise ConfigError(
            "convert.weights and pretrain.init_from both are what stage 1 starts from: leave out "
            "one"
        )
    # With joint.init_from they say how that run's stage 1 began.
    elif "pretrain" not in config.stages and not config.joint.init_from:
        raise ConfigError(
            f"pretrain.init_from is what stage 1 starts from, and stages={tuple(config.stages)} "
            "has none: add 'pretrain' to stages, or leave it out"
        )


def _check_batch(config: ConfigDict, section: str, parts: int, num_devices: int) -> None:
    batch_size = config[section].batch_size
    if batch_size % (num_devices * parts):
        times = f" times {section}.accumulate={parts}" if parts > 1 else ""
        raise ConfigError(
            f"{section}.batch_size={batch_size} is not divisible by the {num_devices} "
            f"devices{times}"
        )


def _check_statistics(config: ConfigDict, name: str) -> None:
    """Fewer samples than `model.min_samples` would never update BatchNorm's statistics."""
    section, least = config[name], config.model.min_samples
    if section.batch_size // section.accumulate < least:
        parts = (
            f" in {name}.accumulate={section.accumulate} parts" if section.accumulate > 1 else ""
        )
        lower = f"lower {name}.accumulate or " if section.accumulate > 1 else "lower "
        raise ConfigError(
            f"{name}.batch_size={section.batch_size}{parts} is less than "
            f"model.min_samples={least}: no statistics would be taken; raise {name}.batch_size, "
            f"or {lower}model.min_samples"
        )


def _check_schedule(config: ConfigDict, name: str) -> None:
    """What the stage is too short for, or never uses."""
    section = config[name]
    if section.warmup_epochs > section.num_epochs:
        raise ConfigError(
            f"{name}.warmup_epochs={section.warmup_epochs} is longer than the stage's "
            f"{name}.num_epochs={section.num_epochs}: {name}.base_learning_rate would never be "
            "reached"
        )
    if name == "joint" and section.tau < section.tau_min:
        raise ConfigError(
            f"joint.tau={section.tau} is below joint.tau_min={section.tau_min}, which would be "
            "used instead: lower joint.tau_min too"
        )


def _check_kind(config: ConfigDict) -> None:
    """What only a first look has."""
    predictor = config.predictor
    if predictor.kind == "pixels":
        for name, value, only in (
            ("predictor.objective", predictor.objective, "gumbel"),
            ("model.reuse", config.model.reuse, "none"),
        ):
            if value != only:
                raise ConfigError(
                    f"{name}={value!r} needs a first look: --config.predictor.kind=glance, or "
                    f"leave it at {only!r}"
                )
    elif predictor.objective in FITTED_OBJECTIVES and predictor.inputs[0] not in GLANCE_SCORES:
        raise ConfigError(
            f"predictor.inputs={tuple(predictor.inputs)}: a threshold is of the first of them, and "
            "so is a choice that is fitted to few images; put first one of "
            f"{', '.join(map(repr, GLANCE_SCORES))}"
        )


def _check_predictor(config: ConfigDict) -> None:
    """The images have no more pixels than the largest resolution."""
    largest, size = max(config.model.resolutions), config.predictor.size
    if config.predictor.kind == "glance" or len(config.model.resolutions) == 1:
        return
    if size > largest:
        raise ConfigError(
            f"predictor.size={size} is above the largest of model.resolutions, {largest} px: the "
            "predictor would see enlarged images; lower it"
        )
