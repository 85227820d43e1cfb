"""Which published networks are compared with ours, and by which kind of file they come to us."""

from pathlib import Path
from typing import NamedTuple

SIZES = (224, 168, 112, 97)
NUM_CLASSES = 10


class Case(NamedTuple):
    """A network of another library.

    Attributes:
      library: that builds it.
      model: what the library calls it.
      file: suffix of the weight file: that of the four kinds which `read_arrays` reads.
      network: ours.
      args: options of ours, as `model.args`.
    """

    library: str
    model: str
    file: str
    network: str
    args: str = ""

    def path(self, folder: Path) -> Path:
        return folder / f"{self.library}_{self.model}{self.file}"


CASES = (
    Case("torchvision", "resnet18", ".pth", "resnet18"),
    Case("timm", "resnet34", ".safetensors", "resnet34"),
    Case("timm", "resnet50", ".safetensors", "resnet50"),
    Case("torchvision", "resnet101", ".npz", "resnet101"),
    Case("torchvision", "mobilenet_v2", ".pth", "mobilenetv2"),
    Case("timm", "mobilenetv2_100", ".safetensors", "mobilenetv2"),
    Case("Keras", "MobileNetV2", ".h5", "mobilenetv2", "tensorflow=True"),
    Case("efficientnet-lite-pytorch", "efficientnet-lite0", ".pth", "efficientnet_lite0"),
    Case("timm", "tf_efficientnet_lite0", ".safetensors", "efficientnet_lite0"),
    Case("timm", "efficientnet_lite0", ".safetensors", "efficientnet_lite0", "tensorflow=False"),
)
