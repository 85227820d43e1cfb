"""ImageNet-100: a hundred classes of ImageNet-2012, numbered anew."""

from importlib import resources

import numpy as np

from drnet_jax.data.index_cache import digest
from drnet_jax.data.sources import DataError, EncodedDataset, LabelledImages


def imagenet100_classes() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-100 in their original order (Tian et al. 2020, CMC)."""
    text = resources.files("drnet_jax.data").joinpath("imagenet100_cmc.txt").read_text()
    return tuple(text.split())


class ClassSubset:
    """Some classes of a data set, numbered anew.

    Args:
      dataset: the whole one.
      classes: in the order of their new labels.

    Raises:
      DataError: the data set lacks one.
    """

    def __init__(self, dataset: EncodedDataset, classes: tuple[str, ...]) -> None:
        missing = sorted(set(classes) - set(dataset.classes))
        if missing:
            raise DataError(f"the data set lacks {len(missing)} classes: {missing[:5]}")
        self._dataset = dataset
        self.classes = classes
        self.official = dataset.official

    def read_split(self, split: str) -> LabelledImages:
        """Images of one of the data set's own splits, with their new labels."""
        whole = self._dataset.read_split(split)
        renumbered = np.full(len(self._dataset.classes), -1, np.int32)
        old = [self._dataset.classes.index(name) for name in self.classes]
        renumbered[old] = np.arange(len(self.classes))
        chosen = np.flatnonzero(renumbered[whole.labels] >= 0)
        return LabelledImages(
            whole.reader,
            whole.positions[chosen],
            renumbered[whole.labels[chosen]],
            digest(whole.identity, chosen.tobytes()),
            whole.sizes[chosen],
        )
