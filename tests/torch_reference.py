"""What PyTorch's networks compute, for tests/test_torch_parity.py: run by a Python that has them.

python tests/torch_reference.py OUT.npz

Of each network, with random weights and perturbed BatchNorm statistics: the state dict; at every
size logits and what every stage gives, in evaluation; and the running statistics after one batch in
training. torchvision's, and EfficientNet-Lite0 of the package `efficientnet-lite-pytorch`.
Arrays are named `<network>/<what>`; images are `[n, 3, h, w]`.
"""

import sys

import numpy as np
import torch
import torchvision

SIZES = (224, 168, 112, 97)
TRAINED_SIZE = 64
# Networks, and the names of the modules whose outputs are kept.
NETWORKS = {
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "mobilenetv2": [f"features.{i}" for i in (1, 3, 6, 10, 13, 16, 17)],
    "efficientnet_lite0": [f"_blocks.{i}" for i in (0, 2, 4, 7, 10, 14, 15)],
}


def build(name, size):
    """The network with statistics, scales and biases unlike the initial ones.

    EfficientNet-Lite0's padding is made for one size of images; the weights are the same for all.
    """
    torch.manual_seed(0)
    if name == "efficientnet_lite0":
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name(
            "efficientnet-lite0", image_size=size, num_classes=10, drop_connect_rate=0.0
        )
    else:
        make = {"mobilenetv2": "mobilenet_v2"}.get(name, name)
        network = getattr(torchvision.models, make)(num_classes=10)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # EfficientNet's own is 0.01; the statistics are compared after one batch at ours.
            module.momentum = 0.1
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return network


def record(name, stages, arrays):
    """Adds what this network computes."""
    for key, value in build(name, TRAINED_SIZE).state_dict().items():
        arrays[f"{name}/state/{key}"] = value.numpy().copy()
    seen = {}
    with torch.no_grad():
        for size in SIZES:
            network = build(name, size).eval()
            modules = dict(network.named_modules())
            for stage in stages:
                modules[stage].register_forward_hook(
                    lambda _, __, output, stage=stage: seen.__setitem__(stage, output)
                )
            images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
            logits = network(images)
            arrays[f"{name}/{size}/images"] = images.numpy()
            arrays[f"{name}/{size}/logits"] = logits.numpy()
            for stage in stages:
                arrays[f"{name}/{size}/{stage}"] = seen[stage].numpy()
        network = build(name, TRAINED_SIZE).train()
        shape = (8, 3, TRAINED_SIZE, TRAINED_SIZE)
        images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        arrays[f"{name}/train/images"] = images.numpy()
        network(images)
    for key, value in network.state_dict().items():
        if "running" in key:
            arrays[f"{name}/trained/{key}"] = value.numpy().copy()


if __name__ == "__main__":
    found = {}
    for network_name, stage_names in NETWORKS.items():
        record(network_name, stage_names, found)
    found["versions"] = np.array([torch.__version__, torchvision.__version__])
    np.savez(sys.argv[1], **found)
