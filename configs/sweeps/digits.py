"""The paper's ablations on the embedded data, scaled down to minutes.

python -m drnet_jax.sweep configs/sweeps/digits.py
"""

from drnet_jax.sweeps.plan import Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/digits_short.py",
        questions={
            "BatchNorm": {
                "resolution-aware": {},
                "shared": {"model.resolution_aware": False},
            },
            "BatchNorm statistics": {
                "all samples": {},
                "routed": {"model.statistics": "routed"},
            },
            "alpha, of the largest cost": {
                f"{alpha}": {"joint.alpha_fraction": alpha} for alpha in (0.35, 0.5, 0.65, 0.8)
            },
            "eta": {f"{eta}": {"joint.eta": eta} for eta in (0.1, 0.3, 0.5, 1.0)},
            "candidates": {
                "64/48/32": {},
                "64/56/48/40/32": {"model.resolutions": (64, 56, 48, 40, 32)},
            },
            "tau": {
                "1": {},
                "from 5, times 0.4 an epoch": {"joint.tau": 5.0, "joint.tau_decay": 0.4},
                "from 1, times 0.4 an epoch": {"joint.tau_decay": 0.4},
            },
            "predictor's learning rate over the classifier's": {
                f"{scale}": {"joint.predictor_lr_scale": scale} for scale in (0.1, 1.0, 3.0)
            },
        },
    )
