"""Thousands of damaged weight files of every kind through the reader of imported weights.

python experiments/mutated_weights.py

Each is made anew from the seed and its number (`weight_mutations.py`) and read in a process of its
own kind, with a limit on time and on memory, in which whatever is run, opened for writing or sent
is noted. Expected are arrays of numbers, or `WeightsError` with one line that names the file, twice
the same; and where the format has checksums the very arrays that were written
(`weight_checks.py`). Anything else is a finding. Records go to `--records`, from which an
interrupted run goes on; `mutated_weights.json` and `.md` beside this file have the counts and
every finding.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments import mutation_runs
from experiments.mutation_runs import Subject
from experiments.weight_checks import check
from experiments.weight_mutations import FORMS, MUTATIONS, describe

WEIGHTS = Subject(
    name="weights",
    words=("read", "refused"),
    check=check,
    describe=describe,
    forms=list(FORMS),
    mutations=list(MUTATIONS),
    versions={name: version(name) for name in ("numpy", "safetensors", "h5py")},
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    return mutation_runs.parse(arguments, WEIGHTS, (__doc__ or "").splitlines()[0])


def main() -> int:
    """1 if there are findings."""
    return mutation_runs.main(WEIGHTS, parse(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
