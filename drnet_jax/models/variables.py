"""The variables of a DRNet: initialised, split into its parts, merged."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drnet_jax.models.backbone import Backbone
from drnet_jax.models.drnet import DRNet

Tree = Any


def init_variables(model: DRNet, key: jax.Array) -> Tree:
    """Initialises parameters and statistics by one pass that visits every resolution."""
    size = model.resolutions[0]
    # It runs once: XLA takes ten times longer to optimise it than it runs.
    init = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})
    return init(key, jnp.zeros((1, size, size, 3), jnp.float32))


def abstract_variables(model: DRNet) -> Tree:
    """Shapes and dtypes of what `init_variables` gives, without computing anything."""
    size = model.resolutions[0]
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), images)


def network_shapes(network: Backbone, resolution: int) -> Tree:
    """Shapes and dtypes of a network's variables at a resolution, without computing anything."""
    image = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)

    def initialise(x: jax.Array) -> Any:
        """The variables, of which only the shapes count."""
        return network.init(jax.random.key(0), x, resolution=resolution, train=False)

    return jax.eval_shape(initialise, image)


def classifier_variables(variables: Tree) -> Tree:
    """The classifier's part of `variables`: all that stage 1 trains."""
    return {
        collection: {"classifier": tree["classifier"]}
        for collection, tree in variables.items()
        if "classifier" in tree
    }


def part_variables(variables: Tree, part: str) -> Tree:
    """The variables of the classifier or the predictor, as that network itself takes them."""
    return {collection: tree[part] for collection, tree in variables.items() if part in tree}


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


def first_look_weight(variables: Tree) -> Any:
    """`[m]`: of the first look's logits in every answer, where it lies; None without reuse."""
    return variables.get("fitted", {}).get("predictor", {}).get("weight")


def reuse_weight(variables: Tree, num_resolutions: int) -> np.ndarray:
    """`[m]`: of the first look's logits in every answer, see `mixed`; zero without reuse."""
    weight = first_look_weight(variables)
    return np.zeros(num_resolutions, np.float32) if weight is None else np.asarray(weight)
