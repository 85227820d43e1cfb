"""DR-ResNet-18 on Imagenette (ten classes of ImageNet) at 224/160/96 px, from scratch.

python main.py --config=configs/resnet_imagenette.py --config.data.dir=PATH

PATH is a data directory of TFDS in which imagenette/320px-v2 is prepared.
"""

from ml_collections import ConfigDict

from drnet_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.name = "resnet18"
    config.model.args = ""
    config.model.resolutions = (224, 160, 96)
    config.predictor.args = "width=16, stem='small'"
    config.predictor.size = 96
    config.data.name = "imagenette/320px-v2"
    config.data.num_classes = 10
    config.data.flip = True
    config.data.mean = IMAGENET_MEAN
    config.data.std = IMAGENET_STD
    config.data.crop_scale = (0.25, 1.0)
    config.data.num_workers = 8
    config.pretrain.num_epochs = 60
    config.pretrain.batch_size = 128
    config.pretrain.warmup_epochs = 3.0
    config.pretrain.base_learning_rate = 2e-3
    config.pretrain.weight_decay = 0.05
    config.pretrain.label_smoothing = 0.1
    config.joint.num_epochs = 20
    config.joint.batch_size = 128
    return config
