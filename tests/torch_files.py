"""Weight files of other libraries and what their networks compute: run by a Python that has them.

python tests/torch_files.py write FOLDER

Of every network of tests/import_cases.py, with random weights and perturbed BatchNorm statistics:
its weight file, and beside it in `<file>.npz` images and logits of every size.

python tests/torch_files.py run FOLDER

Of every `.safetensors` in FOLDER, which is named `<library>_<model>_<size>`: the logits, in
`<file>.npz`, of the images of that size.
"""

import os
import sys
from pathlib import Path

# Not TensorFlow: that is not installed.
os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.import_cases import CASES, NUM_CLASSES, SIZES


def build(library, model, size):
    """A network for images of one size: paddings of TensorFlow's networks are made for it."""
    torch.manual_seed(0)
    if library == "Keras":
        import keras

        keras.utils.set_random_seed(0)
        shape = (size, size, 3)
        make = getattr(keras.applications, model)
        # The logits.
        return make(shape, weights=None, classes=NUM_CLASSES, classifier_activation=None)
    if library == "timm":
        import timm

        return timm.create_model(model, num_classes=NUM_CLASSES).eval()
    if library == "efficientnet-lite-pytorch":
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name(model, image_size=size, num_classes=NUM_CLASSES).eval()
    import torchvision

    return getattr(torchvision.models, model)(num_classes=NUM_CLASSES).eval()


def perturbed(network):
    """Statistics, scales and biases unlike the initial ones."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return network


def perturbed_keras(model):
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            n = layer.gamma.shape[0]
            scale, variance = rng.uniform(0.5, 1.5, (2, n))
            bias, mean = rng.normal(0, 0.1, (2, n))
            layer.set_weights([scale, bias, mean, variance])
    return model


def save(network, path):
    state = network.state_dict()
    if path.suffix == ".pth":
        torch.save(state, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    else:
        safetensors.torch.save_file(state, path)


def images(size):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))


def logits(network, x):
    with torch.no_grad():
        if not isinstance(network, torch.nn.Module) or hasattr(network, "get_config"):
            return np.asarray(network(x.permute(0, 2, 3, 1), training=False).detach())
        return network(x).numpy()


def write(folder):
    for case in CASES:
        path, found = case.path(folder), {}
        for size in SIZES:
            network = build(case.library, case.model, size)
            if case.library == "Keras":
                if size == SIZES[0]:
                    whole = perturbed_keras(network)
                    whole.save(path)
                network.set_weights(whole.get_weights())
            elif size == SIZES[0]:
                whole = perturbed(network)
                save(whole, path)
            else:
                network.load_state_dict(whole.state_dict())
            x = images(size)
            found[f"{size}/images"], found[f"{size}/logits"] = x.numpy(), logits(network, x)
        np.savez(f"{path}.npz", **found)


def run(folder):
    for path in sorted(folder.glob("*.safetensors")):
        name, size = path.stem.rsplit("_", 1)
        library, model = name.split("_", 1)
        network = build(library, model, int(size))
        network.load_state_dict(safetensors.torch.load_file(path), strict=True)
        np.savez(f"{path}.npz", logits=logits(network, images(int(size))))


if __name__ == "__main__":
    {"write": write, "run": run}[sys.argv[1]](Path(sys.argv[2]))
