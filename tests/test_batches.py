"""The buckets of a configuration on the device at hand: given ones, or what suits it."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from ml_collections import ConfigDict

from drnet_jax.config import ConfigError, default_config
from drnet_jax.inference import batches
from drnet_jax.inference.batches import buckets_in_words, check_buckets, network_buckets
from drnet_jax.runtime.memory import GIB

USUAL = (1, 2, 3, 4, 6, 8, 16, 32, 64)
LARGE = (*USUAL, 128, 256, 512)


def configured(*resolutions: int, **fields: Any) -> ConfigDict:
    config = default_config()
    config.update_from_flattened_dict({"model.resolutions": resolutions} | fields)
    return config


@pytest.fixture
def gpu(monkeypatch: Any) -> None:
    """The first device is a GPU."""
    devices = [SimpleNamespace(platform="gpu")]
    monkeypatch.setattr(batches.jax, "local_devices", lambda: devices)


PIXELS = {"predictor.size": 128}
GLANCE = {"predictor.kind": "glance"}


def test_on_the_cpu_all_are_the_same() -> None:
    config = configured(224, 168, 112, **PIXELS)
    assert network_buckets(config) == [USUAL] * 4
    assert buckets_in_words(config) == "1/2/3/4/6/8/16/32/64"


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_small_images_have_larger_ones() -> None:
    config = configured(224, 168, 112, **PIXELS)
    own = [LARGE[:-1], LARGE, (*LARGE, 1024)]
    assert network_buckets(config) == [LARGE, *own]
    words = "1/2/3/4/6/8/16/32/64/128/256, up to 256/512/1024 at 224/168/112 px"
    assert buckets_in_words(config) == words
    # The first look is at the smallest resolution.
    assert network_buckets(configured(224, 112, **GLANCE)) == [own[2], own[0], own[2]]
    assert network_buckets(configured(168)) == [LARGE]


@pytest.mark.usefixtures("gpu")
def test_given_ones_win() -> None:
    config = configured(224, 112, **{"inference.buckets": (1, 8)})
    assert network_buckets(config) == [(1, 8)] * 3
    assert buckets_in_words(config) == "1/8"


@pytest.mark.usefixtures("gpu")
def test_they_fit_into_the_memory(monkeypatch: Any) -> None:
    """1024 images, as many as there are of the small size, at the size of the large one."""
    config = configured(512, 64)
    needed = 1024 * 512 * 512 * 3 * 5
    monkeypatch.setattr(batches, "device_memory", lambda: needed)
    check_buckets(config)
    monkeypatch.setattr(batches, "device_memory", lambda: needed - 1)
    words = f"512, 1024): 1024 images of 512x512 px take {needed / GIB:.1f} GiB on a device"
    with pytest.raises(ConfigError, match=rf"inference\.buckets=\(1, 2, .* {re.escape(words)}"):
        check_buckets(config)
    config.inference.buckets = (1, 8)
    check_buckets(config)
