"""What `gpu.py` runs, in which order: the cheapest and most telling first."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

# Of XLA, whose effect on a GPU is not known; each set is tried in a process of its own. By default
# XLA leaves convolutions out of CUDA graphs, and graphs of fewer than five operations.
GPU_FLAGS = {
    "all graphs": "--xla_gpu_enable_command_buffer=+CONVOLUTION --xla_gpu_graph_min_graph_size=1",
    "graphs": "--xla_gpu_enable_command_buffer=+CONVOLUTION",
    "fused convolutions": "--xla_gpu_experimental_enable_conv_fusion=true",
    "nhwc": "--xla_gpu_force_conv_nhwc=true",
}
CPU_FLAGS = {"one part": "--xla_cpu_parallel_codegen_split_count=1"}
TRAINED = "trained"


@dataclass(frozen=True)
class Job:
    """A process.

    Attributes:
      name: of its rows; jobs of one name have different units.
      command: what follows `python`, but for the units.
      units: of its rows; `TRAINED` alone: it is the program, in a workdir of its own.
      limit: seconds that it may take, within those of all.
      option: that the units are given by.
      xla_flags: that it is started with.
    """

    name: str
    command: tuple[str, ...]
    units: tuple[str, ...]
    limit: float
    option: str = "--batch-sizes"
    xla_flags: str = ""

    @property
    def is_program(self) -> bool:
        """Whether it is the program, which writes an `eval.json` and no rows."""
        return self.units == (TRAINED,)


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
      fused: arguments of `benchmarks/fused.py`.
      throughput: arguments of `benchmarks/throughput.py`.
      first: batch sizes that are timed first.
      parts: of the fused program beside its parts.
      more: the other ones.
      exact: of exact dispatch, whose programs take longest to compile.
      training: units of `benchmarks/throughput.py`, of which two come first.
      workers: processes that decode, beside threads.
      flags: sets of XLA's, by what to call them.
      xla_flags: of all jobs.
      demo: arguments of the program, on the embedded data.
      imagenette: arguments of the program, on a folder of classes.
      limits: seconds a job, by its kind.
    """

    fused: tuple[str, ...]
    throughput: tuple[str, ...]
    first: tuple[str, ...]
    parts: tuple[str, ...]
    more: tuple[str, ...]
    exact: tuple[str, ...]
    training: tuple[str, ...]
    workers: int
    flags: Mapping[str, str]
    xla_flags: str
    demo: tuple[str, ...]
    imagenette: tuple[str, ...]
    limits: Mapping[str, float]


FULL = Scale(
    fused=("--config", "resnet_in1k", "--dtype", "bfloat16"),
    throughput=("--config", "resnet_in1k", "--dtype", "bfloat16", "--batch-size", "256"),
    first=("256", "1"),
    parts=("256", "32"),
    more=("64", "1024", "128", "512", "32", "8"),
    exact=("256", "64", "1024", "1"),
    training=("joint", "input", "224", "168", "112"),
    workers=8,
    flags=GPU_FLAGS,
    xla_flags="",
    demo=(),
    imagenette=("--config=configs/resnet_imagenette.py",),
    limits={"fused": 200, "flags": 150, "training": 150, "demo": 150, "more": 240},
)
# A minute of the program, in less.
_SHORT = (
    "--config=configs/tiny.py",
    "--config.pretrain.num_epochs=1",
    "--config.joint.num_epochs=1",
)
TINY = Scale(
    fused=("--config", "tiny", "--rounds", "1"),
    throughput=("--config", "tiny", "--batch-size", "16", "--seconds", "0.5"),
    first=("8", "1"),
    parts=("8",),
    more=("4",),
    exact=("8",),
    training=("joint", "input", "48", "32"),
    workers=1,
    flags=CPU_FLAGS,
    # What is compiled runs for less time than it is optimised.
    xla_flags="--xla_backend_optimization_level=0",
    demo=_SHORT,
    imagenette=_SHORT,
    limits={"fused": 120, "flags": 120, "training": 120, "demo": 180, "more": 120},
)
# Where a first look and the paper's predictor differ.
KINDS = {"glance": ("--glance",), "pixels": ()}


def plan(scale: Scale, imagenette: Path | None) -> list[Job]:
    """All jobs, in order.

    Args:
      scale: `FULL` on a GPU, `TINY` on a CPU.
      imagenette: a folder of its classes; None: it is not trained.
    """
    limits = scale.limits

    def fused(
        name: str, kind: str, methods: str, units: tuple[str, ...], limit: str, flags: str = ""
    ) -> Job:
        """Of `benchmarks/fused.py`."""
        arguments = (*scale.fused, *KINDS[kind], "--methods", *methods.split())
        command = ("benchmarks/fused.py", *arguments)
        flags = f"{scale.xla_flags} {flags}".strip()
        return Job(name, command, units, limits[limit], xla_flags=flags)

    def training(name: str, units: tuple[str, ...], *arguments: str) -> Job:
        """Of `benchmarks/throughput.py`."""
        command = ("benchmarks/throughput.py", *scale.throughput, *arguments)
        return Job(name, command, units, limits["training"], "--units", scale.xla_flags)

    def program(name: str, arguments: tuple[str, ...], limit: float) -> Job:
        """Of `main.py`."""
        return Job(name, ("main.py", *arguments), (TRAINED,), limit, xla_flags=scale.xla_flags)

    first, *other_flags = (
        fused(f"flags: {name}", "glance", "fused", scale.first, "flags", flags)
        for name, flags in scale.flags.items()
    )
    workers = ("--workers", str(scale.workers))
    glance, pixels = (fused(kind, kind, "largest fused", scale.first, "fused") for kind in KINDS)
    # Of each subject the figure that tells most: a ResNet-50 takes a GPU long to compile.
    jobs = [
        glance,
        training("training", scale.training[:2]),
        first,
        pixels,
        training("training", scale.training[2:]),
        *other_flags,
        program("demo", scale.demo, limits["demo"]),
        *(fused(f"parts: {kind}", kind, "fused parts", scale.parts, "fused") for kind in KINDS),
        *(fused(kind, kind, "largest fused", scale.more, "more") for kind in KINDS),
        *(fused(f"exact: {kind}", kind, "exact", scale.exact, "more") for kind in KINDS),
        training(f"training: {scale.workers} workers", ("input",), *workers),
    ]
    if imagenette is not None:
        fields = ("--config.data.name=folder", f"--config.data.dir={imagenette}")
        # As long as there is time: the same command resumes it.
        jobs.append(program("imagenette", (*scale.imagenette, *fields), inf))
    return jobs
