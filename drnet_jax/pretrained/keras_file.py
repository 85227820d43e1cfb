"""Arrays from an `.h5` file of Keras, by the names of its layers; needs the package h5py."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from drnet_jax.pretrained.errors import WeightsError

# Of a whole model; without it, the file is of weights alone.
_MODEL = "model_weights"


def read_keras_file(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a model or of its weights, named `<layer>/<array>` as in `Conv1/kernel`.

    Groups around a layer, of a model within a model, are left out of its name. Keras 2 ends names
    with `:0` and calls a depthwise kernel `depthwise_kernel`; both are as Keras 3's here.

    Args:
      path: of a file that `model.save('x.h5')` wrote, or `save_weights('x.h5')` of Keras 2.

    Raises:
      WeightsError: h5py is missing, or the file has no names of layers (`.weights.h5` of Keras 3),
        two layers of one name, or an array larger than itself.
      Exception: of any kind, it is damaged.
    """
    try:
        h5py: Any = import_module("h5py")
    except ImportError as error:
        raise WeightsError("Keras's files need the package h5py: pip install h5py") from error
    found: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        root = file[_MODEL] if _MODEL in file else file
        for where, data in _datasets(root, h5py.Dataset):
            name = _name(where)
            if name in found:
                raise WeightsError(f"it has two arrays {name}: save the classifier alone")
            # A few bytes can claim all of the memory.
            if data.nbytes > path.stat().st_size:
                raise WeightsError(f"{name} is larger than the file: get it anew")
            found[name] = np.asarray(data[()])
    if any(name.startswith("vars/") for name in found):
        raise WeightsError(
            "it has no names of layers, as .weights.h5 of Keras 3: save the whole model, "
            "model.save('x.h5')"
        )
    return found


def _datasets(root: Any, kind: type) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []

    def visit(where: str, item: Any) -> None:
        """Keeps what is no group."""
        if isinstance(item, kind):
            found.append((where, item))

    root.visititems(visit)
    return found


def _name(where: str) -> str:
    *_, layer, array = ["", *where.removesuffix(":0").split("/")]
    return f"{layer}/{array.replace('depthwise_kernel', 'kernel')}"
