"""Your own pictures: ResNet-18 at 224/160/96 px, from scratch, on a GPU.

python main.py --config=configs/folder.py --config.data.dir=PATH

PATH holds a folder of pictures a class, or such folders in `train` and `test` (or `val`).
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import load_config


def get_config() -> ConfigDict:
    config = load_config("resnet_imagenette")
    config.data.name = "folder"
    config.data.num_classes = 0
    return config
