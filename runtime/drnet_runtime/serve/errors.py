"""What a client is told when a request is not answered."""

# Seconds after which a client may come again: the queue is emptied within about one.
RETRY_AFTER = 1


class RequestError(Exception):
    """A request that is not answered.

    Attributes:
      status: of HTTP.
      message: what is wrong and what to do, for the client.
      retry_after: seconds, where trying again may help.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


def overloaded(message: str) -> RequestError:
    """The server has as much as it can hold."""
    return RequestError(503, message, RETRY_AFTER)
