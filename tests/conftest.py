"""What every test runs under. Must come before the first import of attn: it adds type checks."""

import functools
import importlib.metadata
import os

import jaxtyping

# The annotations of these modules are contracts between our own functions. What a user calls
# checks its arguments itself, and the tests read its errors; masks are built by users too, from
# any kind of array.
CONTRACTS = ("attn.positions", "attn.reference", "attn.softmax_state", "attn.tiles")
jaxtyping.install_import_hook(CONTRACTS, "beartype.beartype")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("suite")


LESS_POLISHED = {
    "0.10": (
        *("--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"),
        "--xla_cpu_use_fusion_emitters=false",
    ),
    "0.11": ("--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"),
}
"""What has XLA compile for a CPU in less time, by version of JAX; it ends at one it does not know.
"""


def pytest_configure(config):
    """Where slow tests are not among them, tests compile quickly."""
    if config.getoption("markexpr") == "not slow":
        version = ".".join(importlib.metadata.version("jax").split(".")[:2])
        given = os.environ.get("XLA_FLAGS", "")
        if "xla_backend_optimization_level" not in given:  # As those have that xdist starts.
            os.environ["XLA_FLAGS"] = " ".join((given, *LESS_POLISHED.get(version, ()))).strip()


@pytest.fixture(scope="module")
def quick_to_compile():
    """What is compiled here is run once."""
    from tests.attn import cases

    with pytest.MonkeyPatch.context() as patch:
        options = cases.quick_to_compile()
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))
        yield


@pytest.fixture
def float64():
    """Enables float64 for one test."""
    with jax.enable_x64(True):
        yield
