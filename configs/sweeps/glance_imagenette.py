"""Ten classes of photographs in a folder (Imagenette, say): what a first look is worth.

python -m drnet_jax.sweep configs/sweeps/glance_imagenette.py --config.data.dir=PATH

`python experiments/first_look.py` makes the table and the plot of docs/beyond.md from its runs.
"""

from typing import Any

from drnet_jax.sweeps.plan import Sweep

PAPER: dict[str, Any] = {
    "predictor.kind": "pixels",
    "predictor.objective": "gumbel",
    "model.reuse": "none",
}
# A linear layer of few inputs learns slowly at the classifier's rate.
GUMBEL: dict[str, Any] = {"predictor.objective": "gumbel", "joint.predictor_lr_scale": 10.0}
# From random weights in as many epochs as stage 1 has, at its rate.
SINGLE: dict[str, Any] = {
    "stages": ("single",),
    "joint.num_epochs": 20,
    "joint.batch_size": 32,
    "joint.base_learning_rate": 4e-3,
}
PLAIN: dict[str, Any] = SINGLE | PAPER | {"model.resolutions": (96,), "joint.branch_weight": 0.0}


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/glance_imagenette_cpu.py",
        questions={
            "what chooses": {
                "correctness": {},
                "threshold": {"predictor.objective": "threshold"},
                "Gumbel-softmax on the first look": GUMBEL,
                "Gumbel-softmax on the pixels (the paper's)": PAPER,
            },
            "reuse": {
                "logits": {},
                "none": {"model.reuse": "none"},
            },
            "inputs": {
                "scores of the logits": {},
                "pooled features too": {
                    "predictor.inputs": (
                        *("margin", "logit_margin", "entropy", "norm_logit", "pooled"),
                    )
                },
            },
            "fitted to": {
                "the calibration split": {},
                "the training split": {"joint.fit_split": "train"},
            },
            "distillation": {
                "none": {},
                "weight 1": {"pretrain.distillation": 1.0},
            },
            "stages": {
                "two": {},
                "one": SINGLE
                | {
                    "predictor.objective": "gumbel",
                    "model.reuse": "none",
                    "joint.predictor_lr_scale": 1.0,
                },
            },
            "sizes": {
                "96 and 32 px": {},
                "96, 64, 48 and 32 px": {"model.resolutions": (96, 64, 48, 32)},
            },
            "the same compute": {
                "96 and 32 px": {},
                # 20 epochs of 96 and 32 px, in multiply-adds; with the 8 of stage 2, 28.
                "96 px alone": PLAIN | {"joint.num_epochs": 22},
                "96 px alone, both stages": PLAIN | {"joint.num_epochs": 31},
                # As many as both stages have, and nothing but the choice afterwards.
                "stage 1 of 28 epochs": {"pretrain.num_epochs": 28},
            },
        },
    )
