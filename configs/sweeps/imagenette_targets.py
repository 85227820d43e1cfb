"""Ten classes of photographs in a folder (Imagenette, say): three targets of the cost.

python -m drnet_jax.sweep configs/sweeps/imagenette_targets.py --dir runs/imagenette \
    --results runs/imagenette_targets --config.data.dir=PATH

The directory is that of `imagenette.py`, whose runs of stage 1 serve here too; with `--results`
its table is not overwritten.
"""

from drnet_jax.sweeps.plan import Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/imagenette_cpu.py",
        questions={
            "alpha, of the largest cost": {
                f"{alpha}": {"joint.alpha_fraction": alpha} for alpha in (0.4, 0.6, 0.8)
            },
        },
    )
