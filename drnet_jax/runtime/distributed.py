"""Several processes that run one program: how they find each other, and that they end together."""

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from drnet_jax.config import ConfigError
from drnet_jax.runtime.terminal import print_error

# Flags by what `jax.distributed.initialize` calls their values, and where else those may stand.
_FLAGS = {
    "coordinator_address": ("--coordinator", "JAX_COORDINATOR_ADDRESS"),
    "num_processes": ("--num_processes", "JAX_NUM_PROCESSES"),
    "process_id": ("--process_id", "JAX_PROCESS_ID"),
}
# What a launcher that JAX knows sets in each of the processes that it starts, the last one to
# their number.
_LAUNCHERS = (
    ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"),
    ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
# Of `--coordinator`: asks JAX for a cluster that the environment alone does not tell of.
_AUTO = "auto"
# Seconds until all processes have to be there, and until one that says nothing is taken for dead.
_START_WITHIN, _DEAD_AFTER = 300, 60
# Seconds between looks at the others, and those that a process has to say itself why it stops.
_LOOK_EVERY, _GRACE = 0.5, 2.0
_STOPPED = "drnet_jax/stopped/"
# In errors of a collective on CPUs whose other end is gone.
_LOST = ("Gloo", "coordination service")
_STARTED = threading.Event()


def start_processes(given: Mapping[str, Any], *, within: float = _START_WITHIN) -> None:
    """Makes this process one of several, where it is started as one; before JAX does anything else.

    Its place comes from flags, else from the environment, else from SLURM or Open MPI where those
    started several; without any of that nothing happens.

    Args:
      given: `coordinator`, `num_processes` and `process_id`, each None where it is not given;
        `coordinator` is `'auto'` where JAX is to ask whatever cluster it finds.
      within: seconds until all processes have to be there; it ends with 2 and one line if not.

    Raises:
      ConfigError: values that cannot be, some without the others, or JAX finds no cluster.
    """
    found = _found(given)
    if found.get("coordinator_address") == _AUTO:
        del found["coordinator_address"]
        _initialize(found, within)
        return
    if found.get("num_processes") == 1:
        return
    if not _launched():
        if not found:
            return
        if len(found) < len(_FLAGS):
            lacking = " and ".join("/".join(_FLAGS[name]) for name in _FLAGS if name not in found)
            raise ConfigError(
                f"{' and '.join(_FLAGS[name][0] for name in found)} without {lacking}: several "
                "processes need all three, one process none"
            )
    _check(found)
    _initialize(found, within)


def _found(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are given, by a flag or by the environment."""
    found: dict[str, Any] = {}
    for name, (flag, variable) in _FLAGS.items():
        value = given[flag.removeprefix("--")]
        if value is None and (text := os.environ.get(variable)):
            try:
                value = text if name == "coordinator_address" else int(text)
            except ValueError as error:
                raise ConfigError(f"{variable}={text!r} must be a whole number") from error
        if value is not None:
            found[name] = value
    return found


def _launched() -> bool:
    """Whether a launcher that JAX knows started this process, and others with it."""
    return any(
        all(name in os.environ for name in names) and os.environ[names[-1]] != "1"
        for names in _LAUNCHERS
    )


def _check(found: Mapping[str, Any]) -> None:
    """Stops for values that cannot be."""
    count, number = found.get("num_processes"), found.get("process_id")
    if count is not None and count < 1:
        raise ConfigError(f"--num_processes={count} must be 1 or more")
    if number is not None and (number < 0 or (count is not None and number >= count)):
        raise ConfigError(f"--process_id={number} must be 0 to --num_processes - 1")
    address = found.get("coordinator_address")
    if address is None:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator={address} must be HOST:PORT, of the first process")
    if number == 0:
        _check_free(int(port))


def _check_free(port: int) -> None:
    """Stops where the first process could not listen: JAX's service crashes there."""
    try:
        with closing(socket.create_server(("", port))):
            pass
    except OSError as error:
        raise ConfigError(
            f"--coordinator: this process cannot listen on port {port} ({error.strerror}): name "
            "another one, in all processes"
        ) from error


def _initialize(values: Mapping[str, Any], within: float) -> None:
    """Waits until all processes are there; by a thread, so that signals end the wait."""
    # Signals are ours: JAX would take SIGTERM, in every mode.
    jax.config.update("jax_enable_preemption_service", False)
    errors: list[Exception] = []

    def initialize() -> None:
        """JAX's own limit would abort the process, with a stack of C++."""
        try:
            jax.distributed.initialize(
                **values,
                initialization_timeout=int(within) + 60,
                heartbeat_timeout_seconds=_DEAD_AFTER,
            )
        # Of a cluster they may be of any kind: a name that cannot be resolved, an API that refuses.
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    try:
        thread.join(within)
    except KeyboardInterrupt:
        _exit("interrupted while it waited for the other processes; nothing was begun", 2)
    if thread.is_alive():
        where = values.get("coordinator_address", "of the cluster")
        _exit(
            f"not all processes have reached the coordinator {where} within {within:.0f} s: start "
            "all of them, each with its own --process_id, where they reach that host and port",
            2,
        )
    if errors:
        why = str(errors[0]).strip().partition("\n")[0] or type(errors[0]).__name__
        raise ConfigError(f"several processes cannot start: {why}")
    _STARTED.set()


def check_devices() -> None:
    """Stops where processes have different numbers of devices: a batch is divided evenly.

    Raises:
      ConfigError: they do.
    """
    counts = [0] * jax.process_count()
    for device in jax.devices():
        counts[device.process_index] += 1
    if len(set(counts)) > 1:
        raise ConfigError(
            f"the processes have {', '.join(map(str, counts))} devices: they need equally many"
        )


def wait_for_all(what: str) -> None:
    """Waits until every process is here: what the first one wrote before, the others may read."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"drnet_jax: {what}")


def process_name() -> str:
    """`'process 1 of 4: '`, to begin a line of one of several; empty of one alone."""
    # Before they are all there, JAX waits for the others to count them.
    if not _STARTED.is_set() or jax.process_count() == 1:
        return ""
    return f"process {jax.process_index()} of {jax.process_count()}: "


@contextmanager
def ending_together() -> Iterator[None]:
    """Where one of several processes stops in the block, the others do, instead of waiting for it.

    One that stops by an exception says so to the others, and is gone: what Python and JAX do at
    the end of a program would wait for them. The others say in a line which one it was, and end
    with its status. One that was killed says nothing: on CPUs its connections break, which is a
    line too; else JAX misses its heartbeat and aborts the others, with words of its own.
    """
    if jax.process_count() == 1:
        yield
        return
    others = _Others()
    try:
        yield
        # One that is done waits here, where it hears of those that are not.
        wait_for_all("end")
    except BaseException as error:
        others.watched.set()
        _print_reason(error)
        others.leave(error.code if isinstance(error, SystemExit) else 2)
    others.watched.set()


class _Others:
    """The other processes: which of them have stopped, and that this one does.

    Attributes:
      watched: set once this process no longer has to be told of them.
    """

    def __init__(self) -> None:
        # JAX shows its store of keys in no public module; Orbax takes it from here too.
        from jax._src import distributed

        self._store: Any = distributed.global_state.client
        self.watched = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _stopped(self) -> dict[int, int]:
        """The status of every process that has stopped, by its number."""
        found = self._store.key_value_dir_get(_STOPPED)
        return {int(key.removeprefix(_STOPPED)): int(status) for key, status in found}

    def _watch(self) -> None:
        while not self.watched.wait(_LOOK_EVERY):
            try:
                stopped = self._stopped()
            # The first process, which has the keys, is gone: JAX aborts this one.
            except jax.errors.JaxRuntimeError:
                return
            # What stops all of them this one says itself.
            if stopped and not self.watched.wait(_GRACE):
                number, status = min(stopped.items())
                _say(f"process {number} stopped, and says why: so does this one")
                self.leave(status)

    def leave(self, status: object) -> NoReturn:
        """Ends this process at once, and the others soon; the one that has the keys is the last."""
        number = status if isinstance(status, int) else 2
        with suppress(jax.errors.JaxRuntimeError):
            self._store.key_value_set(f"{_STOPPED}{jax.process_index()}", str(number))
            until = time.monotonic() + 2 * _GRACE
            while jax.process_index() == 0 and time.monotonic() < until:
                if len(self._stopped()) == jax.process_count():
                    break
                time.sleep(0.1)
        _leave(number)


def _print_reason(error: BaseException) -> None:
    """What has not been said yet: of an exit it has."""
    if isinstance(error, SystemExit):
        return
    if isinstance(error, ValueError | RuntimeError) and any(word in str(error) for word in _LOST):
        _say("the connection to another process is lost: it ended, and may say why")
        return
    traceback.print_exception(error)


def _exit(message: str, status: int) -> NoReturn:
    _say(message)
    _leave(status)


def _say(message: str) -> None:
    print_error(f"{process_name()}{message}")


def _leave(status: int) -> NoReturn:
    """Ends the process without what Python and JAX do at the end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)
