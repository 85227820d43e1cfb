"""Prepares a data set of TFDS once, in an environment with the extra `prepare`.

python -m drnet_jax.data.prepare imagenette/320px-v2 --data_dir=DIR
python -m drnet_jax.data.prepare imagenet2012 --data_dir=DIR --manual_dir=FOLDER_OF_THE_TARS

TFDS downloads what it can; `imagenet2012` needs ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
in `--manual_dir`. (`tfds build` does the same and needs Apache Beam too.)
"""

import argparse
import sys
from collections.abc import Sequence

import tensorflow_datasets as tfds

from drnet_jax.runtime.command_line import CommandLine, SetOnce, a_location
from drnet_jax.runtime.terminal import prepare_streams


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """`name`, and the folders `data_dir` and `manual_dir`, which may be None."""
    parser = CommandLine(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the data set, as TFDS writes it")
    parser.add_argument(
        "--data_dir",
        action=SetOnce,
        type=a_location,
        required=True,
        help="where prepared data sets go",
    )
    parser.add_argument(
        "--manual_dir", action=SetOnce, type=a_location, help="where what TFDS cannot download lies"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Downloads and prepares what the command line names, and says how many images it has."""
    arguments = parse(sys.argv[1:])
    builder = tfds.builder(arguments.name, data_dir=arguments.data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=arguments.manual_dir)
    builder.download_and_prepare(download_config=config)
    counts = ", ".join(
        f"{name} {split.num_examples}" for name, split in builder.info.splits.items()
    )
    print(f"{builder.info.full_name}: {counts}; --config.data.dir={arguments.data_dir}")


if __name__ == "__main__":
    prepare_streams()
    main()
