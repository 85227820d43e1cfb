"""The paper's recipe for ResNet, which the ImageNet configs share (NeurIPS 2021, section 4.1)."""

from ml_collections import ConfigDict

from drnet_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.name = "resnet50"
    # The networks as they were published: 64 features first, a 7x7 stem, four stages.
    config.model.args = ""
    config.model.resolutions = (224, 168, 112)
    # The paper's text: only the samples routed to a resolution enter its statistics.
    config.model.statistics = "routed"
    config.predictor.args = ""
    config.predictor.size = 128
    config.data.flip = True
    config.data.mean = IMAGENET_MEAN
    config.data.std = IMAGENET_STD
    for stage in (config.pretrain, config.joint):
        stage.batch_size = 256
        stage.optimizer = "sgd"
        stage.base_learning_rate = 0.1
        stage.schedule = "step"
        stage.warmup_epochs = 3.0
        stage.weight_decay = 1e-4
        stage.decay_all = True
    config.pretrain.num_epochs = 70
    config.pretrain.decay_epochs = 20
    config.joint.num_epochs = 100
    config.joint.decay_epochs = 30
    config.joint.predictor_lr_scale = 0.1
    config.joint.eta = 0.2
    config.joint.alpha_fraction = None
    config.joint.alpha = 2.5
    config.eval.batch_size = 256
    config.log.every_steps = 100
    config.checkpoint.every_steps = 1000
    return config
