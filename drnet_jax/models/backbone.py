"""What a network needs to be a classifier or a predictor here, and the names of those there are.

A new backbone is one file in this folder: a subclass of `Backbone`, and a function that builds it,
whose keyword arguments are its options,

    class MyNetwork(Backbone):
        depth: int

        @property
        def network_stride(self) -> int: ...

        @property
        def feature_width(self) -> int: ...

        def features(self, x: jax.Array, **norm_args: Any) -> jax.Array: ...

    @register("my_network")
    def my_network(num_classes: int, *, depth: int = 4) -> MyNetwork:
        check_positive(depth=depth)
        return MyNetwork(num_classes, depth)

`--config.model.name=my_network --config.model.args="depth=2"` then trains it, `predictor.name` and
`predictor.args` take it for the predictor, and `tests/test_backbones.py` checks it. Types and
defaults of the options are read from the function's signature (`drnet_jax/models/arguments.py`).

`features` makes its layers with `self.conv` and `self.norm` and runs its blocks with
`self.run_block`, which see to BatchNorm by resolution, folding, rematerialisation and the dtype.
For BatchNorm to be folded, the one after a convolution has the convolution's name with `bn` in the
place of `conv`. MACs are counted from the network's own `nn.Conv` and `nn.Dense` layers
(`drnet_jax/models/macs.py`). For the network to be pruned, `inner_channels` says what its blocks
have inside, and they have `kept_width(width, self.pruning_rate(stage))` of them.
"""

import abc
import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import KW_ONLY
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from drnet_jax.models.arguments import check_signature
from drnet_jax.models.convolution import STOCK, convolve
from drnet_jax.models.glance import Look
from drnet_jax.models.inner_channels import StageChannels
from drnet_jax.models.layers import ResolutionBatchNorm

# How a block makes a layer: `Backbone.conv` or `Backbone.norm`.
MakeLayer = Callable[..., Callable[..., jax.Array]]


class Backbone(nn.Module, abc.ABC):
    """A network from images to logits whose one set of convolutions runs at several resolutions.

    Attributes:
      num_classes: number of outputs.
      resolution_aware: every BatchNorm has one set of statistics and parameters per resolution.
      epsilon: of every BatchNorm.
      min_samples: see `ResolutionBatchNorm`.
      pruning_rates: by stage, the share of its `inner_channels` that is left out; empty: none.
      remat: keep only what goes from block to block for the backward pass (Chen et al. 2016, arXiv
        1604.06174).
      stock_operations: XLA's own convolutions and pooling on every platform.
      folded: no BatchNorm; every convolution has a bias (`drnet_jax/inference/folding.py`).
      dtype: dtype of the computation; parameters and statistics stay float32, logits are float32.
    """

    num_classes: int
    _: KW_ONLY
    resolution_aware: bool = True
    epsilon: float = 1e-5
    min_samples: int = 4
    pruning_rates: tuple[float, ...] = ()
    remat: bool = False
    stock_operations: bool = False
    folded: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    @abc.abstractmethod
    def network_stride(self) -> int:
        """Input pixels per position of the last feature map, along one axis."""

    @property
    @abc.abstractmethod
    def feature_width(self) -> int:
        """Channels of the last feature map."""

    @abc.abstractmethod
    def features(self, x: jax.Array, **norm_args: Any) -> jax.Array:
        """Maps `[n, h, w, 3]` to the last feature map `[n, h / stride, w / stride, feature_width]`.

        Args:
          x: images.
          **norm_args: of the call of every BatchNorm: `resolution`, `train` and `sample_mask`.
        """

    @property
    def inner_channels(self) -> tuple[StageChannels, ...]:
        """What `pruning_rates` makes narrower, by stage; empty: the network cannot be pruned."""
        return ()

    @nn.compact
    def look(
        self,
        x: jax.Array,
        *,
        resolution: int,
        train: bool,
        sample_mask: jax.Array | None = None,
    ) -> Look:
        """Maps `[n, h, w, 3]` to logits `[n, num_classes]`, float32 at least, and their features.

        The mean of the last feature map goes through one dense layer, `fc`.

        Args:
          x: images at `resolution`.
          resolution: whose BatchNorm to use.
          train: see `ResolutionBatchNorm`.
          sample_mask: see `ResolutionBatchNorm`.
        """
        x = self.features(x, resolution=resolution, train=train, sample_mask=sample_mask)
        x = x.mean(axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        return Look(nn.Dense(self.num_classes, name="fc")(x), x)

    def __call__(
        self,
        x: jax.Array,
        *,
        resolution: int,
        train: bool,
        sample_mask: jax.Array | None = None,
    ) -> jax.Array:
        """The logits of `look`, whose arguments these are."""
        return self.look(x, resolution=resolution, train=train, sample_mask=sample_mask).logits

    # Not wrapped by linen: a layer belongs to the block that makes it, not to the network.
    @nn.nowrap
    def conv(
        self, features: int, kernel_size: tuple[int, int], strides: int = 1, **kwargs: Any
    ) -> nn.Conv:
        """A convolution; arguments as of `nn.Conv`.

        Kernels are initialised as torchvision's (He et al. 2015, by fan-out).
        """
        form = STOCK if self.stock_operations else None
        return nn.Conv(
            features,
            kernel_size,
            strides,
            use_bias=self.folded,
            dtype=self.dtype,
            kernel_init=initializers.variance_scaling(2.0, "fan_out", "normal"),
            conv_general_dilated=partial(convolve, form=form),
            **kwargs,
        )

    @nn.nowrap
    def norm(self, **kwargs: Any) -> Callable[..., jax.Array]:
        """The BatchNorm after a convolution; arguments as of `ResolutionBatchNorm`.

        The identity where it is folded into the convolution.
        """
        if self.folded:
            return lambda x, **_: x
        return ResolutionBatchNorm(
            resolution_aware=self.resolution_aware,
            epsilon=self.epsilon,
            min_samples=self.min_samples,
            dtype=self.dtype,
            **kwargs,
        )

    @nn.nowrap
    def pruning_rate(self, stage: int) -> float:
        """That of a stage, for its blocks."""
        return self.pruning_rates[stage] if self.pruning_rates else 0.0

    @nn.nowrap
    def run_block(self, block: nn.Module, x: jax.Array, **norm_args: Any) -> jax.Array:
        """Runs a block on `[n, h, w, c]`, with `remat` computed anew in the backward pass."""

        def run(block: Any, x: jax.Array) -> jax.Array:
            """A function, which `nn.remat` can wrap."""
            return block(x, **norm_args)

        return (nn.remat(run) if self.remat else run)(block, x)


def check_positive(**options: float | tuple[float, ...]) -> None:
    """Checks options of a network, each a number or one or more of them.

    Raises:
      ValueError: one is not above zero; the message names it.
    """
    for name, value in options.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(0 < number < math.inf for number in numbers):
            raise ValueError(f"{name}={value!r} must be above zero")


# From a number of classes, and options by keyword.
Builder = Callable[..., Backbone]
B = TypeVar("B", bound=Builder)
_BUILDERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[B], B]:
    """Makes a builder known under a name.

    Raises:
      ValueError: the name is taken.
      TypeError: an option of the builder has no default, or a type that no text can give.
    """

    def add(builder: B) -> B:
        """Keeps the builder."""
        if name in _BUILDERS:
            raise ValueError(f"there are two backbones named {name!r}")
        check_signature(builder)
        _BUILDERS[name] = builder
        return builder

    return add


def backbones() -> dict[str, Builder]:
    """All builders by name; every file of this folder is imported."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"drnet_jax.models.{module.name}")
    return dict(sorted(_BUILDERS.items()))
