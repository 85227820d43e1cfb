"""MobileNetV2 and EfficientNet-Lite0, with resolution-aware BatchNorm.

MobileNetV2: Sandler et al. 2018, arXiv 1801.04381, as torchvision builds it, without dropout.
EfficientNet-Lite0: Tan and Le 2019, arXiv 1905.11946, in the variant without squeeze-and-excitation
and with ReLU6 of TensorFlow's `tpu/models/official/efficientnet/lite`, without drop-connect.

Weights are for one padding and one epsilon of BatchNorm, by where they come from. With
`tensorflow=True` these are TensorFlow's (SAME, 1e-3: Keras's MobileNetV2, EfficientNet-Lite0 and
timm's `tf_efficientnet_lite0`), with `tensorflow=False` PyTorch's (half the kernel on every side,
1e-5: torchvision's and timm's MobileNetV2, timm's `efficientnet_lite0`). At stride 2 the two see
other pixels where the side is even.
"""

from typing import Any

import flax.linen as nn
import jax

from drnet_jax.models.backbone import Backbone, MakeLayer, check_positive, register
from drnet_jax.models.convolution import Padding, pair
from drnet_jax.models.inner_channels import InnerChannels, StageChannels, kept_width

# Expansion, features, blocks, stride of the first one, kernel; one line per stage.
Stages = tuple[tuple[int, int, int, int, int], ...]
MOBILENET_V2: Stages = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 3),
    (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)
EFFICIENTNET_LITE0: Stages = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
# MobileNetV2's stages with one block each, for the predictor (DRNet, section 4.1); the paper gives
# no channels.
ONE_BLOCK_PER_STAGE: Stages = tuple(
    (expansion, features, 1, strides, kernel)
    for expansion, features, _, strides, kernel in MOBILENET_V2[:-1]
)
_STEM_FEATURES = 32
_HEAD_FEATURES = 1280
_TENSORFLOW: dict[str, Any] = dict(same_padding=True, epsilon=1e-3)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; added to the input where it fits."""

    features: int
    strides: int
    expansion: int
    kernel: int
    same_padding: bool
    conv: MakeLayer
    norm: MakeLayer
    pruning_rate: float
    inner = (
        InnerChannels(
            "expand_conv", ("expand_bn", "depthwise_conv", "depthwise_bn"), "project_conv"
        ),
    )

    @nn.compact
    def __call__(self, x: jax.Array, **norm_args: Any) -> jax.Array:
        y = x
        hidden = x.shape[-1]
        if self.expansion != 1:
            hidden = kept_width(self.expansion * hidden, self.pruning_rate)
            y = self.conv(hidden, (1, 1), name="expand_conv")(y)
            y = nn.relu6(self.norm(name="expand_bn")(y, **norm_args))
        y = self.conv(
            hidden,
            (self.kernel, self.kernel),
            self.strides,
            padding=padding(self.kernel, same=self.same_padding),
            feature_group_count=hidden,
            name="depthwise_conv",
        )(y)
        y = nn.relu6(self.norm(name="depthwise_bn")(y, **norm_args))
        y = self.conv(self.features, (1, 1), name="project_conv")(y)
        y = self.norm(name="project_bn")(y, **norm_args)
        return x + y if x.shape == y.shape else y


def padding(kernel: int, *, same: bool) -> Padding:
    """TensorFlow's padding, which depends on the size of the image, or PyTorch's."""
    return "SAME" if same else pair(kernel // 2)


class MobileNet(Backbone):
    """A network of inverted residuals with resolution-aware BatchNorm.

    Attributes:
      stages: of the blocks, see `Stages`.
      width_multiplier: of all features, each rounded to a multiple of 8.
      fixed_ends: stem and head keep their features whatever the width (EfficientNet-Lite).
      head_features: of the last 1x1 convolution; 0: there is none.
      same_padding: pad as TensorFlow does, not as PyTorch.
    """

    stages: Stages = MOBILENET_V2
    width_multiplier: float = 1.0
    fixed_ends: bool = False
    head_features: int = _HEAD_FEATURES
    same_padding: bool = False

    @property
    def network_stride(self) -> int:
        """Input pixels per position of the last feature map, along one axis."""
        stride = 2
        for _, _, _, strides, _ in self.stages:
            stride *= strides
        return stride

    @property
    def feature_width(self) -> int:
        """Channels of the last feature map."""
        if not self.head_features:
            return self._scaled(self.stages[-1][1])
        if self.fixed_ends:
            return self.head_features
        # As torchvision: a narrower network keeps its head.
        return rounded(self.head_features * max(1.0, self.width_multiplier))

    @property
    def inner_channels(self) -> tuple[StageChannels, ...]:
        """See `Backbone`; none in a stage whose blocks do not expand."""
        return tuple(
            {
                _block_name(stage, index): InvertedResidual.inner
                for index in range(blocks)
                if expansion != 1
            }
            for stage, (expansion, _, blocks, _, _) in enumerate(self.stages)
        )

    def _scaled(self, features: int) -> int:
        return rounded(features * self.width_multiplier)

    def features(self, x: jax.Array, **norm_args: Any) -> jax.Array:
        """The last feature map, see `Backbone`."""
        stem = _STEM_FEATURES if self.fixed_ends else self._scaled(_STEM_FEATURES)
        pads = padding(3, same=self.same_padding)
        x = self.conv(stem, (3, 3), strides=2, padding=pads, name="stem_conv")(x)
        x = nn.relu6(self.norm(name="stem_bn")(x, **norm_args))
        for stage, (expansion, features, blocks, strides, kernel) in enumerate(self.stages):
            for index in range(blocks):
                block = InvertedResidual(
                    features=self._scaled(features),
                    strides=strides if index == 0 else 1,
                    expansion=expansion,
                    kernel=kernel,
                    same_padding=self.same_padding,
                    conv=self.conv,
                    norm=self.norm,
                    pruning_rate=self.pruning_rate(stage),
                    name=_block_name(stage, index),
                )
                x = self.run_block(block, x, **norm_args)
        if self.head_features:
            x = self.conv(self.feature_width, (1, 1), name="head_conv")(x)
            x = nn.relu6(self.norm(name="head_bn")(x, **norm_args))
        return x


def _block_name(stage: int, index: int) -> str:
    return f"stage{stage}_{index}"


def rounded(features: float, divisor: int = 8) -> int:
    """To the nearest multiple of `divisor`, but not below nine tenths (`make_divisible`)."""
    found = max(divisor, int(features + divisor / 2) // divisor * divisor)
    return found + divisor if found < 0.9 * features else found


@register("mobilenetv2")
def mobilenet_v2(
    num_classes: int, *, width_multiplier: float = 1.0, tensorflow: bool = False
) -> MobileNet:
    """MobileNetV2 of any width multiplier, for weights of PyTorch or of TensorFlow."""
    check_positive(width_multiplier=width_multiplier)
    origin = _TENSORFLOW if tensorflow else {}
    return MobileNet(num_classes, MOBILENET_V2, width_multiplier, **origin)


@register("mobilenetv2_one_block")
def one_block_per_stage(num_classes: int, *, width_multiplier: float = 1.0) -> MobileNet:
    """One inverted residual per stage: the predictor of the paper's MobileNetV2, at 64 px."""
    check_positive(width_multiplier=width_multiplier)
    return MobileNet(num_classes, ONE_BLOCK_PER_STAGE, width_multiplier, head_features=0)


@register("efficientnet_lite0")
def efficientnet_lite0(
    num_classes: int, *, width_multiplier: float = 1.0, tensorflow: bool = True
) -> MobileNet:
    """EfficientNet-Lite0 of any width multiplier, for weights of TensorFlow or of PyTorch."""
    check_positive(width_multiplier=width_multiplier)
    origin = _TENSORFLOW if tensorflow else {}
    return MobileNet(num_classes, EFFICIENTNET_LITE0, width_multiplier, fixed_ends=True, **origin)
