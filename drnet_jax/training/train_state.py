"""The state that a training step maps to the next one, and that a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

Tree = Any


@flax.struct.dataclass
class TrainState:
    """Parameters, statistics and optimiser state after `step` steps of a stage.

    Attributes:
      step: steps done in this stage, a scalar array.
      params: `{'classifier': ..., 'predictor': ...}`; stage 1 has no predictor.
      collections: BatchNorm statistics, a collection a resolution.
      opt_state: the optimiser's.
      ema: exponential moving average of `{'params': ..., 'collections': ...}`, or None.
    """

    step: jax.Array
    params: Tree
    collections: Tree
    opt_state: Tree
    ema: Tree | None = None

    @property
    def variables(self) -> Tree:
        """What `model.apply` takes: the newest parameters and statistics."""
        return {"params": self.params, **self.collections}

    @property
    def eval_variables(self) -> Tree:
        """What evaluation takes: the moving averages if they are kept."""
        if self.ema is None:
            return self.variables
        return {"params": self.ema["params"], **self.ema["collections"]}


def create_train_state(
    variables: Tree, tx: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """State before the first step of a stage."""
    collections = {name: tree for name, tree in variables.items() if name != "params"}
    averages = {"params": variables["params"], "collections": collections}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        collections=collections,
        opt_state=tx.init(variables["params"]),
        # Copies: the step donates its state, and one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, averages) if ema else None,
    )
