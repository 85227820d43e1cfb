"""What torchvision and timm call the arrays of a ResNet: the same, for ResNet-18/34/50/101."""

from drnet_jax.models.resnet import ResNet
from drnet_jax.models.weight_names import Layers, WeightNames, register_weight_names

_SHORTCUT = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}


@register_weight_names(ResNet)
def resnet_names(network: ResNet) -> tuple[WeightNames, ...]:
    """The names, as in `layer2.0.downsample.0`."""
    return (WeightNames("torchvision", _layer),)


def _layer(layers: Layers) -> str:
    return ".".join(_SHORTCUT.get(layer, layer.replace("_", ".")) for layer in layers)
