"""What every test runs under. Must come before the first import of attn: it adds type checks."""

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


@pytest.fixture
def float64():
    """Enables float64 for one test."""
    with jax.enable_x64(True):
        yield
