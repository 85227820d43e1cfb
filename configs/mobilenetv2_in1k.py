"""DR-MobileNetV2 on ImageNet-1K.

python main.py --config=configs/mobilenetv2_in1k.py --config.data.dir=PATH
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import load_config


def get_config() -> ConfigDict:
    config = load_config("mobilenet_paper")
    config.data.name = "imagenet2012"
    config.data.num_classes = 1000
    return config
