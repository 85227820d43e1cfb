"""The configuration: every field with its default, and the checks that come before any work.

Configs hold primary values only; everything derived (steps, GMACs, alpha in GMACs) is derived in
code, so that overrides follow.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

STAGES = ("pretrain", "joint")
SPLITS = ("train", "calibration", "test")
# Fields that may differ when a run is resumed: they do not change what it computes.
FREE_FIELDS = (
    *("log.", "eval.", "checkpoint.", "restore_from", "model.remat", "inference.", "budget."),
    *("benchmark.", "predict."),
    *("data.dir", "data.num_workers", "data.max_corrupt", "data.skip_corrupt"),
)
# Fields that say what a trained model is and what it expects as input.
MODEL_FIELDS = ("model.", "predictor.", "data.name", "data.mean", "data.std")
# Those of them that stage 1 already settles: it trains no predictor, and every sample counts.
STAGE_ONE_FIELDS = (
    *("model.name", "model.width", "model.stem", "model.resolutions", "model.resolution_aware"),
    *("data.name", "data.mean", "data.std"),
)
# Of a timing, for an interval.
LEAST_REPEATS = 5
_BUDGETS = ("gmacs", "ms", "max_drop")
# Channel means and deviations of ImageNet's images, in 0..1, as torchvision has them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ConfigError(ValueError):
    """A field is unusable; the message names it and the remedy."""


def default_config() -> ConfigDict:
    """All fields. Epochs and rates are those of the embedded data; see `configs/` for others."""
    config = ConfigDict()
    config.seed = 0
    # Which stages to run, in this order.
    config.stages = STAGES
    # Evaluation: a workdir whose checkpoint to evaluate instead of --workdir's own.
    config.restore_from = ""

    config.model = _model()
    config.predictor = _predictor()
    config.data = _data()
    config.pretrain = _stage(num_epochs=4, batch_size=32, base_learning_rate=4e-3)
    config.joint = _joint()

    config.eval = ConfigDict()
    config.eval.batch_size = 256
    config.eval.split = "test"
    # 'dense': every resolution, and what is compared with it; 'bucketed': the chosen one only, at
    # DRNet's own cost.
    config.eval.dispatch = "dense"

    # Compare DRNet with controls, whose thresholds come from the calibration split: it is evaluated
    # too. For 'dense'.
    config.eval.controls = True

    config.inference = ConfigDict()
    # Batch sizes that are compiled; groups of other sizes are split.
    config.inference.buckets = (1, 2, 3, 4, 6, 8, 16, 32, 64)
    # Fold BatchNorm into the convolutions.
    config.inference.fold = True
    # Measure every bucket first, and split groups as is then cheapest.
    config.inference.measure = True

    config.budget = ConfigDict()
    # At most one, calibrated by --mode=calibrate; none: the paper's choice. Mean cost of an image,
    # predictor included, in GMACs; mean time of an image in ms, on this device; or points of top-1
    # below the largest resolution.
    config.budget.gmacs = placeholder(float)
    config.budget.ms = placeholder(float)
    config.budget.max_drop = placeholder(float)
    # For ms: images that are classified at once; 0: any number, each network at its best bucket.
    config.budget.batch_size = 0
    # For max_drop: hold with this probability on new images; 0: on the calibration split alone.
    config.budget.confidence = 0.0

    config.benchmark = _benchmark()
    config.predict = _predict()

    config.checkpoint = ConfigDict()
    config.checkpoint.keep_latest = 1
    # Also save every so many steps, beside the end of every epoch; 0: no.
    config.checkpoint.every_steps = 0

    config.log = ConfigDict()
    config.log.every_steps = 20
    config.log.tensorboard = True
    return config


def _benchmark() -> ConfigDict:
    benchmark = ConfigDict()
    benchmark.batch_sizes = (1, 8, 32, 128)
    # Mean cost of an image in GMACs, predictor included: adaptive ways beside lambda = 0.
    benchmark.gmacs = ()
    # Of every way, in turns; fewer where these seconds, for each batch size and input, are over.
    benchmark.repeats = 50
    benchmark.seconds = 30.0
    return benchmark


def _predict() -> ConfigDict:
    predict = ConfigDict()
    # A folder of pictures, whatever folders are in it.
    predict.input = ""
    # Where the results go; default: predictions/<name of the input> in the workdir.
    predict.output = ""
    # Of the predictions: 'csv', or 'jsonl': a JSON object a line.
    predict.format = "csv"
    # Pictures of every resolution in gallery.html; 0: no gallery.
    predict.gallery = 60
    return predict


def _model() -> ConfigDict:
    model = ConfigDict()
    model.name = "resnet10"
    model.width = 16
    model.stem = "small"
    # Candidate sides in pixels, largest first. One resolution: a plain classifier.
    model.resolutions = (64, 48, 32)
    # False: one BatchNorm for all resolutions (the paper's ablation).
    model.resolution_aware = True
    # Samples in the joint stage's BatchNorm statistics: 'all', or 'routed' (the paper's text).
    model.statistics = "all"
    # With fewer samples than this the running statistics normalise.
    model.min_samples = 4
    model.zero_init_residual = False
    model.dtype = "float32"
    # Compute the inside of every block anew in the backward pass: less memory, more time.
    model.remat = False
    return model


def _predictor() -> ConfigDict:
    predictor = ConfigDict()
    predictor.size = 32
    predictor.stage_sizes = (1, 1, 1)
    predictor.width = 8
    predictor.stem = "small"
    return predictor


def _data() -> ConfigDict:
    data = ConfigDict()
    # 'digits_on_photos' (embedded), 'folder' (your own pictures), 'imagenet100', or any image
    # classification set of TFDS by its name.
    data.name = "digits_on_photos"
    # The folder of pictures, or where TFDS keeps its data sets.
    data.dir = ""
    # Of the data set: another number is an error; 0: whatever it has.
    data.num_classes = 0
    # Held out of every class, where the data set has no such split of its own.
    data.calibration_fraction = 0.1
    data.test_fraction = 0.2
    data.split_seed = 0
    # Processes that decode in training; 0: threads, as in evaluation.
    data.num_workers = 0
    # Random resized crops in training: smallest and largest fraction of the picture's area.
    data.crop_scale = (0.08, 1.0)
    # Centred crop in evaluation, as a fraction of the picture's shorter side.
    data.eval_crop = 224 / 256
    # Training stops when more images than this cannot be decoded; up to then they are left out.
    data.max_corrupt = 20
    # True: evaluation leaves them out too, instead of stopping.
    data.skip_corrupt = False
    data.flip = False
    data.mean = (0.5, 0.5, 0.5)
    data.std = (0.25, 0.25, 0.25)
    # Training images of every class; 0: all.
    data.images_per_class = 0
    # Images of each split (random ones; of the embedded data the first ones); 0: all.
    data.train_images = 0
    data.eval_images = 0
    return data


def _joint() -> ConfigDict:
    joint = _stage(num_epochs=3, batch_size=96, base_learning_rate=1e-3)
    # Another run's workdir, whose finished stage 1 stage 2 starts from.
    joint.init_from = ""
    joint.predictor_lr_scale = 3.0
    joint.eta = 0.3
    # Target cost of the classifier, at most one of: alpha in GMACs (without the predictor), or a
    # fraction of the largest resolution's cost. Both unset: no regulariser.
    joint.alpha = placeholder(float)
    joint.alpha_fraction = placeholder(float)
    joint.alpha_fraction = 0.5
    # Gumbel-softmax temperature: max(tau_min, tau * tau_decay^epoch).
    joint.tau = 1.0
    joint.tau_decay = 1.0
    joint.tau_min = 0.1
    return joint


def _stage(num_epochs: int, batch_size: int, base_learning_rate: float) -> ConfigDict:
    stage = ConfigDict()
    stage.num_epochs = num_epochs
    stage.batch_size = batch_size
    # Work a batch off in so many micro-batches, for a smaller memory; BatchNorm sees one at a time.
    stage.accumulate = 1
    stage.optimizer = "adamw"
    stage.base_learning_rate = base_learning_rate
    stage.schedule = "cosine"
    stage.warmup_epochs = 0.5
    # For schedule 'step': times decay_rate every decay_epochs.
    stage.decay_epochs = 30
    stage.decay_rate = 0.1
    stage.momentum = 0.9
    stage.weight_decay = 1e-4
    # True: decay reaches BatchNorm parameters and biases too.
    stage.decay_all = False
    # Clip the global gradient norm; 0: no.
    stage.clip_norm = 0.0
    stage.label_smoothing = 0.0
    # Moving average of weights and statistics, used by evaluation and by the next stage; 0: none.
    # Early on its decay is (1 + step) / (10 + step), so that it forgets the initial weights.
    stage.ema_decay = 0.0
    return stage


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
    _check_sizes("predictor.stage_sizes", config.predictor.stage_sizes)
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


def budget_name(config: ConfigDict) -> str | None:
    """Which budget is set: `'gmacs'`, `'ms'`, `'max_drop'`, or none."""
    return next((name for name in _BUDGETS if config.budget[name] is not None), None)


def _check_budget(budget: ConfigDict) -> None:
    given = [name for name in _BUDGETS if budget[name] is not None]
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
        "model.stem": ("imagenet", "small"),
        "predictor.stem": ("imagenet", "small"),
        "model.dtype": ("float32", "bfloat16"),
        "eval.split": SPLITS,
        "eval.dispatch": ("dense", "bucketed"),
        "predict.format": ("csv", "jsonl"),
    }
    for stage in STAGES:
        choices[f"{stage}.optimizer"] = ("sgd", "adamw")
        choices[f"{stage}.schedule"] = ("step", "cosine", "constant")
    for name, allowed in choices.items():
        value = _get(config, name)
        if value not in allowed:
            raise ConfigError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")


def _check_numbers(config: ConfigDict) -> None:
    positive = ["model.width", "model.min_samples", "predictor.width", "predictor.size"]
    positive += ["eval.batch_size", "checkpoint.keep_latest", "log.every_steps", "joint.tau_min"]
    for stage in STAGES:
        positive += [f"{stage}.{field}" for field in ("num_epochs", "batch_size", "accumulate")]
        positive += [f"{stage}.base_learning_rate", f"{stage}.decay_epochs", f"{stage}.decay_rate"]
    positive += ["joint.tau", "joint.tau_decay", "joint.predictor_lr_scale"]
    for name in positive:
        if not _get(config, name) > 0:
            raise ConfigError(f"{name}={_get(config, name)} must be above zero")
    zero_or_more = ["joint.eta", "checkpoint.every_steps", "data.train_images", "data.eval_images"]
    zero_or_more += ["data.num_classes", "data.num_workers", "data.max_corrupt"]
    zero_or_more += [
        "data.images_per_class",
        "data.split_seed",
        "predict.gallery",
        "benchmark.seconds",
    ]
    for stage in STAGES:
        zero_or_more += [f"{stage}.{field}" for field in ("weight_decay", "clip_norm")]
        zero_or_more.append(f"{stage}.warmup_epochs")
    for name in zero_or_more:
        if not _get(config, name) >= 0:
            raise ConfigError(f"{name}={_get(config, name)} must be zero or more")
    for stage in STAGES:
        for field in ("momentum", "label_smoothing", "ema_decay"):
            if not 0 <= config[stage][field] < 1:
                raise ConfigError(f"{stage}.{field}={config[stage][field]} must lie in [0, 1)")


def _get(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def alpha_target(config: ConfigDict, gmacs: tuple[float, ...]) -> float | None:
    """alpha in GMACs, or None without a target.

    Args:
      config: the whole configuration.
      gmacs: of the classifier at every resolution.

    Raises:
      ConfigError: a target outside [C_min, C_max].
    """
    joint = config.joint
    if joint.alpha is None and joint.alpha_fraction is None:
        return None
    if len(gmacs) == 1:
        return gmacs[0]
    name = "joint.alpha" if joint.alpha is not None else "joint.alpha_fraction"
    target = joint.alpha if joint.alpha is not None else joint.alpha_fraction * max(gmacs)
    if not min(gmacs) <= target <= max(gmacs):
        raise ConfigError(
            f"{name}={_get(config, name)} is a target of {target:.4g} GMACs, outside "
            f"[{min(gmacs):.4g}, {max(gmacs):.4g}], the costs of the smallest and largest "
            "resolution"
        )
    return float(target)


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Fields by dotted name, with JSON values."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def changed_fields(
    old: dict[str, Any], new: dict[str, Any], *, only: tuple[str, ...] = ("",)
) -> list[str]:
    """Trajectory-changing differences of two flattened configs, as `field: old -> new`.

    Args:
      old: a flattened config.
      new: another.
      only: prefixes of the names to look at; default: all.
    """
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if name.startswith(only)
        and old.get(name) != new.get(name)
        and not name.startswith(FREE_FIELDS)
    ]
