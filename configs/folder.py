"""Your own pictures: ResNet-18 at 224/160/96 px, from scratch, on a GPU.

python main.py --config=configs/folder.py --config.data.dir=PATH

PATH holds a folder of pictures a class, or such folders in `train` and `test` (or `val`).
"""

from ml_collections import ConfigDict

from configs.resnet_imagenette import get_config as imagenette_config


def get_config() -> ConfigDict:
    config = imagenette_config()
    config.data.name = "folder"
    config.data.num_classes = 0
    return config
