"""The demo at three seeds: is DRNet above what needs no predictor, at every seed?

python -m drnet_jax.sweep configs/sweeps/demo.py

Goals on the test split, at every seed: largest fixed size >= 90 %; DRNet, predictor counted, at
most 0.8 of its cost and 1.5 points above both the hull of the fixed sizes at that cost and a random
choice with the same shares; at most 8 minutes on two cores.
"""

from drnet_jax.sweeps.plan import Sweep


def get_sweep() -> Sweep:
    return Sweep(config="configs/digits_on_photos.py", questions={"demo": {"as configured": {}}})
