"""The images of a sweep as they are now, beside those that its runs were trained with."""

from drnet_jax.checkpoints.checkpoint import steps
from drnet_jax.checkpoints.restore import check_data
from drnet_jax.config import SPLITS, STAGES
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import DataError
from drnet_jax.sweeps.plan import Plan


def check_present_images(plan: Plan) -> None:
    """Checks that the data can be opened, and holds the images of the runs that are there already.

    Else the sweep would report figures of other images than it is given, or fail job by job. Every
    data set is opened once.

    Raises:
      DataError: it cannot be opened, or holds other images.
      CheckpointError: a file beside the checkpoints of a run is damaged.
    """
    known: dict[DataSettings, tuple[tuple[str, ...], dict[str, str]]] = {}
    for job in (*plan.stage_one, *plan.stage_two):
        if job.data not in known:
            splits = DataSplits(job.data)
            identities = {split: splits.identity(split) for split in SPLITS}
            known[job.data] = (splits.classes, identities)
        # Without a checkpoint it is trained anew, on whatever is there.
        if not any(steps(job.workdir / stage) for stage in STAGES):
            continue
        try:
            check_data(job.workdir, *known[job.data])
        except DataError as error:
            raise DataError(f"{error} (of a sweep: in another --dir)") from error
