"""Ten classes of photographs in a folder of classes (Imagenette, say) on two CPU cores.

python main.py --config=configs/imagenette_cpu.py --config.data.dir=PATH
"""

from ml_collections import ConfigDict

from drnet_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "folder"
    config.data.crop_scale = (0.25, 1.0)
    config.data.eval_crop = 1.0
    config.data.flip = True
    config.data.mean = IMAGENET_MEAN
    config.data.std = IMAGENET_STD
    config.pretrain.num_epochs = 30
    config.pretrain.batch_size = 32
    config.joint.num_epochs = 8
    config.joint.batch_size = 64
    config.joint.eta = 1.0
    config.joint.alpha_fraction = 0.4
    return config
