"""Draws what the demo's predictor chose: docs/demo.png.

python experiments/demo_picture.py [workdir of a finished demo run; default: runs/digits_on_photos]

For each resolution, random test images that were sent there, each shown at the resolution it was
classified at; wrong answers have a red frame.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from drnet_jax.checkpoints.runs import load_run, stored_config
from drnet_jax.data.datasets import DataSplits
from drnet_jax.data.settings import data_settings
from drnet_jax.data.sources import ArraySource
from drnet_jax.evaluation.outputs import evaluate, make_eval_step
from drnet_jax.runtime.command_line import CommandLine, a_path

ROOT = Path(__file__).parents[1]
COLUMNS, ROWS, TILE, GAP, HEADING = 14, 2, 64, 4, 26


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandLine(description=__doc__.splitlines()[0])
    default = ROOT / "runs" / "digits_on_photos"
    parser.add_argument("workdir", nargs="?", type=a_path, default=default, help="of the demo")
    return parser.parse_args(arguments)


def main() -> None:
    workdir = parse(sys.argv[1:]).workdir
    config, restored = stored_config(workdir), load_run(workdir)
    source = DataSplits(data_settings(config, workdir)).load("test")
    assert isinstance(source, ArraySource)
    step = make_eval_step(restored.model, tuple(config.data.mean), tuple(config.data.std))
    records = evaluate(
        step,
        restored.variables,
        source,
        batch_size=config.eval.batch_size,
        mesh=restored.mesh,
    )
    correct = records.chosen(records.top1)
    resolutions = restored.model.resolutions
    block = HEADING + ROWS * (TILE + GAP)
    canvas = Image.new("RGB", (COLUMNS * (TILE + GAP) + GAP, block * len(resolutions)), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=15)
    rng = np.random.default_rng(0)
    for index, resolution in enumerate(resolutions):
        sent = np.flatnonzero(records.choice == index)
        share, top1 = len(sent) / len(source), correct[sent].mean() if len(sent) else 0.0
        heading = f"{resolution} px: {share:.0%} of the images, {top1:.1%} of them correct"
        draw.text((GAP, index * block + 4), heading, fill="black", font=font)
        shown = rng.choice(sent, min(len(sent), COLUMNS * ROWS), replace=False)
        for place, image in enumerate(shown):
            x = GAP + place % COLUMNS * (TILE + GAP)
            y = index * block + HEADING + place // COLUMNS * (TILE + GAP)
            tile = Image.fromarray(source.images[image])
            tile = tile.resize((resolution, resolution), Image.Resampling.BILINEAR)
            canvas.paste(tile.resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
            if not correct[image]:
                draw.rectangle((x - 2, y - 2, x + TILE + 1, y + TILE + 1), outline="red", width=2)
    path = ROOT / "docs" / "demo.png"
    path.parent.mkdir(exist_ok=True)
    canvas.save(path, optimize=True)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
