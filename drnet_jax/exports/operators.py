"""Which ONNX operators each operation of JAX becomes: those on elements, axes and shapes."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from drnet_jax.exports.errors import ExportError
from drnet_jax.exports.graph import Graph, Order, Tensor, Value, kind

# Adds an operation to a graph, and gives the name of its only output with the order of its axes, or
# all its outputs.
Convert = Callable[[Graph, JaxprEqn, Sequence[Value]], tuple[str, Order] | list[Value]]
C = TypeVar("C", bound=Convert)
OPERATIONS: dict[str, Convert] = {}

# Of one operator, without parameters.
_ELEMENTWISE = {
    **{name: name.capitalize() for name in ("add", "sub", "mul", "div", "pow", "max", "min")},
    **{name: name.capitalize() for name in ("and", "or", "not", "neg", "abs", "exp", "log")},
    **{name: name.capitalize() for name in ("sqrt", "tanh", "erf", "floor", "ceil", "sign")},
    **{"logistic": "Sigmoid", "eq": "Equal", "gt": "Greater", "lt": "Less"},
    **{"ge": "GreaterOrEqual", "le": "LessOrEqual"},
}
_IDENTITIES = ("stop_gradient", "copy", "copy_p", "optimization_barrier", "reshard")


def operation(*names: str) -> Callable[[C], C]:
    """Makes a function known as what converts operations of JAX."""

    def add(convert: C) -> C:
        """Keeps it."""
        OPERATIONS.update(dict.fromkeys(names, convert))
        return convert

    return add


def out_avals(eqn: JaxprEqn) -> list[Any]:
    """Shapes and dtypes of what an operation gives."""
    return [variable.aval for variable in eqn.outvars]


def common_order(values: Sequence[Value]) -> Order:
    """The order of axes to compute elementwise in: of the first that has all of them."""
    rank = max(len(value.shape) for value in values)
    orders = (v.order for v in values if isinstance(v, Tensor) and len(v.shape) == rank)
    return next(orders, tuple(range(rank)))


def elementwise(
    graph: Graph, operator: str, values: Sequence[Value], **attributes: Any
) -> tuple[str, Order]:
    """One operator on values of one shape, or of single elements."""
    order = common_order(values)
    names = [graph.named(value, order if len(value.shape) else ()) for value in values]
    return graph.add(operator, *names, **attributes)[0], order


@operation(*_ELEMENTWISE)
def _one_operator(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    name = eqn.primitive.name
    if name in ("max", "min"):
        return _extremum(graph, name, values)
    return elementwise(graph, _ELEMENTWISE[name], values)


def _extremum(graph: Graph, name: str, values: Sequence[Value]) -> tuple[str, Order]:
    """By `Relu` and `Clip` where they do, which run as parts of the convolution before them."""
    first, second = values
    if isinstance(first, Tensor) and isinstance(second, np.ndarray) and not second.ndim:
        if name == "max":
            if second == 0:
                return elementwise(graph, "Relu", [first])
        else:
            return graph.add("Clip", first.name, "", graph.named(second))[0], first.order
    return elementwise(graph, name.capitalize(), values)


@operation(*_IDENTITIES)
def _identity(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    return list(values)


@operation("convert_element_type")
def _cast(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    (value,), dtype = values, eqn.params["new_dtype"]
    assert isinstance(value, Tensor)
    name = value.name
    if jnp.issubdtype(value.dtype, jnp.floating) and jnp.issubdtype(dtype, jnp.integer):
        # What does not fit becomes the nearest that does in JAX, and anything in ONNX.
        bounds = (graph.constant(bound) for bound in _bounds(dtype, value.dtype))
        (name,) = graph.add("Clip", name, *bounds)
    return graph.add("Cast", name, to=kind(dtype))[0], value.order


def _bounds(dtype: Any, floating: Any) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest integer of a type that are numbers of a floating type."""
    info, found = jnp.iinfo(dtype), []
    for bound in (int(info.min), int(info.max)):
        near = np.array(bound, floating)
        # 2^31 - 1 is rounded to 2^31 in float32; so is 65535 to infinity in float16.
        while not info.min <= near.astype(np.float64) <= info.max:
            near = np.nextafter(near, np.array(0, floating))
        found.append(near)
    return found[0], found[1]


@operation("square")
def _square(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    return elementwise(graph, "Mul", [values[0], values[0]])


@operation("integer_pow")
def _integer_pow(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    exponent = np.array(eqn.params["y"], np.float32)
    return elementwise(graph, "Pow", [values[0], exponent])


@operation("rsqrt")
def _rsqrt(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    root, order = elementwise(graph, "Sqrt", values)
    return graph.add("Reciprocal", root)[0], order


@operation("ne")
def _not_equal(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    equal, order = elementwise(graph, "Equal", values)
    return graph.add("Not", equal)[0], order


@operation("select_n")
def _select(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    which, *cases = values
    if len(cases) != 2 or np.dtype(which.dtype) != np.bool_:
        raise ExportError("a choice among more than two arrays has no ONNX operator here")
    return elementwise(graph, "Where", [which, cases[1], cases[0]])


@operation("transpose")
def _transpose(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    (value,), axes = values, eqn.params["permutation"]
    assert isinstance(value, Tensor)
    # No node: only the name of each axis changes.
    return value.name, tuple(axes.index(axis) for axis in value.order)


@operation("reshape", "squeeze", "expand_dims")
def _reshape(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    shape = out_avals(eqn)[0].shape
    unknown = [size for size in shape if not isinstance(size, int)]
    # One length follows from the others.
    target = graph.ints(*(s if isinstance(s, int) else -1 for s in shape))
    if len(unknown) > 1:
        target = graph.shape(shape)
    return graph.add("Reshape", graph.named(values[0]), target)[0], tuple(range(len(shape)))


@operation("broadcast_in_dim")
def _broadcast(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    shape, axes = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    value = values[0]
    name = graph.named(value)
    if tuple(axes) != tuple(range(len(shape) - len(axes), len(shape))):
        aligned = [1] * len(shape)
        for axis, size in zip(axes, value.shape, strict=True):
            aligned[axis] = size if isinstance(size, int) else -1
        (name,) = graph.add("Reshape", name, graph.ints(*aligned))
    return graph.add("Expand", name, graph.shape(shape))[0], tuple(range(len(shape)))


@operation("concatenate")
def _concatenate(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    order = common_order(values)
    names = [graph.named(value, order) for value in values]
    return graph.add("Concat", *names, axis=order.index(eqn.params["dimension"]))[0], order


@operation("slice")
def _slice(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    (value,), params = values, eqn.params
    assert isinstance(value, Tensor)
    steps = params["strides"] or (1,) * len(value.shape)
    limits = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    # The batch is sliced nowhere: its end is not known here.
    parts = [
        (value.order.index(axis), start, end, step)
        for axis, (start, end, step) in enumerate(limits)
        if (start, end, step) != (0, value.shape[axis], 1)
    ]
    if any(not isinstance(end, int) for _, _, end, _ in parts):
        raise ExportError("a slice of the batch has no ONNX operator here")
    if not parts:
        return value.name, value.order
    where, starts, ends, steps = (graph.ints(*column) for column in zip(*parts, strict=True))
    return graph.add("Slice", value.name, starts, ends, where, steps)[0], value.order


@operation("pad")
def _pad(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    value, filling = values
    if not isinstance(value, Tensor):
        raise ExportError("padding with a value that is not known has no ONNX operator here")
    amounts = eqn.params["padding_config"]
    if any(low < 0 or high < 0 or between for low, high, between in amounts):
        raise ExportError("padding between elements, or below zero, has no ONNX operator here")
    pads = [amounts[axis][end] for end in (0, 1) for axis in value.order]
    return graph.add("Pad", value.name, graph.ints(*pads), graph.named(filling))[0], value.order


@operation("reduce_sum", "reduce_max", "reduce_min")
def _reduce(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    (value,), axes = values, eqn.params["axes"]
    assert isinstance(value, Tensor)
    if not axes:
        # To ONNX that is all of them.
        return value.name, value.order
    operator = "Reduce" + eqn.primitive.name.removeprefix("reduce_").capitalize()
    where = graph.ints(*(value.order.index(axis) for axis in axes))
    left = [axis for axis in value.order if axis not in axes]
    order = tuple(sorted(left).index(axis) for axis in left)
    return graph.add(operator, value.name, where, keepdims=0)[0], order


@operation("argmax")
def _argmax(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    ((axis,), found) = eqn.params["axes"], graph.named(values[0])
    (best,) = graph.add("ArgMax", found, axis=axis, keepdims=0)
    (cast,) = graph.add("Cast", best, to=kind(eqn.params["index_dtype"]))
    return cast, tuple(range(len(values[0].shape) - 1))


@operation("top_k")
def _top_k(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    rank = len(values[0].shape)
    if eqn.params.get("axis", rank - 1) not in (-1, rank - 1):
        raise ExportError("the largest values along another axis than the last")
    count = graph.ints(eqn.params["k"])
    best, where = graph.add("TopK", graph.named(values[0]), count, outputs=2, axis=-1)
    (index,) = graph.add("Cast", where, to=kind(np.int32))
    order = tuple(range(rank))
    names = zip((best, index), out_avals(eqn), strict=True)
    return [Tensor(name, aval.shape, aval.dtype, order) for name, aval in names]


@operation("gather")
def _gather(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    """A part of an array, or whole slices along one axis, as `take` has them."""
    value, index = values
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    if isinstance(value, Tensor) and isinstance(index, np.ndarray) and index.ndim == 1:
        return _part(graph, eqn, value, index)
    axis, rank, places = numbers.start_index_map[0], len(value.shape), len(index.shape) - 1
    whole = all(
        size == (1 if place == axis else value.shape[place]) for place, size in enumerate(sizes)
    )
    offset = (*range(axis), *range(axis + places, rank - 1 + places))
    if (
        len(numbers.start_index_map) != 1
        or numbers.collapsed_slice_dims != (axis,)
        or numbers.offset_dims != offset
        or numbers.operand_batching_dims
        or not whole
    ):
        raise ExportError("of gathers only those of whole slices along one axis are converted")
    last = value.shape[axis] - 1
    (flat,) = graph.add("Reshape", graph.named(index), graph.shape(index.shape[:-1]))
    if not isinstance(index, np.ndarray) or index.min() < 0 or index.max() > last:
        if "CLIP" not in str(eqn.params["mode"]):
            raise ExportError("of gathers only those that clip their indices are converted")
        bounds = (graph.constant(np.array(end, index.dtype)) for end in (0, last))
        (flat,) = graph.add("Clip", flat, *bounds)
    if isinstance(value, Tensor) and places == 1:
        # Whose axes stay as they are: of images they are not JAX's.
        where = value.order.index(axis)
        return graph.add("Gather", value.name, flat, axis=where)[0], value.order
    (found,) = graph.add("Gather", graph.named(value), flat, axis=axis)
    return found, tuple(range(rank - 1 + places))


def _part(graph: Graph, eqn: JaxprEqn, value: Tensor, index: np.ndarray) -> tuple[str, Order]:
    """What `x[:, 0, :2]` is where the number of images is not known."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    parts = [
        (axis, start, start + sizes[axis], value.shape[axis])
        for axis, start in zip(numbers.start_index_map, index.tolist(), strict=True)
        if sizes[axis] != value.shape[axis]
    ]
    if any(not isinstance(size, int) or start < 0 or end > size for _, start, end, size in parts):
        raise ExportError("a part that is not within its array has no ONNX operator here")
    name = graph.named(value)
    if parts:
        axes, starts, ends = (
            graph.ints(*column) for column in zip(*(part[:3] for part in parts), strict=True)
        )
        (name,) = graph.add("Slice", name, starts, ends, axes)
    if numbers.collapsed_slice_dims:
        (name,) = graph.add("Squeeze", name, graph.ints(*numbers.collapsed_slice_dims))
    return name, tuple(range(len(value.shape) - len(numbers.collapsed_slice_dims)))
