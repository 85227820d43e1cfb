"""`eval.json` of a run, checked before anything is made of it."""

import math
from pathlib import Path
from typing import Any

from drnet_jax.checkpoints.checkpoint import damaged, read_object

# What a value has to be: a type, of which float takes integers too; a list of one such; an object
# with these names, `_ANY` standing for all of its names; or a set of what is permitted.
_ANY = "*"
_OPTIONAL_NUMBER = {float, None}
_NEEDED: dict[str, Any] = {
    "split": str,
    "num_images": int,
    "resolutions": [int],
    "fixed": [{"resolution": int, "gmacs": float, "top1": float}],
    # Null after stage 1 alone.
    "top1": _OPTIONAL_NUMBER,
    "gmacs": _OPTIONAL_NUMBER,
    "lambda": float,
    "config": {"seed": int, "data.name": str},
}
_CHOSEN = {"top1": float, "gmacs": float, "shares": [float]}
# Of newer versions, or of some data and settings only.
_FURTHER: dict[str, Any] = {
    "model": str,
    "stage": str,
    "checkpoint_step": int,
    "finished": bool,
    "identities": {_ANY: str},
    "environment": {_ANY: str},
    "choice_top1": [float],
    "controls": {
        "intervals": {
            _ANY: {"value": _OPTIONAL_NUMBER, "low": _OPTIONAL_NUMBER, "high": _OPTIONAL_NUMBER}
        },
        "verdict": str,
    },
    "by_apparent_size": [
        {
            "pixels": [int],
            "num_images": int,
            "top1": float,
            "shares": [float],
            "fixed_top1": [float],
        }
    ],
}
# Of the controls of newer versions.
_FURTHER_CONTROLS: dict[str, Any] = {"as_good_as_largest": {_ANY: {"gmacs": _OPTIONAL_NUMBER}}}
_WORDS = {
    int: "no integer",
    float: "no finite number",
    str: "no text",
    bool: "neither true nor false",
}


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """The `eval.json` of a run, None without one.

    Raises:
      CheckpointError: it is damaged, or holds something else than an evaluation.
    """
    path = workdir / "eval.json"
    if not path.exists():
        return None
    remedy = "remove it, and evaluate the run anew"
    summary = read_object(path, remedy)
    try:
        _check(summary, _NEEDED, "")
        if summary["top1"] is not None:
            _check(summary, _CHOSEN, "")
        _check(summary, {n: kind for n, kind in _FURTHER.items() if n in summary}, "")
        _check_resolutions(summary)
        controls = summary.get("controls", {})
        _check(controls, {n: k for n, k in _FURTHER_CONTROLS.items() if n in controls}, "controls")
        for name, interval in controls.get("intervals", {}).items():
            _check_interval(name, interval)
    except ValueError as error:
        raise damaged(path, error, remedy) from error
    return summary


def _check(value: Any, kind: Any, name: str) -> None:
    """Stops if a value is not of a kind; see `_ANY`."""
    if isinstance(kind, set):
        (kind,) = kind - {None}
        if value is None:
            return
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} is no list")
        for index, entry in enumerate(value):
            _check(entry, kind[0], f"{name}[{index}]")
    elif isinstance(kind, dict):
        _check_object(value, kind, name)
    elif not _is(value, kind):
        raise ValueError(f"{name} is {value!r:.40}, {_WORDS[kind]}")


def _check_object(value: Any, kind: dict[str, Any], name: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    named = {entry: kind[_ANY] for entry in value} if _ANY in kind else kind
    for entry, inner in named.items():
        where = f"{name}.{entry}".removeprefix(".")
        if entry not in value:
            raise ValueError(f"it has no {where}")
        _check(value[entry], inner, where)


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def _check_resolutions(summary: dict[str, Any]) -> None:
    """Lists have an entry a resolution, and costs are what may be divided by."""
    count = len(summary["resolutions"])
    lists = [summary["fixed"], summary.get("choice_top1", summary["fixed"])]
    if summary["top1"] is not None:
        lists.append(summary["shares"])
    for entry in summary.get("by_apparent_size", ()):
        lists += [entry["shares"], entry["fixed_top1"]]
    if not count or any(len(found) != count for found in lists):
        raise ValueError("it has not a figure for every resolution")
    if any(entry["gmacs"] <= 0 for entry in summary["fixed"]):
        raise ValueError("a fixed resolution costs nothing")


def _check_interval(name: str, interval: dict[str, Any]) -> None:
    """Both ends or none, and ends of something."""
    ends = [interval["low"], interval["high"]]
    if ends != [None, None] and None in (*ends, interval["value"]):
        raise ValueError(f"controls.intervals.{name} is no interval")
