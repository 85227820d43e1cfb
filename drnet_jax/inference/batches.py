"""The batch sizes of a configuration on the device at hand, and whether they fit its memory."""

from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from drnet_jax.config import ConfigError, get_field
from drnet_jax.inference.buckets import default_buckets
from drnet_jax.runtime.memory import BYTES_A_PIXEL, GIB, device_memory


def check_batches(
    config: ConfigDict, field: str, image_size: tuple[int, int], num_devices: int = 1
) -> None:
    """Checks that the images of a batch fit.

    Args:
      config: the whole configuration.
      field: its dotted name: a number of images, or several.
      image_size: height and width of the images.
      num_devices: that a batch is divided among.

    Raises:
      ConfigError: they alone take more than all the memory.
    """
    value = get_field(config, field)
    sizes = [value] if isinstance(value, int) else value
    _check(f"{field}={value}", sizes, image_size, num_devices)


def check_buckets(config: ConfigDict) -> None:
    """Checks that the images of a bucket fit, at the largest resolution.

    Raises:
      ConfigError: they alone take more than all the memory.
    """
    largest = max(config.model.resolutions)
    sizes = sorted(set().union(*network_buckets(config)))
    _check(f"inference.buckets={tuple(sizes)}", sizes, (largest, largest), 1)


def _check(named: str, sizes: Sequence[int], image_size: tuple[int, int], num_devices: int) -> None:
    memory, (height, width) = device_memory(), image_size
    largest = max(sizes)
    needed = largest * height * width * BYTES_A_PIXEL / num_devices
    if needed > memory:
        raise ConfigError(
            f"{named}: {largest} images of {width}x{height} px take {needed / GIB:.1f} GiB on a "
            f"device, and there are {memory / GIB:.1f}; lower it"
        )


def network_buckets(config: ConfigDict) -> list[tuple[int, ...]]:
    """The buckets of the predictor, if there is one, and of the classifier at every resolution.

    Those that are configured, or else those that suit the first device (`default_buckets`).
    """
    sides = list(config.model.resolutions)
    if len(sides) > 1:
        glances = config.predictor.kind == "glance"
        sides.insert(0, min(sides) if glances else config.predictor.size)
    platform = jax.local_devices()[0].platform
    given = tuple(config.inference.buckets)
    return [given or default_buckets(side, platform) for side in sides]


def buckets_in_words(config: ConfigDict) -> str:
    """The buckets of the classifier."""
    resolutions = config.model.resolutions
    each = network_buckets(config)[-len(resolutions) :]
    common = set.intersection(*map(set, each))
    words = "/".join(str(size) for size in each[0] if size in common)
    if len(set(each)) == 1:
        return words
    largest = "/".join(str(max(sizes)) for sizes in each)
    return f"{words}, up to {largest} at {'/'.join(map(str, resolutions))} px"
