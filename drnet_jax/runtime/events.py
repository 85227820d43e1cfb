"""TensorBoard's files of scalars, written by this thread: an error ends nothing silently."""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from drnet_jax.runtime.files import naming

# Seconds that events may wait for the disk.
_FLUSH_SECONDS = 30.0


class Events:
    """A new file of events in a folder.

    Args:
      folder: of the curves of one run.
      first_step: TensorBoard drops what earlier files of the folder have from there on.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with naming(folder):
            self._file = EventsWriter(str(folder / "events"))
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(step=first_step, session_log=start))
        self._flushed = time.monotonic()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends scalars by their tags.

        Raises:
          OSError: they cannot be written; the folder is named.
        """
        with naming(self._folder):
            for tag, value in scalars.items():
                summary = scalar(tag, value)
                self._file.write_event(Event(step=step, wall_time=time.time(), summary=summary))
            if time.monotonic() > self._flushed + _FLUSH_SECONDS:
                self._file.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what still waits; see `write`."""
        with naming(self._folder):
            self._file.close()
