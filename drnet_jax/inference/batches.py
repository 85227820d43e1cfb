"""Whether batches of images fit into the memory."""

from ml_collections import ConfigDict

from drnet_jax.config import ConfigError, get_field
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
    memory, (height, width) = device_memory(), image_size
    value = get_field(config, field)
    largest = value if isinstance(value, int) else max(value)
    needed = largest * height * width * BYTES_A_PIXEL / num_devices
    if needed > memory:
        raise ConfigError(
            f"{field}={value}: {largest} images of {width}x{height} px take "
            f"{needed / GIB:.1f} GiB on a device, and there are {memory / GIB:.1f}; lower it"
        )
