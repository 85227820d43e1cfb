"""ResNet v1.5 with resolution-aware BatchNorm.

He et al. 2016, arXiv 1512.03385, as torchvision builds it: the stride of a bottleneck sits on its
3x3 convolution, padding is symmetric. One module serves as the classifier and, small and with
ordinary BatchNorm, as the resolution predictor.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike

from drnet_jax.models.backbone import (
    BackboneOptions,
    block_runner,
    classify_features,
    conv_and_norm,
    register,
)
from drnet_jax.models.convolution import STOCK, max_pool, pair
from drnet_jax.models.layers import ModuleDef


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    features: int
    strides: int
    conv: ModuleDef
    norm: ModuleDef
    last_scale_init: initializers.Initializer
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, **norm_args: Any) -> jax.Array:
        y = self.conv(self.features, (3, 3), self.strides, padding=pair(1), name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, **norm_args))
        y = self.conv(self.features, (3, 3), padding=pair(1), name="conv2")(y)
        y = self.norm(name="bn2", scale_init=self.last_scale_init)(y, **norm_args)
        return nn.relu(y + _shortcut(self, x, y.shape[-1], **norm_args))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions and a shortcut."""

    features: int
    strides: int
    conv: ModuleDef
    norm: ModuleDef
    last_scale_init: initializers.Initializer
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, **norm_args: Any) -> jax.Array:
        y = self.conv(self.features, (1, 1), name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, **norm_args))
        y = self.conv(self.features, (3, 3), self.strides, padding=pair(1), name="conv2")(y)
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
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnet10": dict(stage_sizes=(1, 1, 1, 1), block="basic"),
    "resnet18": dict(stage_sizes=(2, 2, 2, 2), block="basic"),
    "resnet34": dict(stage_sizes=(3, 4, 6, 3), block="basic"),
    "resnet50": dict(stage_sizes=(3, 4, 6, 3), block="bottleneck"),
    "resnet101": dict(stage_sizes=(3, 4, 23, 3), block="bottleneck"),
}


class ResNet(nn.Module):
    """A ResNet that one set of convolutions runs at several resolutions.

    Attributes:
      num_classes: number of outputs.
      stage_sizes: blocks in each stage; the first stage keeps the size, each further one halves it.
      block: `'basic'` or `'bottleneck'`.
      width: features of the first stage; they double from stage to stage.
      stem: `'imagenet'` (7x7/2 convolution, 3x3/2 max-pool) or `'small'` (3x3/2 convolution).
      resolution_aware: every BatchNorm, shortcuts included, has one set of statistics and
        parameters a resolution.
      epsilon: of every BatchNorm.
      zero_init_residual: start the last scale of every block at zero (Goyal et al. 2017).
      min_samples: see `ResolutionBatchNorm`.
      remat: keep only what goes from block to block for the backward pass (Chen et al. 2016).
      stock_operations: XLA's own convolutions and pooling on every platform.
      folded: no BatchNorm; every convolution has a bias (`drnet_jax/inference/folding.py`).
      dtype: dtype of the computation; parameters and statistics stay float32, logits are float32.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    block: str = "basic"
    width: int = 64
    stem: str = "imagenet"
    resolution_aware: bool = True
    epsilon: float = 1e-5
    zero_init_residual: bool = False
    min_samples: int = 4
    remat: bool = False
    stock_operations: bool = False
    folded: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def network_stride(self) -> int:
        """Input pixels per position of the last feature map, along one axis."""
        return (4 if STEMS[self.stem][1] else 2) * 2 ** (len(self.stage_sizes) - 1)

    @property
    def feature_width(self) -> int:
        """Features that the last dense layer sees."""
        return self.width * 2 ** (len(self.stage_sizes) - 1) * BLOCKS[self.block].expansion

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        resolution: int,
        train: bool,
        sample_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Maps `[n, h, w, 3]` to logits `[n, num_classes]`, float32 at least.

        Args:
          x: images at `resolution`.
          resolution: whose BatchNorm to use.
          train: see `ResolutionBatchNorm`.
          sample_mask: see `ResolutionBatchNorm`.
        """
        conv, norm = conv_and_norm(self)
        norm_args: dict[str, Any] = dict(
            resolution=resolution, train=train, sample_mask=sample_mask
        )
        run_block = block_runner(self, norm_args)
        last_scale_init = initializers.zeros if self.zero_init_residual else initializers.ones
        kernel, pool = STEMS[self.stem]

        x = conv(self.width, (kernel, kernel), strides=2, padding=pair(kernel // 2), name="conv1")(
            x
        )
        x = nn.relu(norm(name="bn1")(x, **norm_args))
        if pool:
            x = max_pool(x, form=STOCK if self.stock_operations else None)
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                block = BLOCKS[self.block](
                    features=self.width * 2**stage,
                    strides=2 if stage > 0 and index == 0 else 1,
                    conv=conv,
                    norm=norm,
                    last_scale_init=last_scale_init,
                    name=f"layer{stage + 1}_{index}",
                )
                x = run_block(block, x)
        return classify_features(x, self.num_classes)


def _resnet(num_classes: int, options: BackboneOptions, **architecture: Any) -> ResNet:
    return ResNet(
        num_classes,
        **architecture,
        width=options.width,
        stem=options.stem,
        zero_init_residual=options.zero_init_residual,
        **options.common,
    )


@register("resnet")
def resnet(num_classes: int, options: BackboneOptions) -> ResNet:
    """Basic blocks, as many a stage as `stage_sizes` says: the paper's predictor."""
    return _resnet(num_classes, options, stage_sizes=options.stage_sizes)


for _name, _architecture in ARCHITECTURES.items():
    register(_name)(partial(_resnet, **_architecture))
