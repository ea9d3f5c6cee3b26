"""What every test runs under. Must come before the first import of attn: it adds type checks."""

import functools
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

from tests import quick  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("suite")


def pytest_configure(config):
    """Where slow tests are not among them, tests compile quickly."""
    given = os.environ.get("XLA_FLAGS", "")
    is_told = "xla_backend_optimization_level" in given  # By a user, or by who starts a worker.
    if config.getoption("markexpr") == "not slow" and not is_told:
        os.environ["XLA_FLAGS"] = f"{quick.as_flags(quick.quick_to_compile())} {given}".strip()


@pytest.fixture(scope="module")
def quick_to_compile():
    """What is compiled here is run once."""
    with pytest.MonkeyPatch.context() as patch:
        options = quick.quick_to_compile()
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))
        yield


@pytest.fixture
def float64():
    """Enables float64 for one test."""
    with jax.enable_x64(True):
        yield
