"""Ten classes of photographs in a folder (Imagenette, say) at three seeds.

python -m drnet_jax.sweep configs/sweeps/imagenette.py --config.data.dir=PATH
"""

from drnet_jax.sweeps.plan import Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/imagenette_cpu.py", questions={"Imagenette": {"as configured": {}}}
    )
