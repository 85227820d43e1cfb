"""The batch sizes of a configuration on the device at hand, and whether they fit its memory."""

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
    largest = value if isinstance(value, int) else max(value)
    check_images_fit(f"{field}={value}", largest, image_size, num_devices)


def check_images_fit(
    given: str, num_images: int, image_size: tuple[int, int], num_devices: int = 1
) -> None:
    """Checks that images fit that are on a device together.

    Args:
      given: the argument that says how many, with its value, for the message.
      num_images: the largest number of it.
      image_size: height and width of the images.
      num_devices: that they are divided among.

    Raises:
      ConfigError: they alone take more than all the memory.
    """
    memory, (height, width) = device_memory(), image_size
    needed = num_images * height * width * BYTES_A_PIXEL / num_devices
    if needed > memory:
        raise ConfigError(
            f"{given}: {num_images} images of {width}x{height} px take {needed / GIB:.1f} GiB "
            f"on a device, and there are {memory / GIB:.1f}; lower it"
        )


def check_buckets(config: ConfigDict) -> None:
    """Checks that the images of a bucket fit that is configured, at the largest resolution.

    Raises:
      ConfigError: they alone take more than all the memory.
    """
    if config.inference.buckets:
        largest = max(config.model.resolutions)
        check_batches(config, "inference.buckets", (largest, largest))


def buckets_in_words(config: ConfigDict) -> str:
    """The buckets of the classifier for images of the largest resolution on the first device."""
    resolutions, platform = config.model.resolutions, jax.local_devices()[0].platform
    given = tuple(config.inference.buckets)
    each = [given or default_buckets(side, platform, max(resolutions)) for side in resolutions]
    common = set.intersection(*map(set, each))
    words = "/".join(str(size) for size in each[0] if size in common)
    if len(set(each)) == 1:
        return words
    largest = "/".join(str(max(sizes)) for sizes in each)
    return f"{words}, up to {largest} at {'/'.join(map(str, resolutions))} px"
