"""A minute of everything, to see that it works: the CI's end-to-end run.

python main.py --config=configs/tiny.py
"""

from ml_collections import ConfigDict

from drnet_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.model.args = "width=8, stem='small'"
    config.model.resolutions = (48, 32)
    config.predictor.args = "stage_sizes=(1, 1, 1), width=4, stem='small'"
    config.data.train_images = 600
    config.data.eval_images = 210
    for stage in (config.pretrain, config.joint):
        stage.num_epochs = 2
        stage.batch_size = 60
    config.eval.batch_size = 100
    config.log.every_steps = 5
    return config
