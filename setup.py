"""What `pyproject.toml` cannot say: `configs/` is installed inside of the package."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["drnet_jax*"]),
        "drnet_jax.configs",
        "drnet_jax.configs.sweeps",
    ],
    package_dir={"drnet_jax.configs": "configs", "drnet_jax.configs.sweeps": "configs/sweeps"},
)
