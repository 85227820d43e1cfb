"""How arrays lie on the devices."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def create_mesh() -> Mesh:
    """All devices of all processes on one axis, 'data'."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over all devices of `mesh`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device of `mesh`."""
    return NamedSharding(mesh, PartitionSpec())
