"""Orbax checkpoints of one stage: the latest ones and the best one; files beside them."""

import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from drnet_jax.checkpoints.checksums import find_damage, has_checksums, write_checksums
from drnet_jax.checkpoints.training_lock import other_training
from drnet_jax.runtime.checked_json import read_json
from drnet_jax.runtime.files import naming
from drnet_jax.runtime.progress import log

T = TypeVar("T")
METRIC = "objective"
# Seconds within which a checkpoint that another process is removing is gone.
_REMOVED_WITHIN = 5.0


class CheckpointError(ValueError):
    """There is no usable checkpoint; the message says where it was looked for."""


class ContentError(CheckpointError):
    """A checkpoint does not hold what was asked for; the message says what Orbax found, alone."""


class StageCheckpoints:
    """The checkpoints of a stage, in `<workdir>/<stage>/<step>`.

    A checkpoint appears under its final name only when it is complete, with checksums of its files;
    a save that was killed leaves a temporary directory, which the next opening removes.

    Args:
      directory: of the stage.
      keep_latest: how many of the newest to keep, beside the best.
      read_only: do not create or clean the directory.

    Raises:
      CheckpointError: read only, and there is no such directory; or the objective of a checkpoint
        is damaged, by which the best is found.
    """

    def __init__(self, directory: Path, *, keep_latest: int = 1, read_only: bool = False) -> None:
        self.directory = directory
        if read_only and not directory.is_dir():
            raise CheckpointError(f"no checkpoint: {directory} does not exist")
        for step in steps(directory):
            _check_objective(directory / str(step))
        logging.getLogger("absl").addFilter(_is_news)
        if not read_only:
            _leave_out_late_errors()
        self._saving = 0
        context = ocp.Context()
        # No bound method: Orbax copies it with the object that it is bound to.
        context.async_options.post_finalization_callback = lambda: self._add_checksums()
        policies = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            directory.resolve(),
            context=context,
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

        Raises:
          OSError: this save, or the one before, could not be written.
        """
        if step == self.latest_step:
            return
        metrics = None if objective is None else {METRIC: objective}
        with self._writing():
            # The checksums of the one before are written until then.
            self._checkpointer.wait()
            self._saving = step
            self._checkpointer.save_async(step, state, force=True, metrics=metrics)

    def _add_checksums(self) -> None:
        """Orbax calls it on the first process once all have written, before the final name.

        Raises:
          RuntimeError: what was written is not found.
        """
        found = list(self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"))
        if not found:
            raise RuntimeError(
                f"no checksums for step {self._saving} in {self.directory}: this version of Orbax "
                "gives its temporary folders another name than *.orbax-checkpoint-tmp*"
            )
        for temporary in found:
            write_checksums(temporary)

    def load(self, step: int, like: T) -> T:
        """Restores the state of `step` with the structure, dtypes and placement of `like`.

        Raises:
          CheckpointError: a file of it is not as it was written, or the checkpoint was removed.
          ContentError: it holds something else.
        """
        with self._verified(step):
            return self._checkpointer.load(step, jax.tree.map(_abstract, like))

    def load_partial(self, step: int, like: Any) -> Any:
        """Restores only what `like` names of the state of `step`; raises as `load`."""
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with self._verified(step), context:
            path = self.directory.resolve() / str(step)
            return ocp.load(path, jax.tree.map(_abstract, like))

    @contextmanager
    def _verified(self, step: int) -> Iterator[None]:
        """Reading of a checkpoint whose files are as they were written."""
        path, doubt = self.directory / str(step), ""
        if has_checksums(path):
            _stop_for(path, find_damage(path))
        else:
            doubt = "; or it is damaged, which no checksums tell"
            log(f"{path} has no checksums, as of earlier versions: damage may go unnoticed")
        try:
            yield
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            _stop_if_removed(path)
            raise ContentError(_cause(error) + doubt) from error

    def close(self) -> None:
        """Waits until the last save is complete.

        Raises:
          OSError: it could not be written.
        """
        with self._writing():
            self._checkpointer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises what the operating system says of writing as its own error, naming the folder."""
        try:
            with naming(self.directory):
                yield
        except ValueError as error:
            # TensorStore has it in the text.
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code is None:
                raise
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(self.directory)) from error

    def __enter__(self) -> "StageCheckpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Saving takes all processes, and one of them may be gone.
        if kind is None or jax.process_count() == 1:
            self.close()


def _is_news(record: logging.LogRecord) -> bool:
    """Orbax logs, each with a traceback, the errors of its threads, and raises them again."""
    return record.exc_info is None or "orbax" not in Path(record.pathname).parts


def _leave_out_late_errors() -> None:
    """Lets Python say nothing of the arrays that fail after the first one of a save.

    TensorStore tells an event loop of each, which Orbax has closed by then: on a full disk that
    would be a traceback an array, before the one line of the error.
    """
    hook = sys.unraisablehook
    if not (isinstance(hook, partial) and hook.func is _unless_late):
        sys.unraisablehook = partial(_unless_late, hook)


def _unless_late(hook: Callable[[Any], object], unraisable: Any) -> None:
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        hook(unraisable)


def _cause(error: BaseException) -> str:
    """What Orbax could not load, in a line: the error that its others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    # The second line names the first array that differs.
    return " ".join(map(str.strip, str(error).splitlines()[:2])).rstrip(":")


def steps(directory: Path) -> list[int]:
    """The steps of the checkpoints in the directory of a stage, ascending."""
    if not directory.is_dir():
        return []
    found = (path for path in directory.iterdir() if path.name.isdecimal() and path.is_dir())
    return sorted(int(path.name) for path in found)


def instead_of(checkpoint: Path) -> str:
    """The remedy for a checkpoint that cannot be used, in words: the intact ones beside it."""
    intact = _intact_beside(checkpoint)
    if not intact:
        return (
            f"restore it from a copy, or remove {checkpoint.parent} and train the stage anew: no "
            "other checkpoint of it is known to be intact"
        )
    return (
        f"restore it from a copy, or remove {checkpoint} and run the same command: it goes on from "
        f"what is left, of which step {' and step '.join(intact)} is intact"
    )


def _intact_beside(checkpoint: Path) -> list[str]:
    """The steps of the others of its stage that are known to be intact, ascending."""
    beside = [checkpoint.parent / str(step) for step in steps(checkpoint.parent)]
    return [
        path.name
        for path in beside
        if path != checkpoint and has_checksums(path) and not find_damage(path)
    ]


def _check_objective(checkpoint: Path) -> None:
    """Stops if the objective of a checkpoint is not what was saved."""
    if has_checksums(checkpoint):
        _stop_for(checkpoint, find_damage(checkpoint, under="metrics/"))
        return
    path = checkpoint / "metrics" / "metrics"
    try:
        if path.exists() and not math.isfinite(read_json(path)[METRIC]):
            raise ValueError(f"{METRIC} is not finite")
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        _stop_for(checkpoint, f"{path} is damaged ({error})")


def _stop_for(checkpoint: Path, damage: str) -> None:
    """Stops for a damaged file of a checkpoint; empty: there is none."""
    if not damage:
        return
    _stop_if_removed(checkpoint)
    raise CheckpointError(f"{damage}; {_training_helps(checkpoint)}{instead_of(checkpoint)}")


def _training_helps(checkpoint: Path) -> str:
    """A further remedy for a damaged one: of the latest that the training computes it anew."""
    intact = _intact_beside(checkpoint)
    if not intact or steps(checkpoint.parent)[-1:] != [int(checkpoint.name)]:
        return ""
    return f"run the training again, which computes it anew from step {intact[-1]}; or "


def _stop_if_removed(checkpoint: Path) -> None:
    """Stops if a checkpoint is gone, or going: a training beside removes one file by file."""
    until = time.monotonic() + _REMOVED_WITHIN
    workdir = checkpoint.parent.parent
    while checkpoint.is_dir() and time.monotonic() < until and other_training(workdir):
        time.sleep(0.05)
    if not checkpoint.is_dir():
        raise CheckpointError(
            f"{checkpoint} was removed while it was read, as a training does that saves newer "
            "ones: run the command again"
        )


def read_object(path: Path, remedy: str = "restore it from a copy") -> dict[str, Any]:
    """The JSON object in a file of a run.

    Args:
      path: of the file.
      remedy: for one that is damaged.

    Raises:
      CheckpointError: it holds no such thing, or not what was written.
    """
    try:
        return read_json(path)
    except ValueError as error:
        raise damaged(path, error, remedy) from error


def damaged(path: Path, why: object, remedy: str = "restore it from a copy") -> CheckpointError:
    """What to raise for a file of a run that does not hold what it should."""
    return CheckpointError(f"{path} is damaged ({why}): {remedy}")


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
