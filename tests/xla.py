"""How XLA compiles what tests run."""

# What is compiled runs for less time than LLVM's optimisation and XLA's newer code generation for
# fusions take. In one part: a process has one core.
QUICK_COMPILATION = (
    "--xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)
