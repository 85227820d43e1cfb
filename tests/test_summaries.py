"""What is read of runs to compare them: damaged, doubled, early, of other data or versions."""

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.config import ConfigError, flatten
from drnet_jax.report import compare_runs, group
from drnet_jax.reports.comparison import Setting, rows, to_json
from drnet_jax.reports.comparison_warnings import warnings
from drnet_jax.reports.summaries import read_summary
from drnet_jax.runtime.files import write_json
from tests.small_run import small_config

IMAGES = {"train": "a", "calibration": "b", "test": "c"}


def evaluated(folder: Path, seed: int = 0, **further: Any) -> dict[str, Any]:
    """An `eval.json`, written into a workdir."""
    fixed = [{"resolution": side, "gmacs": side / 8, "top1": side / 40} for side in (32, 16)]
    summary: dict[str, Any] = {"split": "test", "num_images": 70, "resolutions": [32, 16]}
    summary |= {"fixed": fixed, "top1": 0.7 + seed / 100, "gmacs": 3.0, "shares": [0.5, 0.5]}
    summary |= {"stage": "joint", "checkpoint_step": 12, "finished": True, "lambda": 0.0}
    summary |= {"identities": IMAGES, "environment": {"command": "python", "jax": "0.1"}}
    summary |= {"config": flatten(small_config(seed=seed)), **further}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.json").write_text(json.dumps(summary))
    return summary


def compare(tmp_path: Path, *names: str) -> list[Setting]:
    runs = tuple(str(tmp_path / name) for name in names)
    return compare_runs(small_config(**{"report.runs": runs}), tmp_path / "out")


def changes(value: Any) -> list[Any]:
    """A value with every part of it, one at a time, removed or of another kind."""
    if not isinstance(value, dict | list):
        return ["text" if not isinstance(value, str) else 5, 0, -1.5, math.nan, [], {}]
    found: list[Any] = [None, 5]
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        without = deepcopy(value)
        del without[key]
        found.append(without)
        for changed in changes(value[key]):
            copy = deepcopy(value)
            copy[key] = changed
            found.append(copy)
    return found


def test_whatever_is_wrong_in_an_evaluation_is_named(tmp_path: Path) -> None:
    """Each field it is compared by, removed or of another kind: no other error comes of it."""
    good = evaluated(tmp_path / "b", 1)
    interval = {"value": 0.1, "low": 0.0, "high": 0.2}
    as_good = {"drnet": {"gmacs": 2.0}}
    good["controls"] = {"intervals": {"drnet": interval}, "verdict": "above"}
    good["controls"] |= {"as_good_as_largest": as_good}
    good["choice_top1"] = [0.8, 0.4]
    good["config"] = {"seed": 1, "data.name": "digits_on_photos"}
    other = evaluated(tmp_path / "a")
    refused = 0
    for changed in changes(good):
        (tmp_path / "b" / "eval.json").write_text(json.dumps(changed))
        try:
            found = read_summary(tmp_path / "b")
        except CheckpointError as error:
            assert f"{tmp_path / 'b'}" in str(error) and "\n" not in str(error)
            refused += "eval.json is damaged (" in str(error)
            continue
        assert found is not None
        if found["top1"] is not None:
            settings = group({Path("a"): other, Path("b"): found})
            assert len(rows(settings)) == 2 and to_json({"": settings})
    assert refused > 90
    (tmp_path / "b" / "eval.json").write_text(json.dumps(good | {"top1": math.nan}))
    with pytest.raises(CheckpointError, match="damaged .top1 is nan, no finite number.: remove it"):
        read_summary(tmp_path / "b")
    path = tmp_path / "b" / "eval.json"
    write_json(path, good)
    path.write_text(path.read_text().replace('"top1": 0.71', '"top1": 0.91'))
    with pytest.raises(CheckpointError, match="eval.json is damaged .*checksum"):
        read_summary(tmp_path / "b")


def test_one_run_given_twice_is_refused(tmp_path: Path) -> None:
    """By the same path, by another one, by a link."""
    evaluated(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for other in (tmp_path / "a", tmp_path / "b" / ".." / "a", tmp_path / "link"):
        with pytest.raises(ConfigError, match="names one run twice, as .* and "):
            compare(tmp_path, "a", str(other))
    evaluated(tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"twice at seeds \[0, 0\]"):
        compare(tmp_path, "a", "copy")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"identities": IMAGES | {"test": "d"}}, "are of different images (test)"),
        ({"split": "calibration"}, "evaluated differently (split: calibration, test)"),
        ({"num_images": 60}, "evaluated differently (num_images: 60, 70)"),
        ({"finished": False}, "1 of the 2 runs are evaluated before the end of their training"),
    ],
    ids=str,
)
def test_runs_of_something_else_are_another_setting_and_said(
    other: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the page, in the file and on the terminal; and no seed's deviation is over both."""
    evaluated(tmp_path / "a")
    evaluated(tmp_path / "b", 1, **other)
    found = compare(tmp_path, "a", "b")
    assert [setting.seeds for setting in found] == [[0], [1]]
    assert "±" not in "".join(rows(found)[0])
    (note,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["warnings"]
    assert words in note and note in (tmp_path / "out" / "comparison.html").read_text()
    assert f"warning: {note}" in capsys.readouterr().out


def test_a_difference_is_of_the_same_images_only(tmp_path: Path) -> None:
    """At the same seed, two trainings: on the same images, and on others."""
    eta = flatten(small_config(**{"joint.eta": 0.9}))
    for further, cell in (({}, "+5.0"), ({"identities": IMAGES | {"test": "d"}}, "")):
        evaluated(tmp_path / "a")
        evaluated(tmp_path / "b", config=eta, top1=0.75, **further)
        assert rows(compare(tmp_path, "a", "b"))[1][5] == cell


def test_other_versions_and_folders_are_said() -> None:
    def made(place: str, **environment: str) -> dict[str, Any]:
        return {"config": {"data.dir": place}, "environment": environment, "identities": IMAGES}

    assert warnings([made("x", jax="1", command="a"), made("x", jax="1", command="b")]) == []
    (note,) = warnings([made("x", jax="1"), made("x", jax="2"), made("x", jax="2")])
    assert "different devices or by different versions (jax: 1, 2)" in note
    (note,) = warnings([made("x"), made("y")])
    assert "different folders (x, y)" in note
