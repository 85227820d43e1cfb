"""How much the server holds at once: pictures without an answer, and bytes of requests."""

from collections.abc import Iterator
from contextlib import contextmanager

from drnet_runtime.serve.errors import overloaded


class Held:
    """What one request holds."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self.num_bytes = 0
        self.pictures = 0

    def add_bytes(self, count: int) -> None:
        """Room for so many more bytes.

        Raises:
          RequestError: 503, there is none.
        """
        if self._admission.num_bytes + count > self._admission.max_bytes:
            raise overloaded("the server holds as many bytes as it may; try again")
        self._admission.num_bytes += count
        self.num_bytes += count

    def add_pictures(self, count: int) -> None:
        """Places for so many more pictures.

        Raises:
          RequestError: 503, there are not so many.
        """
        if self._admission.pictures + count > self._admission.max_pictures:
            raise overloaded("the queue is full; try again")
        self._admission.pictures += count
        self.pictures += count


class Admission:
    """Places and bytes of all requests that are not answered yet. For one event loop.

    Attributes:
      max_pictures, max_bytes: how much there is at most.
      pictures, num_bytes: how much there is.
      requests: how many there are.
    """

    def __init__(self, max_pictures: int, max_bytes: int) -> None:
        self.max_pictures = max_pictures
        self.max_bytes = max_bytes
        self.pictures = 0
        self.num_bytes = 0
        self.requests = 0

    @contextmanager
    def request(self) -> Iterator[Held]:
        """Gives back what a request held, however it ends."""
        held = Held(self)
        self.requests += 1
        try:
            yield held
        finally:
            self.requests -= 1
            self.pictures -= held.pictures
            self.num_bytes -= held.num_bytes
