"""Which runs a sweep takes, and which of them are finished."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drnet_jax.checkpoints.picture_sizes import write_sizes
from drnet_jax.checkpoints.restore import write_data
from drnet_jax.config import SPLITS, TWO_STAGES, ConfigError
from drnet_jax.config_files import call_file, find_config
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.sources import DataError
from drnet_jax.runtime.files import write_json
from drnet_jax.sweeps.images import check_present_images
from drnet_jax.sweeps.jobs import JobRunner, why_unfinished
from drnet_jax.sweeps.plan import Job, Plan, Sweep, check_directory, check_images, make_plan
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
        reused={"predictor.kind": "glance", "model.reuse": "logits"},
        sizes={"model.resolutions": (48, 24)},
    )
    names = [job.workdir.relative_to("/runs/stage1").as_posix() for job in found.stage_one]
    shared, sizes = "model.resolution_aware=False_seed", "model.resolutions=48-24_seed"
    assert names == ["seed=0", f"{shared}=0", f"{sizes}=0", "seed=3", f"{shared}=3", f"{sizes}=3"]
    assert len(found.stage_two) == 12
    variants = found.variants["q"]
    assert variants["same"] == variants["base"]
    for name in ("base", "routed", "reused"):
        assert variants[name][1].stage_one == found.stage_one[3]
    job = variants["eta"][1]
    assert job.config["joint.eta"] == 0.9 and job.config["seed"] == 3
    assert job.config["stages"] == ["joint"]
    assert job.config["joint.init_from"] == "/runs/stage1/seed=3"
    assert "joint.eta" not in found.stage_one[3].config


def test_runs_that_start_from_another_run_of_their_seed() -> None:
    """Stage 2 has the field of its stage 1 too."""
    found = plan(pruned={"pretrain.init_from": "/others/seed={seed}"})
    for job, seed in zip(found.variants["q"]["pruned"], (0, 3), strict=True):
        assert job.stage_one is not None
        for one in (job, job.stage_one):
            assert one.config["pretrain.init_from"] == f"/others/seed={seed}"


def test_a_single_stage_is_one_job_without_stage_one() -> None:
    """Of a variant, and of a whole configuration with a variant that has both stages."""
    once = {"stages": ("single",), "joint.num_epochs": 5}
    found = plan(once=once)
    job = found.variants["q"]["once"][1]
    assert (job.stage, job.stage_one, job.config["stages"]) == ("single", None, ["single"])
    assert job.workdir == Path("/runs/joint.num_epochs=5_seed=3_stages=single")
    assert job.name == "single stage: joint.num_epochs=5, seed=3, stages=('single',)"
    assert job.config["joint.init_from"] == ""
    assert job in found.stage_two
    assert [job.workdir.name for job in found.stage_one] == ["seed=0", "seed=3"]
    command = JobRunner("tiny", {}, [""]).command(job)
    assert "--config.stages=('single',)" in command and not any("init_from" in c for c in command)
    base = small_config(stages=("single",))
    sweep = Sweep("", {"q": {"one": {}, "two": {"stages": TWO_STAGES}}}, seeds=(0,))
    found = make_plan(sweep, base, Path("/runs"))
    assert [job.stage for jobs in found.variants["q"].values() for job in jobs] == [
        "single",
        "joint",
    ]
    assert [job.workdir for job in found.stage_one] == [Path("/runs/stage1/seed=0")]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"joint.etta": 1.0}, "unknown fields: joint.etta"),
        ({"joint.eta": "much"}, "joint.eta"),
        ({"joint.eta": -1.0}, "joint.eta=-1.0 must be zero or more"),
        ({"pretrain.accumulate": 20}, "raise pretrain.batch_size"),
        ({"stages": ("joint",)}, "stages=.* of a sweep must be .* or ..single"),
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


def evaluated_job(tmp_path: Path) -> tuple[Job, dict[str, Any]]:
    """A job as its run leaves it, and its `eval.json`."""
    base = small_config(**{"data.name": "folder", "data.dir": "here"})
    (job,) = make_plan(Sweep("", {"q": {"base": {}}}, seeds=(0,)), base, tmp_path).stage_two
    identities = {"train": "a", "calibration": "b", "test": "c"}
    fixed = [{"resolution": side, "gmacs": side / 8, "top1": 0.5} for side in (32, 16)]
    good = {"stage": "joint", "finished": True, "lambda": 0.0, "config": job.config}
    good |= {"split": "test", "num_images": 9, "resolutions": [32, 16], "fixed": fixed}
    good |= {"top1": 0.5, "gmacs": 3.0, "shares": [0.5, 0.5]}
    good |= {"identities": identities, "checkpoint_step": 12}
    for step in (12, 16):
        (job.workdir / "joint" / str(step)).mkdir(parents=True)
    write_json(job.workdir / "data.json", {"classes": ["x", "y"], "identities": identities})
    write_json(job.workdir / "joint_finished.json", {"num_steps": 16})
    write_json(job.workdir / "eval.json", good)
    assert why_unfinished(job) == ""
    return job, good


@pytest.mark.parametrize(
    ("evaluated", "words"),
    [
        ({"finished": False}, "not of the end"),
        ({"finished": None}, "not of the end"),
        ({"stage": "pretrain"}, "not of the end"),
        ({"checkpoint_step": 8}, "checkpoint that was removed"),
        ({"lambda": 2.0}, "of a budget"),
        ({"identities": {"train": "a", "calibration": "b", "test": "d"}}, "other images"),
        ({"config": {"eval.split": "calibration"}}, "eval.split: calibration -> test"),
        ({"config": {"eval.controls": False}}, "eval.controls"),
        ({"config": {"data.eval_images": 30}}, "data.eval_images: 30 -> 70"),
        ({"config": {"data.dir": "elsewhere"}}, "data.dir: elsewhere -> here"),
        ({"config": {"data.skip_corrupt": True}}, "data.skip_corrupt"),
        ({"config": {"joint.eta": 0.9}}, "joint.eta: 0.9 -> 0.3"),
        ({"config": {"seed": 4}}, "seed: 4 -> 0"),
        ({"config": {"restore_from": "another"}}, "model in another"),
    ],
    ids=str,
)
def test_an_evaluation_of_something_else_is_none_of_the_sweeps(
    evaluated: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """Of half a training, with a budget, of other images, of another run."""
    job, good = evaluated_job(tmp_path)
    there = {"config": job.config | {"data.dir": str(Path("here").resolve())}}
    write_json(job.workdir / "eval.json", good | there)
    assert why_unfinished(job) == ""
    config = job.config | evaluated.get("config", {})
    bad = {name: value for name, value in (good | evaluated).items() if value is not None}
    write_json(job.workdir / "eval.json", bad | {"config": config})
    assert words in why_unfinished(job)


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ("joint_finished.json", "has not ended"),
        ("joint/16", "has not ended, or its checkpoint was removed"),
        ("joint/12", "checkpoint that was removed"),
        ("joint", "its checkpoint was removed"),
        ("eval.json", "not evaluated"),
    ],
)
def test_a_job_is_finished_only_with_all_that_its_run_leaves(
    removed: str, words: str, tmp_path: Path
) -> None:
    job, _ = evaluated_job(tmp_path)
    path = job.workdir / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert words in why_unfinished(job)


def test_a_sweep_on_other_images_is_refused_before_any_run(tmp_path: Path) -> None:
    """In another directory, or in the same one with a picture more; moved ones are the same."""

    def images(where: str, count: int) -> Path:
        root = tmp_path / where
        for name in [f"{kind}/{index}.png" for kind in "xy" for index in range(count)]:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        return root

    def swept(root: Path, **further: Any) -> Plan:
        further |= {"data.train_images": 0, "data.eval_images": 0}
        base = small_config(**{"data.name": "folder", "data.dir": str(root), **further})
        return make_plan(Sweep("", {"q": {"base": {}}}, seeds=(0,)), base, tmp_path / "runs")

    found = swept(images("here", 20))
    splits = DataSplits(found.stage_one[0].data)
    identities = {split: splits.identity(split) for split in SPLITS}
    for job, stage in ((found.stage_one[0], "pretrain"), (found.stage_two[0], "joint")):
        (job.workdir / stage / "16").mkdir(parents=True)
        write_json(job.workdir / "data.json", {"classes": ["x", "y"], "identities": identities})
        write_sizes(job.workdir, {split: splits.sizes(split) for split in SPLITS})
    check_present_images(found)
    check_present_images(swept(images("moved", 20)))
    with pytest.raises(DataError, match=r"are not those that .*stage1.* in another --dir"):
        check_present_images(swept(images("other", 30)))
    for path in images("replaced", 20).glob("x/*.png"):
        path.write_bytes(b"larger")
    few = {"data.max_corrupt": 5}
    with pytest.raises(DataError, match="pictures were replaced under the same names"):
        check_present_images(swept(tmp_path / "replaced", **few))
    images("here", 21)
    with pytest.raises(DataError, match="are not those"):
        check_present_images(found)
    with pytest.raises(DataError, match="not a folder of pictures"):
        check_present_images(swept(tmp_path / "nowhere"))
    for job, stage in ((found.stage_one[0], "pretrain"), (found.stage_two[0], "joint")):
        shutil.rmtree(job.workdir / stage)
    # Without checkpoints the jobs are trained anew.
    check_present_images(found)


def test_runs_on_other_pictures_are_not_compared(tmp_path: Path) -> None:
    """Pictures came, or were replaced, between two runs of a sweep; other splits are a question."""
    base = small_config()
    variants = {"few": {}, "more": {"joint.eta": 0.9}, "split": {"data.split_seed": 3}}
    found = make_plan(Sweep("tiny", {"q": variants}, seeds=(0,)), base, tmp_path)
    sizes = {split: np.arange(30) for split in SPLITS}
    for job, identity in zip(found.stage_two, ("a", "a", "b"), strict=True):
        job.workdir.mkdir()
        write_json(job.workdir / "config.json", dict(job.config))
        write_data(job.workdir, ("ant", "bee"), dict.fromkeys(SPLITS, identity))
        write_sizes(job.workdir, sizes)
    check_directory(found)
    second = found.stage_two[1].workdir
    write_sizes(second, sizes | {"train": np.arange(30)[::-1]})
    with pytest.raises(DataError, match="pictures were replaced .*30 of train"):
        check_directory(found)
    write_data(second, ("ant", "bee"), dict.fromkeys(SPLITS, "c"))
    with pytest.raises(DataError, match="the images of train and calibration and test are not"):
        check_images(found)
