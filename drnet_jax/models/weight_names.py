"""How other libraries name a network's arrays and lay them out.

What a library calls the arrays of a network lies beside that network, in one file `<its
file>_weights.py`: a function from the network to a `WeightNames` for every library,

    @register_weight_names(MyNetwork)
    def my_network_names(network: MyNetwork) -> tuple[WeightNames, ...]:
        return (WeightNames("torchvision", lambda layers: ".".join(layers)),)

`drnet_jax/pretrained/` then reads and writes its files. Nothing here knows of files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from drnet_jax.models.backbone import Backbone, backbones
from drnet_jax.models.layers import SHARED_STATISTICS

Layers = tuple[str, ...]
Path = tuple[str, ...]
# The layer of every network that the logits come from.
HEAD = ("fc",)


@dataclass(frozen=True)
class Layout:
    """What a framework calls the arrays of a layer, and the order of their axes.

    Attributes:
      separator: between the name of a layer and that of its array.
      arrays: names of a convolution's or dense layer's `kernel` and `bias`.
      norm: names of a BatchNorm's `scale`, `bias`, `mean` and `var`.
      convolution: axes of its kernel in the order of ours, `[h, w, in, out]`.
      depthwise: the same of a depthwise one, ours being `[h, w, 1, out]`.
      dense: axes of its matrix in the order of ours, `[in, out]`.
    """

    separator: str
    arrays: Mapping[str, str]
    norm: Mapping[str, str]
    convolution: tuple[int, ...]
    depthwise: tuple[int, ...]
    dense: tuple[int, ...]

    def axes(self, layers: Layers, ndim: int) -> tuple[int, ...]:
        """Axes of the framework's array in the order of ours."""
        if ndim == 4:
            return self.depthwise if "depthwise" in layers[-1] else self.convolution
        return self.dense if ndim == 2 else tuple(range(ndim))


TORCH = Layout(
    separator=".",
    arrays={"kernel": "weight", "bias": "bias"},
    norm={"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"},
    convolution=(2, 3, 1, 0),
    depthwise=(2, 3, 1, 0),
    dense=(1, 0),
)
KERAS = Layout(
    separator="/",
    arrays={"kernel": "kernel", "bias": "bias"},
    norm={"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"},
    convolution=(0, 1, 2, 3),
    depthwise=(0, 1, 3, 2),
    dense=(0, 1),
)


@dataclass(frozen=True)
class WeightNames:
    """What one library calls the arrays of one network.

    Attributes:
      library: whose names they are.
      layer: the library's name of a layer, by our names of the blocks and layers that lead to it.
      layout: of the arrays of a layer.
      unfit: why the network computes something else with weights of this library, and what to do;
        empty: it does not.
    """

    library: str
    layer: Callable[[Layers], str]
    layout: Layout = TORCH
    unfit: str = ""

    def array(self, path: Path, suffix: str = "") -> str:
        """What the library calls one of our arrays.

        Args:
          path: collection, layers and name of the array.
          suffix: of the resolution, as in `scale_224`.
        """
        collection, *layers, leaf = path
        norm = collection.startswith(SHARED_STATISTICS) or "bn" in layers[-1]
        known = self.layout.norm if norm else self.layout.arrays
        array = known[leaf.removesuffix(suffix)]
        return f"{self.layer(tuple(layers))}{self.layout.separator}{array}"


# From a network to what each library calls its arrays; files are written in the first one's names.
Describe = Callable[[Any], tuple[WeightNames, ...]]
D = TypeVar("D", bound=Describe)
_DESCRIPTIONS: dict[type[Backbone], Describe] = {}


def register_weight_names(network: type[Backbone]) -> Callable[[D], D]:
    """Makes known how other libraries name the arrays of a class of networks.

    Raises:
      ValueError: that is known already.
    """

    def add(describe: D) -> D:
        """Keeps the function."""
        if network in _DESCRIPTIONS:
            raise ValueError(f"the names of {network.__name__}'s weights are described twice")
        _DESCRIPTIONS[network] = describe
        return describe

    return add


def weight_names(network: Backbone) -> tuple[WeightNames, ...]:
    """What each library calls the arrays of a network; empty where no file says so."""
    backbones()  # Imports the files beside the networks too.
    describe = _DESCRIPTIONS.get(type(network))
    return describe(network) if describe else ()
