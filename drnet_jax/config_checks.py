"""The checks of a configuration that come before any work."""

from typing import Any

from ml_collections import ConfigDict

from drnet_jax.config import BUDGETS, LEAST_REPEATS, SPLITS, STAGES, ConfigError, get_field


def check_config(config: ConfigDict, num_devices: int) -> None:
    """Checks every field that can be checked without the model.

    Raises:
      ConfigError: naming the first bad field and the remedy.
    """
    _check_choices(config)
    _check_numbers(config)
    resolutions = config.model.resolutions
    _check_sizes("model.resolutions", resolutions)
    if list(resolutions) != sorted(set(resolutions), reverse=True):
        raise ConfigError(
            f"model.resolutions={tuple(resolutions)} must name the sides largest first, none twice"
        )
    _check_sizes("inference.buckets", config.inference.buckets)
    _check_sizes("benchmark.batch_sizes", config.benchmark.batch_sizes)
    for gmacs in config.benchmark.gmacs:
        if not isinstance(gmacs, (int, float)) or not gmacs > 0:
            raise ConfigError(f"benchmark.gmacs={gmacs!r} must be numbers above zero, in GMACs")
    if config.benchmark.repeats < LEAST_REPEATS:
        raise ConfigError(
            f"benchmark.repeats={config.benchmark.repeats} must be {LEAST_REPEATS} or more: there "
            "is no interval else"
        )
    _check_data(config.data)
    _check_budget(config.budget)
    if not config.stages or list(config.stages) != [s for s in STAGES if s in config.stages]:
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
    for section in (*STAGES, "eval"):
        batch_size, parts = config[section].batch_size, config[section].get("accumulate", 1)
        if batch_size % (num_devices * parts):
            times = f" times {section}.accumulate={parts}" if parts > 1 else ""
            raise ConfigError(
                f"{section}.batch_size={batch_size} is not divisible by the {num_devices} "
                f"devices{times}"
            )
        if parts > 1 and batch_size // parts < config.model.min_samples:
            raise ConfigError(
                f"{section}.batch_size={batch_size} in {section}.accumulate={parts} parts is less "
                f"than model.min_samples={config.model.min_samples}: no statistics would be taken"
            )


def _check_sizes(name: str, sizes: tuple[Any, ...]) -> None:
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ConfigError(f"{name}={tuple(sizes)} must be one or more integers above zero")


def _check_data(data: ConfigDict) -> None:
    for name in ("mean", "std"):
        values = data[name]
        if len(values) != 3 or (name == "std" and min(values) <= 0):
            raise ConfigError(f"data.{name}={tuple(values)} must be three numbers, std above zero")
    scale = tuple(data.crop_scale)
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ConfigError(f"data.crop_scale={scale} must be two fractions in (0, 1], smaller first")
    if not 0 < data.eval_crop <= 1:
        raise ConfigError(f"data.eval_crop={data.eval_crop} must lie in (0, 1]")
    fractions = data.calibration_fraction, data.test_fraction
    if min(fractions) <= 0 or sum(fractions) >= 1:
        raise ConfigError(
            f"data.calibration_fraction={fractions[0]} and data.test_fraction={fractions[1]} must "
            "be above zero and leave some for training"
        )


def _check_budget(budget: ConfigDict) -> None:
    given = [name for name in BUDGETS if budget[name] is not None]
    if len(given) > 1:
        raise ConfigError(f"budget.{' and budget.'.join(given)} both set a budget: leave out one")
    for name in given:
        if not budget[name] >= 0:
            raise ConfigError(f"budget.{name}={budget[name]} must be zero or more")
    if budget.batch_size < 0:
        raise ConfigError(f"budget.batch_size={budget.batch_size} must be zero or more")
    if budget.batch_size and given not in ([], ["ms"]):
        raise ConfigError(
            "budget.batch_size goes with budget.ms: other budgets do not depend on it"
        )
    if not 0 <= budget.confidence < 1:
        raise ConfigError(f"budget.confidence={budget.confidence} must lie in [0, 1)")
    if budget.confidence and given != ["max_drop"]:
        raise ConfigError("budget.confidence needs budget.max_drop: a cost has no such bound here")


def _check_choices(config: ConfigDict) -> None:
    choices: dict[str, tuple[Any, ...]] = {
        "model.statistics": ("all", "routed"),
        "model.dtype": ("float32", "bfloat16"),
        "eval.split": SPLITS,
        "eval.dispatch": ("dense", "bucketed"),
        "predict.format": ("csv", "jsonl"),
    }
    for stage in STAGES:
        choices[f"{stage}.optimizer"] = ("sgd", "adamw", "rmsprop")
        choices[f"{stage}.schedule"] = ("step", "cosine", "constant")
    for name, allowed in choices.items():
        value = get_field(config, name)
        if value not in allowed:
            raise ConfigError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")


def _check_numbers(config: ConfigDict) -> None:
    positive = ["model.min_samples", "predictor.size"]
    positive += ["eval.batch_size", "checkpoint.keep_latest", "log.every_steps", "joint.tau_min"]
    for stage in STAGES:
        positive += [f"{stage}.{field}" for field in ("num_epochs", "batch_size", "accumulate")]
        positive += [f"{stage}.base_learning_rate", f"{stage}.decay_epochs", f"{stage}.decay_rate"]
    positive += ["joint.tau", "joint.tau_decay", "joint.predictor_lr_scale"]
    for name in positive:
        if not get_field(config, name) > 0:
            raise ConfigError(f"{name}={get_field(config, name)} must be above zero")
    zero_or_more = ["joint.eta", "checkpoint.every_steps", "data.train_images", "data.eval_images"]
    zero_or_more += ["data.num_classes", "data.num_workers", "data.max_corrupt"]
    zero_or_more += [
        "data.images_per_class",
        "data.split_seed",
        "eval.gallery",
        "predict.gallery",
        "benchmark.seconds",
    ]
    for stage in STAGES:
        zero_or_more += [f"{stage}.{field}" for field in ("weight_decay", "clip_norm")]
        zero_or_more.append(f"{stage}.warmup_epochs")
    for name in zero_or_more:
        if not get_field(config, name) >= 0:
            raise ConfigError(f"{name}={get_field(config, name)} must be zero or more")
    for stage in STAGES:
        for field in ("momentum", "label_smoothing", "ema_decay"):
            if not 0 <= config[stage][field] < 1:
                raise ConfigError(f"{stage}.{field}={config[stage][field]} must lie in [0, 1)")
