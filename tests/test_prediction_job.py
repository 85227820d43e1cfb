"""The state of a prediction job on the disk: its lock, and what is said where it is damaged."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drnet_jax.config import ConfigError
from drnet_jax.config_overrides import take_overrides
from drnet_jax.inference.programs import CostTable
from drnet_jax.reports.prediction_job import (
    JobDevice,
    JobState,
    PredictionTables,
    check_same,
    locked_output,
    read_state,
    write_state,
)
from drnet_jax.reports.predictions import GlancePrediction, Prediction
from drnet_jax.runtime.checked_json import read_json

JOB = {
    "format": "jsonl",
    "resolutions": [32, 16],
    "inference.buckets": [1, 8],
    "inference.measure": True,
}
SECONDS = {1: 0.5, 8: 2.0}
STATE = JobState(JOB, CostTable(SECONDS, (SECONDS, SECONDS)), {"a.png": "1", "b.png": "2"})
GLANCE = JobState(
    JOB | {"first_look": 16}, CostTable(SECONDS, (SECONDS, SECONDS), glances=True), STATE.pictures
)
ROW: dict[str, Any] = {
    "file": "a.png",
    "label": "7",
    "class_index": 7,
    "confidence": 0.5,
    "resolution": 32,
    "gmacs": 0.25,
}


def test_the_state_as_it_was_written(tmp_path: Path) -> None:
    write_state(tmp_path, STATE, finished=False)
    assert read_state(tmp_path) == STATE
    alone = JobState(JOB | {"resolutions": [32]}, CostTable(None, (SECONDS,)), {})
    write_state(tmp_path, alone, finished=False)
    assert read_state(tmp_path) == alone
    unmeasured = JobState(JOB | {"inference.measure": False}, None, {"a.png": "1"})
    write_state(tmp_path, unmeasured, finished=False)
    assert read_state(tmp_path) == unmeasured
    write_state(tmp_path, GLANCE, finished=False)
    assert read_state(tmp_path) == GLANCE
    # Where every network has buckets of its own, those of the device.
    own = [{8: 2.0}, {1: 0.5}, {1: 0.5, 8: 2.0}]
    each = JobState(JOB | {"inference.buckets": []}, CostTable(own[0], tuple(own[1:])), {})
    write_state(tmp_path, each, finished=False)
    assert read_state(tmp_path) == each
    begun = replace(STATE, device=JobDevice("NVIDIA H100", ((1, 8), (1, 8, 1024))))
    write_state(tmp_path, begun, finished=False)
    assert read_state(tmp_path) == begun
    # As an earlier version wrote it, which knew no first look and did not say the device.
    path = tmp_path / "predict.json"
    content = read_json(path)
    assert content["bucket_seconds"].pop("glances") is False
    assert content.pop("device") == {"kind": "NVIDIA H100", "buckets": [[1, 8], [1, 8, 1024]]}
    path.write_text(json.dumps(content))
    assert read_state(tmp_path) == STATE


@pytest.mark.parametrize("state", [STATE, GLANCE], ids=["pixels", "glance"])
def test_rows_and_job_go_together(state: JobState, tmp_path: Path) -> None:
    """The rows of a first look have more columns; a table of the other kind is refused."""
    other = GLANCE if state is STATE else STATE
    row = GlancePrediction(**ROW, looks=2, first_label="9", first_confidence=0.25)
    usual = Prediction(**ROW)
    tables = PredictionTables(tmp_path, state, 1)
    tables.append([row if state is GLANCE else usual], [])
    assert PredictionTables(tmp_path, state, 1).read()[0] == tables.read()[0]
    assert tables.read()[0] == [row if state is GLANCE else usual]
    with pytest.raises(ConfigError, match="a line has other names than file, label"):
        PredictionTables(tmp_path, other, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pictures": None}, "its pictures are not named with"),
        ({"pictures": "a.png"}, "its pictures are not named with"),
        ({"pictures": {"a.png": 5}}, "its pictures are not named with"),
        ({"job": [1]}, "TypeError"),
        ({"job": {}}, "KeyError"),
        ({"device": {"kind": "cpu"}}, "KeyError"),
        ({"device": {"kind": "cpu", "buckets": [1]}}, "TypeError"),
        ({"device": {"kind": "cpu", "buckets": [["1"]]}}, "its device is not a kind and numbers"),
        ({"device": {"kind": 1, "buckets": []}}, "its device is not a kind and numbers"),
        ({"bucket_seconds": None}, "bucket_seconds and inference.measure"),
        ({"bucket_seconds": {"predictor": None, "classifiers": [SECONDS] * 2}}, "other networks"),
        ({"bucket_seconds": {"predictor": SECONDS, "classifiers": [SECONDS]}}, "other networks"),
        (
            {
                "bucket_seconds": {
                    "predictor": SECONDS,
                    "classifiers": [SECONDS] * 2,
                    "glances": True,
                }
            },
            "other networks",
        ),
        (
            {"bucket_seconds": {"predictor": SECONDS, "classifiers": [SECONDS, {1: 0.5}]}},
            r"not of the buckets \[1, 8\]",
        ),
        (
            {"bucket_seconds": {"predictor": {1: 0.5}, "classifiers": [SECONDS] * 2}},
            r"not of the buckets \[1, 8\]",
        ),
        (
            {"bucket_seconds": {"predictor": SECONDS, "classifiers": [SECONDS, {1: 0, 8: 1}]}},
            r"not of the buckets \[1, 8\]",
        ),
        ({"bucket_seconds": {"predictor": SECONDS, "classifiers": [SECONDS, [1]]}}, "items"),
        ({"job": JOB | {"inference.buckets": [8]}}, r"not of the buckets \[8\]"),
        (
            {
                "job": JOB | {"inference.buckets": []},
                "bucket_seconds": {"predictor": SECONDS, "classifiers": [SECONDS, {}]},
            },
            r"not of the buckets \[\]",
        ),
    ],
    ids=str,
)
def test_a_damaged_state(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Is one error that names the file, before anything is compiled."""
    write_state(tmp_path, STATE, finished=False)
    path = tmp_path / "predict.json"
    path.write_text(json.dumps(read_json(path) | changes))
    with pytest.raises(ConfigError, match=f"predict.json cannot be read .*{words}") as error:
        read_state(tmp_path)
    assert "--config.predict.output=" in str(error.value) and "\n" not in str(error.value)


def test_a_refusal_says_how_to_go_on(tmp_path: Path) -> None:
    """A job of an earlier version names the buckets that were its default; its options work."""
    job = {"inference.buckets": [1, 2], "eval.batch_size": 8, "inference.fold": True, "lambda": 0.5}
    now = job | {"inference.buckets": [], "inference.fold": False, "lambda": 0.0}
    with pytest.raises(ConfigError) as error:
        check_same(tmp_path, JobState(job, None, {}), now)
    options = "--config.inference.buckets='(1, 2)' --config.inference.fold=True"
    assert f": run it as it was begun ({options}), give another folder" in str(error.value)
    values, others = take_overrides(shlex.split(options))
    assert not others and values == {"inference.buckets": (1, 2), "inference.fold": True}
    with pytest.raises(ConfigError, match=r"begun \(--config.inference.buckets='\(\)'\), give"):
        check_same(tmp_path, JobState(job | {"inference.buckets": []}, None, {}), job)
    with pytest.raises(ConfigError, match="run it as it was begun, give another folder"):
        check_same(tmp_path, JobState(job | {"lambda": 1.0}, None, {}), job)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_index": None}, "a line has class_index None"),
        ({"file": 5}, "a line has file 5"),
        ({"confidence": [1]}, r"a line has confidence \[1\]"),
        ({"file": "c.png"}, "'c.png' is none of its pictures"),
    ],
)
def test_a_damaged_row(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    table = tmp_path / "predictions.jsonl"
    table.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | changes) + "\n")
    before = table.read_bytes()
    with pytest.raises(ConfigError, match=rf"not what this job wrote \({words}\): remove the"):
        PredictionTables(tmp_path, STATE, 2)
    assert table.read_bytes() == before


def test_the_lock_ends_with_its_block_and_leaves_nothing(tmp_path: Path) -> None:
    """Whatever the folder is called; what killed processes left is no job, and goes."""
    output, link = tmp_path / "new", tmp_path / "link"
    link.symlink_to(output)
    with locked_output(output):
        for name in (output, link, output / ".." / "new"):
            with pytest.raises(
                ConfigError, match="writes predictions to .*new since .*: wait until"
            ):
                locked_output(name).__enter__()
        with locked_output(tmp_path / "other"):
            pass
    assert not output.exists()
    output.mkdir()
    for name in ("predict.lock", ".predict.json.1-a.tmp"):
        (output / name).touch()
    assert read_state(output) is None
    with locked_output(link):
        assert [path.name for path in output.iterdir()] == ["predict.lock"]
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("name", ["notes.tmp", "other.lock", ".hidden"])
def test_files_of_the_user_are_kept_and_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        read_state(tmp_path)
    with locked_output(tmp_path):
        pass
    assert (tmp_path / name).read_text() == "mine"
