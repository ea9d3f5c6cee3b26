"""What a law is, the registry, and the comparisons that laws are made of."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from attn.testing.case import FEATURES
from attn.testing.subject import Broken, Subject

FLOAT32 = 2e-5
"""Error of values in float32 that a law allows, in units of the largest number."""

DERIVATIVES = 2e-4
"""The same of derivatives."""


@dataclasses.dataclass(frozen=True)
class Law:
    """Something that is true of attention, and a way to find out whether it is of a function."""

    name: str
    group: str
    statement: str
    needs: tuple[str, ...]
    """Names of ``FEATURES``; a function without one of them is not held to the law."""
    test: Callable[[Subject], None]
    """Raises Broken where the law does not hold, NotOffered where the function refuses."""

    @property
    def __name__(self) -> str:
        """What pytest names a parameter by."""
        return self.name

    def __str__(self) -> str:
        return self.name


LAWS: list[Law] = []
"""All laws, in the order in which a report lists them."""


def law(*needs: str) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Returns a decorator that adds a function to ``LAWS``; its docstring is the statement."""
    if unknown := set(needs) - set(FEATURES):
        raise ValueError(f"a law needs {sorted(unknown)}; expected some of {', '.join(FEATURES)}")

    def register(test: Callable[[Subject], None]) -> Callable[[Subject], None]:
        name = test.__name__.replace("_", " ")
        group = test.__module__.rpartition(".")[2]
        statement = " ".join((test.__doc__ or "").split())
        if not statement or any(name == other.name for other in LAWS):
            raise ValueError(f"law {name!r} needs a docstring, and a name that no other law has")
        LAWS.append(Law(name, group, statement, needs, test))
        return test

    return register


def check_close(name: str, actual: Any, expected: np.ndarray, limit: float) -> None:
    """Raises Broken unless the numbers agree to ``limit`` of the largest that is expected."""
    actual = check_shape(name, actual, expected.shape)
    infinite = ~np.isfinite(expected)
    if not np.array_equal(actual[infinite], expected[infinite], equal_nan=True):
        found = actual[infinite][actual[infinite] != expected[infinite]][0]
        raise Broken(f"{name} is {found:.3g} where it should be {expected[infinite][0]:.3g}")
    actual, expected = actual[~infinite], expected[~infinite]
    if bad := np.sum(~np.isfinite(actual)):
        raise Broken(f"{name}: {bad} of {actual.size} numbers are NaN or infinite")
    error, largest = (np.max(np.abs(x), initial=0) for x in (actual - expected, expected))
    if error > limit * largest:
        raise Broken(
            f"{name} is off by {error:.1e} where the largest is {largest:.1e}; allowed "
            f"{limit * largest:.1e}"
        )


def check_shape(name: str, actual: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array in float64; raises Broken unless it has the shape."""
    if isinstance(actual, (tuple, list)) or not hasattr(actual, "shape"):
        raise Broken(f"{name} is a {type(actual).__name__} where it should be an array")
    if actual.shape != shape:
        raise Broken(f"{name} has shape {actual.shape} where it should have {shape}")
    return np.asarray(actual).astype(np.float64)


def check_zero(name: str, actual: Any) -> None:
    """Raises Broken unless all numbers are exactly 0."""
    actual = np.asarray(actual).astype(np.float64)
    if wrong := np.sum(actual != 0):
        found = actual[actual != 0].flat
        raise Broken(
            f"{name} is not 0 in {wrong} of {actual.size} numbers, the first {found[0]:.2g}"
        )


def check_finite(name: str, actual: Any) -> None:
    """Raises Broken unless all numbers are finite."""
    actual = np.asarray(actual).astype(np.float64)
    if bad := np.sum(~np.isfinite(actual)):
        raise Broken(f"{name}: {bad} of {actual.size} numbers are NaN or infinite")


def outputs_of(returned: Any) -> tuple[Any, Any]:
    """Returns output and log-sum-exp of a call with ``return_residual``."""
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise Broken("with return_residual it does not return a pair, output and log-sum-exp")
    return returned[0], returned[1]
