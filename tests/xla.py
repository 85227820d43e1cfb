"""How XLA compiles what tests run."""

# LLVM's optimisation takes longer than running it.
QUICK_COMPILATION = "--xla_backend_optimization_level=0"
