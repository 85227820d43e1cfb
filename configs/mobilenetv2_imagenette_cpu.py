"""DR-MobileNetV2 on ten classes of photographs (Imagenette, say) on two CPU cores.

python main.py --config=configs/mobilenetv2_imagenette_cpu.py --config.data.dir=PATH

Half the width and, instead of 224/196/168 px, sizes that two cores train in half an hour; optimiser
and rates are those of `configs/imagenette_cpu.py`.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import load_config


def get_config() -> ConfigDict:
    config = load_config("imagenette_cpu")
    config.model.name = "mobilenetv2"
    config.model.args = "width_multiplier=0.5"
    config.model.resolutions = (64, 48, 32)
    config.predictor.name = "mobilenetv2_one_block"
    config.predictor.args = "width_multiplier=0.25"
    config.predictor.size = 32
    config.pretrain.num_epochs = 20
    config.joint.num_epochs = 6
    return config
