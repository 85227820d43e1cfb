"""DR-ResNet-50 on imagenet2012, the paper's recipe: eta 0.2, alpha 2.5 GMACs.

python main.py --config=configs/resnet_in1k.py
"""

from ml_collections import ConfigDict

from configs.paper import paper_config


def get_config() -> ConfigDict:
    config = paper_config()
    config.data.name = "imagenet2012"
    return config
