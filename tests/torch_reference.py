"""What torchvision's networks compute, for tests/test_torch_parity.py: run by a Python that has it.

python tests/torch_reference.py OUT.npz

Of each network, with random weights and perturbed BatchNorm statistics: the state dict; at every
size logits and what every stage gives, in evaluation; and the running statistics after one batch in
training. Arrays are named `<network>/<what>`; images are `[n, 3, h, w]`.
"""

import sys

import numpy as np
import torch
import torchvision

SIZES = (224, 168, 112, 97)
# Networks, and the names of the modules whose outputs are kept.
NETWORKS = {
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "resnet101": ["layer1", "layer2", "layer3", "layer4"],
    "mobilenetv2": [f"features.{i}" for i in (1, 3, 6, 10, 13, 16, 17)],
}


def build(name):
    """The network with statistics, scales and biases unlike the initial ones."""
    torch.manual_seed(0)
    make = {"mobilenetv2": "mobilenet_v2"}.get(name, name)
    network = getattr(torchvision.models, make)(num_classes=10)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return network


def record(name, stages, arrays):
    """Adds what this network computes."""
    network = build(name).eval()
    for key, value in network.state_dict().items():
        arrays[f"{name}/state/{key}"] = value.numpy().copy()
    modules = dict(network.named_modules())
    seen = {}
    for stage in stages:
        modules[stage].register_forward_hook(
            lambda _, __, output, stage=stage: seen.__setitem__(stage, output)
        )
    with torch.no_grad():
        for size in SIZES:
            images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
            logits = network(images)
            arrays[f"{name}/{size}/images"] = images.numpy()
            arrays[f"{name}/{size}/logits"] = logits.numpy()
            for stage in stages:
                arrays[f"{name}/{size}/{stage}"] = seen[stage].numpy()
        network.train()
        images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
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
