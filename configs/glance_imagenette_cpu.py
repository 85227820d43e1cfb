"""A first look at 32 px, and a second one at 96 px only where it pays, on two CPU cores.

python main.py --config=configs/glance_imagenette_cpu.py --config.data.dir=PATH

PATH is a folder of classes of photographs (Imagenette, say). With two sizes a second look is always
at the largest, so that it is worth its cost; with a ninth of the multiply-adds the first one is
cheap enough for every image.
"""

from ml_collections import ConfigDict

from drnet_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.resolutions = (96, 32)
    config.model.reuse = "logits"
    config.predictor.kind = "glance"
    config.predictor.objective = "correctness"
    config.data.name = "folder"
    config.data.crop_scale = (0.25, 1.0)
    config.data.flip = True
    config.data.mean = IMAGENET_MEAN
    config.data.std = IMAGENET_STD
    config.pretrain.num_epochs = 20
    config.pretrain.batch_size = 32
    config.joint.num_epochs = 8
    config.joint.batch_size = 64
    config.joint.eta = 1.0
    config.joint.alpha_fraction = 0.6
    return config
