"""Kernels in the place of what they compute: where the platform has them, and they can take a call.

What a kernel computes is defined without it, by operations that JAX can do everything with. A
kernel is another way to run it, chosen when a program is compiled and its platform is known; rules
of derivatives and of batching never see it. It may refuse a call, and then the definition runs.

A platform and its kernels are one line in ``KERNELS``, and a name in ``USUAL`` if they run unasked.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import AbstractMesh

from attn.devices import abstract

KERNELS: dict[str, dict[str, dict[str, Any]]] = {
    "fused": {
        "tpu": {"kernels": "tpu", "interpret": False},
        "cuda": {"kernels": "gpu", "interpret": False},
        "cpu": {"kernels": "tpu", "interpret": True},
    },
    "cudnn": {"cuda": {"kernels": "cudnn", "interpret": False}},
}
"""By implementation: on which platforms its kernels run, which of ``attn.kernels``, and how."""
USUAL = {"tpu": ("fused",), "cuda": ("cudnn", "fused")}
"""Which of them run where nothing is named, by platform: the first that takes the call."""

DIVIDED = "XLA divides it over devices; call it in jax.shard_map"
"""Why no kernel runs a call of arrays that are over several devices."""


def usual_of(platform: str) -> tuple[str, ...]:
    """Returns the implementations of which, on a platform, the first that takes a call runs.

    If none does, it is "blockwise".
    """
    return USUAL.get(_of_jax(platform), ())


def options_of(platform: str, name: str) -> dict[str, Any] | None:
    """Returns which kernels of an implementation run on a platform, and how; None if none do.

    Args:
      platform: as ``jax.default_backend`` names it, or as lowering does.
      name: of the implementation.
    """
    return KERNELS.get(name, {}).get(_of_jax(platform))


def all_options_of(platform: str, name: str | None) -> list[dict[str, Any]]:
    """Returns the same of the implementation that is named, or of the usual ones."""
    names = usual_of(platform) if name is None else (name,)
    found = [options_of(platform, name) for name in names]
    return [options for options in found if options is not None]


def _of_jax(platform: str) -> str:
    return "cuda" if platform == "gpu" else platform


class Refused(ValueError):
    """A kernel cannot take a call; an error where it was named, else the definition runs."""

    def __init__(self, reason: str, name: str = "fused"):
        super().__init__(f"implementation is {name!r}, and the call is not for it: {reason}")
        self.reason = reason


class Kernel(NamedTuple):
    """Another way to run something."""

    run: Callable[..., list[Any]]
    """``(*operands, **of the platform)``, as what it stands for; raises ``Refused``."""
    name: str | None
    """Of the implementation, if it runs or the call fails; None if the definition may run."""

    def batch(self, size: int, mapped: Sequence[bool]) -> "Kernel":
        """Returns the kernel over ``size`` lanes; what is mapped has them as its first axis."""
        in_axes = [0 if is_mapped else None for is_mapped in mapped]

        def run(*operands, **platform):
            of_lane = functools.partial(self.run, **platform)
            return jax.vmap(of_lane, in_axes, axis_size=size)(*operands)

        return self._replace(run=run)


class Pull(NamedTuple):
    """The transpose of a sum over tiles, as a kernel."""

    function: Callable
    """``(operands, cotangents, **of the platform)`` gives those of the linear operands, which are
    None among the operands, as are cotangents that are 0; and any for what is None in ``linear``.
    """
    linear: Callable
    """Of the operands, gives the subtree of those in which the sum is linear."""
    name: str | None
    """See ``Kernel``."""

    def of_leaves(self, tree: Any) -> Callable:
        """Returns ``(linear, given) -> Kernel | None``, of operands of this structure, by place."""
        count, every = tree.num_leaves, functools.partial(jax.tree.leaves, is_leaf=_is_none)
        places = every(self.linear(jax.tree.unflatten(tree, range(count))))

        def transposed(linear, given):
            if sorted(linear) != sorted(k for k in places if k is not None):
                return None
            rest = [k for k in range(count) if k not in linear]

            def run(*leaves, **platform):
                operands: list[Any] = [None] * count
                cotangents: list[Any] = [None] * (max(given) + 1)
                for k, x in zip(rest, leaves, strict=False):
                    operands[k] = x
                for k, x in zip(given, leaves[len(rest) :], strict=True):
                    cotangents[k] = x
                found = self.function(jax.tree.unflatten(tree, operands), cotangents, **platform)
                found = dict(zip(places, every(found), strict=True))
                return [found[k] for k in linear]

            return Kernel(run, self.name)

        return transposed


def _is_none(x: Any) -> bool:
    return x is None


class Opaque(NamedTuple):
    """A function of arrays that JAX looks into when it compiles, not before."""

    definition: Callable[..., list[Any]]
    outs: tuple[jax.ShapeDtypeStruct, ...]
    """The types of the results."""
    kernel: Kernel | None = None
    """Another way to run it."""
    is_plain: bool = False
    """Whether the function is not to see over which axes of a mesh arrays vary."""
    over_lanes: Callable[[int, Sequence[bool]], "Opaque"] | None = None
    """What ``batch`` returns, where that is more than ``jax.vmap`` of the definition."""

    def __call__(self, *operands: Any) -> list[Any]:
        """Returns the results."""
        return opaque_p.bind(*operands, function=self)

    def batch(self, size: int, mapped: Sequence[bool]) -> "Opaque":
        """Returns what is done over ``size`` lanes; what is mapped has them as its first axis."""
        if self.over_lanes is not None:
            return self.over_lanes(size, mapped)
        in_axes = [0 if is_mapped else None for is_mapped in mapped]
        return self._replace(
            definition=jax.vmap(self.definition, in_axes, axis_size=size),
            outs=tuple(jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for x in self.outs),
            kernel=None if self.kernel is None else self.kernel.batch(size, mapped),
        )


opaque_p = Primitive("opaque")
opaque_p.multiple_results = True
opaque_p.def_impl(lambda *operands, function: jax.jit(function)(*operands))


@opaque_p.def_abstract_eval
def _abstract_eval(*operands, function):
    return [abstract(x.shape, x.dtype, operands) for x in function.outs]


def _batch(operands, axes, *, function):
    pairs = list(zip(operands, axes, strict=True))
    size = next(x.shape[axis] for x, axis in pairs if axis is not None)
    operands = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in pairs]
    outs = function.batch(size, [axis is not None for axis in axes])(*operands)
    return outs, [0] * len(outs)


batching.primitive_batchers[opaque_p] = _batch


def register(primitive: Primitive, of_params: Callable) -> None:
    """Gives a primitive of many results its lowering on every platform.

    Args:
      primitive: to be lowered.
      of_params: of its parameters, an ``Opaque``.
    """

    def lower(platform):
        def rule(context, *operands, **params):
            function = of_params(**params)
            if function.is_plain:
                plain = [
                    [ShapedArray(x.shape, x.dtype) for x in types]
                    for types in (context.avals_in, context.avals_out)
                ]
                context = context.replace(avals_in=plain[0], avals_out=plain[1])
            for options in _ways(platform, function.kernel):
                run = functools.partial(function.kernel.run, **options)
                try:
                    if not options["interpret"] and _is_divided(context):
                        raise Refused(DIVIDED)
                    where = _whole(context) if options["kernels"] == "cudnn" else context
                    return mlir.lower_fun(run, multiple_results=True)(where, *operands)
                except Refused:
                    if function.kernel.name is not None:
                        raise
            return mlir.lower_fun(function.definition, multiple_results=True)(context, *operands)

        return rule

    mlir.register_lowering(primitive, lower("this platform"))
    for platform in ("cpu", "cuda", "rocm", "tpu"):
        mlir.register_lowering(primitive, lower(platform), platform=platform)


def _whole(context: Any) -> Any:
    """Returns the context of a program for one device as that of a device of a mesh.

    There is nothing to divide, which what ``jax.nn`` calls would else look into.
    """
    if not isinstance(context.module_context.axis_context, mlir.ShardingContext):
        return context
    mesh = AbstractMesh((1,), ("whole",))
    axes = mlir.SPMDAxisContext(mesh, frozenset(mesh.axis_names))  # pyright: ignore
    return context.replace(module_context=context.module_context.replace(axis_context=axes))


def _is_divided(context: Any) -> bool:
    """Returns whether XLA divides the program over devices, which it cannot do with a kernel."""
    axes = context.module_context.axis_context
    if hasattr(axes, "num_devices"):
        return (axes.num_devices or 1) > 1
    manual = frozenset(getattr(axes, "manual_axes", ()))
    if not manual:
        return False
    return manual | frozenset(axes.mesh.manual_axes) != frozenset(axes.mesh.axis_names)


def _ways(platform: str, kernel: Kernel | None) -> list[dict[str, Any]]:
    """Returns how a kernel is called: one after the other, until one takes the call."""
    if kernel is None:
        return []
    found = all_options_of(platform, kernel.name)
    if not found and kernel.name is not None:
        raise Refused(f"there is no kernel for {platform}", kernel.name)
    return found


register(opaque_p, lambda function: function)
