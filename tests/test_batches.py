"""The buckets of a configuration on the device at hand: given ones, or what suits it."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ml_collections import ConfigDict

from drnet_jax import AdaptiveClassifier, load_run, save_pretrained
from drnet_jax.config import ConfigError, default_config
from drnet_jax.inference import batches, create
from drnet_jax.inference.batches import buckets_in_words, check_buckets
from drnet_jax.runtime.memory import GIB
from tests.random_model import write_run
from tests.small_run import small_config


def configured(*resolutions: int, **fields: Any) -> ConfigDict:
    config = default_config()
    config.update_from_flattened_dict({"model.resolutions": resolutions} | fields)
    return config


@pytest.fixture
def gpu(monkeypatch: Any) -> None:
    """The first device is a GPU."""
    devices = [SimpleNamespace(platform="gpu")]
    monkeypatch.setattr(batches.jax, "local_devices", lambda: devices)


def test_on_the_cpu_all_are_the_same() -> None:
    assert buckets_in_words(configured(224, 168, 112)) == "1/2/3/4/6/8/16/32/64"


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_small_images_have_larger_ones() -> None:
    words = "1/2/3/4/6/8/16/32/64/128/256, up to 256/512/1024 at 224/168/112 px"
    assert buckets_in_words(configured(224, 168, 112)) == words
    assert buckets_in_words(configured(168)) == "1/2/3/4/6/8/16/32/64/128/256/512"


@pytest.mark.usefixtures("gpu")
def test_given_ones_win() -> None:
    config = configured(224, 112, **{"inference.buckets": (1, 8)})
    assert buckets_in_words(config) == "1/8"


@pytest.mark.usefixtures("gpu")
def test_they_fit_into_the_memory(monkeypatch: Any) -> None:
    """At the size of the large one; those of the device are no mistake of the user's."""
    config = configured(512, 64, **{"inference.buckets": (1, 1024)})
    needed = 1024 * 512 * 512 * 3 * 5
    monkeypatch.setattr(batches, "device_memory", lambda: needed)
    check_buckets(config)
    monkeypatch.setattr(batches, "device_memory", lambda: needed - 1)
    words = f"1024): 1024 images of 512x512 px take {needed / GIB:.1f} GiB on a device"
    with pytest.raises(ConfigError, match=rf"inference\.buckets=\(1, {re.escape(words)}"):
        check_buckets(config)
    config.inference.buckets = ()
    check_buckets(config)


def test_a_fused_batch_fits_into_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the size of the images, before anything is compiled."""
    write_run(small_config(), tmp_path / "run", tuple("0123456789"))
    save_pretrained(load_run(tmp_path / "run"), tmp_path / "folder")
    classifier = AdaptiveClassifier.from_pretrained(tmp_path / "folder", image_size=(512, 256))
    monkeypatch.setattr(create, "FusedClassifier", lambda **given: given["capacities"])
    needed = 4096 * 512 * 256 * 3 * 5
    monkeypatch.setattr(batches, "device_memory", lambda: needed)
    assert classifier.fused(4096, shares=(3, 1)) == (3072, 1024)
    monkeypatch.setattr(batches, "device_memory", lambda: needed - 1)
    words = f"batch_size=4096: 4096 images of 256x512 px take {needed / GIB:.1f} GiB on a device"
    with pytest.raises(ConfigError, match=words):
        classifier.fused(4096, shares=(3, 1))
