"""What gives images places, and moves them there, as ONNX operators: sorting and scattering."""

from collections.abc import Sequence

import numpy as np
from jax.extend.core import JaxprEqn
from jax.lax import GatherScatterMode

from drnet_jax.exports.errors import ExportError
from drnet_jax.exports.graph import Graph, Order, Tensor, Value, kind
from drnet_jax.exports.operators import elementwise, operation, out_avals


@operation("clamp")
def _clamp(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    low, value, high = values
    raised, order = elementwise(graph, "Max", [value, low])
    return elementwise(graph, "Min", [Tensor(raised, value.shape, value.dtype, order), high])


@operation("sort")
def _sort(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    """By the last key, then by the one before it, and so on: TopK keeps the order of equals."""
    if len(out_avals(eqn)[0].shape) != 1:
        raise ExportError("of sorts only those of one axis are converted")
    size = values[0].shape[0]
    order: str | None = None
    for key in reversed(values[: eqn.params["num_keys"]]):
        name = _in_order(graph, graph.named(key), order)
        _, found = graph.add("TopK", name, graph.ints(size), outputs=2, axis=0, largest=0)
        order = found if order is None else _in_order(graph, order, found)
    return [
        Tensor(_in_order(graph, graph.named(value), order), aval.shape, aval.dtype, (0,))
        for value, aval in zip(values, out_avals(eqn), strict=True)
    ]


def _in_order(graph: Graph, name: str, order: str | None) -> str:
    """Elements along the first axis; without an order as they are."""
    return name if order is None else graph.add("Gather", name, order, axis=0)[0]


@operation("scatter")
def _scatter(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    """Rows in the place of others; where there is no such row they are dropped.

    ScatterND knows no such rows: here there are some, which are cut off again.
    """
    rows, index, new = values
    numbers, mode = eqn.params["dimension_numbers"], eqn.params["mode"]
    rank = len(rows.shape)
    if (
        numbers.inserted_window_dims != (0,)
        or numbers.scatter_dims_to_operand_dims != (0,)
        or numbers.update_window_dims != tuple(range(1, rank))
        or new.shape[1:] != rows.shape[1:]
        or mode != GatherScatterMode.FILL_OR_DROP
    ):
        raise ExportError("of scatters only those of whole rows, others dropped, are converted")
    size, count = rows.shape[0], new.shape[0]
    given = graph.named(index)
    zero, end = (graph.constant(np.array(bound, index.dtype)) for bound in (0, size))
    (below,) = graph.add("Less", given, end)
    (above,) = graph.add("GreaterOrEqual", given, zero)
    (within,) = graph.add("And", below, above)
    # One for each, since no row may be written to twice.
    beyond = graph.constant(np.arange(size, size + count, dtype=index.dtype)[:, None])
    (kept,) = graph.add("Where", within, given, beyond)
    (places,) = graph.add("Cast", kept, to=kind(np.int64))
    (longer,) = graph.add("Concat", graph.named(rows), graph.named(new), axis=0)
    (found,) = graph.add("ScatterND", longer, places, graph.named(new))
    ends = (graph.ints(end) for end in (0, size, 0))
    return graph.add("Slice", found, *ends)[0], tuple(range(rank))
