"""What a network needs to be a classifier or a predictor here, and the names of those there are.

A new backbone is one file in this folder: a linen module that fulfils `Backbone`, and a function
that builds it under a name,

    @register("my_network")
    def my_network(num_classes: int, options: BackboneOptions) -> MyNetwork: ...

`--config.model.name=my_network` then trains it, `--config.predictor.name=my_network` takes it for
the predictor, and `tests/test_backbones.py` checks it. Its MACs are counted from its own `nn.Conv`
and `nn.Dense` layers (`drnet_jax/models/macs.py`). For BatchNorm to be folded, the BatchNorm after
a convolution has the convolution's name with `bn` in the place of `conv`. `conv_and_norm`,
`block_runner` and `classify_features` are what the networks here share.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from drnet_jax.models.convolution import STOCK, convolve
from drnet_jax.models.layers import ModuleDef, ResolutionBatchNorm, without_norm


class Backbone(Protocol):
    """A linen module from images to logits, with BatchNorm by resolution."""

    num_classes: int
    resolution_aware: bool
    epsilon: float
    min_samples: int
    remat: bool
    stock_operations: bool
    folded: bool
    dtype: DTypeLike

    @property
    def network_stride(self) -> int:
        """Input pixels per position of the last feature map, along one axis."""

    @property
    def feature_width(self) -> int:
        """Features that the last dense layer sees."""

    def __call__(
        self,
        x: jax.Array,
        *,
        resolution: int,
        train: bool,
        sample_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Maps `[n, h, w, 3]` to logits `[n, num_classes]`, float32 at least."""

    def clone(self, **fields: Any) -> Any:
        """As `nn.Module.clone`."""

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.init`."""

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.apply`."""


def conv_and_norm(backbone: Backbone) -> tuple[ModuleDef, ModuleDef]:
    """How to make a convolution of a backbone, and the BatchNorm after it.

    Kernels are initialised as torchvision's (He et al. 2015, by fan-out).
    """
    conv = partial(
        nn.Conv,
        use_bias=backbone.folded,
        dtype=backbone.dtype,
        kernel_init=initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=partial(convolve, form=STOCK if backbone.stock_operations else None),
    )
    norm = partial(
        ResolutionBatchNorm,
        resolution_aware=backbone.resolution_aware,
        epsilon=backbone.epsilon,
        min_samples=backbone.min_samples,
        dtype=backbone.dtype,
    )
    return conv, without_norm if backbone.folded else norm


def block_runner(
    backbone: Backbone, norm_args: dict[str, Any]
) -> Callable[[nn.Module, jax.Array], jax.Array]:
    """How to run a block of a backbone on `[n, h, w, c]`.

    Args:
      backbone: with `remat` only what goes from block to block is kept for the backward pass (Chen
        et al. 2016).
      norm_args: arguments of every BatchNorm.
    """

    def run(block: Any, x: jax.Array) -> jax.Array:
        """A function, which `nn.remat` can wrap."""
        return block(x, **norm_args)

    return nn.remat(run) if backbone.remat else run


def classify_features(x: jax.Array, num_classes: int) -> jax.Array:
    """Logits `[n, k]`, float32 at least, of the last feature map: its mean, and the layer `fc`."""
    x = x.mean(axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
    return nn.Dense(num_classes, name="fc")(x)


@dataclass(frozen=True)
class BackboneOptions:
    """What a configuration says of a network beside its name.

    Attributes:
      width: features of a ResNet's first stage.
      width_multiplier: of all features of the other families.
      stem: of a ResNet.
      stage_sizes: of the ResNet named `'resnet'`.
      zero_init_residual: of a ResNet.
      resolution_aware: one set of BatchNorm statistics and parameters a resolution.
      min_samples: see `ResolutionBatchNorm`.
      remat: compute the inside of every block anew in the backward pass.
      stock_operations: XLA's own convolutions and pooling on every platform.
      dtype: of the computation.
    """

    width: int = 64
    width_multiplier: float = 1.0
    stem: str = "imagenet"
    stage_sizes: tuple[int, ...] = (1, 1, 1, 1)
    zero_init_residual: bool = False
    resolution_aware: bool = True
    min_samples: int = 4
    remat: bool = False
    stock_operations: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def common(self) -> dict[str, Any]:
        """What every family takes, as keyword arguments."""
        names = ("resolution_aware", "min_samples", "remat", "stock_operations", "dtype")
        return {name: getattr(self, name) for name in names}


Builder = Callable[[int, BackboneOptions], Backbone]
_BUILDERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Makes a builder known under a name.

    Raises:
      ValueError: the name is taken.
    """

    def add(builder: Builder) -> Builder:
        """Keeps the builder."""
        if name in _BUILDERS:
            raise ValueError(f"there are two backbones named {name!r}")
        _BUILDERS[name] = builder
        return builder

    return add


def backbones() -> dict[str, Builder]:
    """All builders by name; every file of this folder is imported."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"drnet_jax.models.{module.name}")
    return dict(sorted(_BUILDERS.items()))
