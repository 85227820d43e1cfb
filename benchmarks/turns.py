"""How a benchmark times one of several programs that take turns on the same cores."""

import statistics
import time
from collections.abc import Callable

# Of one program, in seconds.
TURN = 0.3


def turn(run: Callable[[], object]) -> float:
    """The median ms of calls in a row.

    The threads of the program before may still spin for a moment, and the first call finds the
    caches cold, so there is a pause and a call that does not count.
    """
    time.sleep(0.1)
    run()
    times: list[float] = []
    deadline = time.perf_counter() + TURN
    while not times or time.perf_counter() < deadline:
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)
