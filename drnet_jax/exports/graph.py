"""An ONNX graph under construction: its nodes, its constants, and values in any order of axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
from onnx import helper, numpy_helper

from drnet_jax.exports.errors import ExportError

# Of a dimension: its length, or the batch's symbol.
Dimension = Any
Order = tuple[int, ...]
# The version of the operators: the first whose reductions all take their axes as an input.
OPSET = 18


@dataclass(frozen=True)
class Tensor:
    """What a node of the graph gives.

    ONNX convolves images of `[n, c, h, w]` and JAX such of `[n, h, w, c]`. Values keep the order
    that their node gives, so that nothing is transposed between one convolution and the next.

    Attributes:
      name: in the graph.
      shape: in JAX's order.
      dtype: of its elements.
      order: the axis of `shape` that each axis in the graph is.
    """

    name: str
    shape: tuple[Dimension, ...]
    dtype: Any
    order: Order


# What is known when the graph is made is an array, in JAX's order.
Value = Tensor | np.ndarray


class Graph:
    """Nodes and constants of a graph whose input are images.

    Args:
      batch: the symbol of the number of images; None: it is fixed.
      images: name of the input, whose first axis is the batch.
      prefix: of all names in it.
    """

    def __init__(self, batch: Dimension, images: str, prefix: str = "") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._batch = batch
        self._images = images
        self._prefix = prefix
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._ordered: dict[tuple[str, Order], str] = {}
        self._length: str | None = None

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """Adds a node; the names of its outputs."""
        first = f"{self._prefix}{operator.lower()}_{len(self.nodes)}"
        names = [first + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(
            helper.make_node(operator, list(inputs), names, name=names[0], **attributes)
        )
        return names

    def constant(self, array: np.ndarray) -> str:
        """The name of a constant, kept once."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._known:
            name = f"{self._prefix}constant_{len(self._known)}"
            self.constants.append(numpy_helper.from_array(array, name))
            self._known[key] = name
        return self._known[key]

    def branch(self, name: str) -> "Graph":
        """An empty graph that a node of this one runs or not, and that knows its values.

        It has its own constants: runtimes prepare the weights of a convolution only beside it.

        Args:
          name: that no other branch here has.
        """
        found = Graph(self._batch, self._images, f"{self._prefix}{name}_{len(self.nodes)}_")
        found._ordered = dict(self._ordered)
        found._length = self._length
        return found

    def ints(self, *values: int) -> str:
        """A constant `[len(values)]` of int64, as shapes and axes are."""
        return self.constant(np.array(values, np.int64))

    def named(self, value: Value, order: Order | None = None) -> str:
        """The name of a value whose axes are in an order; default: JAX's."""
        order = (
            tuple(range(value.ndim if isinstance(value, np.ndarray) else len(value.shape)))
            if order is None
            else order
        )
        if isinstance(value, np.ndarray):
            return self.constant(value.transpose(order))
        if value.order == order:
            return value.name
        key = (value.name, order)
        if key not in self._ordered:
            axes = [value.order.index(axis) for axis in order]
            (self._ordered[key],) = self.add("Transpose", value.name, perm=axes)
        return self._ordered[key]

    def shape(self, shape: Sequence[Dimension]) -> str:
        """A shape as a value of the graph, where the batch is as long as that of the images.

        Raises:
          ExportError: a dimension is neither a number nor the batch.
        """
        if all(isinstance(size, int) for size in shape):
            return self.ints(*shape)
        parts = [self._batch_length() if self._is_batch(d) else self.ints(d) for d in shape]
        return self.add("Concat", *parts, axis=0)[0]

    def _is_batch(self, dimension: Dimension) -> bool:
        if isinstance(dimension, int):
            return False
        if self._batch is None or dimension != self._batch:
            raise ExportError(f"a shape has {dimension}, which is neither a number nor the batch")
        return True

    def _batch_length(self) -> str:
        if self._length is None:
            (self._length,) = self.add("Shape", self._images, start=0, end=1)
        return self._length


def kind(dtype: Any) -> int:
    """ONNX's number of an element type.

    Raises:
      ExportError: it has none.
    """
    try:
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"ONNX has no element type {jnp.dtype(dtype).name}") from error
