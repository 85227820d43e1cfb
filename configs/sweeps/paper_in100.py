"""The paper's ablations on ImageNet-100.

python -m drnet_jax.sweep configs/sweeps/paper_in100.py --config.data.dir=PATH
"""

from drnet_jax.sweeps.plan import Sweep

_NO_TARGET = {"joint.alpha": None}


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/resnet_in100.py",
        questions={
            "BatchNorm": {
                "resolution-aware": {},
                "shared": {"model.resolution_aware": False},
            },
            "BatchNorm statistics": {
                "routed": {},
                "all samples": {"model.statistics": "all"},
            },
            "regulariser": {"alpha 2.5": {}, "none": _NO_TARGET},
            "alpha, GMACs": {f"{alpha}": {"joint.alpha": alpha} for alpha in (2.0, 2.5, 3.0, 3.5)},
            "eta, at alpha 3.0": {
                f"{eta}": {"joint.eta": eta, "joint.alpha": 3.0} for eta in (0.1, 0.2, 0.5, 1.0)
            },
            "candidates": {
                "224/168/112": {},
                "224/192/168/112/96": {"model.resolutions": (224, 192, 168, 112, 96)},
            },
            "tau": {
                "1": {},
                "from 5, times 0.956 an epoch": {"joint.tau": 5.0, "joint.tau_decay": 0.956},
            },
            "predictor's learning rate over the classifier's": {
                f"{scale}": {"joint.predictor_lr_scale": scale} for scale in (0.1, 1.0)
            },
        },
    )
