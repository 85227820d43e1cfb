"""Channels between two convolutions of a block: what structured pruning takes away.

What a block adds to its input keeps its width. All blocks of a stage, and the shortcuts beside
them, share those channels, so that one block's filters alone cannot say which of them to take away
(Li et al. 2017, arXiv 1608.08710, section 3.3); and what reads the last feature map stays as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class InnerChannels:
    """Channels that only the inside of a block has.

    Attributes:
      filters: the convolution whose filters give them.
      between: layers with an entry for each of them: BatchNorms, and a depthwise convolution.
      reader: the convolution that takes them in.
    """

    filters: str
    between: tuple[str, ...]
    reader: str


# Of a stage, by block.
StageChannels = Mapping[str, tuple[InnerChannels, ...]]


def kept_width(width: int, rate: float) -> int:
    """How many of `width` channels are left at a pruning rate: one or more."""
    return max(1, width - round(rate * width))
