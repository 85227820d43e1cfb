"""The log: what is written, and what a resumed run cuts back."""

import json
from pathlib import Path

from drnet_jax.runtime.checked_json import read_json
from drnet_jax.runtime.files import write_json
from drnet_jax.runtime.metric_writer import MetricWriter, average
from drnet_jax.training.stage_log import unused_warnings

STAGES = ("pretrain", "joint")


def write(workdir: Path, stage: str, step: int, *entries: tuple[str, int]) -> list[tuple[str, int]]:
    """Opens the log at a point, appends the entries, and reads what is there then."""
    writer = MetricWriter(workdir, STAGES, stage, step, tensorboard=False)
    for entry in entries:
        writer.write(*entry, {"loss": 1.0})
    writer.close()
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["stage"], line["step"]) for line in lines]


def test_resuming_cuts_back(tmp_path: Path) -> None:
    """Later steps, later stages and a half-written line go; the rest stays in order."""
    whole = [("pretrain", 10), ("pretrain", 20), ("joint", 10), ("joint", 20)]
    assert write(tmp_path, "pretrain", 0, *whole) == whole
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "joint", "st')
    assert write(tmp_path, "joint", 10) == whole[:3]
    assert write(tmp_path, "pretrain", 15, ("pretrain", 20)) == whole[:2]


def test_tensorboard_events(tmp_path: Path) -> None:
    """One tag a scalar, one a list entry."""
    writer = MetricWriter(tmp_path, STAGES, "joint", 0, tensorboard=True)
    writer.write("joint", 1, {"loss": 0.5, "shares": [0.25, 0.75]})
    writer.close()
    (events,) = (tmp_path / "tensorboard" / "joint").glob("events*")
    content = events.read_bytes()
    assert all(tag in content for tag in (b"loss", b"shares/0", b"shares/1"))


def test_average() -> None:
    assert average([{"a": 1.0, "b": [0, 2]}, {"a": 2.0, "b": [1, 4]}]) == {
        "a": 1.5,
        "b": [0.5, 3.0],
    }


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    for content in ({"a": 1}, {"b": 2}):
        write_json(path, content)
        assert read_json(path) == content
    assert list(path.parent.iterdir()) == [path]


def test_warning_of_an_unused_resolution() -> None:
    """Below 2 %, named with its size and its share."""
    (warning,) = unused_warnings((64, 48, 32), [0.965, 0.02, 0.015])
    assert "only 1.5 %" in warning and "32 px" in warning
    assert unused_warnings((64, 32), [0.5, 0.5]) == []
