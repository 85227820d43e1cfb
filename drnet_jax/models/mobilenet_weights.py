"""What other libraries call the arrays of MobileNetV2 and EfficientNet-Lite0.

Libraries differ in padding and in BatchNorm's epsilon too, which no array shows, see `tensorflow`
of the networks in `drnet_jax/models/mobilenet.py`. Keras's and the package's weights are for
TensorFlow's, torchvision's are not; timm has EfficientNet-Lite0 for both, in the same names
(`tf_efficientnet_lite0` and `efficientnet_lite0`).
"""

from collections.abc import Callable

from drnet_jax.models.mobilenet import MobileNet
from drnet_jax.models.weight_names import KERAS, Layers, WeightNames, register_weight_names

# Stage, block of the stage, block of the network, and whether the block expands.
Place = tuple[int, int, int, bool]
_WANTS_TENSORFLOW = (
    "{}'s weights are for TensorFlow's padding and epsilon, which this network was built without: "
    'build it with tensorflow=True (--config.model.args="tensorflow=True")'
)
_WANTS_TORCH = (
    "{}'s weights are for PyTorch's padding and epsilon, and this network was built with "
    'TensorFlow\'s: build it with tensorflow=False (--config.model.args="tensorflow=False")'
)


@register_weight_names(MobileNet)
def mobilenet_names(network: MobileNet) -> tuple[WeightNames, ...]:
    """The names, those of which files are written first."""
    tensorflow = network.same_padding

    def named(layer: Callable[[MobileNet, Layers], str]) -> Callable[[Layers], str]:
        """For this network."""
        return lambda layers: layer(network, layers)

    if network.fixed_ends:
        package = "efficientnet-lite-pytorch"
        unfit = "" if tensorflow else _WANTS_TENSORFLOW.format(package)
        return (
            WeightNames("timm", named(_timm_layer)),
            WeightNames(package, named(_efficientnet_layer), unfit=unfit),
        )
    of_torch = {
        "torchvision": _torchvision_layer,
        "timm": _timm_layer,
        "pytorch-mobilenet-v2": _flat_layer,
    }
    unfit = "" if tensorflow else _WANTS_TENSORFLOW.format("Keras")
    return (
        *(
            WeightNames(name, named(layer), unfit=_WANTS_TORCH.format(name) if tensorflow else "")
            for name, layer in of_torch.items()
        ),
        WeightNames("Keras", named(_keras_layer), KERAS, unfit=unfit),
    )


def _place(network: MobileNet, block: str) -> Place:
    stage, index = map(int, block.removeprefix("stage").split("_"))
    before = sum(earlier[2] for earlier in network.stages[:stage])
    return stage, index, before + index, network.stages[stage][0] != 1


def _torchvision_layer(network: MobileNet, layers: Layers) -> str:
    if len(layers) == 1:
        return _torchvision_end(network, layers[0])
    _, _, number, expands = _place(network, layers[0])
    names = ["expand", "depthwise"] if expands else ["depthwise"]
    kinds = ("conv", "bn")
    places = {
        f"{n}_{kind}": f"{i}.{j}" for i, n in enumerate(names) for j, kind in enumerate(kinds)
    }
    places |= {"project_conv": str(len(names)), "project_bn": str(len(names) + 1)}
    return f"features.{number + 1}.conv.{places[layers[1]]}"


def _flat_layer(network: MobileNet, layers: Layers) -> str:
    """As `tonylins/pytorch-mobilenet-v2`: the layers of a block, ReLU6 too, are counted through."""
    if len(layers) == 1:
        return _torchvision_end(network, layers[0])
    _, _, number, expands = _place(network, layers[0])
    names = ["expand", "depthwise", "project"] if expands else ["depthwise", "project"]
    part, kind = layers[1].split("_")
    return f"features.{number + 1}.conv.{3 * names.index(part) + (kind == 'bn')}"


def _torchvision_end(network: MobileNet, layer: str) -> str:
    last = sum(stage[2] for stage in network.stages) + 1
    ends = {"stem_conv": "0.0", "stem_bn": "0.1", "head_conv": f"{last}.0", "head_bn": f"{last}.1"}
    return "classifier.1" if layer == "fc" else f"features.{ends[layer]}"


def _timm_layer(network: MobileNet, layers: Layers) -> str:
    if len(layers) == 1:
        ends = {"stem_conv": "conv_stem", "stem_bn": "bn1", "head_conv": "conv_head"}
        return (ends | {"head_bn": "bn2", "fc": "classifier"})[layers[0]]
    stage, index, _, expands = _place(network, layers[0])
    # A block that does not expand is timm's DepthwiseSeparableConv.
    convs = ["conv_pw", "conv_dw", "conv_pwl"] if expands else ["conv_dw", "conv_pw"]
    parts = ["expand", "depthwise", "project"] if expands else ["depthwise", "project"]
    part, kind = layers[1].split("_")
    number = parts.index(part)
    return f"blocks.{stage}.{index}.{convs[number] if kind == 'conv' else f'bn{number + 1}'}"


def _efficientnet_layer(network: MobileNet, layers: Layers) -> str:
    if len(layers) == 1:
        ends = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "head_conv": "_conv_head"}
        return (ends | {"head_bn": "_bn1", "fc": "_fc"})[layers[0]]
    norms = {"expand_bn": "_bn0", "depthwise_bn": "_bn1", "project_bn": "_bn2"}
    number = _place(network, layers[0])[2]
    return f"_blocks.{number}.{norms.get(layers[1], f'_{layers[1]}')}"


def _keras_layer(network: MobileNet, layers: Layers) -> str:
    if len(layers) == 1:
        ends = {"stem_conv": "Conv1", "stem_bn": "bn_Conv1", "head_conv": "Conv_1"}
        return (ends | {"head_bn": "Conv_1_bn", "fc": "predictions"})[layers[0]]
    number = _place(network, layers[0])[2]
    block = f"block_{number}" if number else "expanded_conv"
    part, kind = layers[1].split("_")
    return f"{block}_{part}{'_BN' if kind == 'bn' else ''}"
