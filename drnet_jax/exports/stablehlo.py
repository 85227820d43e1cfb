"""Exported networks as StableHLO, by `jax.export`: for JAX where the model's code is not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from drnet_jax.exports.errors import ExportError
from drnet_jax.exports.networks import ExportedNetwork
from drnet_jax.exports.onnx_model import BATCH, IMAGES
from drnet_jax.exports.parity import Run

ENDING = ".stablehlo"
# For whichever of them a file is loaded on, whose forms of the convolutions are all in it.
PLATFORMS = ("cpu", "cuda")
VALIDITY = (
    "by jax.export's guarantees: loaded by JAX and jaxlib that were built up to 6 months after "
    "jaxlib of `versions`, or up to 3 weeks before it; export anew for others"
)


def stablehlo(network: ExportedNetwork, side: int) -> tuple[bytes, int]:
    """Serialises a network, for any number of images.

    Args:
      network: in JAX's own forms of the operations, see `in_float32`.
      side: of the images, in pixels.

    Returns:
      What `jax.export.deserialize` reads, and the version of its calling convention.

    Raises:
      ExportError: the network cannot be exported for any number of images, or not by what is
        guaranteed to be stable.
    """
    (batch,) = export.symbolic_shape(BATCH)
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
    try:
        exported = export.export(jax.jit(network.apply), platforms=PLATFORMS)(images)
        content = bytes(exported.serialize())
    # What JAX raises for shapes that are not known has no common base.
    except Exception as error:
        raise ExportError(
            f"{network.name} cannot be exported by jax.export ({error}): leave out export.stablehlo"
        ) from error
    return content, exported.calling_convention_version


def load_stablehlo(path: Path) -> Run:
    """An exported file by JAX on the CPU, as `onnx_runtime`."""
    exported = export.deserialize(bytearray(path.read_bytes()))
    (device, *_) = jax.local_devices(backend="cpu")

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One batch."""
        found: Any = exported.call(jax.device_put(inputs[IMAGES], device))
        return {name: np.asarray(values) for name, values in found.items()}

    return run
