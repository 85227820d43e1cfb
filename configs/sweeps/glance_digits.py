"""The embedded data: a first look beside the paper's predictor.

python -m drnet_jax.sweep configs/sweeps/glance_digits.py
"""

from drnet_jax.sweeps.plan import Sweep

GLANCE = {"predictor.kind": "glance"}


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/digits_on_photos.py",
        questions={
            "what chooses": {
                "Gumbel-softmax on the pixels (the paper's)": {},
                "correctness, logits reused": GLANCE
                | {"predictor.objective": "correctness", "model.reuse": "logits"},
                "correctness, nothing reused": GLANCE | {"predictor.objective": "correctness"},
                "Gumbel-softmax on the first look": GLANCE
                | {"joint.predictor_lr_scale": 10.0, "model.reuse": "logits"},
            },
        },
    )
