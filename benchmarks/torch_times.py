"""PyTorch's side of benchmarks/inference.py: run by a Python that has torch and torchvision.

python benchmarks/torch_times.py NETWORK FOLDER

Writes torchvision's network with random weights to `FOLDER/<batch>.onnx`, a file a batch size that
is asked for. Reads lines `<way> <batch size>` and answers with the milliseconds of one forward
pass at 224 px, after one that is not timed if it is the first.
"""

import contextlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torchvision

from drnet_jax.allocator import keep_freed_memory

THREADS = 2
SIZE = 224


def main() -> None:
    keep_freed_memory()
    torch.set_num_threads(THREADS)
    name, folder = sys.argv[1:]
    make = getattr(torchvision.models, {"mobilenetv2": "mobilenet_v2"}.get(name, name))
    torch.manual_seed(0)
    ways = {"eager": make().eval(), "channels_last": make().eval(), "folded": make().eval()}
    ways["channels_last"] = ways["channels_last"].to(memory_format=torch.channels_last)
    frozen = torch.jit.freeze(torch.jit.script(ways["folded"]))
    ways["folded"] = torch.jit.optimize_for_inference(frozen)
    print(torch.__version__, torchvision.__version__, flush=True)
    seen = set()
    with torch.inference_mode():
        for line in sys.stdin:
            way, batch = line.split()[0], int(line.split()[1])
            images = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
            if way == "onnx":
                # The exporter talks, and the answers go to standard output.
                with contextlib.redirect_stdout(sys.stderr):
                    torch.onnx.export(
                        ways["eager"], images, f"{folder}/{batch}.onnx", verbose=False
                    )
                print(0.0, flush=True)
                continue
            if way == "channels_last":
                images = images.to(memory_format=torch.channels_last)
            if (way, batch) not in seen:
                for _ in range(3):
                    ways[way](images)
                seen.add((way, batch))
            start = time.perf_counter()
            ways[way](images)
            print(1000 * (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
