"""The folder of a prediction job: which job, which pictures, and how far it has come."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from shlex import quote
from typing import Any

from drnet_jax.config import ConfigError
from drnet_jax.config_fields import FIELDS
from drnet_jax.data.files import printable, version
from drnet_jax.inference.programs import CostTable, Program
from drnet_jax.reports.predictions import GlancePrediction, Prediction, Unreadable
from drnet_jax.runtime.checked_json import read_json
from drnet_jax.runtime.files import write_json
from drnet_jax.runtime.locks import locked
from drnet_jax.runtime.progress import log
from drnet_jax.runtime.table import Table

Job = Mapping[str, Any]
_LOCK = "predict.lock"


@dataclass(frozen=True)
class JobDevice:
    """What a job runs on; its results depend on it by no more than rounding.

    Attributes:
      kind: of the device, as JAX calls it.
      buckets: of every network there, in the order of `InferenceEngine.programs`.
    """

    kind: str
    buckets: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, programs: Sequence[Program]) -> "JobDevice":
        """That of compiled networks."""
        kind = programs[0].network.device.device_kind
        return cls(kind, tuple(program.buckets for program in programs))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "JobDevice":
        """The one whose `asdict` was kept as JSON.

        Raises:
          ValueError: it is something else; or KeyError, TypeError.
        """
        kind, buckets = content["kind"], tuple(tuple(sizes) for sizes in content["buckets"])
        if not isinstance(kind, str) or not all(type(n) is int for n in chain(*buckets)):
            raise ValueError("its device is not a kind and numbers of images")
        return cls(kind, buckets)

    def __str__(self) -> str:
        different = dict.fromkeys("/".join(map(str, sizes)) for sizes in self.buckets)
        return f"{self.kind} (buckets {' and '.join(different)})"


@dataclass(frozen=True)
class JobState:
    """What `predict.json` says of a job that is not finished.

    Attributes:
      job: what it depends on, by name: JSON values. One with `'first_look'` is of a model that
        takes one: its rows are those of `GlancePrediction`.
      times: the measured ones that its buckets are planned by; None: proportional ones.
      pictures: by name, in the order of the tables, which version of each the job was begun with
        (`data.files.version`).
      device: that it was begun on; None: it is of a version that did not say so, or none of its
        workers has answered yet.
    """

    job: Job
    times: CostTable | None
    pictures: dict[str, str]
    device: JobDevice | None = None


def read_state(output: Path) -> JobState | None:
    """The job that was begun in a folder; None if it is new or empty.

    Raises:
      ConfigError: the job is finished, or the folder holds something else.
    """
    # What a killed process was writing, and its lock, count as none; `locked_output`.
    if not output.exists() or (
        output.is_dir() and {*output.iterdir()} <= {output / _LOCK, *_left(output)}
    ):
        return None
    path = output / "predict.json"
    remedy = "give another folder, --config.predict.output=..., or remove it"
    if not path.is_file():
        raise ConfigError(f"{output} exists and is not overwritten: {remedy}")
    try:
        content = read_json(path)
        if content["finished"]:
            raise ConfigError(f"{output} exists, is finished, and is not overwritten: {remedy}")
        state = _parse(content["job"], content["bucket_seconds"], content["pictures"])
        device = content.get("device")
        return replace(state, device=None if device is None else JobDevice.from_json(device))
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error!r}): {remedy}") from error


def _parse(job: Job, times: Mapping[str, Any] | None, pictures: dict[str, str]) -> JobState:
    """The state from its parts as JSON has them.

    Raises:
      ValueError: they are something else; or KeyError, TypeError, AttributeError.
    """
    if not isinstance(pictures, dict) or not all(isinstance(v, str) for v in pictures.values()):
        raise ValueError("its pictures are not named with their versions")
    if (times is not None) != job["inference.measure"]:
        raise ValueError("bucket_seconds and inference.measure do not go together")
    table = None
    if times is not None:
        table = CostTable.from_json(times)
        _check_times(table, job)
    return JobState(dict(job), table, pictures)


def _check_times(table: CostTable, job: Job) -> None:
    """Stops if the times are not those of a job's networks.

    Raises:
      ValueError: they are of others.
    """
    # No buckets: those of the device.
    m, listed = len(job["resolutions"]), set(job["inference.buckets"])
    # A single resolution needs no predictor.
    has = (len(table.classifiers), table.predictor is not None, table.glances)
    if has != (m, m > 1, "first_look" in job):
        raise ValueError("bucket_seconds are of other networks than its resolutions'")
    for seconds in (table.predictor, *table.classifiers):
        if seconds is not None and (
            set(seconds) != (listed or set(seconds))
            or not seconds
            or not all(value > 0 for value in seconds.values())
        ):
            raise ValueError(f"bucket_seconds are not of the buckets {sorted(listed)}")


def check_same(output: Path, state: JobState, job: Job) -> None:
    """Stops if another job was begun in the folder.

    Raises:
      ConfigError: naming what differs.
    """
    differ = [
        f"{name} {state.job.get(name)!r}, now {job.get(name)!r}"
        for name in dict.fromkeys((*state.job, *job))
        if state.job.get(name) != job.get(name)
    ]
    if differ:
        raise ConfigError(
            f"{output} holds an unfinished job with {'; '.join(differ)}: run it as it was begun"
            f"{_as_begun(state.job, job)}, give another folder, --config.predict.output=..., or "
            "remove this one"
        )


def _as_begun(begun: Job, job: Job) -> str:
    """How a command sets the fields that a job was begun with and that are others now."""
    options = [
        f"--config.{name}={quote(str(tuple(value) if isinstance(value, list) else value))}"
        for name, value in begun.items()
        if name in FIELDS and job.get(name) != value
    ]
    return f" ({' '.join(options)})" if options else ""


def say_device(state: JobState, here: JobDevice) -> None:
    """Says where the rest of a job runs on something else than its beginning did."""
    if state.device not in (None, here):
        log(f"it was begun on {state.device}, this is {here}: results agree up to rounding")


def check_unchanged(output: Path, root: Path, state: JobState, kept: Collection[str]) -> None:
    """Stops where results are of what was there before an interruption and is replaced now.

    Args:
      output: the folder of the job.
      root: of the names.
      state: of the job.
      kept: names of the pictures that have results.

    Raises:
      ConfigError: naming the pictures.
    """
    changed = [
        printable(name)
        for name in sorted(kept)
        # One that is gone since was what its row says.
        if version(root / name) not in ("", state.pictures[name])
    ]
    if changed:
        raise ConfigError(
            f"{output} holds results of {len(changed)} pictures that were changed since the job "
            f"was begun ({', '.join(changed[:3])}): give another folder, "
            "--config.predict.output=..., or remove this one"
        )


def _left(folder: Path) -> list[Path]:
    """What killed processes were writing (`replacing`); other files are the user's."""
    return [path for path in folder.glob(".*.tmp") if path.is_file()]


@contextmanager
def locked_output(output: Path) -> Iterator[None]:
    """Keeps other prediction jobs from a folder, which may not exist yet; see `locked`.

    What a killed process was writing there is removed.

    Raises:
      ConfigError: another process writes to it; it is named.
      OSError: it cannot be written to.
    """
    # The folder itself, which may not exist, whatever it is called here.
    folder = output.resolve()
    remedy = "wait until it ends, or give another folder, --config.predict.output=..."
    with locked(folder / _LOCK, f"writes predictions to {folder}", remedy):
        for path in _left(folder):
            path.unlink()
        yield


def write_state(output: Path, state: JobState, *, finished: bool) -> None:
    """Writes `predict.json`.

    It has the names of the pictures until the job is finished: whatever files come or go before it
    is resumed, its batches stay the same ones.
    """
    content = {
        "finished": finished,
        "job": dict(state.job),
        "bucket_seconds": None if state.times is None else asdict(state.times),
        "device": None if state.device is None else asdict(state.device),
    }
    if not finished:
        content["pictures"] = state.pictures
    write_json(output / "predict.json", content)


class PredictionTables:
    """The results of a job, appended batch by batch to those that are there already.

    Args:
      output: the folder; `locked_output`.
      state: of the job.
      batch_size: pictures whose results are appended at once.

    Attributes:
      done: how many of the pictures, in whole batches from the first on, have their results.
      kept: names of the pictures whose results were there already.

    Raises:
      ConfigError: the tables hold something else than the first results of this job.
    """

    def __init__(self, output: Path, state: JobState, batch_size: int) -> None:
        row: type[Prediction] = GlancePrediction if "first_look" in state.job else Prediction
        self._predictions = Table(output / f"predictions.{state.job['format']}", row)
        self._unreadable = Table(output / "unreadable.csv", Unreadable)
        try:
            parts = [
                [row.file for row in self._predictions.repair()],
                [row.file for row in self._unreadable.repair()],
            ]
            self.done = _whole_batches([*state.pictures], parts, batch_size)
        except ValueError as error:
            raise ConfigError(
                f"the tables in {output} are not what this job wrote ({error}): remove the folder, "
                "or give another one, --config.predict.output=..."
            ) from error
        # With what was still written of a batch whose rest was not.
        self.kept = {name for part in parts for name in part}

    def append(self, predictions: Sequence[Prediction], unreadable: Sequence[Unreadable]) -> None:
        """Writes the results of the next batch to the disk."""
        self._predictions.append([row for row in predictions if row.file not in self.kept])
        self._unreadable.append([row for row in unreadable if row.file not in self.kept])

    def read(self) -> tuple[list[Prediction], list[Unreadable]]:
        """All results."""
        return self._predictions.read(), self._unreadable.read()


def _whole_batches(names: Sequence[str], parts: Sequence[Sequence[str]], batch_size: int) -> int:
    """How many names the first whole batches have that the parts hold.

    Args:
      names: all of them, in order.
      parts: names that are done, each part in the same order.
      batch_size: names in a batch.

    Raises:
      ValueError: the parts are not the names of the first batches and some of the next one.
    """
    place = {name: index for index, name in enumerate(names)}
    places = []
    for part in parts:
        if not place.keys() >= set(part):
            raise ValueError(f"{min(set(part) - place.keys())!r} is none of its pictures")
        mine = [place[name] for name in part]
        if any(before >= after for before, after in zip(mine, mine[1:], strict=False)):
            raise ValueError("their rows are in another order")
        places += mine
    places.sort()
    done = len(places) if len(places) == len(names) else len(places) // batch_size * batch_size
    following = places[done:]
    if places[:done] != list(range(done)) or len(set(following)) < len(following):
        raise ValueError("rows are missing, or there twice")
    if following and following[-1] >= done + batch_size:
        raise ValueError("rows are missing")
    return done
