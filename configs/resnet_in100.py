"""DR-ResNet-50 on ImageNet-100, the paper's recipe: eta 0.2, alpha 2.5 GMACs.

python main.py --config=configs/resnet_in100.py --config.data.dir=PATH
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import load_config


def get_config() -> ConfigDict:
    config = load_config("paper")
    config.data.name = "imagenet100"
    config.data.num_classes = 100
    config.data.images_per_class = 500
    return config
