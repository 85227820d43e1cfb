"""Sweeps: run once, resumed and reported. The runs themselves are faked."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from drnet_jax import sweep
from drnet_jax.config_files import call_file
from drnet_jax.reports.comparison import Setting
from drnet_jax.reports.comparison_plot import comparison_figure
from drnet_jax.runtime.checked_json import read_json
from drnet_jax.runtime.locks import locked
from drnet_jax.sweep import main
from drnet_jax.sweeps import jobs as jobs_module
from drnet_jax.sweeps.jobs import JobRunner
from drnet_jax.sweeps.plan import Sweep, make_plan
from drnet_jax.sweeps.tables import size_table
from tests.small_run import small_config

ROOT = Path(__file__).parents[1]
# In the place of the program: notes that it ran, fails where told to, and leaves an eval.json.
FAKE = """
import json, os, sys
from pathlib import Path
workdir = Path(next(a for a in sys.argv if a.startswith("--workdir=")).split("=", 1)[1])
here = Path(__file__).parent
def write(name, content):
    # At once, as the program does: the sweep reads it meanwhile.
    (workdir / "new").write_text(json.dumps(content))
    (workdir / "new").replace(workdir / name)
with (here / "log").open("a") as log:
    log.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES', '')} {workdir.name}\\n")
if workdir.name in (here / "failing").read_text().split():
    sys.exit("error: it is broken")
config = json.loads((here / "configs.json").read_text())[str(workdir)]
for argument in sys.argv[1:]:
    name, value = argument.removeprefix("--config.").split("=", 1)
    if name in ("joint.eta", "joint.tau"):
        config[name] = float(value)
write("config.json", config)
fixed = [{"resolution": side, "gmacs": side / 8, "top1": side / 40} for side in (32, 16)]
top1 = 0.7 + config.get("joint.eta", 0) / 10 + config["seed"] / 100
summary = {"top1": top1, "gmacs": 3.0, "shares": [0.5, 0.5], "resolutions": [32, 16]}
stage = "pretrain" if "--config.stages=('pretrain',)" in sys.argv else "joint"
write(f"{stage}_finished.json", {"num_steps": 16})
(workdir / stage / "16").mkdir(parents=True, exist_ok=True)
identities = {split: split for split in ("train", "calibration", "test")}
data = {"classes": list("0123456789"), "identities": identities}
write("data.json", data)
config = {"restore_from": ""} | config
summary |= {"fixed": fixed, "stage": stage, "finished": True, "lambda": 0.0, "config": config}
summary |= {"split": "test", "num_images": 70, "identities": identities, "checkpoint_step": 16}
summary["environment"] = {"command": str(workdir), "jax": "0.1"}
write("eval.json", summary)
"""
SWEEP = """
from drnet_jax.sweeps.plan import Sweep

def get_sweep():
    return Sweep("config.py", {
        "eta": {"0.3": {}, "0.5": {"joint.eta": 0.5}},
        "BatchNorm": {"own": {"joint.eta": 0.3}, "shared": {"model.resolution_aware": False}},
    }, seeds=(0, 1))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a sweep, its configuration and a fake main.py."""
    monkeypatch.chdir(tmp_path)
    program = (sys.executable, str(tmp_path / "main.py"))
    monkeypatch.setattr(jobs_module, "PROGRAM", program)
    # Drawn after every job, it takes longer than all else: see `drawn`.
    monkeypatch.setattr(sweep, "comparison_figure", lambda _: Figure(figsize=(1, 1)))
    (tmp_path / "config.py").write_text("from tests.small_run import small_config as get_config\n")
    (tmp_path / "sweep.py").write_text(SWEEP)
    (tmp_path / "main.py").write_text(FAKE)
    (tmp_path / "failing").write_text("")
    questions = call_file(tmp_path / "sweep.py", "get_sweep")
    found = make_plan(questions, small_config(), tmp_path / "runs")
    configs = {str(job.workdir): job.config for job in found.stage_one + found.stage_two}
    (tmp_path / "configs.json").write_text(json.dumps(configs))
    return tmp_path


@pytest.fixture
def drawn(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "comparison_figure", comparison_figure)


def ran(project: Path) -> list[str]:
    log = project / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return sorted(lines)


@pytest.mark.usefixtures("drawn")
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
    evaluated.write_text(json.dumps(read_json(evaluated) | {"lambda": 2.0}))
    assert main(arguments) == 0
    assert [line.split()[-1] for line in ran(project)] == ["seed=0"]


def test_what_was_removed_or_made_by_other_versions_is_said(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job whose checkpoint is gone runs again; of other versions the table warns."""
    arguments = [str(project / "sweep.py"), "--dir", str(project / "runs")]
    assert main(arguments) == 0
    shutil.rmtree(project / "runs" / "joint.eta=0.5_seed=1" / "joint")
    path = project / "runs" / "seed=0" / "eval.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"environment": {"command": "other", "jax": "0.2"}}))
    ran(project)
    capsys.readouterr()
    assert main(arguments) == 0
    assert [line.split()[-1] for line in ran(project)] == ["joint.eta=0.5_seed=1"]
    out = capsys.readouterr().out
    again = "joint.eta=0.5, seed=1 runs again: its training has not ended, or its checkpoint was"
    assert again in out and "different devices or by different versions (jax: 0.1, 0.2)" in out
    (note,) = json.loads((project / "runs" / "sweep.json").read_text())["warnings"]
    assert "(jax: 0.1, 0.2)" in note and note in (project / "runs" / "sweep.md").read_text()


def test_a_job_that_leaves_no_evaluation_or_is_killed_has_failed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(project / "sweep.py"), "--dir", str(project / "runs")]
    for text, words in (
        ("", "stage 1: seed=0: FAILED: its training has not ended"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "ended by SIGKILL ("),
    ):
        (project / "main.py").write_text(text)
        assert main(arguments) == 1
        said = capsys.readouterr()
        assert words in said.out
        assert said.err == "error: 10 jobs failed; run the same command to resume\n"


def test_a_job_that_is_interrupted_has_not_failed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a signal of its own: so it is told, with what waits for it, and the same command resumes.

    What has failed needs a hand, and is the status.
    """
    arguments = [str(project / "sweep.py"), "--dir", str(project / "runs")]
    (project / "failing").write_text("seed=1")
    stopped = 'print("error: interrupted after step 3", file=sys.stderr)\n    sys.exit(75)'
    (project / "main.py").write_text(FAKE.replace('sys.exit("error: it is broken")', stopped))
    assert main(arguments) == 75
    said = capsys.readouterr()
    assert "stage 1: seed=1: error: interrupted after step 3 (" in said.out
    assert "seed=1: stage 1: seed=1 is not finished" in said.out and "FAILED" not in said.out
    ran(project)
    (line,) = said.err.splitlines()
    assert re.fullmatch(r"error: \d jobs were interrupted; run the same command to resume", line)
    (project / "main.py").write_text(FAKE.replace('sys.exit("error: it is broken")', "sys.exit(1)"))
    assert main(arguments) == 1
    assert "jobs failed; run the same command" in capsys.readouterr().err
    (project / "failing").write_text("")
    assert main(arguments) == 0


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


@pytest.mark.usefixtures("drawn")
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


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("seed=0/config.json", '{"seed": 0'),
        ("seed=0/eval.json", "[1, 2]"),
        ("seed=0/eval.json", "{}"),
        ("stage1/seed=0/time.json", "{}"),
    ],
)
def test_damaged_files_are_one_clear_error(
    file: str, text: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(project / "sweep.py"), "--dir", str(project / "runs")]
    assert main(arguments) == 0
    (project / "runs" / file).write_text(text)
    ran(project)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and ran(project) == []
    assert f"{Path(file).name} is damaged" in capsys.readouterr().err


def test_a_configuration_goes_to_the_jobs_as_it_is_named(project: Path) -> None:
    """A shipped one by its name, or with an argument of `get_config`."""
    (project / "sized.py").write_text(
        "from tests.small_run import small_config\n"
        "def get_config(eta='0.3'):\n    return small_config(**{'joint.eta': float(eta)})\n"
    )
    (project / "sweep.py").write_text(SWEEP.replace("config.py", "sized.py:0.3"))
    assert main([str(project / "sweep.py"), "--dir", str(project / "runs")]) == 0
    line = (project / "runs" / "seed=0" / "log.txt").read_text().splitlines()[0]
    assert "--config=sized.py:0.3 " in line
    found = make_plan(Sweep("", {"q": {"base": {}}}), small_config(), project)
    runner = JobRunner("tiny", {}, [""])
    assert "--config=tiny" in runner.command(found.stage_one[0])


def test_two_sweeps_do_not_share_a_directory(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(project / "sweep.py"), "--dir", str(project / "runs")]
    lock = locked(project / "runs" / "sweep.lock", "runs another one", "wait")
    with lock, pytest.raises(SystemExit):
        main(arguments)
    assert "runs another one since" in capsys.readouterr().err


def test_without_stage_one_there_is_no_stage_two(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "failing").write_text("seed=1")
    assert main([str(project / "sweep.py"), "--dir", str(project / "runs")]) == 1
    # Four of stage 1, one of them in vain; of stage 2 those that start from it are not run.
    assert len(ran(project)) == 4 + 4
    assert "stage 1: seed=1 is not finished" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "closed terminal"])
def test_an_interruption_starts_no_further_job(how: str, project: Path) -> None:
    """A terminal's Ctrl-C and SIGHUP reach all processes, SIGTERM the sweep alone."""
    (project / "main.py").write_text(FAKE.replace("import json", "import time, json", 1))
    with (project / "main.py").open("a") as file:
        file.write("time.sleep(60)\n")
    code = f"""
import signal, sys
sys.path.insert(0, {str(ROOT)!r})
# Processes in the background of a shell ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from pathlib import Path
from drnet_jax import sweep
from drnet_jax.sweeps import jobs
jobs.PROGRAM = (sys.executable, {str(project / "main.py")!r})
sys.exit(sweep.main(["sweep.py", "--dir", "runs"]))
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
    elif how == "closed terminal":
        for _ in range(2):
            os.killpg(process.pid, signal.SIGHUP)
    else:
        process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 75 and "interrupted; run the same command" in errors
    assert len(ran(project)) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("during", ["check_present_images", "_write"])
def test_an_interruption_before_and_after_the_jobs_is_one_line(
    number: int,
    during: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While pictures are checked, and while the table is written, which the lock covers too."""
    monkeypatch.setattr(sweep, "_run_all", lambda *_: [])
    monkeypatch.setattr(sweep, during, lambda *_: signal.raise_signal(number))
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        # As a terminal leaves them; in the end they are as they were.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(SystemExit, match="75"):
            main([str(project / "sweep.py"), "--dir", str(project / "runs")])
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    error = capsys.readouterr().err
    assert error == "error: interrupted; run the same command to resume\n"
    assert not (project / "runs" / "sweep.lock").exists()


def test_the_last_table_is_written_under_the_lock(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    monkeypatch.setattr(sweep, "_run_all", lambda *_: [])
    write, lock = sweep._write, project / "runs" / "sweep.lock"

    def noting(*arguments: Any) -> None:
        held.append(lock.exists())
        write(*arguments)

    monkeypatch.setattr(sweep, "_write", noting)
    assert main([str(project / "sweep.py"), "--dir", str(project / "runs")]) == 0
    assert held == [True]


def test_devices_work_side_by_side(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is in the home directory, for which a shell leaves a `~` after an `=`."""
    monkeypatch.setenv("HOME", str(project))
    assert main(["~/sweep.py", "--dir=~/runs", "--results=~/out", "--devices", "3", "5"]) == 0
    assert {line.split()[0] for line in ran(project)} == {"3", "5"}
    assert (project / "out" / "sweep.md").exists() and not Path("~").exists()


def test_bad_arguments(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = SWEEP[: SWEEP.index("{")]
    for name, text in (
        ("none", "def get_sweep():\n    pass\n"),
        ("no_question", empty + "{})\n"),
        ("no_variant", empty + "{'eta': {}})\n"),
        ("always", empty + "{'eta': {'1': {'joint.eta': 1.0}, '2': {'joint.eta': 2.0}}})\n"),
    ):
        (project / f"{name}.py").write_text(text)
    for arguments, words in (
        ([str(project / "none.py")], "gives NoneType, no Sweep"),
        ([str(project / "no_question.py")], "no question, or one without variants"),
        ([str(project / "no_variant.py")], "no question, or one without variants"),
        (["nowhere.py"], "nowhere.py does not exist"),
        ([str(project / "config.py")], "has no function get_sweep"),
        ([str(project / "sweep.py"), "--confg.seed=1"], "unrecognized arguments: --confg.seed=1"),
        (
            [str(project / "sweep.py"), "--config.data.flip", "maybe"],
            "unrecognized arguments: maybe",
        ),
        ([str(project / "sweep.py"), "--devic", "0"], "--devic"),
        ([str(project / "sweep.py"), "--dir=a", "--dir=b"], "--dir is given twice"),
        ([str(project / "sweep.py"), "--dir="], "'' is empty"),
        ([str(project / "sweep.py"), "--config.seed=5"], "seed is set by the sweep"),
        ([str(project / "always.py"), "--config.joint.eta=3"], "joint.eta is set by the sweep"),
        ([str(project / "sweep.py"), "--config.stages=joint"], "stages is set by the sweep"),
        ([str(project)], "is a folder"),
        ([str(project / "sweep.py"), "--config.joint.etta=1"], "etta"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and line.startswith("error: ") and words in line
