"""Convolutions, pooling and matrix products as ONNX operators."""

from collections.abc import Sequence

import numpy as np
from jax.extend.core import JaxprEqn

from drnet_jax.exports.errors import ExportError
from drnet_jax.exports.graph import Graph, Order, Tensor, Value
from drnet_jax.exports.operators import operation

# Blocks of the product with a matrix of a resize.
_NUM_BANDS = 6
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@operation("conv_general_dilated")
def _convolution(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    (x, kernel), params = values, eqn.params
    spec, padding = params["dimension_numbers"], params["padding"]
    dilated = any(step != 1 for step in params["lhs_dilation"])
    if dilated or params["batch_group_count"] != 1 or np.min(padding) < 0:
        raise ExportError(
            "a convolution of dilated input, of batch groups or with negative padding has no ONNX "
            "operator here"
        )
    (found,) = graph.add(
        "Conv",
        graph.named(x, tuple(spec.lhs_spec)),
        graph.named(kernel, tuple(spec.rhs_spec)),
        # Never by a rule, such as SAME: exporters have taken those wrongly, and said nothing.
        pads=[amount[end] for end in (0, 1) for amount in padding],
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return found, tuple(spec.out_spec)


@operation("reduce_window_max")
def _max_pool(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    (value,), params = values, eqn.params
    columns = ("window_dimensions", "window_strides", "padding")
    window, strides, padding = (params[name] for name in columns)
    moved = [
        axis
        for axis in range(len(window))
        if (window[axis], strides[axis], tuple(padding[axis])) != (1, 1, (0, 0))
    ]
    dilations = {*params["base_dilation"], *params["window_dilation"]}
    if len(window) != 4 or len(moved) != 2 or dilations != {1} or np.min(padding) < 0:
        raise ExportError("of max-pools only those over two axes of images are converted")
    order = (*(axis for axis in range(4) if axis not in moved), *moved)
    (found,) = graph.add(
        "MaxPool",
        graph.named(value, order),
        kernel_shape=[window[axis] for axis in moved],
        strides=[strides[axis] for axis in moved],
        pads=[padding[axis][end] for end in (0, 1) for axis in moved],
    )
    return found, order


@operation("dot_general")
def _product(graph: Graph, eqn: JaxprEqn, values: Sequence[Value]) -> tuple[str, Order]:
    x, y = values
    (contracted, batched) = eqn.params["dimension_numbers"]
    simple = [len(axes) for axes in (*contracted, *batched)] == [1, 1, 0, 0]
    for first, tensor, matrix in ((True, x, y), (False, y, x)):
        if simple and isinstance(tensor, Tensor) and isinstance(matrix, np.ndarray):
            if matrix.ndim == 2:
                axes = contracted if first else contracted[::-1]
                return _matrix_product(graph, tensor, matrix, axes[0][0], axes[1][0], first)
    return _einsum(graph, x, y, contracted, batched)


def _matrix_product(
    graph: Graph, x: Tensor, matrix: np.ndarray, axis: int, matrix_axis: int, x_first: bool
) -> tuple[str, Order]:
    """Multiplies one axis with a matrix, where it lies if that is possible.

    Args:
      graph: to add to.
      x: of any rank.
      matrix: what is known.
      axis: of `x`, over which to sum.
      matrix_axis: of the matrix, likewise.
      x_first: the axes of `x` that are left come before the matrix's.
    """
    matrix = matrix if matrix_axis == 0 else matrix.T
    order, rank = x.order, len(x.shape)
    if axis not in order[-2:]:
        order = (*(other for other in order if other != axis), axis)
    name = graph.named(x, order)
    place = order.index(axis)
    parts = [
        _part_of_product(graph, name, matrix, rows, columns, place, rank)
        for rows, columns in _bands(matrix)
    ]
    found = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=place)[0]
    left = [other for other in range(rank) if other != axis]
    # Which axis of the result each one is.
    places = {other: place + (not x_first) for place, other in enumerate(left)}
    places[axis] = rank - 1 if x_first else 0
    return found, tuple(places[other] for other in order)


def _part_of_product(
    graph: Graph,
    name: str,
    matrix: np.ndarray,
    rows: slice,
    columns: slice,
    place: int,
    rank: int,
) -> str:
    """Multiplies some of the values along the last or the last but one axis."""
    if (rows.start, rows.stop) != (0, len(matrix)):
        ends = (graph.ints(end) for end in (rows.start, rows.stop, place))
        (name,) = graph.add("Slice", name, *ends)
    part = matrix[rows, columns]
    if place == rank - 1:
        return graph.add("MatMul", name, graph.constant(part))[0]
    return graph.add("MatMul", graph.constant(part.T), name)[0]


def _bands(matrix: np.ndarray) -> list[tuple[slice, slice]]:
    """Rows and columns outside which a matrix is zero: all of it, or blocks along a diagonal.

    The matrix of a resize has few values that are not zero in each of its columns. In six blocks it
    takes about half of the time.
    """
    whole = [(slice(0, len(matrix)), slice(0, matrix.shape[1]))]
    if matrix.shape[1] < _NUM_BANDS:
        return whole
    bands = []
    for columns in np.array_split(np.arange(matrix.shape[1]), _NUM_BANDS):
        (rows,) = np.nonzero(matrix[:, columns].any(axis=1))
        if not len(rows):
            return whole
        bands.append(
            (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        )
    used = sum(rows.stop - rows.start for rows, _ in bands)
    return bands if used < _NUM_BANDS * len(matrix) / 2 else whole


def _einsum(
    graph: Graph,
    x: Value,
    y: Value,
    contracted: tuple[Sequence[int], Sequence[int]],
    batched: tuple[Sequence[int], Sequence[int]],
) -> tuple[str, Order]:
    x_names = list(_LETTERS[: len(x.shape)])
    y_names = list(_LETTERS[len(x.shape) : len(x.shape) + len(y.shape)])
    for x_axes, y_axes in (contracted, batched):
        for x_axis, y_axis in zip(x_axes, y_axes, strict=True):
            y_names[y_axis] = x_names[x_axis]
    both = [x_names[axis] for axis in batched[0]]
    summed = {x_names[axis] for axis in contracted[0]}
    left = [name for name in (*x_names, *y_names) if name not in {*both, *summed}]
    equation = f"{''.join(x_names)},{''.join(y_names)}->{''.join([*both, *left])}"
    names = (graph.named(x), graph.named(y))
    (found,) = graph.add("Einsum", *names, equation=equation)
    return found, tuple(range(len(both) + len(left)))
