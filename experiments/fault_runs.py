"""A tiny run, what it leaves, and where two of them differ: for experiments with faults."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

ROOT = Path(__file__).parents[1]
STAGES = ("pretrain", "joint")
STEPS_PER_EPOCH = 8
NUM_STEPS = 2 * STEPS_PER_EPOCH
EVERY_STEPS = 3
SAVED = tuple(
    step for step in range(1, NUM_STEPS + 1) if not step % EVERY_STEPS or not step % STEPS_PER_EPOCH
)
FIELDS: Mapping[str, Any] = {
    "model.name": "resnet",
    "model.args": "stage_sizes=(1, 1), width=4, stem='small'",
    "model.resolutions": (32, 16),
    "predictor.args": "stage_sizes=(1,), width=4, stem='small'",
    "data.train_images": 40 * STEPS_PER_EPOCH,
    "data.eval_images": 70,
    "pretrain.batch_size": 40,
    "joint.batch_size": 40,
    "eval.batch_size": 40,
    "eval.controls": False,
    "inference.buckets": (1, 16),
    "inference.measure": False,
    "checkpoint.every_steps": EVERY_STEPS,
    "log.every_steps": 1,
    "log.tensorboard": False,
    "export.images": 16,
}
# Of `eval.json`, and of the manifest of an export: when it was made, by which program.
_OF_THE_MOMENT = ("environment", "crc32", "model")


def command(workdir: Path, mode: str, **further: Any) -> list[str]:
    """How to run the program."""
    fields = [f"--config.{name}={value}" for name, value in {**FIELDS, **further}.items()]
    start = [sys.executable, str(ROOT / "main.py"), f"--config={ROOT / 'configs/tiny.py'}"]
    return [*start, f"--mode={mode}", f"--workdir={workdir}", *fields]


def environment() -> dict[str, str]:
    """For the program: one CPU, whatever the machine has besides."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def run(workdir: Path, mode: str, **further: Any) -> subprocess.CompletedProcess[str]:
    """Runs the program to its end, whatever that is."""
    return subprocess.run(
        command(workdir, mode, **further), env=environment(), capture_output=True, text=True
    )


def make_reference(workdir: Path) -> None:
    """Trains, evaluates and exports without any fault, unless that is done already.

    Raises:
      RuntimeError: the program ends otherwise than with 0.
    """
    for mode, result in (("train", "eval.json"), ("export", "export")):
        if (workdir / result).exists():
            continue
        print(f"{mode}, without any fault ...", flush=True)
        done = run(workdir, mode)
        if done.returncode:
            raise RuntimeError(f"{mode} ends with {done.returncode}: {done.stderr}")


def workdir_like(reference: Path, workdir: Path, mode: str) -> Path:
    """A workdir before a mode has run there, with the programs that are compiled.

    So the faults are in the work and not in the compilation, which takes most of a tiny run.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    if mode == "train":
        shutil.copytree(reference / "cache", workdir / "cache")
        return workdir
    shutil.copytree(reference, workdir)
    shutil.rmtree(workdir / "export", ignore_errors=True)
    if mode == "eval":
        for name in ("eval.json", "logits.npz", "report.html"):
            (workdir / name).unlink()
    return workdir


def differences(found: Path, wanted: Path, mode: str, otherwise: Collection[str] = ()) -> list[str]:
    """What a run of a mode left otherwise than one without faults did; empty: nothing.

    Args:
      found: its workdir.
      wanted: that of the run without faults.
      mode: train, eval or export.
      otherwise: fields of what is logged that have other values.
    """
    problems = []
    if mode == "train":
        problems += [f"{stage}: {p}" for stage in STAGES for p in _states(found, wanted, stage)]
    if mode == "train" and not otherwise:
        problems += [] if _losses(found) == _losses(wanted) else ["metrics.jsonl: other losses"]
    if mode in ("train", "eval"):
        problems += _json(found / "eval.json", wanted / "eval.json", otherwise)
        problems += [] if (found / "report.html").exists() else ["there is no report.html"]
    if mode == "export":
        problems += _export(found / "export", wanted / "export")
    return problems


def _states(found: Path, wanted: Path, stage: str) -> list[str]:
    """Arrays of the last step that differ by a bit."""
    states = []
    for workdir in (found, wanted):
        path = workdir / stage / f"{NUM_STEPS}"
        if not path.is_dir():
            return [f"there is no step {NUM_STEPS}"]
        states.append(jax.tree_util.tree_leaves_with_path(ocp.load(path.resolve())))
    pairs = zip(*states, strict=True)
    return [
        f"{jax.tree_util.keystr(name)} differs"
        for (name, left), (_, right) in pairs
        if np.asarray(left).tobytes() != np.asarray(right).tobytes()
    ]


def _losses(workdir: Path) -> list[tuple[str, int, float]]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["stage"], line["step"], line["loss"]) for line in lines if "loss" in line]


def _json(found: Path, wanted: Path, otherwise: Collection[str] = ()) -> list[str]:
    """Members that differ, but for those of the moment, and those fields of the configuration."""
    if not found.exists():
        return [f"there is no {found.name}"]
    left, right = (json.loads(path.read_text()) for path in (found, wanted))
    for content in (left, right):
        for name in otherwise:
            content.get("config", {}).pop(name, None)
    names = [name for name in left | right if name not in _OF_THE_MOMENT]
    return [f"{found.name}: {n} differs" for n in names if left.get(n) != right.get(n)]


def _export(found: Path, wanted: Path) -> list[str]:
    """Files that are missing, left over or of other bytes, and members of the manifest."""
    if not found.is_dir():
        return ["there is no export"]
    left, right = digests(found), digests(wanted)
    differ = [name for name in left | right if left.get(name) != right.get(name)]
    problems = [f"export/{name} differs" for name in differ if name != "manifest.json"]
    return problems + _json(found / "manifest.json", wanted / "manifest.json")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def last_line(text: str) -> str:
    """Of what a program said."""
    lines: Sequence[str] = text.strip().splitlines()
    return lines[-1] if lines else ""
