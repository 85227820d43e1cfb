"""Ten classes of photographs in a folder (Imagenette, say): targets of the cost, and stage 2.

python -m drnet_jax.sweep configs/sweeps/imagenette.py --config.data.dir=PATH

With `--config.eval.split=calibration` the variants are compared on what settings may be chosen by.
"""

from drnet_jax.sweeps.plan import Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/imagenette_cpu.py",
        questions={
            "alpha, of the largest cost": {
                f"{alpha}": {"joint.alpha_fraction": alpha} for alpha in (0.4, 0.6, 0.8)
            },
            "stage 2": {
                "as configured": {},
                "predictor's learning rate 0.1 of the classifier's": {
                    "joint.predictor_lr_scale": 0.1
                },
                "routed statistics": {"model.statistics": "routed"},
                "predictor at 48 px": {"predictor.size": 48},
                "eta 0.3": {"joint.eta": 0.3},
                "tau falling from 1 to 0.1": {"joint.tau_decay": 0.75},
            },
        },
    )
