"""The function under test: how it is called, what it takes, and what counts as a refusal."""

import contextlib
import contextvars
import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np

from attn.testing.case import FEATURES, Case

REFUSALS = (ValueError, TypeError, NotImplementedError, AssertionError)


class NotOffered(Exception):
    """The function does not take what a law needs; its message says how that is known."""


class Broken(AssertionError):
    """A law does not hold; the message says so in one line, with figures."""


def summary(error: BaseException) -> str:
    """Returns an exception in one line."""
    lines = str(error).strip().splitlines() or ["no message"]
    line = lines[0] if len(lines[0]) <= 140 else f"{lines[0][:137]}..."
    return f"{type(error).__name__}: {line}"


def is_refusal(error: BaseException) -> bool:
    """Returns whether an exception says no, rather than that something went wrong."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_refusal, error.exceptions))
    return isinstance(error, REFUSALS)


class Subject:
    """An attention function with the calling convention of ``jax.nn.dot_product_attention``.

    Keywords are passed only where a call needs them, so a function may have any subset of them.
    What it takes is as the user says, or found by asking: a keyword that is not in its signature
    is not taken, nor is a call that raises one of ``REFUSALS``.
    """

    def __init__(self, function: Callable[..., Any], takes: Collection[str] | None = None):
        if unknown := set(takes or ()) - set(FEATURES):
            raise ValueError(f"takes {sorted(unknown)}; expected some of {', '.join(FEATURES)}")
        self.function = function
        self.takes = None if takes is None else frozenset(takes)
        self._refusals: dict[str, str | None] = {}

    def refusal(self, feature: str) -> str | None:
        """Returns why the function does not take something of ``FEATURES``, None if it does."""
        if feature not in self._refusals:
            self._refusals[feature] = self._ask(feature)
        return self._refusals[feature]

    def offers(self, feature: str) -> bool:
        """Returns whether the function takes something of ``FEATURES``."""
        return self.refusal(feature) is None

    def _ask(self, feature: str) -> str | None:
        if self.takes is not None:
            return None if feature in self.takes else "not said to be taken"
        if feature in _KEYWORDS and feature not in self._keywords:
            return "not in its signature"
        try:
            self.check(FEATURES[feature])
        except NotOffered as error:
            return str(error)
        except Exception:
            # It is taken, and goes wrong: for the laws that need it to find.
            return None
        return None

    @functools.cached_property
    def _keywords(self) -> frozenset[str]:
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):
            return _KEYWORDS
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return _KEYWORDS
        return frozenset(p.name for p in parameters)

    def call(self, case: Case, inputs: dict[str, Any], arrays: dict[str, Any]) -> Any:
        """Returns what the function returns, whatever that is."""
        others = {name: x for name, x in inputs.items() if name not in _FIRST}
        first = (inputs[name] for name in _FIRST)
        return self.function(*first, **{**case.options(), **others, **arrays})

    def check(self, case: Case, inputs: dict[str, Any] | None = None) -> None:
        """Raises NotOffered if the function refuses the call, without computing it."""
        inputs = case.inputs() if inputs is None else inputs
        call = functools.partial(self.call, case)
        with precision(case):
            self._or_not_offered(jax.eval_shape, call, inputs, case.arrays())

    def compiled(self, case: Case) -> Callable[[dict[str, Any]], Any]:
        """Returns the function of a call's inputs, compiled; it returns NumPy arrays."""
        call, arrays = jit(functools.partial(self.call, case)), case.arrays()

        def run(inputs):
            with precision(case):
                return jax.device_get(self._or_not_offered(call, inputs, arrays))

        return run

    def run(self, case: Case, inputs: dict[str, Any] | None = None) -> Any:
        """Returns, in NumPy, the function of the case's inputs or of those given, compiled."""
        return self.compiled(case)(case.inputs() if inputs is None else inputs)

    def _or_not_offered(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            if not is_refusal(error):
                raise
            raise NotOffered(summary(error)) from error


_FIRST = ("query", "key", "value")
_KEYWORDS = frozenset(
    name for name in inspect.signature(jax.nn.dot_product_attention).parameters
) & frozenset(FEATURES)


def precision(case: Case) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which arrays of the case's dtype keep it."""
    return jax.enable_x64(True) if case.dtype == "float64" else contextlib.nullcontext()


_IN_A_HURRY = contextvars.ContextVar("_IN_A_HURRY", default=True)


@contextlib.contextmanager
def compiled_as_by_default() -> Iterator[None]:
    """A context in which nothing is left out of compilation."""
    token = _IN_A_HURRY.set(False)
    try:
        yield
    finally:
        _IN_A_HURRY.reset(token)


def quick_to_compile() -> dict[str, Any]:
    """Returns options of the compiler: the same program in a sixth of the time, less polished."""
    if not _IN_A_HURRY.get():
        return {}
    return if_known(xla_backend_optimization_level=0, xla_cpu_use_fusion_emitters=False)


@functools.cache
def if_known(**options: Any) -> dict[str, Any]:
    """Returns options of the compiler, or none where it does not know them all."""
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(np.float32(1))
    except Exception:  # They come and go with versions.
        return {}
    return options


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``jax.jit`` of the function, quick to compile."""
    return jax.jit(function, compiler_options=quick_to_compile())
