"""What the ImageNet recipes take on 1, 8 and 64 GPUs: hours, input, memory, communication.

python experiments/scale.py

Nothing is run. Hours: the images of both stages over the images a second of one H100, as measured
for ResNet-50 (`MEASURED`), of ResNets else by multiply-adds, times the number of GPUs: what perfect
scaling would take. Input: the CPU cores that decode so many images (`DECODED`, as measured). Memory
and communication: of the joint step as XLA compiles it for 1 and for 8 devices, of a CPU, in
float32. `scale.json` and `scale.md` are written beside this file; what is compiled there already is
not compiled again: remove it for another version of JAX. Some twenty minutes on one core.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import jax

from benchmarks.memory import compiled_step, gib
from drnet_jax.config_files import load_config
from drnet_jax.models.create import create_model
from drnet_jax.models.macs import model_cost
from drnet_jax.runtime.command_line import CommandLine
from drnet_jax.runtime.files import write_json, write_text

RESULTS = Path(__file__).parent
CONFIGS = (
    "resnet_in100",
    "resnet_in100_5res",
    "resnet_in1k",
    "resnet101_in1k",
    "mobilenetv2_in100",
    "mobilenetv2_in1k",
)
GPUS = (1, 8, 64)
# Simulated: programs are compiled for them, and not run.
DEVICES = (1, 8)
# docs/performance.md: the joint step of this config in bfloat16, images on the device, one H100.
MEASURED = ("resnet_in1k", 2505.0)
# Likewise: pictures of 500x375 px, decoded and cropped to 224 px, images a second of one core.
DECODED = 571.0
# Images of ImageNet-1K that are trained on; ImageNet-100's recipes name theirs.
IMAGENET = 1_281_167
_ALL_REDUCE = re.compile(r" all-reduce(?:-start)?\(")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    return CommandLine(description=(__doc__ or "").splitlines()[0]).parse_args(arguments)


def main() -> None:
    parse(sys.argv[1:])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    config, rate = MEASURED
    pace = rate * step_gmacs(config)
    path = RESULTS / "scale.json"
    known = json.loads(path.read_text())["compiled"] if path.exists() else {}
    rows = []
    for name in CONFIGS:
        known[name] = known.get(name) or compiled(name)
        rows.append(row := {"config": name, **time_of(name, pace), **known[name]})
        print(json.dumps(row), flush=True)
        write_json(path, {"jax": jax.__version__, "compiled": known})
    text = f"{times_table(rows)}\n{memory_table(rows)}"
    write_text(RESULTS / "scale.md", f"Made by `python experiments/scale.py`.\n\n{text}")
    print(text)


def step_gmacs(name: str) -> float:
    """Multiply-adds of an image's forward pass in the joint step, in GMACs: of all networks."""
    config = load_config(name)
    cost = model_cost(create_model(config, config.data.num_classes))
    return (cost.predictor + sum(cost.classifier)) / 1e9


def time_of(name: str, pace: float) -> dict[str, Any]:
    """Images of a recipe, and the hours that one H100 takes for them.

    Args:
      name: of the config.
      pace: GMACs of forward passes a second in a training; for networks without depthwise
        convolutions alone, whose time multiply-adds do not say.
    """
    config = load_config(name)
    images = IMAGENET
    if config.data.images_per_class:
        images = config.data.images_per_class * config.data.num_classes
    epochs = config.pretrain.num_epochs + config.joint.num_epochs
    rate = None if "mobilenet" in name else pace / step_gmacs(name)
    hours = None if rate is None else images * epochs / rate / 3600
    return {"images": images, "epochs": epochs, "images_per_second": rate, "hours": hours}


def compiled(name: str) -> dict[str, Any]:
    """Memory of a device, in GiB, and what devices exchange in a step."""
    found: dict[str, Any] = {"batch": load_config(name).joint.batch_size, "gib": {}}
    for devices in DEVICES:
        program = compiled_step(load_config(name), {}, devices)
        found["gib"][str(devices)] = gib(program)
    found["all_reduces"], found["all_reduce_mb"] = exchanged(program.as_text())
    return found


def exchanged(program: str) -> tuple[int, float]:
    """The all-reduces of a compiled program, and the megabytes of one device that they sum."""
    count, size = 0, 0.0
    for line in program.splitlines():
        if not _ALL_REDUCE.search(line):
            continue
        count += 1
        # The shapes of what it gives stand before its name.
        result = _ALL_REDUCE.split(line)[0].partition(" = ")[2]
        for kind, shape in re.findall(r"(f32|bf16|s32|f64|pred)\[([\d,]*)\]", result):
            width = {"f32": 4, "bf16": 2, "s32": 4, "f64": 8, "pred": 1}[kind]
            numbers = 1
            for side in filter(None, shape.split(",")):
                numbers *= int(side)
            size += width * numbers
    return count, size / 1e6


def times_table(rows: list[Mapping[str, Any]]) -> str:
    """In Markdown: hours on each number of GPUs, and the cores that feed them."""
    heading = ["config", "images x epochs", "images/s, one H100"]
    heading += [f"hours, {gpus}" for gpus in GPUS] + [f"cores, {gpus}" for gpus in GPUS]
    lines = [heading, ["---"] * len(heading)]
    for row in rows:
        cells = [f"`{row['config']}`", f"{row['images']:,} x {row['epochs']}"]
        rate = row["images_per_second"]
        if rate is None:
            cells += ["not known"] + [""] * 2 * len(GPUS)
        else:
            cells.append(f"{rate:,.0f}")
            cells += [f"{row['hours'] / gpus:.2g}" for gpus in GPUS]
            cells += [f"{rate * gpus / DECODED:,.0f}" for gpus in GPUS]
        lines.append(cells)
    return in_markdown(lines)


def memory_table(rows: list[Mapping[str, Any]]) -> str:
    """In Markdown: GiB a device, and what devices exchange in a step."""
    heading = ["config", "batch", *(f"GiB, {n}" for n in DEVICES), "all-reduces", "MB in them"]
    lines = [heading, ["---"] * len(heading)]
    for row in rows:
        cells = [f"`{row['config']}`", str(row["batch"])]
        cells += [f"{row['gib'][str(n)]:.2f}" for n in DEVICES]
        lines.append([*cells, str(row["all_reduces"]), f"{row['all_reduce_mb']:.0f}"])
    return in_markdown(lines)


def in_markdown(rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


if __name__ == "__main__":
    main()
