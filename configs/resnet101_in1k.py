"""DR-ResNet-101 on ImageNet-1K, the paper's recipe, without a target cost.

python main.py --config=configs/resnet101_in1k.py --config.data.dir=PATH
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import load_config


def get_config() -> ConfigDict:
    config = load_config("paper")
    config.model.name = "resnet101"
    config.data.name = "imagenet2012"
    config.data.num_classes = 1000
    # The paper reports it without alpha: no regulariser.
    config.joint.alpha = None
    return config
