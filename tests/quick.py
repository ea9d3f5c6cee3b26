"""How XLA compiles for a CPU in less time, and less polished: for programs that are run once."""

import importlib.metadata

OPTIONS = {
    "0.10": {
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    },
    "0.11": {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1},
}
"""By version of JAX: XLA ends a process that is told of an option that it does not know."""


def quick_to_compile() -> dict[str, bool | int]:
    """Returns options of the compiler: the same program in a sixth of the time.

    None where the version is not known: without them the tests are only slower.
    """
    return OPTIONS.get(".".join(importlib.metadata.version("jax").split(".")[:2]), {})


def as_flags(options: dict[str, bool | int]) -> str:
    """Returns options as ``XLA_FLAGS`` has them."""
    return " ".join(f"--{name}={value}" for name, value in options.items())
