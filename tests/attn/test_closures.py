"""What functions of masks and scores read from around them, and what tells one from another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attn
from attn import masks
from attn.testing import oracle
from tests.attn.cases import assert_close


def test_what_a_function_reads_is_read_at_every_call(implementation):
    """Arrays, attributes and numbers from around a score or a mask, changed between calls."""
    x = np.random.default_rng(0).normal(size=(1, 7, 2, 4)).astype(np.float32)

    class Decay:
        rate, reach = jnp.float32(0.5), 2

        def score(self, found, at, _):
            return found - self.rate * jnp.abs(at.query - at.key)

        def near(self, at):
            return jnp.abs(at.query - at.key) <= self.reach

    decay = Decay()

    def attend(rate):
        decay.rate = rate
        return attn.dot_product_attention(
            *(x, x, x),
            score=decay.score,
            mask=masks.Where(decay.near),
            implementation=implementation,
        )

    def expected(rate, reach):
        i, j = np.arange(7)[:, None], np.arange(7)
        return oracle.dense(
            *(x, x, x),
            allowed=np.abs(i - j) <= reach,
            change=lambda s: s - rate * np.abs(i - j),
        )[0]

    for rate, reach in ((0.5, 2), (0.5, 4), (3.0, 4), (0.5, 2)):
        decay.reach = reach
        np.testing.assert_allclose(
            attend(jnp.float32(rate)), expected(rate, reach), rtol=1e-5, atol=1e-5
        )
    slope = jax.grad(lambda rate: jnp.sum(attend(rate) ** 2))
    true_slope = jax.grad(lambda rate: jnp.sum(expected(rate, 2) ** 2))
    for rate in (0.5, 2.0):
        np.testing.assert_allclose(slope(rate), true_slope(rate), rtol=1e-3)
    both = jax.jit(lambda a, b: (attend(a), attend(b)))(0.5, 2.0)
    assert_close(both, (expected(0.5, 2), expected(2.0, 2)), rtol=1e-5, atol=1e-5)


def scaled(rule):
    """Twice what it is given, whose derivative is said to be ``rule``."""

    @jax.custom_jvp
    def twice(x):
        return 2 * x

    twice.defjvp(lambda primals, tangents: (twice(*primals), rule * tangents[0]))
    return twice


@pytest.mark.parametrize("is_in_a_branch", [False, True])
def test_two_that_differ_by_their_derivative_alone_are_two(is_in_a_branch, implementation):
    """In one call, and in one after the other."""
    x = np.random.default_rng(0).normal(size=(1, 7, 2, 4)).astype(np.float32)
    distances = np.arange(7) - np.arange(7)[:, None]

    def at_most_twice(function, p):
        return jax.lax.cond(p > -9, function, lambda p: p, p) if is_in_a_branch else function(p)

    def change(s, distances, p, rules):
        first, second = (at_most_twice(scaled(rule), p) for rule in rules)
        return s * first + distances * second

    def ours(p, rules):
        output = attn.dot_product_attention(
            *(x, x, x),
            score=lambda s, at, p: change(s, at.key - at.query, p, rules),
            score_params=p,
            implementation=implementation,
        )
        return jnp.sum(output**2)

    def dense(p, rules):
        by = functools.partial(change, distances=distances, p=p, rules=rules)
        allowed = np.ones((7, 7), bool)
        return jnp.sum(oracle.dense(x, x, x, allowed=allowed, change=by)[0] ** 2)

    for rules in ((0.0, 5.0), (3.0, 1.0), (0.0, 5.0)):
        found, expected = (jax.grad(f)(jnp.float32(0.2), rules) for f in (ours, dense))
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def read_by(how, table):
    """A function of heads that reads a table from within a program of its own."""
    of_heads = jax.jit(lambda head: jnp.asarray(table)[head])
    if how == "jit":
        return of_heads
    if how == "vmap of jit":
        return jax.vmap(of_heads)
    nothing = jnp.zeros((), jnp.float32)
    return lambda head: jax.lax.fori_loop(0, 2, lambda _, x: x + of_heads(head) / 2, head * nothing)


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("how", ["jit", "vmap of jit", "loop of jit"])
def test_what_a_program_within_reads_is_read_at_every_call(how, as_array):
    """What it closes over is in no text of its operations."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 3, 4)), jnp.float32)
    for table in ([1.0, 2.0, 3.0], [-3.0, 0.5, 1.0], [1.0, 2.0, 3.0]):
        numbers = as_array(np.array(table, np.float32))
        function = read_by(how, numbers)
        mask = masks.Where(lambda at, f=function: (f(at.head) > 0) | (at.key <= at.query))
        score = lambda s, at, _, f=function: s * f(at.head)  # noqa: E731
        found = attn.dot_product_attention(x, x, x, mask=mask, score=score)
        allowed = (numbers > 0)[:, None, None] | np.tri(9, dtype=bool)
        expected, _ = oracle.dense(
            x, x, x, allowed=allowed, change=lambda s, f=numbers: s * f[:, None, None]
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
