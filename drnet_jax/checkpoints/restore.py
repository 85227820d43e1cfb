"""From a checkpoint to model variables, without optimiser state."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from drnet_jax.checkpoints.checkpoint import (
    CheckpointError,
    ContentError,
    StageCheckpoints,
    damaged,
    read_object,
)
from drnet_jax.checkpoints.config_history import comparable
from drnet_jax.checkpoints.finite import check_restored
from drnet_jax.checkpoints.measured_cost import is_measured, read_measured
from drnet_jax.checkpoints.training_lock import other_training
from drnet_jax.config import (
    MODEL_FIELDS,
    SPLITS,
    STAGES,
    changed_fields,
    default_config,
    flatten,
    section_name,
    training_fields,
)
from drnet_jax.config_fields import FIELDS
from drnet_jax.data.sources import DataError
from drnet_jax.models.create import check_model, create_model
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import ModelCost, model_cost
from drnet_jax.models.variables import classifier_variables, init_variables, merge_variables
from drnet_jax.runtime.files import write_json
from drnet_jax.runtime.progress import log
from drnet_jax.runtime.sharding import create_mesh, replicated_sharding


@dataclass(frozen=True)
class TrainedModel:
    """What is known of a trained model without reading its variables.

    Attributes:
      model: the network.
      cost: of its networks, with times where its choices are made by those.
      stage: the stage the checkpoint is of; after `'pretrain'` the predictor is untrained.
      step: the step of that stage.
      saved_at: when the checkpoint was saved, in ns since 1970.
      origin: the workdir of the run.
      classes: their names, in the order of the logits.
      identities: of the train, calibration and test splits it was trained with.
      config: what it was trained with, as `read_config` gives it: flattened, in today's fields,
        newer ones at their default.
    """

    model: DRNet
    cost: ModelCost
    stage: str
    step: int
    saved_at: int
    origin: Path
    classes: tuple[str, ...]
    identities: dict[str, str]
    config: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """Its directory."""
        return self.origin / self.stage / str(self.step)


@dataclass(frozen=True)
class RestoredModel(TrainedModel):
    """A trained model with its variables.

    Attributes:
      variables: parameters and statistics, on every device of `mesh`.
      mesh: the devices.
    """

    variables: Any
    mesh: Mesh


def find_model(config: ConfigDict, origin: Path) -> TrainedModel:
    """The best checkpoint of the last stage that has one; says so beside a running training.

    Args:
      config: with the model the checkpoint was trained with.
      origin: the workdir of the run.

    Raises:
      CheckpointError: no checkpoint, one of another model, or a file beside it is missing or
        damaged.
    """
    stage = find_stage(origin)
    trained = trained_config(config, origin)
    data = _read_data(origin)
    classes = tuple(data["classes"])
    model = create_model(config, len(classes))
    with StageCheckpoints(origin / stage, read_only=True) as checkpoints:
        step = checkpoints.best_step
        assert step is not None
        saved_at = checkpoints.saved_at(step)
    if other := other_training(origin):
        log(f"{other}: what is read is step {step} of {stage}")
    cost = model_cost(model)
    if is_measured(trained["joint.cost"], stage, model):
        cost = replace(cost, measured=read_measured(origin, len(model.resolutions)))
    identities = data["identities"]
    return TrainedModel(model, cost, stage, step, saved_at, origin, classes, identities, trained)


def restore_variables(trained: TrainedModel) -> RestoredModel:
    """Reads the variables of a model, on any number of devices.

    Raises:
      CheckpointError: the checkpoint is damaged, not finite, of another model, or was removed since
        the model was found.
    """
    mesh = create_mesh()
    initial = init_variables(trained.model, jax.random.key(trained.config["seed"]))
    initial = jax.device_put(initial, replicated_sharding(mesh))
    stage = trained.stage
    with StageCheckpoints(trained.origin / stage, read_only=True) as checkpoints:
        ema = trained.config[f"{section_name(stage)}.ema_decay"] > 0
        variables = load_variables(checkpoints, trained.step, initial, stage=stage, ema=ema)
    facts = {field.name: getattr(trained, field.name) for field in fields(TrainedModel)}
    return RestoredModel(**facts, variables=variables, mesh=mesh)


def restore_model(config: ConfigDict, origin: Path) -> RestoredModel:
    """`find_model` and `restore_variables`."""
    return restore_variables(find_model(config, origin))


def check_predictor(restored: TrainedModel) -> None:
    """Stops after stage 1 alone.

    Raises:
      CheckpointError: the model has no trained predictor.
    """
    if restored.stage == "pretrain" and restored.model.predictor is not None:
        raise CheckpointError(
            f"{restored.origin} holds stage 1 only, without a trained predictor: train stage 2"
        )


def trained_config(
    config: ConfigDict, origin: Path, *, fields: tuple[str, ...] = MODEL_FIELDS
) -> dict[str, Any]:
    """The flattened configuration that the run in `origin` was trained with.

    Args:
      config: the present one.
      origin: the workdir of the run.
      fields: prefixes of the names that have to agree.

    Raises:
      CheckpointError: it is missing or damaged, or `config` describes another model or another
        input.
      ConfigError: `config` describes no model.
    """
    trained = read_config(origin)
    check_model(config)
    changed = changed_fields(trained, comparable(flatten(config)), only=fields)
    if changed:
        raise CheckpointError(
            f"{origin} holds another model than the configured one ({'; '.join(changed)}); give "
            "the config and overrides it was trained with"
        )
    return trained


def read_config(origin: Path) -> dict[str, Any]:
    """The flattened, comparable configuration of a run; newer fields are at their default.

    Raises:
      CheckpointError: it is missing or damaged.
    """
    path = origin / "config.json"
    if not path.exists():
        raise _missing(path, "what the checkpoints beside it hold")
    stored = read_object(path)
    try:
        found = flatten(default_config()) | comparable(stored)
    # Names and arguments of networks that are no text.
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error
    for name, value in training_fields(found).items():
        complaint = FIELDS[name].complaint(value) if name in FIELDS else ""
        if complaint:
            raise damaged(path, f"{name}={value!r} {complaint}")
    return found


def _missing(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is missing, which says {what}: restore it from a copy, or train in another "
        "--workdir"
    )


def write_data(workdir: Path, classes: tuple[str, ...], identities: dict[str, str]) -> None:
    """Keeps beside the checkpoints what they were trained on.

    Args:
      workdir: of the run.
      classes: their names, in the order of the logits.
      identities: of the train, calibration and test splits.
    """
    write_json(workdir / "data.json", {"classes": list(classes), "identities": identities})


def read_classes(origin: Path) -> tuple[str, ...]:
    """The classes that the run in `origin` was trained on, in the order of the logits.

    Raises:
      CheckpointError: they are missing or damaged.
    """
    return tuple(_read_data(origin)["classes"])


def read_identities(origin: Path) -> dict[str, str]:
    """Those of the splits that the run in `origin` was trained with.

    Raises:
      CheckpointError: they are missing or damaged.
    """
    return _read_data(origin)["identities"]


def check_data(origin: Path, classes: tuple[str, ...], identities: dict[str, str]) -> None:
    """Compares classes and splits with those of the run in `origin`.

    A picture more or less draws the splits by seed anew, and training images would be tested on.

    Args:
      origin: the workdir of the run.
      classes: of the present data set.
      identities: of all or some of its splits.

    Raises:
      CheckpointError: what the run was trained on is missing or damaged.
      DataError: the classes differ, in their order too, or a split holds other images.
    """
    trained = _read_data(origin)
    if list(classes) != trained["classes"]:
        old, new = set(trained["classes"]), set(classes)
        what = f"lacking: {sorted(old - new)[:5]}, new: {sorted(new - old)[:5]}"
        raise DataError(
            f"{origin} was trained on {len(old)} classes, and the data set has {len(new)}, not the "
            f"same ones in the same order ({what}); set data.dir to the data of that run"
        )
    changed = [name for name in identities if identities[name] != trained["identities"][name]]
    if changed:
        raise DataError(
            f"the images of {' and '.join(changed)} are not those that {origin} was trained with: "
            "pictures came or went, or fields that split the data differ (data.split_seed, "
            "data.test_fraction, data.calibration_fraction). Restore them, or train in another "
            "--workdir; corrupt pictures may stay, see data.skip_corrupt"
        )


def _read_data(origin: Path) -> dict[str, Any]:
    path = origin / "data.json"
    if not path.exists():
        raise _missing(path, "what the checkpoints beside it were trained on")
    data = read_object(path)
    classes, identities = data.get("classes"), data.get("identities")
    if not isinstance(classes, list) or not classes or not _all_text(classes):
        raise damaged(path, "it names no classes")
    if (
        not isinstance(identities, dict)
        or not identities.keys() >= set(SPLITS)
        or not _all_text(identities.values())
    ):
        raise damaged(path, "it does not identify every split")
    return data


def _all_text(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


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
    looked = ", ".join(str(origin / stage) for stage in STAGES)
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
      CheckpointError: the checkpoint is damaged, not finite, or of another model.
    """
    wanted = classifier_variables(initial) if stage == "pretrain" else initial
    collections = {name: tree for name, tree in wanted.items() if name != "params"}
    like: Any = {"params": wanted["params"], "collections": collections}
    try:
        loaded = checkpoints.load_partial(step, {"ema": like} if ema else like)
    except ContentError as error:
        raise _other_model(checkpoints, step, str(error)) from error
    # Orbax leaves the description in the place of what a checkpoint lacks.
    lacking = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(loaded)
        if isinstance(leaf, jax.ShapeDtypeStruct)
    ]
    if lacking:
        raise _other_model(checkpoints, step, f"it lacks {len(lacking)} arrays, {lacking[0]} first")
    loaded = loaded["ema"] if ema else loaded
    check_restored(loaded, checkpoints.directory / str(step))
    return merge_variables(initial, {"params": loaded["params"], **loaded["collections"]})


def _other_model(checkpoints: StageCheckpoints, step: int, why: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {checkpoints.directory}/{step} is not of the configured model: {why}"
    )
