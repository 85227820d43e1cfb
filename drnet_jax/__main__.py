"""Trains, evaluates or uses a DRNet: python -m drnet_jax --config=configs/digits_on_photos.py"""

from drnet_jax.cli import run

if __name__ == "__main__":
    run()
