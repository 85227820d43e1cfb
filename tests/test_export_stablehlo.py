"""StableHLO of an export: loaded where nothing of this package is, as the run says."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import export

from drnet_jax import load_classifier, load_run
from drnet_jax.data.digits_on_photos import compose
from drnet_jax.export import restore_and_export
from drnet_jax.exports import stablehlo
from drnet_jax.exports.errors import ExportError
from drnet_jax.exports.networks import ExportedNetwork
from drnet_jax.runtime.checked_json import read_json
from tests.small_run import GLANCE
from tests.test_export import make_run

KINDS: dict[str, dict[str, Any]] = {
    # Whose CPU's forms of convolutions and pooling are others than XLA's.
    "pixels": {
        "model.args": "stage_sizes=(1, 1), width=4, stem='imagenet'",
        "model.resolutions": (48, 32),
        "predictor.size": 24,
    },
    "glance": GLANCE,
}
# Without this package: what a user of the file runs.
ALONE = """
import sys
import numpy as np
from jax import export
exported = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
found = exported.call(np.load(sys.argv[2]))
np.savez(sys.argv[3], **found)
assert not any(name.startswith(("drnet_jax", "flax")) for name in sys.modules)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_alone_say_what_the_run_says(kind: str, tmp_path: Path) -> None:
    config = make_run(tmp_path, KINDS[kind])
    config.export.update({"stablehlo": True, "images": 10})
    content = restore_and_export(config, tmp_path / "run")
    assert content["usable"]
    facts = content["stablehlo"]
    assert facts["platforms"] == ["cpu", "cuda"]
    assert "6 months after" in facts["validity"] and "3 weeks before" in facts["validity"]
    assert content["versions"]["jaxlib"] == jax.lib.__version__
    # Those of the engine, computed otherwise than in the check of ONNX.
    assert facts["parity"]["num_images"] == 10 and not facts["parity"]["problems"]
    assert facts["parity"]["differences"] != content["parity"]["differences"]

    images = compose("train", 5)["image"]
    np.save(tmp_path / "images.npy", images)
    engine = load_classifier(load_run(tmp_path / "run"), image_size=(64, 64), buckets=(1,))
    scores, logits = engine._array_engine().classify_everywhere(images)
    for network in content["networks"]:
        path = tmp_path / "run" / "export" / network["stablehlo"]["file"]
        assert path.suffix == ".stablehlo" and path.stem == Path(network["file"]).stem
        assert hashlib.sha256(path.read_bytes()).hexdigest() == network["stablehlo"]["sha256"]
        exported = export.deserialize(bytearray(path.read_bytes()))
        assert exported.calling_convention_version == facts["calling_convention_version"]
        assert exported.platforms == ("cpu", "cuda")
        arguments = (str(path), str(tmp_path / "images.npy"), str(tmp_path / "out.npz"))
        subprocess.run([sys.executable, "-c", ALONE, *arguments], check=True, cwd=tmp_path)
        found = np.load(tmp_path / "out.npz")
        assert sorted(found) == sorted(network["outputs"])
        if "scores" in found:
            np.testing.assert_allclose(found["scores"], scores, rtol=0, atol=1e-5)
        if "logits" in found:
            expected = logits[:, content["resolutions"].index(network["resolution"])]
            np.testing.assert_allclose(found["logits"], expected, rtol=0, atol=1e-4)


def test_a_broken_file_is_found_and_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that swaps channels; the ONNX files are as they should be."""
    config = make_run(tmp_path, {})
    config.export.update({"stablehlo": True, "images": 4})
    whole = stablehlo.stablehlo

    def swapped(network: ExportedNetwork, side: int) -> tuple[bytes, int]:
        """Of images in BGR."""
        apply = network.apply
        if network.name == "classifier_16":
            object.__setattr__(network, "apply", lambda images: apply(images[..., ::-1]))
        return whole(network, side)

    monkeypatch.setattr(stablehlo, "stablehlo", swapped)
    with pytest.raises(ExportError, match="as unusable: StableHLO: logits at 16 px differ by"):
        restore_and_export(config, tmp_path / "run")
    found = read_json(tmp_path / "run" / "export" / "manifest.json")
    assert not found["usable"]
    problems = found["parity"]["problems"]
    assert all(problem.startswith("StableHLO: ") for problem in problems)
    assert problems == [f"StableHLO: {text}" for text in found["stablehlo"]["parity"]["problems"]]


def test_not_asked_for_and_not_possible(tmp_path: Path) -> None:
    config = make_run(tmp_path, {})
    config.export.images = 2
    content = restore_and_export(config, tmp_path / "run")
    assert content["stablehlo"] is None
    assert {network["stablehlo"] for network in content["networks"]} == {None}
    assert not list((tmp_path / "run" / "export").glob("*.stablehlo"))
    network = ExportedNetwork("classifier", 32, 1, lambda images: {"logits": images.reshape(7, -1)})
    with pytest.raises(ExportError, match="classifier_32 cannot be exported by jax.export"):
        stablehlo.stablehlo(network, 32)
