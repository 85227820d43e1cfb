"""The embedded data in short: about a minute and a half a stage on two CPU cores, for sweeps.

python main.py --config=configs/digits_short.py
"""

from ml_collections import ConfigDict

from drnet_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.train_images = 6000
    config.pretrain.num_epochs = 6
    config.joint.num_epochs = 3
    config.joint.batch_size = 48
    config.log.tensorboard = False
    return config
