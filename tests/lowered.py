"""What programs hold once they are lowered for a platform, which need not be at hand."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

OPERATIONS = ("dot_general", "convolution", "reduce_window")


def lowered_operations(traced: Any, platform: str) -> list[Any]:
    """Every StableHLO operation of a traced program, as often as it is called.

    Args:
      traced: a `jax.stages.Traced`.
      platform: `'cpu'`, `'cuda'`.
    """
    module = traced.lower(lowering_platforms=(platform,)).compiler_ir("stablehlo")
    functions = {function.name.value: function.operation for function in module.body.operations}

    def walk(operation: Any) -> Iterator[Any]:
        """What is in it; calls are followed, so that a shared function counts every time."""
        for region in operation.regions:
            for block in region.blocks:
                for inner in block.operations:
                    yield inner
                    yield from walk(inner.operation)
                    if inner.operation.name == "func.call":
                        yield from walk(functions[inner.attributes["callee"].value])

    return list(walk(functions["main"]))


def counted(traced: Any, platform: str) -> dict[str, int]:
    """How many of `OPERATIONS` there are."""
    found = Counter(inner.operation.name for inner in lowered_operations(traced, platform))
    return {name: found[f"stablehlo.{name}"] for name in OPERATIONS}
