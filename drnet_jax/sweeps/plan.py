"""Which runs a sweep takes: variants of one configuration, each once, with stage 1 shared.

A variant with `stages=('single',)` is one run, without a stage 1.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from drnet_jax.checkpoints.config_history import comparable
from drnet_jax.checkpoints.picture_sizes import check_sizes, read_sizes
from drnet_jax.checkpoints.restore import (
    check_data,
    read_classes,
    read_config,
    read_identities,
)
from drnet_jax.config import (
    RESUMABLE_FIELDS,
    STAGE_TITLES,
    TWO_STAGES,
    ConfigError,
    changed_fields,
    flatten,
    get_field,
)
from drnet_jax.config_checks import check_config, check_training
from drnet_jax.config_paths import expand_paths
from drnet_jax.data.settings import DataSettings, check_places, data_settings
from drnet_jax.models.create import check_model

Overrides = Mapping[str, Any]
# What stage 1 does not depend on.
_STAGE_TWO = (
    *("joint.", "predictor.", "model.statistics", "model.reuse", "model.min_samples"),
    *RESUMABLE_FIELDS,
)


@dataclass(frozen=True)
class Sweep:
    """Variants of a configuration, by the question they answer.

    Attributes:
      config: the configuration, as `--config` takes it: a file, or a shipped one by its name.
      questions: by question, and in it by variant, the overrides. The first variant is what the
        others are compared with; one that comes up again is run once. `{seed}` in a text stands
        for the seed, so that a run can start from another one of its seed.
      seeds: every variant is run at each.
    """

    config: str
    questions: Mapping[str, Mapping[str, Overrides]]
    seeds: Sequence[int] = (0, 1, 2)


@dataclass(frozen=True)
class Job:
    """One run of a stage.

    Attributes:
      stage: its name, see `drnet_jax.config.STAGES`.
      overrides: of the configuration, by name.
      workdir: of the run, in the sweep's directory.
      config: the flattened configuration, of stage 1 what it depends on.
      data: what its images are read with.
      stage_one: of a run of stage 2, the one it starts from.
    """

    stage: str
    overrides: Overrides
    workdir: Path
    config: dict[str, Any]
    data: DataSettings
    stage_one: "Job | None" = None

    @property
    def name(self) -> str:
        """What to call it."""
        stage = STAGE_TITLES[self.stage]
        return f"{stage}: {', '.join(f'{name}={value}' for name, value in self.overrides.items())}"

    def changed(self, theirs: dict[str, Any]) -> list[str]:
        """In what a run was trained otherwise, by its flattened configuration."""
        theirs = {n: value for n, value in comparable(theirs).items() if n in self.config}
        # The directory may have been moved.
        moved = {n: theirs.get(n) for n in ("joint.init_from",) if n in self.config}
        return changed_fields(theirs, self.config | moved)


@dataclass(frozen=True)
class Plan:
    """The jobs of a sweep.

    Attributes:
      stage_one: in running order.
      stage_two: likewise; those of a single stage too.
      variants: by question and variant, the runs of `stage_two`, one a seed.
    """

    stage_one: list[Job] = field(default_factory=list)
    stage_two: list[Job] = field(default_factory=list)
    variants: dict[str, dict[str, list[Job]]] = field(default_factory=dict)


def make_plan(sweep: Sweep, base: ConfigDict, directory: Path) -> Plan:
    """The jobs of `sweep`, every one checked as far as it can be without the data.

    Args:
      sweep: the questions.
      base: the configuration of `sweep.config`, with what the user has overridden.
      directory: of the sweep.

    Raises:
      ConfigError: nothing to run, an override that names no field, a bad value, or a sweep in its
        own folder of pictures.
    """
    if not sweep.seeds or len(set(sweep.seeds)) != len(sweep.seeds):
        raise ConfigError(f"seeds={tuple(sweep.seeds)} must name one or more seeds, none twice")
    if not sweep.questions or not all(sweep.questions.values()):
        raise ConfigError("the sweep has no question, or one without variants: nothing to run")
    stage_one: dict[Path, Job] = {}
    stage_two: dict[Path, Job] = {}
    plan = Plan()
    for question, variants in sweep.questions.items():
        plan.variants[question] = {}
        for variant, overrides in variants.items():
            jobs = []
            for seed in sweep.seeds:
                changes = _changes(base, _of_seed(overrides, seed))
                if tuple(changes.get("stages", base.stages)) == ("single",):
                    job = _job("single", base, changes, directory)
                else:
                    late = ("stages", *_STAGE_TWO)
                    early = {n: v for n, v in changes.items() if not n.startswith(late)}
                    first = _job("pretrain", base, early, directory / "stage1")
                    first = stage_one.setdefault(first.workdir, first)
                    job = _job("joint", base, changes, directory, first)
                jobs.append(stage_two.setdefault(job.workdir, job))
            plan.variants[question][variant] = jobs
    # One seed after the other: the whole table is there early, and gets its intervals later.
    order = list(sweep.seeds)
    for jobs, found in ((plan.stage_one, stage_one), (plan.stage_two, stage_two)):
        jobs.extend(sorted(found.values(), key=lambda job: order.index(job.config["seed"])))
    return plan


def _of_seed(overrides: Overrides, seed: int) -> dict[str, Any]:
    found = {
        name: value.replace("{seed}", str(seed)) if isinstance(value, str) else value
        for name, value in overrides.items()
    }
    return found | {"seed": seed}


def _changes(base: ConfigDict, overrides: Overrides) -> dict[str, Any]:
    """The overrides that change something, and the seed, by name."""
    old = comparable(flatten(base))
    unknown = sorted(set(overrides) - set(old))
    if unknown:
        raise ConfigError(
            f"the sweep overrides unknown fields: {', '.join(unknown)}; "
            "drnet_jax/config_defaults.py lists them all"
        )
    config = _overridden(base, overrides)
    check_config(config, 1)
    if tuple(config.stages) not in (TWO_STAGES, ("single",)):
        raise ConfigError(
            f"stages={tuple(config.stages)} of a sweep must be ('pretrain', 'joint'), which share "
            "their stage 1, or ('single',)"
        )
    check_training(config, config.stages)
    check_model(config)
    new = comparable(flatten(config))

    def differs(name: str) -> bool:
        """Arguments of another network differ, even if those that are its default are left out."""
        names = (name, name.replace(".args", ".name"))
        return any(new[field] != old[field] for field in names)

    # The values as the configuration holds them: 1 and 1.0 are the same run.
    return {
        name: new[name] if name.endswith(".args") else get_field(config, name)
        for name in sorted(overrides)
        if name == "seed" or differs(name)
    }


def _overridden(base: ConfigDict, overrides: Overrides) -> ConfigDict:
    config = base.copy_and_resolve_references()
    try:
        config.update_from_flattened_dict(dict(overrides))
        expand_paths(config)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the sweep overrides {dict(overrides)}: {error}") from error
    return config


def _job(
    stage: str,
    base: ConfigDict,
    changes: Overrides,
    directory: Path,
    stage_one: Job | None = None,
) -> Job:
    own: dict[str, Any] = {"stages": (stage,)}
    if stage_one is not None:
        own["joint.init_from"] = str(stage_one.workdir)
    overridden = _overridden(base, {**changes, **own})
    check_places(overridden, directory)
    config = comparable(flatten(overridden))
    if stage == "pretrain":
        config = {n: value for n, value in config.items() if not n.startswith(_STAGE_TWO)}
    # An index that cannot be kept beside the data is shared by the sweep.
    data = data_settings(overridden, directory.parent if stage == "pretrain" else directory)
    return Job(stage, changes, directory / _slug(changes), config, data, stage_one)


def _slug(overrides: Mapping[str, Any]) -> str:
    """A name for a directory."""
    parts = []
    for name, value in overrides.items():
        text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
        parts.append(f"{name}={text}")
    return re.sub(r"[^\w.,=+-]", "-", "_".join(parts))


def check_directory(plan: Plan) -> None:
    """Checks that what is in the sweep's directory already is of the same configuration.

    Raises:
      ConfigError: a workdir holds a run with other values.
      CheckpointError: its `config.json` is damaged.
      DataError: as `check_images`.
    """
    for job in (*plan.stage_one, *plan.stage_two):
        if not (job.workdir / "config.json").exists():
            continue
        changed = job.changed(read_config(job.workdir))
        if changed:
            raise ConfigError(
                f"{job.workdir} holds a run with another configuration ({'; '.join(changed)}): "
                "give another --dir, or the same values to resume it"
            )
    check_images(plan)


def check_images(plan: Plan) -> None:
    """Checks that runs of the same data settings, which are compared, have seen the same images.

    Images may come, go or be replaced between one run and the next.

    Raises:
      DataError: two have not.
      CheckpointError: a file beside their checkpoints is damaged.
    """
    first: dict[str, Job] = {}
    for job in plan.stage_two:
        if not (job.workdir / "data.json").exists():
            continue
        data = {n: value for n, value in job.config.items() if n.startswith("data.")}
        other = first.setdefault(json.dumps(data, sort_keys=True), job)
        check_data(other.workdir, read_classes(job.workdir), read_identities(job.workdir))
        check_sizes(other.workdir, read_sizes(job.workdir), data["data.max_corrupt"])
