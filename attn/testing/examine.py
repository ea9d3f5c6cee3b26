"""Laws against a function: all of them for a report, or one of them in a test."""

import time
import unittest
from collections.abc import Callable, Collection
from typing import Any

import jax

from attn.testing.laws import LAWS, Law
from attn.testing.report import FAILED, NOT_OFFERED, PASSED, Report, Result
from attn.testing.subject import Broken, NotOffered, Subject, compiled_as_by_default, summary


def check(
    function: Callable[..., Any],
    *,
    takes: Collection[str] | None = None,
    laws: Collection[str] | None = None,
    name: str | None = None,
) -> Report:
    """Returns which laws of attention hold for a function.

    Costs about a minute on one core, nearly all of it compilation.

    Args:
      function: with the calling convention of ``jax.nn.dot_product_attention``, or any part of it:
        ``(query, key, value)`` and, by keyword, those of ``bias``, ``mask``, ``scale``,
        ``is_causal``, ``query_seq_lengths``, ``key_value_seq_lengths``, ``local_window_size``
        and ``return_residual`` that it has.
      takes: what it takes, some of ``attn.testing.FEATURES``, and then refuses at its peril. Found
        out if None: from its signature, and from which calls raise ValueError, TypeError,
        NotImplementedError or AssertionError.
      laws: names of laws, or of groups of them; all if None.
      name: what the report calls it; its own name if None.

    Returns:
      A report; ``print`` it, or call its ``raise_if_failed``.

    Raises:
      ValueError: for a name that is not one.

    Example:
      >>> import attn.testing, jax
      >>> report = attn.testing.check(jax.nn.dot_product_attention, laws=["plain call"])
      >>> report.ok
      True
    """
    known = {law.name for law in LAWS} | {law.group for law in LAWS}
    if unknown := set(laws or ()) - known:
        raise ValueError(f"laws are {sorted(unknown)}; expected some of {sorted(known)}")
    subject = Subject(function, takes)
    results = [
        _examine(law, subject)
        for law in LAWS
        if laws is None or law.name in laws or law.group in laws
    ]
    own_name = getattr(function, "__name__", type(function).__name__)
    return Report(name or own_name, tuple(results))


def run(
    law: Law | str, function: Callable[..., Any], *, takes: Collection[str] | None = None
) -> None:
    """Raises AssertionError if a law does not hold for a function: one test of a suite.

    Where the function does not take what the law needs, raises ``unittest.SkipTest``, which pytest
    and unittest both count as skipped.

    Args:
      law: one of ``attn.testing.LAWS``, or the name of one.
      function: as for ``check``.
      takes: as for ``check``.

    Raises:
      ValueError: for a name that is not one.
    """
    if isinstance(law, str):
        named = {other.name: other for other in LAWS}
        if law not in named:
            raise ValueError(f"law is {law!r}; expected one of {', '.join(named)}")
        law = named[law]
    result = _examine(law, Subject(function, takes))
    if result.status == FAILED:
        raise AssertionError(f"{law.name}: {result.reason}. The law: {law.statement}")
    if result.status == NOT_OFFERED:
        raise unittest.SkipTest(result.reason)


def _examine(law: Law, subject: Subject) -> Result:
    start = time.perf_counter()
    # So that the limits, which are those of float32, mean the same on every device.
    with jax.default_matmul_precision("highest"):
        status, reason = _outcome(law, subject)
        if status == FAILED:
            # XLA in a hurry is not beyond doubt: it has made inf of a peer's right gradient.
            with compiled_as_by_default():
                status, reason = _outcome(law, subject)
    return Result(law, status, reason, time.perf_counter() - start)


def _outcome(law: Law, subject: Subject) -> tuple[Any, str]:
    try:
        for feature in law.needs:
            if (refusal := subject.refusal(feature)) is not None:
                return NOT_OFFERED, f"{feature}: {refusal}"
        law.test(subject)
    except NotOffered as error:
        promised = subject.takes is not None and law.needs
        return (FAILED, f"refused: {error}") if promised else (NOT_OFFERED, str(error))
    except Broken as error:
        return FAILED, str(error)
    except Exception as error:
        return FAILED, f"raises {summary(error)}"
    return PASSED, ""
