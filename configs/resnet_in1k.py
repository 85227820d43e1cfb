"""DR-ResNet-50 on ImageNet-1K, the paper's recipe: eta 0.2, alpha 2.5 GMACs.

python main.py --config=configs/resnet_in1k.py --config.data.dir=PATH
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import load_config


def get_config() -> ConfigDict:
    config = load_config("paper")
    config.data.name = "imagenet2012"
    config.data.num_classes = 1000
    return config
