"""The two passes of first order as Pallas kernels; what they compute is in ``attn.blockwise``.

Pallas takes a third of a second to import: so the modules are imported when one of them is asked.
"""

from typing import Any

from jaxtyping import Array


def check(plan: Any, context: Any, inputs: Any, *, interpret: bool = True) -> None:
    """Raises ``attn.overrides.Refused`` if kernels, interpreted or not, cannot take the call."""
    from attn.kernels.call import taken_apart

    taken_apart(plan, context, inputs, interpret=interpret)


def attend(plan: Any, context: Any, inputs: Any, **platform: Any) -> tuple[Array, Array]:
    """Returns output and log-sum-exp; see ``attn.kernels.forward``."""
    from attn.kernels.call import taken_apart
    from attn.kernels.forward import forward

    return forward(taken_apart(plan, context, inputs, **platform), context, inputs)


def pull(plan: Any, context: Any, inputs: Any, *rest: Array, **platform: Any) -> Any:
    """Returns the cotangents of the inputs; see ``attn.kernels.backward``."""
    from attn.kernels.backward import backward
    from attn.kernels.call import taken_apart

    return backward(taken_apart(plan, context, inputs, **platform), context, inputs, *rest)
