"""A function of images as an ONNX model: JAX traces it, and every operation is converted.

Why not by jax2onnx: its 0.17.1 pins another orbax-checkpoint than this package needs, and the
0.13.0 that pip finds instead is of an older jax. Both fail on the resize of a batch of any size and
on the max-pool of these networks, and an explicit padding has become another one without a word.
The networks here come down to some thirty operations; one that has no counterpart stops the export
by its name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import export
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters.partial_eval import dce_jaxpr
from onnx import helper

from drnet_jax.exports import places, products  # noqa: F401  (make their operations known)
from drnet_jax.exports.errors import ExportError
from drnet_jax.exports.graph import OPSET, Graph, Tensor, Value, kind
from drnet_jax.exports.operators import OPERATIONS, out_avals

IMAGES, COUNT = "images", "count"
BATCH = "batch"
# Older runtimes read it too.
_IR_VERSION = 10
# Of a file: protobuf's.
_MAX_BYTES = 2**31 - 1
# Operations that stand for others, by where those are.
_CALLS = {
    **dict.fromkeys(("jit", "pjit", "closed_call", "remat2", "checkpoint"), "jaxpr"),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), "call_jaxpr"),
}


def onnx_model(
    function: Callable[..., Mapping[str, jax.Array]],
    image_size: tuple[int, int],
    *,
    name: str,
    batch_size: int | None = None,
    counted: bool = False,
) -> onnx.ModelProto:
    """Converts a function of images.

    Args:
      function: maps uint8 images `[n, h, w, 3]` to outputs by their names. What it holds of arrays
        becomes part of the model.
      image_size: height and width.
      name: of the graph.
      batch_size: n; None: any number, which is the graph's dimension `batch`.
      counted: the function also takes how many images are real, `[]` int32, and so does the graph.

    Raises:
      ExportError: an operation has no counterpart here, which is named; or the model is larger
        than a file may be.
    """
    batch = batch_size or export.symbolic_shape(BATCH)[0]
    images = jax.ShapeDtypeStruct((batch, *image_size, 3), jnp.uint8)
    given = {IMAGES: images} | ({COUNT: jax.ShapeDtypeStruct((), jnp.int32)} if counted else {})
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*given.values())
    graph = Graph(None if batch_size else batch, IMAGES)
    # Channels first, while an element is a byte.
    (first,) = graph.add("Transpose", IMAGES, perm=[0, 3, 1, 2])
    values = [Tensor(first, images.shape, images.dtype, (0, 3, 1, 2))]
    values += [Tensor(COUNT, (), given[COUNT].dtype, ())] if counted else []
    found = _converted(graph, closed.jaxpr, closed.consts, values)
    _check_size(graph, name)
    outputs = []
    # As JAX orders a dictionary.
    for output, value in zip(sorted(shapes), found, strict=True):
        graph.nodes.append(helper.make_node("Identity", [graph.named(value)], [output], output))
        outputs.append(_described(output, value.shape, value.dtype))
    proto = helper.make_graph(
        graph.nodes,
        name,
        [_described(each, struct.shape, struct.dtype) for each, struct in given.items()],
        outputs,
        graph.constants,
    )
    return _checked_model(proto)


def _check_size(graph: Graph, name: str) -> None:
    size = sum(len(tensor.raw_data) for tensor in graph.constants)
    if size > _MAX_BYTES:
        raise ExportError(
            f"{name} has {size / 2**30:.1f} GiB of weights, and an ONNX file holds 2: export a "
            "smaller network"
        )


def _checked_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """With the versions that it is of.

    Raises:
      ExportError: ONNX's own checks refuse it.
    """
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="drnet_jax",
        ir_version=_IR_VERSION,
    )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{graph.name} has no form in ONNX here: {error}") from error
    return model


def _described(name: str, shape: Sequence[Any], dtype: Any) -> onnx.ValueInfoProto:
    dimensions = [size if isinstance(size, int) else str(size) for size in shape]
    return helper.make_tensor_value_info(name, kind(dtype), dimensions)


def _converted(
    graph: Graph, jaxpr: Jaxpr, constants: Sequence[Any], inputs: Sequence[Value]
) -> list[Value]:
    """The outputs of a traced function, whose operations are added to a graph."""
    # Without what no output depends on; the inputs stay.
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    known: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= zip(jaxpr.constvars, map(np.asarray, constants), strict=True)

    def value(variable: Any) -> Value:
        """What a variable stands for."""
        if isinstance(variable, Literal):
            aval: Any = variable.aval
            return np.asarray(variable.val, aval.dtype)
        return known[variable]

    for eqn in jaxpr.eqns:
        given = [value(variable) for variable in eqn.invars]
        known |= zip(eqn.outvars, _outputs(graph, eqn, given), strict=True)
    return [value(variable) for variable in jaxpr.outvars]


def _outputs(graph: Graph, eqn: JaxprEqn, given: Sequence[Value]) -> Iterator[Value] | list[Value]:
    name = eqn.primitive.name
    if name in _CALLS:
        inner = eqn.params[_CALLS[name]]
        if isinstance(inner, ClosedJaxpr):
            return _converted(graph, inner.jaxpr, inner.consts, given)
        return _converted(graph, inner, (), given)
    if _is_empty(eqn):
        return [np.zeros(aval.shape, aval.dtype) for aval in out_avals(eqn)]
    if _is_known(eqn, given):
        return _evaluated(eqn, given)
    if name == "cond":
        which, *operands = given
        return _alternatives(graph, eqn.params["branches"], which, operands)
    if name not in OPERATIONS:
        raise ExportError(
            f"the operation {name!r} of JAX is not known here as one of ONNX: add it to "
            "drnet_jax/exports/operators.py, or build the network without it"
        )
    found = OPERATIONS[name](graph, eqn, given)
    if isinstance(found, list):
        return found
    (aval,) = out_avals(eqn)
    return [Tensor(found[0], aval.shape, aval.dtype, found[1])]


def _alternatives(
    graph: Graph,
    branches: Sequence[ClosedJaxpr],
    which: Value,
    operands: Sequence[Value],
    number: int = 0,
) -> list[Value]:
    """What one of several functions gives, which alone runs.

    Args:
      graph: to add to.
      branches: the functions, of the same shapes.
      which: `[]`, the number of the one that runs.
      operands: that they take.
      number: of the first of `branches`.
    """
    first, *others = branches
    if not others:
        return _converted(graph, first.jaxpr, first.consts, operands)
    (chosen,) = graph.add(
        "Equal", graph.named(which), graph.constant(np.array(number, which.dtype))
    )
    then, otherwise = graph.branch("then"), graph.branch("else")
    bodies = [
        _body(then, _alternatives(then, [first], which, operands)),
        _body(otherwise, _alternatives(otherwise, others, which, operands, number + 1)),
    ]
    names = graph.add(
        "If", chosen, outputs=len(first.out_avals), then_branch=bodies[0], else_branch=bodies[1]
    )
    return [
        Tensor(name, aval.shape, aval.dtype, tuple(range(len(aval.shape))))
        for name, aval in zip(names, first.out_avals, strict=True)
    ]


def _body(branch: Graph, values: Sequence[Value]) -> onnx.GraphProto:
    """A branch that gives these values, in JAX's order of axes."""
    outputs = []
    for value in values:
        # What lies outside a branch is none of its outputs.
        (name,) = branch.add("Identity", branch.named(value))
        outputs.append(_described(name, value.shape, value.dtype))
    return helper.make_graph(branch.nodes, outputs[0].name, [], outputs, branch.constants)


def _is_empty(eqn: JaxprEqn) -> bool:
    """Whether nothing comes of an operation, as of the resolutions after the last."""
    return all(0 in aval.shape for aval in out_avals(eqn))


def _is_known(eqn: JaxprEqn, given: Sequence[Value]) -> bool:
    """Whether an operation can be computed now; the number of images never is known."""
    if eqn.primitive.name == "dim_as_value":
        return False
    sizes = [size for aval in out_avals(eqn) for size in aval.shape]
    return all(isinstance(v, np.ndarray) for v in given) and all(isinstance(s, int) for s in sizes)


def _evaluated(eqn: JaxprEqn, given: Sequence[Value]) -> list[Value]:
    found = eqn.primitive.bind(*map(jnp.asarray, given), **eqn.params)
    return [np.asarray(each) for each in (found if eqn.primitive.multiple_results else [found])]
