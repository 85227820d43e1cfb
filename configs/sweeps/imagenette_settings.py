"""Ten classes of photographs in a folder (Imagenette, say): settings of stage 2, at one seed.

python -m drnet_jax.sweep configs/sweeps/imagenette_settings.py --config.data.dir=PATH \
    --config.eval.split=calibration

On the calibration split, by which settings may be chosen. In a directory of its own: runs that are
evaluated on the test split would be evaluated anew.
"""

from drnet_jax.sweeps.plan import Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/imagenette_cpu.py",
        questions={
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
        seeds=(0,),
    )
