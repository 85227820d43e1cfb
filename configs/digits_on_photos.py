"""The embedded default: handwritten digits over photographs, no download.

python main.py --config=configs/digits_on_photos.py
"""

from ml_collections import ConfigDict

from drnet_jax.config import default_config


def get_config() -> ConfigDict:
    return default_config()
