"""What several files of tests here run under."""

import functools

import jax
import pytest

from tests.attn import cases


@pytest.fixture(scope="module")
def quick_to_compile():
    """What is compiled here is run once; keys, too, are of a kind that is quick to compile."""
    with pytest.MonkeyPatch.context() as patch:
        options = cases.quick_to_compile()
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))
        jax.config.update("jax_default_prng_impl", "unsafe_rbg")
        yield
        jax.config.update("jax_default_prng_impl", "threefry2x32")
