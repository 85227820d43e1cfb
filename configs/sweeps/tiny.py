"""The smallest sweep, to see that it works: the CI's end-to-end run.

python -m drnet_jax.sweep configs/sweeps/tiny.py
"""

from drnet_jax.sweeps.plan import Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/tiny.py",
        questions={"eta": {"0.3": {}, "0.6": {"joint.eta": 0.6}}},
        seeds=(0,),
    )
