"""The state that a training step maps to the next one, and that a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from drnet_jax.models.drnet import DRNet

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


def init_variables(model: DRNet, key: jax.Array) -> Tree:
    """Initialises parameters and statistics by one pass that visits every resolution."""
    size = model.resolutions[0]
    # It runs once: XLA takes ten times longer to optimise it than it runs.
    init = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})
    return init(key, jnp.zeros((1, size, size, 3), jnp.float32))


def classifier_variables(variables: Tree) -> Tree:
    """The classifier's part of `variables`: all that stage 1 trains."""
    return {
        collection: {"classifier": tree["classifier"]}
        for collection, tree in variables.items()
        if "classifier" in tree
    }


def split_classifier(variables: Tree) -> tuple[Tree, Tree]:
    """The classifier's part of `variables`, and the rest."""
    rest = {
        collection: {part: leaves for part, leaves in tree.items() if part != "classifier"}
        for collection, tree in variables.items()
    }
    return classifier_variables(variables), rest


def merge_variables(variables: Tree, replacement: Tree) -> Tree:
    """`variables`, with the parts (classifier, predictor) that `replacement` has in their place."""
    merged = {collection: dict(tree) for collection, tree in variables.items()}
    for collection, tree in replacement.items():
        merged.setdefault(collection, {}).update(tree)
    return merged


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
