"""PyTorch's side of benchmarks/inference.py and runtime.py: run by a Python that has torch.

python benchmarks/torch_times.py NETWORK FOLDER [--size 224]

Reads lines `<variant> <batch size>` and answers each with one line: the ms of a forward pass of
torchvision's network (timm's where torchvision has none) with random weights, the median of a turn
(`turns.py`). The variant `onnx` writes the network to `FOLDER/<batch>.onnx` and answers with 0.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torchvision

from benchmarks.turns import turn
from drnet_jax.runtime.allocator import keep_freed_memory

THREADS = 2


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("network", help="as drnet_jax calls it")
    parser.add_argument("folder", type=Path, help="where networks are written")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse(sys.argv[1:])
    folder, size = arguments.folder, arguments.size
    keep_freed_memory()
    torch.set_num_threads(THREADS)
    eager = make(arguments.network)

    @cache
    def network(variant: str) -> torch.nn.Module:
        if variant == "eager":
            return eager
        if variant == "channels_last":
            return make(arguments.network).to(memory_format=torch.channels_last)
        frozen = torch.jit.freeze(torch.jit.script(make(arguments.network)))
        return torch.jit.optimize_for_inference(frozen)

    print(torch.__version__, torchvision.__version__, flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            variant, batch = line.split()[0], int(line.split()[1])
            images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
            if variant == "onnx":
                # The exporter talks, and the answers go to standard output.
                with contextlib.redirect_stdout(sys.stderr):
                    path = f"{folder}/{batch}.onnx"
                    torch.onnx.export(eager, images, path, verbose=False)
                print(0.0, flush=True)
                continue
            if variant == "channels_last":
                images = images.to(memory_format=torch.channels_last)
            module = network(variant)
            print(turn(lambda module=module, images=images: module(images)), flush=True)


def make(name: str) -> torch.nn.Module:
    """A network of torchvision's, or of timm's, for inference."""
    torch.manual_seed(0)
    build = getattr(torchvision.models, {"mobilenetv2": "mobilenet_v2"}.get(name, name), None)
    if build is not None:
        return build().eval()
    import timm

    return timm.create_model(name).eval()


if __name__ == "__main__":
    main()
