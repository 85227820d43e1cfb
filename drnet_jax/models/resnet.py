"""ResNet v1.5 with resolution-aware BatchNorm.

He et al. 2016, arXiv 1512.03385, as torchvision builds it: the stride of a bottleneck sits on its
3x3 convolution, padding is symmetric. One module serves as the classifier and, small and with
ordinary BatchNorm, as the resolution predictor.
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
from jax.nn import initializers

from drnet_jax.models.backbone import Backbone, MakeLayer, check_positive, register
from drnet_jax.models.convolution import STOCK, max_pool, pair
from drnet_jax.models.inner_channels import InnerChannels, StageChannels, kept_width


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    features: int
    strides: int
    conv: MakeLayer
    norm: MakeLayer
    last_scale_init: initializers.Initializer
    pruning_rate: float
    expansion = 1
    inner = (InnerChannels("conv1", ("bn1",), "conv2"),)

    @nn.compact
    def __call__(self, x: jax.Array, **norm_args: Any) -> jax.Array:
        width = kept_width(self.features, self.pruning_rate)
        y = self.conv(width, (3, 3), self.strides, padding=pair(1), name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, **norm_args))
        y = self.conv(self.features, (3, 3), padding=pair(1), name="conv2")(y)
        y = self.norm(name="bn2", scale_init=self.last_scale_init)(y, **norm_args)
        return nn.relu(y + _shortcut(self, x, y.shape[-1], **norm_args))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions and a shortcut."""

    features: int
    strides: int
    conv: MakeLayer
    norm: MakeLayer
    last_scale_init: initializers.Initializer
    pruning_rate: float
    expansion = 4
    inner = (InnerChannels("conv1", ("bn1",), "conv2"), InnerChannels("conv2", ("bn2",), "conv3"))

    @nn.compact
    def __call__(self, x: jax.Array, **norm_args: Any) -> jax.Array:
        width = kept_width(self.features, self.pruning_rate)
        y = self.conv(width, (1, 1), name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, **norm_args))
        y = self.conv(width, (3, 3), self.strides, padding=pair(1), name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, **norm_args))
        y = self.conv(self.features * self.expansion, (1, 1), name="conv3")(y)
        y = self.norm(name="bn3", scale_init=self.last_scale_init)(y, **norm_args)
        return nn.relu(y + _shortcut(self, x, y.shape[-1], **norm_args))


def _shortcut(
    block: BasicBlock | BottleneckBlock, x: jax.Array, features: int, **norm_args: Any
) -> jax.Array:
    if block.strides == 1 and x.shape[-1] == features:
        return x
    x = block.conv(features, (1, 1), block.strides, name="shortcut_conv")(x)
    return block.norm(name="shortcut_bn")(x, **norm_args)


BLOCKS: dict[str, type[BasicBlock] | type[BottleneckBlock]] = {
    "basic": BasicBlock,
    "bottleneck": BottleneckBlock,
}
# Stem: kernel size and whether a 3x3/2 max-pool follows; the convolution's stride is 2.
STEMS = {"imagenet": (7, True), "small": (3, False)}
Stem = Literal["imagenet", "small"]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnet10": dict(stage_sizes=(1, 1, 1, 1), block="basic"),
    "resnet18": dict(stage_sizes=(2, 2, 2, 2), block="basic"),
    "resnet34": dict(stage_sizes=(3, 4, 6, 3), block="basic"),
    "resnet50": dict(stage_sizes=(3, 4, 6, 3), block="bottleneck"),
    "resnet101": dict(stage_sizes=(3, 4, 23, 3), block="bottleneck"),
}


class ResNet(Backbone):
    """A ResNet with resolution-aware BatchNorm.

    Attributes:
      stage_sizes: blocks in each stage; the first stage keeps the size, each further one halves it.
      block: `'basic'` or `'bottleneck'`.
      width: features of the first stage; they double from stage to stage.
      stem: `'imagenet'` (7x7/2 convolution, 3x3/2 max-pool) or `'small'` (3x3/2 convolution).
      zero_init_residual: start the last scale of every block at zero (Goyal et al. 2017).
    """

    stage_sizes: tuple[int, ...]
    block: str = "basic"
    width: int = 64
    stem: Stem = "imagenet"
    zero_init_residual: bool = False

    @property
    def network_stride(self) -> int:
        """Input pixels per position of the last feature map, along one axis."""
        return (4 if STEMS[self.stem][1] else 2) * 2 ** (len(self.stage_sizes) - 1)

    @property
    def feature_width(self) -> int:
        """Channels of the last feature map."""
        return self.width * 2 ** (len(self.stage_sizes) - 1) * BLOCKS[self.block].expansion

    @property
    def inner_channels(self) -> tuple[StageChannels, ...]:
        """See `Backbone`."""
        inner = BLOCKS[self.block].inner
        return tuple(
            {_block_name(stage, index): inner for index in range(size)}
            for stage, size in enumerate(self.stage_sizes)
        )

    def features(self, x: jax.Array, **norm_args: Any) -> jax.Array:
        """The last feature map, see `Backbone`."""
        kernel, pool = STEMS[self.stem]
        last_scale_init = initializers.zeros if self.zero_init_residual else initializers.ones
        x = self.conv(self.width, (kernel, kernel), 2, padding=pair(kernel // 2), name="conv1")(x)
        x = nn.relu(self.norm(name="bn1")(x, **norm_args))
        if pool:
            x = max_pool(x, form=STOCK if self.stock_operations else None)
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                block = BLOCKS[self.block](
                    features=self.width * 2**stage,
                    strides=2 if stage > 0 and index == 0 else 1,
                    conv=self.conv,
                    norm=self.norm,
                    last_scale_init=last_scale_init,
                    pruning_rate=self.pruning_rate(stage),
                    name=_block_name(stage, index),
                )
                x = self.run_block(block, x, **norm_args)
        return x


def _block_name(stage: int, index: int) -> str:
    return f"layer{stage + 1}_{index}"


@register("resnet")
def resnet(
    num_classes: int,
    *,
    stage_sizes: tuple[int, ...] = (1, 1, 1, 1),
    width: int = 64,
    stem: Stem = "imagenet",
    zero_init_residual: bool = False,
) -> ResNet:
    """Basic blocks, as many in each stage as `stage_sizes` says: the paper's predictor."""
    check_positive(stage_sizes=stage_sizes, width=width)
    return ResNet(num_classes, stage_sizes, "basic", width, stem, zero_init_residual)


def _builder(stage_sizes: tuple[int, ...], block: str) -> Callable[..., ResNet]:
    def build(
        num_classes: int,
        *,
        width: int = 64,
        stem: Stem = "imagenet",
        zero_init_residual: bool = False,
    ) -> ResNet:
        """A ResNet of this architecture."""
        check_positive(width=width)
        return ResNet(num_classes, stage_sizes, block, width, stem, zero_init_residual)

    return build


for _name, _architecture in ARCHITECTURES.items():
    register(_name)(_builder(**_architecture))
