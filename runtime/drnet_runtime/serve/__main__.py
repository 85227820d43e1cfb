"""The program, `python -m drnet_runtime.serve DIR` (docs/serve.md)."""

import sys
from collections.abc import Sequence

from drnet_runtime.serve.server import run
from drnet_runtime.serve.settings import parse
from drnet_runtime.terminal import prepare_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves an export; 0 when it was told to end, 2 where it cannot begin."""
    prepare_streams()
    return run(parse(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
