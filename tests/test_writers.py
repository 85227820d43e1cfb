"""The log: what is written, and what a resumed run cuts back."""

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from drnet_jax.checkpoints.picture_sizes import write_sizes
from drnet_jax.reports.predictions import Unreadable
from drnet_jax.runtime.checked_json import read_json
from drnet_jax.runtime.files import (
    check_writable,
    in_words,
    new_folder,
    replacing,
    write_json,
)
from drnet_jax.runtime.metric_writer import MetricWriter, average
from drnet_jax.runtime.table import Table
from drnet_jax.training.stage_log import unused_warnings
from tests.small_disk import small_disk

STAGES = ("pretrain", "joint")
FILES = ("metrics.jsonl", "tensorboard", "table.csv", "file.json", "picture_sizes.npz")


def write_log(
    workdir: Path, stage: str, step: int, *entries: tuple[str, int]
) -> list[tuple[str, int]]:
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
    assert write_log(tmp_path, "pretrain", 0, *whole) == whole
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "joint", "st')
    assert write_log(tmp_path, "joint", 10) == whole[:3]
    assert write_log(tmp_path, "pretrain", 15, ("pretrain", 20)) == whole[:2]


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    """Also in the place of an empty one, and through a link to one."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for name in ("a/b", "link"):
        with new_folder(tmp_path / name) as temporary:
            (temporary / "one").write_text("1")
            assert not (tmp_path / name / "one").exists()
        assert (tmp_path / name / "one").read_text() == "1"
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "c") as temporary:
        (temporary / "one").write_text("1")
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty", "link"]


def test_no_folder_is_overwritten(tmp_path: Path) -> None:
    """Not even one that is filled meanwhile."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "one").write_text("1")
    (tmp_path / "file").write_text("1")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, words in [
        ("mine", "the folder holds 'one', and nothing is overwritten"),
        ("file", "it is no folder, and nothing is overwritten"),
        ("dangling", "it is no folder"),
    ]:
        with pytest.raises(FileExistsError, match=words), new_folder(tmp_path / name):
            raise AssertionError("it is begun")
    with pytest.raises(OSError, match="late"), new_folder(tmp_path / "late") as temporary:
        (temporary / "one").write_text("2")
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "one").write_text("1")
    assert {path.read_text() for path in tmp_path.glob("*/one")} == {"1"}
    assert not list(tmp_path.glob(".*"))


def test_tensorboard_events(tmp_path: Path) -> None:
    """One tag a scalar, one a list entry."""
    writer = MetricWriter(tmp_path, STAGES, "joint", 0, tensorboard=True)
    writer.write("joint", 1, {"loss": 0.5, "shares": [0.25, 0.75]})
    writer.close()
    (file,) = (tmp_path / "tensorboard" / "joint").glob("events*")
    content, events = file.read_bytes(), []
    # A length of eight bytes, four of a checksum, the event, and four again.
    while content:
        end = 12 + int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12:end]))
        content = content[end + 4 :]
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].session_log.status, events[1].step) == (SessionLog.START, 1)
    scalars = [(e.step, v.tag, v.simple_value) for e in events[2:] for v in e.summary.value]
    assert scalars == [(1, "loss", 0.5), (1, "shares/0", 0.25), (1, "shares/1", 0.75)]


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


def test_writers_at_once_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    """Nor do two files of one stem; the last one to end is what is there."""
    with (
        replacing(tmp_path / "a.json") as first,
        replacing(tmp_path / "a.csv") as other,
        replacing(tmp_path / "a.json") as second,
    ):
        for path, text in ((first, "first"), (other, "other"), (second, "second")):
            path.write_text(text)
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"a.json": "first", "a.csv": "other"}


@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_is_an_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    """What was there stays, and a later run goes on with it."""
    path = tmp_path / name
    log = MetricWriter(tmp_path, STAGES, "pretrain", 0, tensorboard=name == "tensorboard")
    log.write("pretrain", 1, {"loss": 1.0})
    before = (tmp_path / "metrics.jsonl").read_text()
    write_json(tmp_path / "file.json", {"a": 1})

    def write() -> None:
        """More than there is room for."""
        if name == "metrics.jsonl":
            log.write("pretrain", 2, {"loss": 1.0})
        elif name == "tensorboard":
            log.close()
        elif name == "table.csv":
            Table(path, Unreadable).append([Unreadable("x" * 99, "y")])
        elif name == "picture_sizes.npz":
            write_sizes(tmp_path, {"train": np.arange(99)})
        else:
            write_json(path, {"a": "x" * 99})

    with small_disk(30), pytest.raises(OSError) as error:
        write()
    assert str(error.value.filename).startswith(str(path))
    words = f"{error.value.filename}: File too large; what was complete before is kept: free space"
    assert in_words(error.value).startswith(words)
    assert json.loads((tmp_path / "file.json").read_text())["a"] == 1
    assert not [path.name for path in tmp_path.iterdir() if ".tmp" in path.name]
    assert write_log(tmp_path, "pretrain", 1, ("pretrain", 2)) == [("pretrain", 1), ("pretrain", 2)]
    assert (tmp_path / "metrics.jsonl").read_text().startswith(before)


def test_a_folder_that_cannot_be_written_to_is_found_before(tmp_path: Path) -> None:
    """By writing: permissions tell root nothing. Nothing is left of it."""
    (tmp_path / "file").touch()
    for folder, named in ((tmp_path / "file" / "a", tmp_path / "file"), ("/proc/a/b", "/proc")):
        with pytest.raises(OSError) as error:
            check_writable(Path(folder))
        assert error.value.filename == str(named)
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_warning_of_an_unused_resolution() -> None:
    """Below 2 %, named with its size and its share."""
    (warning,) = unused_warnings((64, 48, 32), [0.965, 0.02, 0.015])
    assert "only 1.5 %" in warning and "32 px" in warning
    assert unused_warnings((64, 32), [0.5, 0.5]) == []
