"""Thousands of damaged pictures of ten formats through the decoder of training and prediction.

python experiments/mutated_pictures.py

Each is made anew from the seed and its number (`picture_mutations.py`) and decoded in a process of
its own kind: with a limit on time and on memory, and with stderr in a file. Expected are pixels, or
`CorruptImageError` with one line, twice the same, as plain Pillow has it (`picture_checks.py`).
Anything else is a finding. Records go to `--records`, from which an interrupted run goes on;
`mutated_pictures.json` and `.md` beside this file have the counts and every finding.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import features

from experiments import mutation_runs
from experiments.mutation_runs import Subject
from experiments.picture_checks import check
from experiments.picture_mutations import COMMON, MUTATIONS, RARE, describe

_LIBRARIES = ("pil", "libjpeg_turbo", "webp", "avif", "jpg_2000", "libtiff", "zlib_ng")
_VERSIONS = {name: features.version(name) for name in _LIBRARIES}
PICTURES = Subject(
    name="pictures",
    words=("decoded", "corrupt"),
    check=check,
    describe=describe,
    forms=[*COMMON, *RARE],
    mutations=list(MUTATIONS),
    versions={name: version for name, version in _VERSIONS.items() if version},
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    return mutation_runs.parse(arguments, PICTURES, (__doc__ or "").splitlines()[0])


def main() -> int:
    """1 if there are findings."""
    return mutation_runs.main(PICTURES, parse(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
