"""Four CPU devices for the sharding tests, quick tracing and compilation, shared programs.

Must run before JAX is imported.
"""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest
from absl import flags

from tests.xla import QUICK_COMPILATION

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = f"--xla_force_host_platform_device_count=4 {QUICK_COMPILATION}"
if _FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
# Of this run alone: the processes of pytest-xdist inherit it from the one that starts them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.mkdtemp(prefix="drnet_jax_cache_")
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# A sixth of the time went to noting the lines that operations come from, which nobody reads here,
# and to looking for garbage among the many objects that tracing makes.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
gc.set_threshold(100_000)

# Grain reads absl flags, which pytest does not parse.
flags.FLAGS.mark_as_parsed()


def pytest_collection_finish() -> None:
    """What the imports made stays, and is not searched for garbage any more."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def default_signals() -> Iterator[None]:
    """Signals as of a program in a terminal, whatever started the tests or was left by one."""
    wanted = {signal.SIGINT: signal.default_int_handler}
    wanted |= {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    previous = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)
