"""How XLA compiles what tests run."""

from importlib.metadata import version

# What is compiled runs for less time than LLVM's optimisation and XLA's newer code generation for
# fusions take. In one part: a process has one core.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# A flag that XLA does not know ends the process: jaxlib 0.12 has no other code generation left.
if int(version("jaxlib").split(".")[1]) < 11:
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
