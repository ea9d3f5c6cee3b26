"""What Mosaic has for GPUs of the operations that a function of pairs is made of."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax

from attn.kernels.instead import OF_BOTH, Operations, erfc

HAS = frozenset(
    """
    abs add and broadcast_in_dim clamp cos div eq exp exp2 ge gt le log logistic lt max min mul ne
    neg or rem round rsqrt select_n shift_left shift_right_logical sign sin square sub tanh xor
    """.split()  # noqa: SIM905
)
"""In the layout of a product, in jax 0.10 and 0.11; in all dtypes but where ``INSTEAD`` has it."""


def _log1p(x, **_):
    """Goldberg, "What every computer scientist should know about floating-point", theorem 4."""
    u = 1 + x
    return jnp.where((u == 1) | (u == jnp.inf), x, x * jnp.log(u) / (u - 1))


def _sqrt(x, **_):
    return jnp.where((x == 0) | (x == jnp.inf), x, x * lax.rsqrt(x))


def _threefry2x32(key0, key1, x0, x1):
    """Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011: 20 rounds."""
    keys = key0, key1, key0 ^ key1 ^ jnp.uint32(0x1BD11BDA)
    rotations = (13, 15, 26, 6), (17, 29, 16, 24)
    x0, x1 = x0 + key0, x1 + key1
    for n in range(5):
        for distance in rotations[n % 2]:
            x0 = x0 + x1
            x1 = x1 << jnp.uint32(distance) | x1 >> jnp.uint32(32 - distance)
            x1 = x0 ^ x1
        x0, x1 = x0 + keys[(n + 1) % 3], x1 + keys[(n + 2) % 3] + jnp.uint32(n + 1)
    return x0, x1


def _atan(x):
    """Of 0 to 1; Moshier, "Methods and programs for mathematical functions", 1989."""
    is_far = x > math.tan(math.pi / 8)
    x = jnp.where(is_far, (x - 1) / (x + 1), x)
    total, square = jnp.full_like(x, 8.05374449538e-2), x * x
    for term in (-1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1):
        total = total * square + term
    return total * square * x + x + jnp.where(is_far, math.pi / 4, 0).astype(x.dtype)


def _atan2(y, x, **_):
    """-0 is taken for 0."""
    if x.dtype == jnp.float64:
        return lax.atan2(y, x)
    more, less = (f(jnp.abs(y), jnp.abs(x)) for f in (jnp.maximum, jnp.minimum))
    found = _atan(jnp.where(more == less, (more > 0).astype(x.dtype), less / more))
    found = jnp.where(jnp.abs(y) > jnp.abs(x), math.pi / 2 - found, found)
    found = jnp.where(x < 0, math.pi - found, found)
    return jnp.where(y < 0, -found, found)


def _erf(x, **_):
    """By its series where it is not near 1."""
    if x.dtype == jnp.float64:
        return lax.erf(x)
    near, total = jnp.clip(x, -1, 1), jnp.zeros_like(x)
    for n in range(9, -1, -1):
        term = (-1) ** n / (math.factorial(n) * (2 * n + 1))
        total = total * near * near + 2 / math.sqrt(math.pi) * term
    far = 1 - erfc(jnp.abs(x))
    return jnp.where(jnp.abs(x) < 1, total * near, jnp.where(x < 0, -far, far))


def _not(x):
    return x ^ True if x.dtype == jnp.bool_ else lax.bitwise_not(x)


def _convert_element_type(x, *, new_dtype, **params):
    if jnp.issubdtype(new_dtype, jnp.bool_):
        return x != 0
    return lax.convert_element_type_p.bind(x, new_dtype=new_dtype, **params)


def _integer_pow(x, *, y):
    """By squares; Knuth, "The Art of Computer Programming", volume 2, section 4.6.3."""
    power, rest = jnp.ones_like(x), abs(y)
    while rest:
        power, rest = power * x if rest % 2 else power, rest // 2
        x = x * x
    return 1 / power if y < 0 else power


def _floor(x, **_):
    nearest = lax.round(x)
    return nearest - (nearest > x).astype(x.dtype)


def _pow(x, y, **_):
    """``exp2(y log2 x)``: off by 2e-5 of itself at most, and by less if it is of usual size.

    -0 is taken for 0.
    """
    y = y.astype(x.dtype)
    is_whole, is_odd = _floor(y) == y, _floor(y / 2) != y / 2
    logarithm = jnp.log(jnp.abs(x)) * np.asarray(1 / math.log(2), x.dtype)
    power = jnp.exp2(jnp.where(logarithm == 0, 0, y * logarithm))
    below = jnp.where(
        is_whole | (x == -jnp.inf), jnp.where(is_whole & is_odd, -power, power), jnp.nan
    )
    power = jnp.where(x >= 0, power, below)
    return jnp.where(y == 0, 1, power)


def _rem(x, y, **_):
    """With the sign of x, off by a rounding of x."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return lax.rem_p.bind(x, y)
    quotient = x / y
    whole = jnp.where(quotient < 0, -_floor(-quotient), _floor(quotient))
    rest = jnp.where(jnp.abs(y) == jnp.inf, x, x - whole * y)
    short = jnp.where(x < 0, -jnp.abs(y), jnp.abs(y))
    is_other = jnp.where(x < 0, rest > 0, rest < 0)
    return jnp.where(
        is_other, rest + short, jnp.where(jnp.abs(rest) >= jnp.abs(y), rest - short, rest)
    )


INSTEAD: dict[str, Callable] = OF_BOTH | {
    "add_any": lax.add,
    "atan2": _atan2,
    "ceil": lambda x, **_: -_floor(-x),
    "convert_element_type": _convert_element_type,
    "erf": _erf,
    "floor": _floor,
    "integer_pow": _integer_pow,
    "is_finite": lambda x: x - x == 0,
    "log1p": _log1p,
    "not": _not,
    "pow": _pow,
    "rem": _rem,
    "sqrt": _sqrt,
    "stop_gradient": lambda x: x,
    "tan": lambda x, **_: jnp.sin(x) / jnp.cos(x),
    "threefry2x32": _threefry2x32,
}
"""What is the same as one that it has not, or not all of; they take its parameters."""
DTYPES = frozenset(("bool", "int32", "uint32", "float32", "bfloat16", "float16"))
OPERATIONS = Operations(HAS, DTYPES, INSTEAD)
"""Those of a kernel."""
