"""The paper's targets on ImageNet-1K.

python -m drnet_jax.sweep configs/sweeps/paper_in1k.py --config.data.dir=PATH
"""

from drnet_jax.sweeps.plan import Sweep


def get_sweep() -> Sweep:
    alphas = {f"{alpha}": {"joint.alpha": alpha} for alpha in (3.5, 3.0, 2.5, 2.0)}
    return Sweep(
        config="configs/resnet_in1k.py",
        questions={"alpha, GMACs": {"none": {"joint.alpha": None}, **alphas}},
        seeds=(0,),
    )
