"""The check of a setting."""

from typing import Any


def check(config: Any, names: str, accept: Any, expected: str) -> None:
    """Raises ValueError, with what came and what was expected, for a field that is not accepted.

    Args:
      config: a dataclass.
      names: of fields, between spaces.
      accept: of a value, says whether it may be.
      expected: in words.
    """
    for name in names.split():
        value = getattr(config, name)
        if not accept(value):
            raise ValueError(f"{name} is {value!r}; expected {expected}")
