"""Ten classes of photographs in a folder (Imagenette, say): pruning, resolution, and both.

python -m drnet_jax.sweep configs/sweeps/pruning.py --config.data.dir=PATH

After `configs/sweeps/pruning_origin.py`, from whose stage 1 every seed starts, with the same
fine-tuning at every rate, none included. `experiments/pruning.py` makes the table of equal
multiply-adds from its runs.
"""

from typing import Any

from drnet_jax.sweeps.plan import Sweep

RATES = {"none": (), "0.25": (0.25,) * 4, "0.5": (0.5,) * 4, "0.75": (0.75,) * 4}
FINE_TUNED: dict[str, Any] = {
    "pretrain.init_from": "runs/pruning_origin/stage1/seed={seed}",
    "pretrain.num_epochs": 8,
    "pretrain.base_learning_rate": 1e-3,
}
# The paper's predictor, in place of a first look whose choice is fitted in seconds.
PIXELS: dict[str, Any] = {
    "predictor.kind": "pixels",
    "predictor.objective": "gumbel",
    "model.reuse": "none",
}


def get_sweep() -> Sweep:
    pruned = {name: FINE_TUNED | {"model.pruning_rates": rates} for name, rates in RATES.items()}
    half = {"model.pruning_rates": RATES["0.5"]}
    return Sweep(
        config="configs/glance_imagenette_cpu.py",
        questions={
            "first look": pruned,
            "pixels": {name: fields | PIXELS for name, fields in pruned.items()},
            "which filters, at 0.5": {
                "FPGM": pruned["0.5"],
                "L1 norm": pruned["0.5"] | {"pretrain.pruning_criterion": "l1"},
                # Liu et al. 2019, arXiv 1810.05270: as many epochs from random weights.
                "none of the trained ones": half | {"pretrain.num_epochs": 28},
            },
        },
    )
