"""Sweeps: what is planned, run once, resumed and reported. The runs themselves are faked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from drnet_jax.config import ConfigError
from drnet_jax.config_files import call_file, find_config
from drnet_jax.reports.comparison import Setting
from drnet_jax.runtime.files import locked, write_json
from drnet_jax.sweep import main
from drnet_jax.sweeps import jobs as jobs_module
from drnet_jax.sweeps.jobs import is_finished
from drnet_jax.sweeps.plan import Plan, Sweep, make_plan
from drnet_jax.sweeps.tables import size_table
from tests.small_run import small_config

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "configs" / "sweeps").glob("*.py"))
# In the place of the program: notes that it ran, fails where told to, and leaves an eval.json.
FAKE = """
import json, os, sys
from pathlib import Path
workdir = Path(next(a for a in sys.argv if a.startswith("--workdir=")).split("=", 1)[1])
here = Path(__file__).parent
with (here / "log").open("a") as log:
    log.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES', '')} {workdir.name}\\n")
if workdir.name in (here / "failing").read_text().split():
    sys.exit("error: it is broken")
config = json.loads((here / "configs.json").read_text())[str(workdir)]
for argument in sys.argv[1:]:
    name, value = argument.removeprefix("--config.").split("=", 1)
    if name in ("joint.eta", "joint.tau"):
        config[name] = float(value)
(workdir / "config.json").write_text(json.dumps(config))
fixed = [{"resolution": side, "gmacs": side / 8, "top1": side / 40} for side in (32, 16)]
top1 = 0.7 + config.get("joint.eta", 0) / 10 + config["seed"] / 100
summary = {"top1": top1, "gmacs": 3.0, "shares": [0.5, 0.5], "resolutions": [32, 16]}
stage = "pretrain" if "--config.stages=('pretrain',)" in sys.argv else "joint"
(workdir / f"{stage}_finished.json").write_text("{}")
config = {"restore_from": ""} | config
summary |= {"fixed": fixed, "stage": stage, "finished": True, "lambda": 0.0, "config": config}
(workdir / "eval.json").write_text(json.dumps(summary))
"""
SWEEP = """
from drnet_jax.sweeps.plan import Sweep

def get_sweep():
    return Sweep("config.py", {
        "eta": {"0.3": {}, "0.5": {"joint.eta": 0.5}},
        "BatchNorm": {"own": {"joint.eta": 0.3}, "shared": {"model.resolution_aware": False}},
    }, seeds=(0, 1))
"""


def plan(**further: Any) -> Plan:
    variants = {"base": {}, "eta": {"joint.eta": 0.9}, "same": {"joint.eta": 0.3}, **further}
    return make_plan(Sweep("", {"q": variants}, seeds=(0, 3)), small_config(), Path("/runs"))


def test_jobs_are_planned_once_and_share_stage_one() -> None:
    assert plan(int={"joint.eta": 1}, float={"joint.eta": 1.0}).stage_two[-1].overrides == {
        "joint.eta": 1.0,
        "seed": 3,
    }
    escaping = plan(path={"data.name": "../a/b"}).stage_two[2].workdir
    assert escaping.parent == Path("/runs")
    found = plan(
        shared={"model.resolution_aware": False},
        routed={"model.statistics": "routed"},
        sizes={"model.resolutions": (48, 24)},
    )
    names = [job.workdir.relative_to("/runs/stage1").as_posix() for job in found.stage_one]
    shared, sizes = "model.resolution_aware=False_seed", "model.resolutions=48-24_seed"
    assert names == ["seed=0", f"{shared}=0", f"{sizes}=0", "seed=3", f"{shared}=3", f"{sizes}=3"]
    assert len(found.stage_two) == 10
    variants = found.variants["q"]
    assert variants["same"] == variants["base"]
    assert variants["routed"][1].stage_one == variants["base"][1].stage_one == found.stage_one[3]
    job = variants["eta"][1]
    assert job.config["joint.eta"] == 0.9 and job.config["seed"] == 3
    assert job.config["stages"] == ["joint"]
    assert job.config["joint.init_from"] == "/runs/stage1/seed=3"
    assert "joint.eta" not in found.stage_one[3].config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"joint.etta": 1.0}, "unknown fields: joint.etta"),
        ({"joint.eta": "much"}, "joint.eta"),
        ({"joint.eta": -1.0}, "joint.eta=-1.0 must be zero or more"),
    ],
)
def test_bad_overrides_are_refused_before_any_run(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(bad=overrides)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_are_sound(path: Path, tmp_path: Path) -> None:
    sweep = call_file(path, "get_sweep")
    base = call_file(find_config(sweep.config), "get_config")
    found = make_plan(sweep, base, tmp_path)
    for variants in found.variants.values():
        jobs = [jobs[0].workdir for jobs in variants.values()]
        assert len(set(jobs)) == len(jobs), "two variants of a question are the same run"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a sweep, its configuration and a fake main.py."""
    monkeypatch.chdir(tmp_path)
    program = (sys.executable, str(tmp_path / "main.py"))
    monkeypatch.setattr(jobs_module, "PROGRAM", program)
    (tmp_path / "config.py").write_text("from tests.small_run import small_config as get_config\n")
    (tmp_path / "sweep.py").write_text(SWEEP)
    (tmp_path / "main.py").write_text(FAKE)
    (tmp_path / "failing").write_text("")
    sweep = call_file(tmp_path / "sweep.py", "get_sweep")
    found = make_plan(sweep, small_config(), tmp_path / "runs")
    configs = {str(job.workdir): job.config for job in found.stage_one + found.stage_two}
    (tmp_path / "configs.json").write_text(json.dumps(configs))
    return tmp_path


def ran(project: Path) -> list[str]:
    log = project / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return sorted(lines)


def test_a_sweep_from_end_to_end(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It fails at one job, resumes with that one alone, and then has nothing to do."""
    arguments = [str(project / "sweep.py"), "--dir", str(project / "runs")]
    (project / "failing").write_text("joint.eta=0.5_seed=1")
    assert main(arguments) == 1
    assert len(ran(project)) == 4 + 6
    assert "FAILED" in (out := capsys.readouterr().out) and "it is broken" in out
    (project / "failing").write_text("")
    assert main([*arguments, "--devices", "0", "1"]) == 0
    assert [line.split()[1] for line in ran(project)] == ["joint.eta=0.5_seed=1"]
    assert main(arguments) == 0
    assert ran(project) == []
    table = json.loads((project / "runs" / "sweep.json").read_text())["questions"]
    assert [row["drnet"] for row in table["eta"]["0.5"]] == pytest.approx([0.75, 0.76])
    assert [row["drnet"] for row in table["BatchNorm"]["own"]] == pytest.approx([0.73, 0.74])
    assert "+2.0 ± 0.0" in (project / "runs" / "sweep.md").read_text()
    assert (project / "runs" / "sweep.png").stat().st_size > 10_000
    assert "minus the first" in (project / "runs" / "sweep.md").read_text()
    # Between the fixed points (2, 40 %) and (4, 80 %) at 3 GMACs; half of the images to either.
    row = "| seed=0 | 0.0 | 32/16 | 80.0 / 40.0 |  | 73.0 | 0.750 | 60.0 | 60.0 | 50.0 / 50.0 |"
    assert row in (project / "runs" / "sweep.md").read_text()
    # An evaluation with a budget is none of the sweep's.
    evaluated = project / "runs" / "seed=0" / "eval.json"
    evaluated.write_text(json.dumps(json.loads(evaluated.read_text()) | {"lambda": 2.0}))
    assert main(arguments) == 0
    assert [line.split()[-1] for line in ran(project)] == ["seed=0"]


def test_minutes_are_of_both_stages_and_not_of_a_resumed_run(project: Path) -> None:
    arguments = [str(project / "sweep.py"), "--dir", str(project / "runs")]
    resumed = project / "runs" / "stage1" / "seed=1"
    resumed.mkdir(parents=True)
    config = json.loads((project / "configs.json").read_text())[str(resumed)]
    (resumed / "config.json").write_text(json.dumps(config))
    assert main(arguments) == 0
    for folder, seconds in (("stage1/seed=0", 90.0), ("joint.eta=0.5_seed=0", 30.0)):
        path = project / "runs" / folder / "time.json"
        assert 0 < json.loads(path.read_text())["seconds"] < 60
        path.write_text(json.dumps({"seconds": seconds}))
    assert main(arguments) == 0
    found = json.loads((project / "runs" / "sweep.json").read_text())["minutes"]
    assert found["joint.eta=0.5_seed=0"] == 2.0
    assert found["seed=1"] is None and found["joint.eta=0.5_seed=1"] is None
    assert "| seed=1 | resumed |" in (project / "runs" / "sweep.md").read_text()


def test_accuracy_by_apparent_size_is_the_mean_over_the_seeds() -> None:
    def summary(top1: float, sent: float) -> dict[str, Any]:
        entry = {"pixels": [10, 13], "num_images": 40, "top1": top1}
        entry |= {"shares": [sent, 1 - sent], "fixed_top1": [0.9, top1 - 0.2]}
        return {"resolutions": [32, 16], "by_apparent_size": [entry]}

    table = size_table("eta", Setting("0.3", (summary(0.5, 0.2), summary(0.6, 0.4))))
    assert "**eta: 0.3, by apparent size** (32/16 px)" in table
    assert "| 10-13 px | 40 | 30.0 / 70.0 | 55.0 | 90.0 / 35.0 |" in table
    assert size_table("eta", Setting("none", ())) == ""
    assert size_table("eta", Setting("folder", ({"resolutions": [32, 16]},))) == ""


@pytest.mark.parametrize(
    "evaluated",
    [
        {"finished": False},
        {"finished": None},
        {"stage": "pretrain"},
        {"lambda": 2.0},
        {"config": {"eval.split": "calibration"}},
        {"config": {"eval.controls": False}},
        {"config": {"data.eval_images": 30}},
        {"config": {"data.dir": "elsewhere"}},
        {"config": {"data.skip_corrupt": True}},
        {"config": {"joint.eta": 0.9}},
        {"config": {"restore_from": "another"}},
    ],
    ids=str,
)
def test_an_evaluation_of_something_else_is_none_of_the_sweeps(
    evaluated: dict[str, Any], tmp_path: Path
) -> None:
    """Of half a training, with a budget, of other images, of another run."""
    base = small_config(**{"data.name": "folder", "data.dir": "here"})
    sweep = Sweep("", {"q": {"base": {}}}, seeds=(0,))
    (job,) = make_plan(sweep, base, tmp_path).stage_two
    job.workdir.mkdir()
    good = {"stage": "joint", "finished": True, "lambda": 0.0, "config": job.config}
    write_json(job.workdir / "eval.json", good)
    assert not is_finished(job)
    write_json(job.workdir / "joint_finished.json", {"num_steps": 16})
    assert is_finished(job)
    config = job.config | evaluated.get("config", {})
    write_json(job.workdir / "eval.json", good | evaluated | {"config": config})
    assert not is_finished(job)


def test_other_values_are_refused_and_leave_the_table_alone(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(project / "sweep.py"), "--dir", str(project / "runs")]
    assert main(arguments) == 0
    table = (project / "runs" / "sweep.md").read_text()
    ran(project)
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--config.joint.tau=2.0"])
    assert stopped.value.code == 2
    assert "another configuration (joint.tau: 1.0 -> 2.0)" in capsys.readouterr().err
    assert ran(project) == [] and (project / "runs" / "sweep.md").read_text() == table
    # A directory that was moved goes on; results may go elsewhere.
    (project / "runs").rename(project / "moved")
    moved = [str(project / "sweep.py"), "--dir", str(project / "moved")]
    assert main([*moved, "--results", str(project / "results")]) == 0
    assert ran(project) == []
    assert (project / "results" / "sweep.md").read_text().endswith(table.split("\n", 1)[1])


def test_an_unfinished_first_variant_is_no_other_variant(project: Path) -> None:
    (project / "failing").write_text("seed=0 seed=1")
    of_stage_two = '"stage1" not in str(workdir) and workdir.name in'
    (project / "main.py").write_text(FAKE.replace("workdir.name in", of_stage_two))
    assert main([str(project / "sweep.py"), "--dir", str(project / "runs")]) == 1
    lines = (project / "runs" / "sweep.md").read_text().splitlines()
    assert any(line.startswith("| 0.3 | not finished |") for line in lines)
    (other,) = [line for line in lines if line.startswith("| 0.5 |")]
    assert other.split("|")[6].strip() == ""
    table = json.loads((project / "runs" / "sweep.json").read_text())["questions"]
    assert table["eta"]["0.3"] == [] and len(table["eta"]["0.5"]) == 2


def test_two_sweeps_do_not_share_a_directory(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(project / "sweep.py"), "--dir", str(project / "runs")]
    with locked(project / "runs" / "sweep.lock", "held"), pytest.raises(SystemExit):
        main(arguments)
    assert "another process runs the sweep in" in capsys.readouterr().err


def test_without_stage_one_there_is_no_stage_two(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "failing").write_text("seed=1")
    assert main([str(project / "sweep.py"), "--dir", str(project / "runs")]) == 1
    # Four of stage 1, one of them in vain; of stage 2 those that start from it are not run.
    assert len(ran(project)) == 4 + 4
    assert "stage 1: seed=1 is not finished" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_an_interruption_starts_no_further_job(how: str, project: Path) -> None:
    """A terminal's Ctrl-C reaches all processes, SIGTERM the sweep alone."""
    (project / "main.py").write_text(FAKE.replace("import json", "import time, json", 1))
    with (project / "main.py").open("a") as file:
        file.write("time.sleep(60)\n")
    code = f"""
import signal, sys
sys.path.insert(0, {str(ROOT)!r})
# Processes in the background of a shell ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from drnet_jax import sweep
from drnet_jax.sweeps import jobs
jobs.PROGRAM = (sys.executable, {str(project / "main.py")!r})
sweep.main(["sweep.py", "--dir", "runs"])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=project,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (project / "runs" / "stage1" / "seed=0" / "eval.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 2 and "interrupted; run the same command" in errors
    assert len(ran(project)) == 1


def test_devices_work_side_by_side(project: Path) -> None:
    arguments = [str(project / "sweep.py"), "--dir", str(project / "runs")]
    assert main([*arguments, "--devices", "3", "5"]) == 0
    assert {line.split()[0] for line in ran(project)} == {"3", "5"}


def test_bad_arguments(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["nowhere.py"], "nowhere.py does not exist"),
        ([str(project / "config.py")], "has no function get_sweep"),
        ([str(project / "sweep.py"), "--confg.seed=1"], "unknown arguments"),
        ([str(project / "sweep.py"), "--config.joint.etta=1"], "etta"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2 and words in capsys.readouterr().err
