"""What the MobileNetV2 configs share.

The recipe is MobileNetV2's own (Sandler et al. 2018, section 6.1): RMSProp with decay and momentum
0.9, weight decay 4e-5, initial learning rate 0.045, times 0.98 an epoch, batches of 96. It names no
number of epochs: the stages have the lengths of DRNet's ResNet, and so have the predictor's rate
and eta. DRNet gives no alpha for MobileNetV2 either; its published cost of 0.268 GMACs with the
predictor leaves 0.26 for the classifier.
"""

from ml_collections import ConfigDict

from drnet_jax.config_files import load_config


def get_config() -> ConfigDict:
    config = load_config("paper")
    config.model.name = "mobilenetv2"
    config.model.resolutions = (224, 196, 168)
    config.predictor.name = "mobilenetv2_one_block"
    config.predictor.size = 64
    for stage in (config.pretrain, config.joint):
        stage.batch_size = 96
        stage.optimizer = "rmsprop"
        stage.base_learning_rate = 0.045
        stage.weight_decay = 4e-5
        stage.decay_epochs = 1
        stage.decay_rate = 0.98
    config.joint.alpha = 0.26
    return config
