"""What a configuration's fields are for: groups of them, differences, and what is derived."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from drnet_jax.config_defaults import STAGES as STAGES
from drnet_jax.config_defaults import TWO_STAGES as TWO_STAGES
from drnet_jax.config_defaults import default_config as default_config

SPLITS = ("train", "calibration", "test")
# What to call the stages.
STAGE_TITLES = {"pretrain": "stage 1", "joint": "stage 2", "single": "single stage"}
# Groups of fields, by the prefixes of their names.
# What is logged, kept, evaluated, timed and classified, and how: these change files and figures,
# but no weight. (`eval.batch_size` changes the rounding of what checkpoints are chosen by.)
OUTPUT_FIELDS = (
    *("log.", "checkpoint.", "restore_from", "eval.", "data.skip_corrupt"),
    *("inference.", "budget.", "benchmark.", "predict.", "export.", "report."),
)
# How and where a training runs: weights differ by rounding at most. `data.max_corrupt` decides when
# it stops; the images in `data.dir` have to be the same ones (`checkpoints/restore.py`).
EXECUTION_FIELDS = (
    *("model.remat", "model.stock_operations"),
    *("data.dir", "data.num_workers", "data.max_corrupt"),
)
# Of which images an evaluation is.
IMAGE_FIELDS = ("eval.split", "data.dir", "data.skip_corrupt")
# What an evaluation is done with, whatever its model was trained with.
EVALUATION_FIELDS = (
    *(*IMAGE_FIELDS, "data.eval_", "restore_from"),
    *("eval.", "budget.", "inference.", "benchmark."),
)
# What may differ when a run is resumed; others change what is computed, or the best checkpoint.
RESUMABLE_FIELDS = (*OUTPUT_FIELDS, *EXECUTION_FIELDS)
# How a choice is trained, and what it reads of a first look.
FITTED_OBJECTIVES = ("correctness", "spend", "threshold")
OBJECTIVES = ("gumbel", *FITTED_OBJECTIVES)
GLANCE_SCORES = ("margin", "confidence", "entropy", "logit_margin", "norm_logit")
GLANCE_INPUTS = (*GLANCE_SCORES, "pooled")
# Of which resolutions stage 1 distils, and what of imported weights it trains.
TEACHERS = ("ensemble", "largest")
# Which filters are pruned.
PRUNING_CRITERIA = ("fpgm", "l1")
# Scales and biases of BatchNorms below the largest resolution, which stays as it is.
SMALLER_NORMS = "smaller_batch_norm"
TRAINED_PARTS = (
    *("auto", "all", "last_two_stages", "last_stage"),
    *("batch_norm", SMALLER_NORMS, "head"),
)
# Fields that say what a trained model is and what it expects as input.
MODEL_FIELDS = ("model.", "predictor.", "data.name", "data.mean", "data.std")
# Those of them that stage 1 already settles: it trains no predictor, and every sample counts.
STAGE_ONE_FIELDS = (
    *("model.name", "model.args", "model.pruning_rates"),
    *("model.resolutions", "model.resolution_aware"),
    *("data.name", "data.mean", "data.std"),
)
# Of a timing, for an interval.
LEAST_REPEATS = 5
BUDGETS = ("gmacs", "ms", "max_drop")
# Of ImageNet's channels, in 0..1, as torchvision has them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ConfigError(ValueError):
    """A field is unusable; the message names it and the remedy."""


def is_fitted(config: ConfigDict, stage: str) -> bool:
    """Whether a stage fits the choice to outputs, and takes no steps."""
    chosen = len(config.model.resolutions) > 1
    return chosen and stage == "joint" and config.predictor.objective in FITTED_OBJECTIVES


def what_is_trained(train: str, labels: bool) -> str:
    """What `pretrain.train` stands for: one of `TRAINED_PARTS` but `'auto'`.

    Without labels the largest resolution is what the others learn from: any training of it leads
    away from its own answers (docs/convert.md).

    Args:
      train: the field.
      labels: `convert.labels`.
    """
    if train != "auto":
        return train
    return "last_two_stages" if labels else SMALLER_NORMS


def budget_name(config: ConfigDict) -> str | None:
    """Which budget is set: `'gmacs'`, `'ms'`, `'max_drop'`, or none."""
    return next((name for name in BUDGETS if config.budget[name] is not None), None)


def section_name(stage: str) -> str:
    """The section of the configuration that a stage is trained by; `'single'` shares stage 2's."""
    return "joint" if stage == "single" else stage


def network_in_words(name: str, pruning_rates: Sequence[float]) -> str:
    """What to call the classifier: `'resnet10'`, or `'resnet10 pruned by 0.5/0.25'`."""
    rates = "/".join(f"{rate:g}" for rate in pruning_rates)
    return f"{name} pruned by {rates}" if rates else name


def get_field(config: ConfigDict, name: str) -> Any:
    """The value of a field by its dotted name."""
    for part in name.split("."):
        config = config[part]
    return config


def alpha_target(
    config: ConfigDict, costs: tuple[float, ...], largest: float, unit: str = "GMACs"
) -> float | None:
    """alpha in the unit of the costs, or None without a target.

    Args:
      config: the whole configuration.
      costs: of the classifier by choice (`ModelCost.choice_costs`).
      largest: of the largest resolution alone, of which `joint.alpha_fraction` is a fraction.
      unit: of these.

    Raises:
      ConfigError: a target outside [C_min, C_max], or one although all cost the same.
    """
    joint = config.joint
    if joint.alpha is None and joint.alpha_fraction is None:
        return None
    if len(costs) == 1:
        return costs[0]
    name = "joint.alpha" if joint.alpha is not None else "joint.alpha_fraction"
    if min(costs) == max(costs):
        raise ConfigError(
            f"model.resolutions={tuple(config.model.resolutions)} all cost {costs[0]:.4g} {unit}, "
            f"and {name} is a target: name sides further apart, or set --config.{name}=None"
        )
    target = joint.alpha if joint.alpha is not None else joint.alpha_fraction * largest
    if not min(costs) <= target <= max(costs):
        raise ConfigError(
            f"{name}={get_field(config, name)} is a target of {target:.4g} {unit}, outside "
            f"[{min(costs):.4g}, {max(costs):.4g}], the costs of the cheapest and costliest "
            "choice"
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


def training_fields(flat: dict[str, Any]) -> dict[str, Any]:
    """The fields of a flattened config that tell one training from another."""
    return {name: value for name, value in flat.items() if not name.startswith(RESUMABLE_FIELDS)}


def changed_fields(
    old: dict[str, Any], new: dict[str, Any], *, only: tuple[str, ...] = ("",)
) -> list[str]:
    """Differences in the `training_fields` of two flattened configs, as `field: old -> new`.

    Args:
      old: a flattened config; a field that it lacks, because it is newer, was at its default.
      new: another.
      only: prefixes of the names to look at; default: all.
    """
    old = {n: v for n, v in flatten(default_config()).items() if n in new} | old
    old, new = training_fields(old), training_fields(new)
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if name.startswith(only) and old.get(name) != new.get(name)
    ]
