"""PyTorch's side of benchmarks/inference.py: run by a Python that has torch and torchvision.

python benchmarks/torch_times.py NETWORK FOLDER

Reads lines `<variant> <batch size>` and answers each with one line: the ms of a forward pass of
torchvision's network with random weights at 224 px, the median of a turn (`turns.py`). The variant
`onnx` writes the network to `FOLDER/<batch>.onnx` and answers with 0.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torchvision

from benchmarks.turns import turn
from drnet_jax.runtime.allocator import keep_freed_memory

THREADS = 2
SIZE = 224


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("network", help="as drnet_jax calls it")
    parser.add_argument("folder", type=Path, help="where networks are written")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse(sys.argv[1:])
    name, folder = arguments.network, arguments.folder
    keep_freed_memory()
    torch.set_num_threads(THREADS)
    make = getattr(torchvision.models, {"mobilenetv2": "mobilenet_v2"}.get(name, name))
    torch.manual_seed(0)
    eager = make().eval()
    frozen = torch.jit.freeze(torch.jit.script(make().eval()))
    networks = {
        "eager": eager,
        "channels_last": make().eval().to(memory_format=torch.channels_last),
        "folded": torch.jit.optimize_for_inference(frozen),
    }
    print(torch.__version__, torchvision.__version__, flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            variant, batch = line.split()[0], int(line.split()[1])
            images = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
            if variant == "onnx":
                # The exporter talks, and the answers go to standard output.
                with contextlib.redirect_stdout(sys.stderr):
                    path = f"{folder}/{batch}.onnx"
                    torch.onnx.export(eager, images, path, verbose=False)
                print(0.0, flush=True)
                continue
            if variant == "channels_last":
                images = images.to(memory_format=torch.channels_last)
            network = networks[variant]
            print(turn(lambda network=network, images=images: network(images)), flush=True)


if __name__ == "__main__":
    main()
