"""The images of a sweep as they are now, beside those that its runs were trained with."""

import numpy as np

from drnet_jax.checkpoints.checkpoint import steps
from drnet_jax.checkpoints.picture_sizes import check_sizes
from drnet_jax.checkpoints.restore import check_data
from drnet_jax.config import SPLITS, STAGES
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.settings import DataSettings
from drnet_jax.data.sources import DataError
from drnet_jax.sweeps.plan import Job, Plan


def check_present_images(plan: Plan) -> None:
    """Checks that the data can be opened, and holds the images of the runs that are there already.

    Else the sweep would report figures of other images than it is given, or fail job by job. Every
    data set is opened once.

    Raises:
      DataError: it cannot be opened, or holds other images.
      CheckpointError: a file beside the checkpoints of a run is damaged.
      OSError: a folder cannot be listed.
    """
    known: dict[DataSettings, _Images] = {}
    for job in plan.stage_two:
        for part in filter(None, (job.stage_one, job)):
            if part.data not in known:
                known[part.data] = _Images(part.data)
            known[part.data].check(part, limit=job.config["data.max_corrupt"])


class _Images:
    """What is compared of a data set.

    Args:
      settings: what it is read with.
    """

    def __init__(self, settings: DataSettings) -> None:
        splits = DataSplits(settings)
        self._classes = splits.classes
        self._identities = {split: splits.identity(split) for split in SPLITS}
        self._sizes: dict[str, np.ndarray] = {split: splits.sizes(split) for split in SPLITS}

    def check(self, job: Job, limit: int) -> None:
        """Stops if a run was trained with others; up to `limit` may have been repaired."""
        # Without a checkpoint it is trained anew, on whatever is there.
        if not any(steps(job.workdir / stage) for stage in STAGES):
            return
        try:
            check_data(job.workdir, self._classes, self._identities)
            check_sizes(job.workdir, self._sizes, limit)
        except DataError as error:
            raise DataError(f"{error} (of a sweep: in another --dir)") from error
