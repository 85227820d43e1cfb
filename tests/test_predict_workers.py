"""Predictions by several workers: the tables of one process, whatever is killed.

`experiments/ray_predict.py` kills the workers and the driver of whole predictions.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import pytest

from drnet_jax.checkpoints.finite import NotFiniteError
from drnet_jax.config import ConfigError
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.inference.files import FileClassifier
from drnet_jax.predict import restore_and_predict
from drnet_jax.reports import prediction_batches
from drnet_jax.runtime import ray_workers
from drnet_jax.runtime.ray_workers import map_on_workers
from tests.pictures import png
from tests.random_model import write_run
from tests.ray_functions import Absent, Fatal
from tests.small_run import small_config

NUM_IMAGES, BATCH = 37, 4
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra 'ray'")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("trained")
    write_run(small_config(), workdir, tuple("0123456789"))
    return workdir


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, every tenth of which is none."""
    root = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(compose("test", NUM_IMAGES)["image"]):
        (root / f"{number:02}.png").write_bytes(b"" if number % 10 == 3 else png(image))
    return root


@pytest.fixture(scope="module")
def whole(workdir: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one process."""
    output = tmp_path_factory.mktemp("whole")
    restore_and_predict(config_for(root, output, workers=0), workdir)
    return contents(output)


def config_for(root: Path, output: Path, *, workers: int = 2, **further: Any) -> Any:
    fields = {"predict.input": str(root), "predict.output": str(output), "predict.gallery": 0}
    fields |= {"predict.workers": workers, "eval.batch_size": BATCH, "inference.measure": False}
    return small_config(**fields | further)


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


def in_turns(stop_at: int | None) -> Callable[..., Iterator[Any]]:
    """As workers that share nothing with this process; Ctrl-C comes before a shard."""

    def mapped(function: Any, inputs: Sequence[Any], workers: int) -> Iterator[Any]:
        copies = [pickle.loads(pickle.dumps(function)) for _ in range(workers)]
        for number, value in enumerate(inputs):
            if number == stop_at:
                raise KeyboardInterrupt
            yield pickle.loads(pickle.dumps(copies[number % workers](value)))

    return mapped


def test_shards_become_the_tables_of_one_process(
    workdir: Path,
    root: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Interrupted after two shards of 16 files, and then in one process or in several again."""
    monkeypatch.setattr("drnet_jax.predict.check_ray", lambda _: None)
    monkeypatch.setattr(prediction_batches, "map_on_workers", in_turns(None))
    restore_and_predict(config_for(root, tmp_path / "at_once"), workdir)
    assert contents(tmp_path / "at_once") == whole
    output = tmp_path / "output"
    for stop_at, rows in ((1, 16), (1, 32)):
        monkeypatch.setattr(prediction_batches, "map_on_workers", in_turns(stop_at))
        with pytest.raises(KeyboardInterrupt):
            restore_and_predict(config_for(root, output), workdir)
        tables = [(output / name).read_bytes() for name in ("predictions.csv", "unreadable.csv")]
        assert sum(table.count(b"\n") - 1 for table in tables) == rows
    monkeypatch.setattr(prediction_batches, "map_on_workers", in_turns(None))
    summary = restore_and_predict(config_for(root, output), workdir)
    assert contents(output) == whole
    assert (summary["num_images"], summary["num_unreadable"]) == (NUM_IMAGES - 4, 4)
    assert "begun on" not in capsys.readouterr().out


def test_a_worker_without_an_answer_says_why(
    workdir: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, whichever process it is in."""
    monkeypatch.setattr("drnet_jax.predict.check_ray", lambda _: None)
    monkeypatch.setattr(prediction_batches, "map_on_workers", in_turns(None))

    def overflows(*_: Any, **__: Any) -> Any:
        raise NotFiniteError("cat.png", None, jax.numpy.zeros(1))

    monkeypatch.setattr(FileClassifier, "classify_batches", overflows)
    with pytest.raises(ConfigError, match="^the outputs of the model are not finite for cat.png$"):
        restore_and_predict(config_for(root, tmp_path / "output"), workdir)


def test_what_workers_cannot_do_is_said_first(
    workdir: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(words: str, **further: Any) -> None:
        with pytest.raises(ConfigError, match=words):
            restore_and_predict(config_for(root, tmp_path / "output", **further), workdir)

    refused("--config.inference.measure=False", **{"inference.measure": True})
    monkeypatch.setattr(ray_workers, "find_spec", lambda _: None)
    refused(r"predict.workers=2 needs Ray: pip install 'drnet-jax\[ray\]'")
    monkeypatch.setattr(ray_workers, "find_spec", lambda _: True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    refused("would keep a gpu from the workers; run it with JAX_PLATFORMS=cpu")
    assert not (tmp_path / "output").exists()
    with pytest.raises(ConfigError, match="2 GPUs here: one worker a GPU, so .*workers=2 or less"):
        ray_workers._device({"GPU": 2.0, "CPU": 16.0}, 3)
    assert ray_workers._device({"GPU": 2.0, "CPU": 16.0}, 2)["num_gpus"] == 1


@needs_ray
def test_a_killed_worker_costs_no_answer(tmp_path: Path) -> None:
    """Each is there once, in order; an input that kills every worker ends the run in one line."""
    found = list(map_on_workers(Fatal(3, tmp_path / "once"), range(8), 2))
    assert found == [0, 2, 4, 6, 8, 10, 12, 14] and (tmp_path / "once").exists()
    outputs = map_on_workers(Fatal(2), range(4), 1)
    with pytest.raises(ConfigError, match="a worker ended 4 times at the same files"):
        list(outputs)
    with pytest.raises(ConfigError, match="one worker a CPU"):
        list(map_on_workers(Fatal(2), range(4), 1000))
    with pytest.raises(ConfigError, match="a worker of Ray cannot start: .*no_such_module"):
        list(map_on_workers(Absent(), range(4), 1))


@needs_ray
def test_ray_gives_the_tables_of_one_process(
    workdir: Path, root: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    restore_and_predict(config_for(root, tmp_path / "output"), workdir)
    assert contents(tmp_path / "output") == whole
