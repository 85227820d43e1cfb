"""Which runs a sweep takes, and which of them are finished."""

from pathlib import Path
from typing import Any

import pytest

from drnet_jax.config import ConfigError
from drnet_jax.config_files import call_file, find_config
from drnet_jax.runtime.files import write_json
from drnet_jax.sweeps.jobs import is_finished
from drnet_jax.sweeps.plan import Plan, Sweep, make_plan
from tests.small_run import small_config

SHIPPED = sorted((Path(__file__).parents[1] / "configs" / "sweeps").glob("*.py"))


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
        ({"pretrain.accumulate": 20}, "raise pretrain.batch_size"),
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
    # After stage 1 alone, of which there are no more figures.
    good |= {"top1": None, "resolutions": [32, 16]}
    write_json(job.workdir / "eval.json", good)
    assert not is_finished(job)
    write_json(job.workdir / "joint_finished.json", {"num_steps": 16})
    assert is_finished(job)
    there = {"config": job.config | {"data.dir": str(Path("here").resolve())}}
    write_json(job.workdir / "eval.json", good | there)
    assert is_finished(job)
    config = job.config | evaluated.get("config", {})
    write_json(job.workdir / "eval.json", good | evaluated | {"config": config})
    assert not is_finished(job)
