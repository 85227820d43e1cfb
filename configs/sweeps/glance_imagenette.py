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


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/glance_imagenette_cpu.py",
        questions={
            "what chooses": {
                "correctness": {},
                "threshold": {"predictor.objective": "threshold"},
                "Gumbel-softmax on the first look": {"predictor.objective": "gumbel"},
                "Gumbel-softmax on the pixels (the paper's)": PAPER,
            },
            "reuse": {
                "logits": {},
                "none": {"model.reuse": "none"},
            },
            "inputs": {
                "scores of the logits": {},
                "and pooled features": {
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
        },
    )
