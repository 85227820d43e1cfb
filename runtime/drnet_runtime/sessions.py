"""The networks of an export in ONNX Runtime."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from drnet_runtime.errors import ExportDirectoryError
from drnet_runtime.manifest import Manifest, Network

# Of the images that are run at once: larger batches fall out of the caches, and their memory is
# kept for good.
_MOST_PIXELS = 16 * 224 * 224
# Only errors: ONNX Runtime warns of what it cannot improve.
_ERRORS = 3
_AGAIN = "copy the directory again, or export the model anew (drnet_jax: --mode=export)"


class NetworkSession:
    """A network of an export, ready to run. Any number of threads may run it.

    Args:
      network: which one.
      content: of its file.
      input_name: of the images.
      image_size: their side.
      threads: of its operations.

    Raises:
      ExportDirectoryError: ONNX Runtime cannot load it, or its inputs and outputs are others.
    """

    def __init__(
        self, network: Network, content: bytes, *, input_name: str, image_size: int, threads: int
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _ERRORS
        # The threads of this network would go on spinning while the next network runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        # Of its own kinds, which have no common base but this one.
        except Exception as error:
            raise ExportDirectoryError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {network.file} ({error}): "
                f"install a newer one, or {_AGAIN}"
            ) from error
        inputs = [(given.name, given.shape[1:]) for given in self._session.get_inputs()]
        outputs = tuple(output.name for output in self._session.get_outputs())
        wanted = [(input_name, [image_size, image_size, 3])]
        if inputs != wanted or outputs != network.outputs:
            raise ExportDirectoryError(
                f"{network.file} takes {inputs} and gives {list(outputs)}, its manifest says "
                f"{wanted} and {list(network.outputs)}: {_AGAIN}"
            )
        self.network = network
        self._input = input_name
        # Images come whole: before they are resized they take memory too.
        side = max(network.resolution, image_size // 2)
        self._at_once = max(1, _MOST_PIXELS // side**2)

    def run(self, images: np.ndarray, rows: np.ndarray | None = None) -> list[np.ndarray]:
        """The network's outputs, each `[r, ...]` float32, a few images at once.

        Args:
          images: `[n, s, s, 3]` uint8.
          rows: `[r]`, which of them; None: all.
        """
        count = len(images) if rows is None else len(rows)
        parts = []
        for start in range(0, count, self._at_once):
            part = slice(start, start + self._at_once)
            given = images[part] if rows is None else images[rows[part]]
            found = self._session.run(None, {self._input: np.ascontiguousarray(given)})
            parts.append(found)
        if len(parts) == 1:
            return list(parts[0])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def load_sessions(
    directory: Path, manifest: Manifest, *, threads: int, verify: bool
) -> list[NetworkSession]:
    """Every network of an export.

    Args:
      directory: of the files.
      manifest: what they are.
      threads: of each network's operations.
      verify: compare the files with their hashes.

    Raises:
      ExportDirectoryError: a file is missing, cannot be read or loaded, or is not what was
        exported.
    """

    def load(network: Network) -> NetworkSession:
        # What was compared is what is loaded, whatever happens to the file.
        content = _read(directory / network.file, network.sha256 if verify else None)
        return NetworkSession(
            network,
            content,
            input_name=manifest.input_name,
            image_size=manifest.image_size,
            threads=threads,
        )

    with ThreadPoolExecutor(len(manifest.networks)) as pool:
        return list(pool.map(load, manifest.networks))


def _read(path: Path, sha256: str | None) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = (
            "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        )
        raise ExportDirectoryError(f"{path} {reason}; {_AGAIN}") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ExportDirectoryError(
            f"{path} is not the file that was exported (its SHA-256 is another one): {_AGAIN}"
        )
    return content


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def not_finite(outputs: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of outputs, each `[n, ...]`, that hold a value which is not finite."""
    bad = [~np.isfinite(output).all(axis=1) for output in outputs]
    return np.flatnonzero(np.any(bad, axis=0))
