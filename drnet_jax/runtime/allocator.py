"""The C library's allocator, as XLA needs it on the CPU."""

import ctypes
import sys

# Parameters of mallopt (glibc's malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, for the next call to use.

    On the CPU XLA allocates the temporary buffers of a program anew at every call. By default glibc
    maps the large ones from the system and gives them back, so that every call faults its pages in
    again. The price: the process does not shrink, and all its threads allocate from one heap. To be
    called before the first computation.

    Returns:
      Whether the C library has these settings; others than glibc are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # One arena, and the heap, which takes any size; -1: it is never trimmed.
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_ARENA_MAX: 1}
    return all([mallopt(parameter, value) == 1 for parameter, value in settings.items()])
