"""python -m drnet_jax: what `main.py` does, from any directory."""

from drnet_jax.cli import run

run()
