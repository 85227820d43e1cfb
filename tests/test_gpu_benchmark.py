"""What `benchmarks/gpu.py` plans, runs and makes of the rows; no network runs here."""

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import fused, gpu, throughput
from benchmarks.even_choices import EvenModel
from benchmarks.gpu_goals import in_words, judge
from benchmarks.gpu_plan import FULL, TINY, TRAINED, Job, Scale, plan
from benchmarks.rows import append_row, read_rows
from drnet_jax.cli import parse_flags
from drnet_jax.config_files import load_config
from drnet_jax.config_overrides import set_fields, take_overrides
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import model_cost

# Adds a row for every unit, and hangs at one called `hangs`.
SCRIPT = """
import json, os, sys, time
name, units = sys.argv[-1], sys.argv[2 : sys.argv.index("--rows")]
with open(sys.argv[-3], "a") as rows:
    for unit in units:
        if unit == "hangs":
            time.sleep(600)
        row = {"job": name, "unit": unit, "flags": os.environ.get("XLA_FLAGS")}
        print(json.dumps(row), file=rows, flush=True)
sys.exit(3 if "fails" in units else 0)
"""


@pytest.mark.parametrize("scale", [FULL, TINY], ids=["full", "tiny"])
def test_every_job_is_a_command_that_its_script_takes(scale: Scale, tmp_path: Path) -> None:
    for job in plan(scale, tmp_path):
        words = gpu.command(job, job.units, tmp_path)[1:]
        if job.is_program:
            values, others = take_overrides(words[1:])
            set_fields(load_config(parse_flags(others).config), values)
            continue
        module = import_module(words[0].removesuffix(".py").replace("/", "."))
        found = module.parse(words[1:])
        assert (found.job, found.rows) == (job.name, tmp_path / "rows.jsonl")
        units = found.batch_sizes if module is fused else found.units
        assert tuple(map(str, units)) == job.units


def test_the_plan_has_all_that_is_asked_for() -> None:
    """ResNet-50, both sets of sizes, batches 1 to 1,024, every size in training."""
    jobs = plan(FULL, Path("PATH"))
    units: dict[str, set[str]] = {}
    for job in jobs:
        assert not units.get(job.name, set()) & set(job.units), "a figure twice"
        units.setdefault(job.name, set()).update(job.units)
    batches = {str(2**power) for power in (0, 3, 5, 6, 7, 8, 9, 10)}
    assert units["glance"] == units["pixels"] == batches
    assert units["training"] == {"joint", "input", "224", "168", "112"}
    assert {"demo", "imagenette", "exact: glance", "exact: pixels"} < units.keys()
    for name in ("graphs", "all graphs", "fused convolutions", "nhwc"):
        assert units[f"flags: {name}"] == {"1", "256"}
    resolutions = {
        job.name: fused.parse([*job.command[1:]]).resolutions
        for job in jobs
        if job.name in ("glance", "pixels")
    }
    assert resolutions == {"glance": (224, 112), "pixels": (224, 168, 112)}
    assert [job.name for job in plan(FULL, None)] == [job.name for job in jobs][:-1]


def test_jobs_end_in_time_and_go_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "LEAST", 0.5)
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def job(name: str, *units: str, limit: float = 60.0) -> Job:
        return Job(name, (str(script),), units, limit, "--units")

    jobs = [job("quick", "1", "2"), job("slow", "3", "hangs", limit=3), job("bad", "fails")]
    start = time.monotonic()
    left = gpu.run([*jobs, job("late", "4")], tmp_path, start + 60)
    assert time.monotonic() - start < 30
    assert [str(part) for part in left] == ["slow hangs (ended after 3 s)"]
    rows = read_rows(tmp_path / "rows.jsonl")
    found = [(row["job"], row["unit"]) for row in rows]
    assert found == [("quick", "1"), ("quick", "2"), ("slow", "3"), ("bad", "fails"), ("late", "4")]
    # What is there is not measured again, and after the time nothing is started.
    more = [job("quick", "2", "5"), job("gone", "6", "7")]
    left = gpu.run(more[:1], tmp_path, time.monotonic() + 60)
    assert left == [] and len(read_rows(tmp_path / "rows.jsonl")) == 6
    left = gpu.run(more, tmp_path, time.monotonic())
    assert [str(part) for part in left] == ["gone 6 7 (no time was left)"]
    script.write_text("raise SystemExit(3)")
    left = gpu.run(more, tmp_path, time.monotonic() + 60)
    assert [str(part) for part in left] == ["gone 6 7 (status 3)"]
    assert "== quick 2 5: is in rows.jsonl" in capfd.readouterr().out
    assert left[0].failed
    # Where it was stopped comes last, so that the others get their turn.
    script.write_text(SCRIPT)
    assert gpu.run(more, tmp_path, time.monotonic() + 60) == []
    assert [row["unit"] for row in read_rows(tmp_path / "rows.jsonl")[-2:]] == ["7", "6"]
    assert "== gone 7 6, at most" in capfd.readouterr().out


def test_a_process_that_fails_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though no goal is missed by what was not run."""
    found = {"platform": "gpu", "device": "NVIDIA A", "jax": "1"}
    monkeypatch.setattr(gpu, "PROBE", f"print({json.dumps(found)!r})")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    for failed in (True, False):
        left = [gpu.Left("glance", ("256",), "why", failed)]
        monkeypatch.setattr(gpu, "run", lambda *_, left=left: left)
        assert gpu.main() == int(failed)


def test_a_bad_folder_of_imagenette_stops_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its training, which would say so, comes last."""
    root, out = tmp_path / "imagenette", tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["gpu.py", f"--out={out}", f"--imagenette={root}"])
    monkeypatch.setattr(gpu, "probe", lambda _: 1 / 0)

    def refused(words: str) -> None:
        """With one line, and nothing made."""
        assert gpu.main() == 2 and not out.exists()
        error = capsys.readouterr().err
        assert error.startswith(f"error: --imagenette: {root} ") and error.count("\n") == 1
        assert words in error

    refused("is no folder")
    root.mkdir()
    refused("needs two folders or more, one per class, with pictures in them")
    names = [f"n{number}" for number in range(10)]
    for name in names[:9]:
        (root / name).mkdir()
    refused("has 9 classes, Imagenette 10")
    (root / names[9]).mkdir()
    for name in names[1:]:
        (root / name / "a.JPEG").touch()
    refused("has no picture of n0\n")
    (root / names[0] / "a.JPEG").touch()
    # What comes next.
    with pytest.raises(ZeroDivisionError):
        gpu.main()
    # As Imagenette comes.
    for split in ("train", "val"):
        for name in names:
            (tmp_path / "splits" / split / name).mkdir(parents=True)
            (tmp_path / "splits" / split / name / "a.JPEG").touch()
    gpu.check_imagenette(tmp_path / "splits")


def test_flags_of_the_user_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA takes the last of equal flags."""
    job = Job("x", (), (), 1.0, xla_flags="--a=1 --b=1")
    monkeypatch.setenv("XLA_FLAGS", "--b=2")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    found = gpu.environment(job, tmp_path)
    assert found["XLA_FLAGS"] == "--a=1 --b=1 --b=2"
    assert found["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "compiled")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    assert gpu.environment(job, tmp_path)["JAX_COMPILATION_CACHE_DIR"] == "mine"


def test_a_folder_has_the_figures_of_one_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"platform": "gpu", "device": "NVIDIA A", "jax": "1"}
    monkeypatch.setattr(gpu, "PROBE", f"print({json.dumps(found)!r})")
    assert gpu.probe(tmp_path) == gpu.probe(tmp_path) == found
    monkeypatch.setattr(gpu, "PROBE", f"print({json.dumps(found | {'jax': '2'})!r})")
    with pytest.raises(ValueError, match="give another --out"):
        gpu.probe(tmp_path)


def test_the_users_flags_are_part_of_a_folder_s_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    assert gpu.probe(tmp_path)["xla_flags"] == "--xla_cpu_enable_fast_math=false"
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(ValueError, match="fast_math=false.* this is"):
        gpu.probe(tmp_path)


def adaptive(job: str, batch: int, largest: float, fused: float) -> dict[str, object]:
    """A row of `benchmarks/fused.py`, where half of the MACs are saved."""
    ms = {"largest": largest, "fused": fused, "fused uploaded": fused + 1}
    saved = {"fused streamed": 1 - fused / largest}
    return {
        **{"job": job, "unit": str(batch), "batch": batch, "macs_saved": 0.5},
        **{"ms": ms, "time_saved": saved},
    }


def test_figures_beside_their_goals() -> None:
    """By hand: the worst of all batches that a goal is about counts."""
    assert fused.SINGLES == 10
    assert [in_words(goal) for goal in judge([])] == [
        "time saved of the MACs saved from batch 256 not run (goal >= 90%)",
        "time saved from batch 64 not run (goal >= 0.0%)",
        "batch 1, mean of ten calls in a row not run (goal <= 1.50 ms)",
        "fused over the sum of its parts not run (goal <= 1.050)",
        "MFU of the joint step not run (goal >= 45.0%)",
        "training not run",
        "flags not run",
        "demo not run",
        "imagenette not run",
    ]
    rows = [
        adaptive("glance", 256, 10.0, 5.0),
        adaptive("pixels", 512, 10.0, 6.0),
        adaptive("pixels", 64, 10.0, 11.0),
        adaptive("glance", 32, 10.0, 20.0),
        adaptive("glance", 1, 1.0, 0.25),
        adaptive("flags: graphs", 256, 10.0, 4.0),
        {"job": "parts: pixels", "batch": 32, "over_parts": 1.04},
        {"job": "parts: glance", "batch": 1, "over_parts": 2.0},
        {"job": "training", "unit": "joint", "mfu": None, "images_a_second": 2505.4},
        {"job": "demo", "unit": TRAINED, "seconds": 80.2, "top1": 0.911, "fixed": [{"top1": 0.92}]},
    ]
    goals = judge(rows)
    assert [in_words(goal) for goal in goals] == [
        "time saved of the MACs saved from batch 256 80% (goal >= 90%, missed)",
        "time saved from batch 64 -10.0% (goal >= 0.0%, missed)",
        "batch 1, mean of ten calls in a row 1.25 ms (goal <= 1.50 ms)",
        "fused over the sum of its parts 1.040 (goal <= 1.050)",
        "MFU of the joint step unknown (goal >= 45.0%)",
        "training, images/s: joint 2505",
        "time with flags over without: graphs 0.80 at batch 256",
        "demo: 80 s, top-1 91.1 % (largest size alone 92.0 %)",
        "imagenette not run",
    ]
    assert [goal.missed for goal in goals] == [True, True, *[False] * 7]


def test_utilisation_by_hand() -> None:
    """2,505 images/s of ResNet-50 at three sizes, with the predictor, are 12 % of an H100."""
    config = load_config("resnet_in1k")
    cost = model_cost(create_model(config, 1000))
    macs = cost.predictor + sum(cost.classifier)
    # Published: 4.09 GMACs at 224 px, which grow with the area, rounded up; the predictor 0.29.
    assert macs == pytest.approx(4.09e9 * (1 + 0.75**2 + 0.5**2) + 0.29e9, rel=0.04)
    found = throughput.utilisation(2505 * macs, "NVIDIA H100 80GB HBM3", "bfloat16")
    assert found == pytest.approx(0.12, abs=0.005)
    assert throughput.utilisation(1e12, "NVIDIA A100-SXM4-80GB", "bfloat16") == 6 / 312
    assert throughput.utilisation(1e12, "NVIDIA A100-SXM4-80GB", "float32") is None
    assert throughput.utilisation(1e12, "cpu", "bfloat16") is None


def test_rows_are_kept_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    append_row(path, {"a": (1, 2)})
    append_row(path, {"b": None})
    assert read_rows(path) == [{"a": [1, 2]}, {"b": None}]
    with path.open("a") as file:
        file.write('{"c": ')
    with pytest.raises(ValueError, match="line 3 is damaged"):
        read_rows(path)


@pytest.mark.parametrize("size", [10, 1])
def test_what_is_made_of_the_times(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, of ten images; of single ones, ten run in a call."""
    config = load_config("tiny")
    model = create_model(config, 10)
    # 4 images go to 48 px, 6 to 32 px.
    images = np.zeros((10, 48, 48, 3), np.uint8)
    even = EvenModel(model, None, (0.5,) * 3, (0.25,) * 3, images, np.repeat([0, 1], [4, 6]))
    times = {"largest": 10.0, "largest uploaded": 20.0, "fused": 6.0, "fused uploaded": 15.0}
    times |= {"largest uploaded whole": 40.0, "exact uploaded whole": 30.0}
    parts = {"part predictor": 1.0, "part 48": 3.0, "part 32": 2.0}
    batches = 10 // size
    single = {name: ms / batches for name, ms in parts.items()}

    def made(*names: str) -> Callable[..., dict[str, fused.Timed]]:
        """Instead of what compiles: the time of all batches in a call, or of a part once."""
        work = {n: fused.Timed(lambda n=n: times[n], batches) for n in names if n in times}
        work |= {n: fused.Timed(lambda n=n: single[n], 1) for n in names if n in parts}
        return lambda *_: work

    for method, names in {
        "_largest": ("largest", "largest uploaded"),
        "_fused": ("fused", "fused uploaded"),
        "_exact": ("largest uploaded whole", "exact uploaded whole"),
        "_parts": tuple(parts),
    }.items():
        monkeypatch.setattr(fused, method, made(*names))
    monkeypatch.setattr(fused, "turn", lambda run: run())
    row = fused.measure(even, size, fused.METHODS, rounds=3)
    cost = model_cost(model)
    spent = 10 * cost.predictor + 4 * cost.classifier[0] + 6 * cost.classifier[1]
    assert row["counts"] == (4, 6) and row["unit"] == str(size)
    assert row["macs_saved"] == pytest.approx(1 - spent / (10 * cost.classifier[0]))
    assert row["time_saved"] == pytest.approx(
        {"fused": 0.4, "fused uploaded": 0.25, "exact uploaded whole": 0.25}
    )
    assert row["ms"]["fused"] == pytest.approx(6.0 / batches)
    # Of an image the predictor and, in the mean, 0.4 and 0.6 of the classifiers.
    total = 1.0 + 3.0 + 2.0 if size == 10 else 1.0 + 0.4 * 3.0 + 0.6 * 2.0
    assert row["over_parts"] == pytest.approx(6.0 / total)
    text = fused.in_words(row)
    units = {10: "a batch", 1: "an image, mean of 10 calls in a row (parts, fused at: one)"}
    assert "4/6 images at 48/32 px" in text and f" s; ms {units[size]}: largest " in text
    assert "fused: time saved 40.0 %" in text
    assert f"fused over the sum of its parts: {6 / total:.3f}" in text


def test_exact_dispatch_is_compared_by_the_same_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes whole batches of host memory, and waits for its result there."""
    model = create_model(load_config("tiny"), 10)
    images = np.zeros((10, 48, 48, 3), np.uint8)
    even = EvenModel(model, None, (0.5,) * 3, (0.25,) * 3, images, np.repeat([0, 1], [4, 6]))
    found: list[tuple[str, object]] = []

    class Stub:
        """Of whatever is compiled."""

        def __init__(self, *given: Any, **_: Any) -> None:
            self.given = given[0] if given else "exact"
            found.append((self.given, given[2:]))

        def run(self, batch: object) -> object:
            """Of a `Program`."""
            found.append((self.given, batch))
            return batch

        def classify(self, batch: object) -> Any:
            """Of an `ArrayClassifier`."""
            return SimpleNamespace(choices=even.choices, batch=self.run(batch))

    monkeypatch.setattr(fused, "ArrayClassifier", Stub)
    monkeypatch.setattr(fused, "compiled", Stub)
    monkeypatch.setattr(fused, "_classifiers", lambda _: ("largest", "smaller"))
    work = fused._exact(even, (4, 6), [images])
    assert found.pop(0) == ("exact", ()) and found.pop(0)[0] == "exact"
    assert found == [("largest", (10,))]
    for name in ("largest", "exact"):
        timed = work[f"{name} uploaded whole"]
        timed.run()
        assert timed.batches == 1
        taken, batch = found[-1]
        assert taken == name and batch is images


def test_training_in_words() -> None:
    row = {
        **{"unit": "48", "resolutions": (48,), "batch": 16, "mfu": None, "input_wait": 0.5},
        **{"images_a_second": 100.4, "seconds_a_step": 0.16, "first_step_seconds": 3.0},
    }
    assert throughput.in_words(row) == (
        "at 48 px alone, batch 16: 100 images/s, 160.0 ms a step, MFU unknown, waited for input "
        "50.0 % of the time, first step 3 s"
    )
    row |= {"unit": "input", "resolutions": (48, 32), "mfu": 0.451}
    assert throughput.in_words(row).startswith("jointly at 48/32 px, with input, batch 16: 100")
    assert "MFU 45.1 %" in throughput.in_words(row)
