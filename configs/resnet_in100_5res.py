"""DR-ResNet-50 on ImageNet-100 with five candidates (the paper's ablation).

python main.py --config=configs/resnet_in100_5res.py --config.data.dir=PATH
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import load_config


def get_config() -> ConfigDict:
    config = load_config("resnet_in100")
    config.model.resolutions = (224, 192, 168, 112, 96)
    return config
