"""With `huggingface_hub` and without it; nothing is uploaded, and nothing downloaded."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from drnet_jax import AdaptiveClassifier, load_run, save_pretrained
from drnet_jax.budgets.calibration import Calibration, Point
from drnet_jax.checkpoints.checkpoint import CheckpointError
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.hub import mixin
from drnet_jax.hub.card import model_card
from drnet_jax.hub.folder import read_folder
from tests.random_model import write_run
from tests.small_run import GLANCE, small_config

ROOT = Path(__file__).parents[1]
CLASSES = ("cat | dog", "<b>*bold*</b>", "line\nbreak", *"3456789")
WITHOUT = "import sys; sys.modules['huggingface_hub'] = None\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    write_run(small_config(**GLANCE), place / "run", CLASSES)
    save_pretrained(load_run(place / "run"), place / "folder")
    return place / "folder"


def point(lam: float, gmacs: float, lost: int) -> Point:
    return Point(lam, gmacs, 0.9, (0.5, 0.5), lost, 0)


EVALUATION: dict[str, Any] = {
    "num_images": 1234,
    "split": "test",
    "lambda": 2.5,
    "top1": 0.8125,
    "gmacs": 0.00015,
    "fixed": [{"top1": 0.875, "gmacs": 0.1}, {"top1": 0.5, "gmacs": 0.1}],
    "config": {"seed": 7, "data.name": "a: 'set'"},
    "controls": {"verdict": "above the hull"},
}


def parts(card: str) -> tuple[Any, str]:
    """The front matter as YAML reads it, and the rest."""
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_of_what_is_not_evaluated(folder: Path) -> None:
    front, body = parts((folder / "README.md").read_text())
    assert front == {
        "library_name": "drnet_jax",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "dynamic-resolution", "jax"],
    }
    assert r"cat \| dog, \<b\>\*bold\*\</b\>, line\\nbreak, 3, 4" in body
    assert "Not evaluated." in body and body.count("| not evaluated |") == 3
    assert "lam" not in body
    assert "Data: digits\\_on\\_photos." in body
    # A first look alone, or with one at 32 px.
    assert "| adaptive | 3.978e-05 to 0.0001986 | 0.25 to 1.25 | not evaluated |" in body
    assert "after a first look at 16 px" in body


def test_the_card_with_figures(folder: Path) -> None:
    known = Calibration("", 200, (point(-1, 0.3, 0), point(0, 0.2, 1), point(1, 0.1, 2)))
    front, body = parts(model_card(read_folder(folder), known, EVALUATION))
    (entry,) = front["model-index"]
    assert entry["results"] == [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": "a: 'set'", "type": "a: 'set'", "split": "test"},
            "metrics": [{"type": "accuracy", "value": 0.8125}],
        }
    ]
    assert "On 1,234 images of the test split of a: 'set', one training (seed 7)." in body
    assert "Choices at lambda 2.5." in body and "The adaptive classifier is above the hull." in body
    assert "| 32 px alone | 0.0001588 | 1.00 | 87.50 |" in body
    assert "| 16 px alone | 3.976e-05 | 0.25 | 50.00 |" in body
    assert "| adaptive | 0.00015 | 0.94 | 81.25 |" in body
    # One of 200 lost is half a point; two are a whole one.
    assert "top-1 (0.2 GMACs a picture, as 200 calibration images tell):" in body
    assert "for_drop(0.5)" in body
    lost = Calibration("", 200, (point(0, 0.2, 2),))
    assert "for_drop" not in model_card(read_folder(folder), lost, EVALUATION)


def test_without_the_package(folder: Path, tmp_path: Path) -> None:
    """All that is on this machine works; what needs the package says so."""
    code = WITHOUT + (
        "import sys\n"
        "import numpy as np\n"
        "from drnet_jax import AdaptiveClassifier, CheckpointError\n"
        "classifier = AdaptiveClassifier.from_pretrained(sys.argv[1])\n"
        "images = np.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3).astype(np.uint8)\n"
        "np.save(sys.argv[2] + '/logits.npy', classifier.classify(images).logits)\n"
        "classifier.save_pretrained(sys.argv[2] + '/again')\n"
        "for call in (classifier.push_to_hub, lambda name: classifier.save_pretrained(\n"
        "        sys.argv[2] + '/more', repo_id=name), AdaptiveClassifier.from_pretrained):\n"
        "    try:\n"
        "        call('owner/name')\n"
        "    except (ModuleNotFoundError, CheckpointError) as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder, tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines()[1:] == [
        "push_to_hub needs it: pip install 'huggingface_hub>=2'",
        "repo_id needs it: pip install 'huggingface_hub>=2'",
        "owner/name is no folder: name one that save_pretrained wrote; for a model of that name on "
        "a hub, pip install 'huggingface_hub>=2'",
    ], done.stderr
    images = np.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3).astype(np.uint8)
    expected = AdaptiveClassifier.from_pretrained(folder).classify(images).logits
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), expected)
    same_files(tmp_path / "again", folder)
    assert not (tmp_path / "more").exists()


def same_files(found: Path, expected: Path) -> None:
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {
        path.name: path.read_bytes() for path in expected.iterdir()
    }


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, which may reach nothing."""
    hub = pytest.importorskip("huggingface_hub")
    if not mixin.INSTALLED:
        pytest.skip(f"huggingface_hub {hub.__version__} is not used")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return hub


def test_with_the_package(folder: Path, tmp_path: Path, offline: Any) -> None:
    """The class is one of its own; the files are those that are written without it."""
    assert issubclass(AdaptiveClassifier, offline.ModelHubMixin)
    classifier = AdaptiveClassifier.from_pretrained(folder)
    assert classifier.save_pretrained(tmp_path / "again") is None
    same_files(tmp_path / "again", folder)
    images = compose("test", 3)["image"][:, ::2, ::2]
    again = AdaptiveClassifier.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(again.classify(images).logits, classifier.classify(images).logits)
    card = offline.ModelCard.load(tmp_path / "again" / "README.md")
    assert card.data.library_name == "drnet_jax"
    card = offline.ModelCard(model_card(read_folder(folder), None, EVALUATION))
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.8125)


def test_a_filled_folder_is_left_alone(folder: Path, tmp_path: Path, offline: Any) -> None:
    """The mixin alone would remove its `config.json`."""
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(FileExistsError, match="holds 'config.json'"):
        AdaptiveClassifier.from_pretrained(folder).save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == "mine"


def test_an_upload_is_the_folder(
    folder: Path, tmp_path: Path, offline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be sent, kept here instead."""

    class Api:
        def __init__(self, **_: Any) -> None:
            pass

        def create_repo(self, *, repo_id: str, **_: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, folder_path: Path, **_: Any) -> str:
            shutil.copytree(folder_path, tmp_path / "sent")
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    classifier = AdaptiveClassifier.from_pretrained(folder)
    assert classifier.push_to_hub("owner/name") == "url"
    same_files(tmp_path / "sent", folder)


def test_a_name_of_the_hub(
    folder: Path, tmp_path: Path, offline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only our files are asked for; where it cannot be had, or is no name, one error says so."""
    with pytest.raises(CheckpointError, match="^owner/name is no folder, and cannot be had as a"):
        AdaptiveClassifier.from_pretrained("owner/name", cache_dir=tmp_path)
    asked: dict[str, Any] = {}

    def snapshot(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    found = AdaptiveClassifier.from_pretrained("owner/name", revision="v1")
    assert found.classes == CLASSES
    assert asked == {
        "name": "owner/name",
        "revision": "v1",
        "allow_patterns": [
            *("config.json", "model.safetensors", "README.md", "calibration.json", "eval.json"),
        ],
    }
    asked.clear()
    for name in ("/no/such/folder", "folder", "a/b/c", "~/x"):
        with pytest.raises(CheckpointError, match=f"^{name} is no folder: name one"):
            AdaptiveClassifier.from_pretrained(name)
    assert not asked


@pytest.mark.parametrize(("found", "usable"), [("1.5.0", False), ("2.0.0", True), ("10.1", True)])
def test_versions(found: str, usable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older one, which cannot be imported without PyTorch, is as good as none."""
    monkeypatch.setattr(mixin, "find_spec", lambda name: name)
    monkeypatch.setattr(mixin, "version", lambda name: found)
    assert mixin._is_installed() == usable
    monkeypatch.setattr(mixin, "find_spec", lambda name: None)
    assert not mixin._is_installed()
