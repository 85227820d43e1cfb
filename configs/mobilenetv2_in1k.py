"""DR-MobileNetV2 on ImageNet-1K.

python main.py --config=configs/mobilenetv2_in1k.py --config.data.dir=PATH
"""

from ml_collections import ConfigDict

from configs.mobilenet_paper import mobilenet_config


def get_config() -> ConfigDict:
    config = mobilenet_config()
    config.data.name = "imagenet2012"
    config.data.num_classes = 1000
    return config
