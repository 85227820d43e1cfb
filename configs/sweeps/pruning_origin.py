"""Ten classes of photographs in a folder (Imagenette, say): the classifiers that are then pruned.

python -m drnet_jax.sweep configs/sweeps/pruning_origin.py --config.data.dir=PATH

`configs/sweeps/pruning.py` starts from their stage 1, in the default directory of this sweep.
"""

from drnet_jax.sweeps.plan import Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/glance_imagenette_cpu.py", questions={"Imagenette": {"as configured": {}}}
    )
