"""DR-MobileNetV2 on ImageNet-100.

python main.py --config=configs/mobilenetv2_in100.py --config.data.dir=PATH
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import load_config


def get_config() -> ConfigDict:
    config = load_config("mobilenet_paper")
    config.data.name = "imagenet100"
    config.data.num_classes = 100
    config.data.images_per_class = 500
    return config
