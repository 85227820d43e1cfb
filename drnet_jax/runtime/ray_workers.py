"""A function of many inputs, on workers of Ray Data: processes with a device each (optional)."""

import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar

import jax

from drnet_jax.config import ConfigError

InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")

# A worker that dies is started anew whenever it does. An input that kills every one of them is not
# tried forever.
_RETRIES = 3


def check_ray(workers: int) -> None:
    """Stops before any work where `map_on_workers` could not run.

    Raises:
      ConfigError: Ray is not installed, or this process holds an accelerator.
    """
    if find_spec("ray") is None:
        raise ConfigError(
            f"predict.workers={workers} needs Ray: pip install 'drnet-jax[ray]', or leave the "
            "field out"
        )
    if jax.default_backend() != "cpu":
        raise ConfigError(
            f"predict.workers={workers}: this process would keep a {jax.default_backend()} from "
            "the workers; run it with JAX_PLATFORMS=cpu, they use what Ray gives each"
        )


def map_on_workers(
    function: Callable[[InputT], OutputT], inputs: Sequence[InputT], workers: int
) -> Iterator[OutputT]:
    """The outputs of a function, in the order of the inputs.

    It is copied to every worker once and keeps there what it stores in itself. A worker that is
    killed is started anew, and its inputs are given to it or to others again. Workers are of the
    cluster that RAY_ADDRESS names, else of this machine; each takes a GPU where there are some,
    else a core.

    Args:
      function: that `pickle` can copy.
      inputs: each for one call.
      workers: how many.

    Raises:
      ConfigError: there are fewer devices than workers, none can start, or an input ended four.
    """
    ray = _started()
    device = _device(ray.cluster_resources(), workers)
    items = [{"input": pickle.dumps(value)} for value in inputs]
    with warnings.catch_warnings():
        # Of `max_task_retries`, until 2.64.
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        outputs = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Worker,
            fn_constructor_args=(function,),
            # Nothing is read ahead that a killed worker would take with it.
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            batch_size=1,
            max_task_retries=_RETRIES,
            **device,
        )
    try:
        for row in outputs.iter_rows():
            yield pickle.loads(row["output"])
    except ray.exceptions.RayActorError as error:
        if error.actor_init_failed:
            why = str(error).strip().splitlines()[-1]
            raise ConfigError(f"a worker of Ray cannot start: {why}") from error
        raise ConfigError(
            f"a worker ended {_RETRIES + 1} times at the same files, the first of those without a "
            f"row ({str(error).splitlines()[0]}): take the one away that it cannot bear"
        ) from error


class _Worker:
    """What Ray makes one of in every worker process.

    Args:
      function: see `map_on_workers`.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """The output of the one input in a batch."""
        return {"output": [pickle.dumps(self._function(pickle.loads(batch["input"][0])))]}


def _started() -> Any:
    """Ray with its data library, quiet."""
    # Nothing is reported to anyone.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    if not ray.is_initialized():
        with warnings.catch_warnings():
            # JAX warns of forks. Here another program takes the place of each at once.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _device(resources: Mapping[str, float], workers: int) -> dict[str, Any]:
    """What each worker takes of the cluster.

    Raises:
      ConfigError: there is less of it than workers.
    """
    kind = "GPU" if resources.get("GPU", 0) else "CPU"
    found = int(resources.get(kind, 0))
    if workers > found:
        raise ConfigError(
            f"predict.workers={workers}, and Ray has {found} {kind}s here: one worker a {kind}, so "
            f"--config.predict.workers={max(found, 1)} or less, or name a larger cluster with "
            "RAY_ADDRESS"
        )
    if kind == "CPU":
        return {"num_cpus": 1}
    # The process that gives out the files leaves the GPUs alone (`check_ray`), they do not.
    return {"num_gpus": 1, "runtime_env": {"env_vars": {"JAX_PLATFORMS": "cuda"}}}
