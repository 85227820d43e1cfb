"""Pictures without labels: all that a folder holds, whatever folders are in it."""

from pathlib import Path

import numpy as np

from drnet_jax.data.files import describe, list_pictures
from drnet_jax.data.folder import FileReader
from drnet_jax.data.index_cache import digest
from drnet_jax.data.sources import DataError, LabelledImages
from drnet_jax.runtime.progress import log_once


class Pictures:
    """An `EncodedDataset` of pictures whose labels are not known: all are 0, of no class.

    Args:
      root: the folder.

    Raises:
      DataError: there is no such folder.
    """

    classes: tuple[str, ...] = ()
    official = ("all",)

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"data.dir={str(root)!r} is not a folder of pictures; set it to one")
        self._root = root

    def read_split(self, split: str) -> LabelledImages:
        """All pictures, in the order of their paths, which tell them from others.

        Raises:
          DataError: there is none.
          OSError: a folder cannot be listed.
        """
        del split
        found = list_pictures(self._root)
        if not found.pictures:
            raise DataError(f"data.dir={str(self._root)!r} has no picture in it: set it to others")
        if found.left_out:
            log_once(describe(found.left_out, self._root))
        names = [picture.name for picture in found.pictures]
        return LabelledImages(
            FileReader(tuple(self._root / name for name in names)),
            np.arange(len(names)),
            np.zeros(len(names), np.int32),
            digest(names),
            np.array([picture.size for picture in found.pictures], np.int64),
        )
