"""Orbax checkpoints of one stage: the latest ones and the best one; files beside them."""

import json
from pathlib import Path
from typing import Any, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

T = TypeVar("T")
METRIC = "objective"


class CheckpointError(ValueError):
    """There is no usable checkpoint; the message says where it was looked for."""


class StageCheckpoints:
    """The checkpoints of a stage, in `<workdir>/<stage>/<step>`.

    A checkpoint appears under its final name only when it is complete; a save that was killed
    leaves a temporary directory, which the next opening removes.

    Args:
      directory: of the stage.
      keep_latest: how many of the newest to keep, beside the best.
      read_only: do not create or clean the directory.
    """

    def __init__(self, directory: Path, *, keep_latest: int = 1, read_only: bool = False) -> None:
        self.directory = directory
        if read_only and not directory.is_dir():
            raise CheckpointError(f"no checkpoint: {directory} does not exist")
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            directory.resolve(),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep_latest),
                    # Sorted descending, the last n are kept: the lowest objective.
                    policies.BestN(
                        get_metric_fn=lambda metrics: metrics[METRIC],
                        reverse=True,
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=not read_only,
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, None without one."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best_step(self) -> int | None:
        """The step of the lowest objective; without any objective, the latest."""
        scored = [c for c in self._checkpointer.checkpoints if c.metrics]
        if not scored:
            return self.latest_step
        # Of equal ones the latest, which is the one that BestN keeps.
        return min(scored, key=lambda c: (c.metrics[METRIC], -c.step)).step

    def saved_at(self, step: int) -> int:
        """When the checkpoint of `step` was complete, in ns since 1970."""
        return self._checkpointer.metadata(step).commit_timestamp_nsecs or 0

    def save(self, step: int, state: Any, *, objective: float | None = None) -> None:
        """Saves in the background; waits for an earlier save that still runs.

        A step that is there already is left alone. The state may be donated afterwards: while
        Orbax writes it, JAX does not reuse its buffers.
        """
        if step == self.latest_step:
            return
        metrics = None if objective is None else {METRIC: objective}
        self._checkpointer.save_async(step, state, force=True, metrics=metrics)

    def load(self, step: int, like: T) -> T:
        """Restores the state of `step` with the structure, dtypes and placement of `like`."""
        return self._checkpointer.load(step, jax.tree.map(_abstract, like))

    def load_partial(self, step: int, like: Any) -> Any:
        """Restores only what `like` names of the state of `step`."""
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            path = self.directory.resolve() / str(step)
            return ocp.load(path, jax.tree.map(_abstract, like))

    def close(self) -> None:
        """Waits until the last save is complete."""
        self._checkpointer.close()

    def __enter__(self) -> "StageCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cause(error: BaseException) -> str:
    """What Orbax could not load, in a line: the error that its others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    # The second line names the first array that differs.
    return " ".join(map(str.strip, str(error).splitlines()[:2])).rstrip(":")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a run.

    Raises:
      CheckpointError: it holds no such thing.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise damaged(path, error) from error
    if not isinstance(found, dict):
        raise damaged(path, f"{type(found).__name__}, no object")
    return found


def damaged(path: Path, why: object) -> CheckpointError:
    """What to raise for a file of a run that does not hold what it should."""
    return CheckpointError(f"{path} is damaged ({why}): restore it from a copy")


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
