"""Compiled programs on the disk, so that the next start need not compile them again."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from drnet_jax.runtime.files import check_writable, in_words, remove_empty
from drnet_jax.runtime.progress import log

_FOLDER = "jax_compilation_cache_dir"
# What takes less to compile is not kept: a second by default, which many small networks take.
_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"


@contextmanager
def kept_programs(folder: Path) -> Iterator[None]:
    """Lets JAX keep what it compiles within a block in a folder, and says where.

    JAX's persistent compilation cache names an entry by all that it was compiled from and for: the
    program, the versions, the flags, the device, of a CPU also its instructions (the fingerprint of
    its topology). Runs, processes and hosts may thus share a folder. Nothing is removed from it.
    What is there is run as it is: a folder that others may write to is not used.

    A cache that the user gave JAX, or switched off, stays as it is. Where the folder cannot be
    written, a line says so. If nothing was kept until the end of the block, nothing is left there.

    Args:
      folder: of the cache, which may not exist yet.
    """
    settings = dict(jax.config.values)
    given = settings[_FOLDER] is not None
    # Processes of one run compile for a GPU together, each a part of the search for the fastest
    # kernels: one that found an entry, which another does not see, would be waited for forever.
    if given or not settings["jax_enable_compilation_cache"] or jax.process_count() > 1:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            # For nobody else: whoever writes an entry has it run.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_writable(folder)
            _check_private(folder)
        except OSError as error:
            log(f"compiled programs are not kept: {in_words(error)}")
        else:
            # On a GPU the path is part of the names of entries: the same from wherever it starts.
            compilation_cache.reset_cache()
            jax.config.update(_FOLDER, str(folder.resolve()))
            if _LEAST_SECONDS.upper() not in os.environ:
                jax.config.update(_LEAST_SECONDS, 0.1)
            log(f"compiled programs are kept in {folder} (remove it at will)")
        yield
    finally:
        # JAX makes up its mind at the first compilation.
        compilation_cache.reset_cache()
        for name in (_FOLDER, _LEAST_SECONDS):
            jax.config.update(name, settings[name])
        remove_empty(made)


def _check_private(folder: Path) -> None:
    """Stops for a folder that is another user's, or that others may write to.

    Raises:
      PermissionError: naming it.
    """
    found = folder.stat()
    problem = ""
    if found.st_uid != os.getuid():
        problem = "it is another user's"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = "others may write there"
    if problem:
        raise PermissionError(errno.EACCES, f"{problem}, and what is there is run", str(folder))
