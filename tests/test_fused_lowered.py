"""The program of a batch as it is lowered for a GPU, here, and weights in its dtype."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drnet_jax.config import default_config
from drnet_jax.inference.dtypes import in_computed_dtype
from drnet_jax.inference.folding import fold_batch_norm
from drnet_jax.inference.fused_program import FusedProgram
from drnet_jax.models.create import create_model
from drnet_jax.models.drnet import DRNet
from drnet_jax.models.macs import model_cost
from drnet_jax.models.variables import init_variables, part_variables
from tests.lowered import lowered_operations
from tests.random_model import randomised
from tests.test_inference import MEAN, STD
from tests.test_inference_glance import KINDS


@cache
def bfloat16_model(kind: str) -> tuple[DRNet, Any]:
    """A model that computes in bfloat16, with weights in float32."""
    config = default_config()
    fields = {
        "model.name": "resnet",
        "model.args": "stage_sizes=(1,), width=4, stem='small'",
        "model.resolutions": (48, 32, 16),
        "model.dtype": "bfloat16",
    }
    config.update_from_flattened_dict(fields | KINDS[kind])
    model = create_model(config, 7)
    return model, randomised(init_variables(model, jax.random.key(0)), 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_program_for_a_gpu_converts_no_kernel(kind: str, batch_size: int) -> None:
    """Lowered here: all operations are XLA's own, and the kernels come in bfloat16."""
    model, variables = bfloat16_model(kind)
    program = FusedProgram(
        model,
        variables,
        mean=MEAN,
        std=STD,
        capacities=None if batch_size == 1 else (3, 3, 2),
        lam=0.0,
        fold=True,
        cost=model_cost(model),
    )
    images = jax.ShapeDtypeStruct((batch_size, 48, 48, 3), jnp.uint8)
    kernels = [
        leaf
        for leaf in jax.tree.leaves(
            (program.variables["predictor"], program.variables["classifiers"])
        )
        if leaf.ndim == 4
    ]
    assert {leaf.dtype for leaf in kernels} == {jnp.dtype(jnp.bfloat16)}

    def lowered(dtype: Any) -> tuple[int, int]:
        """Convolutions, and conversions of what has a kernel's shape, of kernels of a dtype."""
        weights = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype if leaf.ndim == 4 else leaf.dtype),
            program.variables,
        )
        traced = jax.jit(program.__call__).trace(weights, (images,), jnp.int32(1))
        operations = lowered_operations(traced, "cuda")
        shapes = {leaf.shape for leaf in kernels}
        converted = [
            operation
            for operation in operations
            if operation.operation.name == "stablehlo.convert"
            and tuple(operation.operands[0].type.shape) in shapes
        ]
        names = [operation.operation.name for operation in operations]
        return names.count("stablehlo.convolution"), len(converted)

    assert lowered(jnp.bfloat16) == (len(kernels), 0)
    assert lowered(jnp.float32) == (len(kernels), len(kernels))


@pytest.mark.parametrize("fold", [True, False])
def test_weights_in_the_dtype_of_the_computation_change_nothing(fold: bool) -> None:
    """To the bit; BatchNorm and the last layer are computed in float32."""
    model, variables = bfloat16_model("pixels")
    network, variables = model.classifier, part_variables(variables, "classifier")
    if fold:
        network, variables = fold_batch_norm(network, variables, 32)
    converted = in_computed_dtype(network, variables, 32)
    pixels = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    apply = jax.jit(partial(network.apply, resolution=32, train=False))
    np.testing.assert_array_equal(apply(converted, pixels), apply(variables, pixels))
    for path, leaf in jax.tree_util.tree_leaves_with_path(converted):
        name = jax.tree_util.keystr(path)
        of_convolution = "conv" in name
        assert leaf.dtype == (jnp.bfloat16 if of_convolution else jnp.float32), name
