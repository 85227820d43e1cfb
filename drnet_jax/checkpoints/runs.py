"""What a workdir says of its run: finished stages, and the model without a config file."""

from pathlib import Path

from ml_collections import ConfigDict

from drnet_jax.checkpoints.checkpoint import CheckpointError, damaged, read_object, steps
from drnet_jax.checkpoints.restore import RestoredModel, read_config, restore_model
from drnet_jax.config import RESUMABLE_FIELDS, default_config, flatten


def finished_path(workdir: Path, stage: str) -> Path:
    """The file that is there once a stage of the run in `workdir` has run to its end."""
    return workdir / f"{stage}_finished.json"


def is_finished(workdir: Path, stage: str) -> bool:
    """Whether a stage has run to its end, and its last checkpoint is still there.

    Raises:
      CheckpointError: the file that says so is damaged.
    """
    path = finished_path(workdir, stage)
    if not path.exists():
        return False
    remedy = "remove it, and run the training once more, which writes it anew"
    num_steps = read_object(path, remedy).get("num_steps")
    if type(num_steps) is not int:
        raise damaged(path, "it has no num_steps", remedy)
    return steps(workdir / stage)[-1:] == [num_steps]


def load_run(workdir: str | Path) -> RestoredModel:
    """The best checkpoint of the last stage that has one, with its variables.

    The model is that of the run's own `config.json`; see `stored_config`.

    Args:
      workdir: of the run.

    Raises:
      CheckpointError: no checkpoint, a file beside it is missing or damaged, or the run is of
        another version of the program.
    """
    workdir = Path(workdir)
    return restore_model(stored_config(workdir), workdir)


def stored_config(workdir: Path) -> ConfigDict:
    """The configuration that a run was trained with, from its `config.json`.

    Fields that are newer than the run stay at their default. Fields that there are no more are left
    out if they do not change what is trained.

    Args:
      workdir: of the run.

    Raises:
      CheckpointError: it is missing or damaged, or holds fields or values that this version of the
        program does not know.
    """
    config = default_config()
    defaults = flatten(config)
    stored = read_config(workdir)
    path = workdir / "config.json"
    unknown = [
        name for name in stored.keys() - defaults.keys() if not name.startswith(RESUMABLE_FIELDS)
    ]
    if unknown:
        raise CheckpointError(
            f"{path} has fields that are unknown here ({', '.join(sorted(unknown))}): use the "
            "version of drnet_jax that trained it"
        )
    known = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored.items()
        if name in defaults
    }
    try:
        config.update_from_flattened_dict(known)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has a value of another type: {error}") from error
    return config
